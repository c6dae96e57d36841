"""Arrays that children hand over in shared memory: whole, in nobody's way, and gone with their last reader."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import Pipe
from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.runtime import shared_memory as handover
from sightline.runtime.shared_memory import ArrayLocation, SharedSlots

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has files without a name in memory")


@pytest.fixture(autouse=True)
def _no_descriptor_is_left() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


def in_child(slots: SharedSlots, arrays: list[np.ndarray], slot: int) -> tuple[ArrayLocation, ...]:
    """The places of arrays that a forked child laid down."""
    ours, theirs = Pipe()
    pid = os.fork()
    if pid == 0:
        theirs.send(slots.write(slot, arrays))
        os._exit(0)
    places = ours.recv()
    os.waitpid(pid, 0)
    ours.close()
    theirs.close()
    return places


def taken(slots: SharedSlots) -> int:
    slot = slots.acquire()
    assert slot is not None
    return slot


def used(slots: SharedSlots, *arrays: np.ndarray) -> list[np.ndarray]:
    """Arrays on the way through a slot."""
    slot = taken(slots)
    places = slots.write(slot, arrays)
    assert places is not None
    return slots.views(slot, places)


def drawn(seed: int, size: int) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [
        draw.integers(0, 256, (size, 3, 5), dtype=np.uint8),
        np.zeros((0, 4), dtype=np.int64),
        draw.integers(0, 1000, (2, size)),
        draw.normal(size=(7, size)).T,
        draw.integers(0, 9, 4 * size)[::2],
        np.array(seed),
    ]


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_what_a_child_lays_down_is_what_the_parent_reads() -> None:
    slots = SharedSlots(2)
    for seed, size in ((0, 10), (1, 100_000), (2, 3)):  # the slot grows, and is used again
        slot = taken(slots)
        found = slots.views(slot, in_child(slots, drawn(seed, size), slot))
        for array, expected in zip(found, drawn(seed, size), strict=True):
            np.testing.assert_array_equal(array, expected)
            assert array.dtype == expected.dtype
            assert array.shape == expected.shape
            assert array.flags.writeable
            assert array.flags.aligned
        del array, found


def test_a_slot_is_taken_again_only_when_the_last_of_its_arrays_is_gone() -> None:
    slots = SharedSlots(1)
    first, second = used(slots, np.arange(6), np.ones(3))
    part = torch.from_numpy(first)[2:4].view(1, 2)
    other = second[1:].reshape(2, 1)
    del first, second
    assert slots.acquire() is None
    assert part.tolist() == [[2, 3]]
    del part
    assert slots.acquire() is None
    del other
    assert slots.acquire() == 0


def test_arrays_that_do_not_fit_have_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    slots = SharedSlots(1)
    monkeypatch.setattr(handover, "SLOT_BYTES", 40)
    slot = taken(slots)
    assert slots.write(slot, [np.arange(6)]) is None
    assert slots.acquire() is None
    slots.release(slot)
    assert slots.acquire() == slot


def test_a_system_without_such_memory_has_no_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(name: str) -> int:
        raise OSError("not here")

    monkeypatch.setattr(os, "memfd_create", refused)
    assert SharedSlots(3).acquire() is None
    assert SharedSlots(0).acquire() is None


def test_arrays_outlive_the_slots_they_lie_in() -> None:
    slots = SharedSlots(1)
    (found,) = used(slots, np.arange(5000))
    del slots
    assert found.sum() == 4999 * 2500


def test_memory_is_taken_as_results_need_it_and_not_more_with_each_of_them() -> None:
    slots = SharedSlots(3)
    for number in range(12):
        (found,) = used(slots, np.full(1 << 20, number, dtype=np.uint8))
        assert int(found[-1]) == number
        held = os.stat(f"/proc/self/fd/{slots._file}").st_blocks * 512
        assert held <= 2 << 20, "one result in use while the next is made: two slots of a megabyte"


PROCESSES = """
import os, signal, sys, time
import numpy as np
from sightline.runtime.shared_memory import SharedSlots
slots = SharedSlots(2)
slot = slots.acquire()
if os.fork() == 0:
    slots.write(slot, [np.ones(64 << 20, np.uint8)])
    print(os.getpid(), flush=True)
    time.sleep(60)
time.sleep(60)
"""


def shared_memory() -> int:
    """Bytes of shared memory on the whole machine."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Shmem:"))


def test_processes_that_are_killed_leave_no_memory_behind() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PROCESSES], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    full = shared_memory()
    for pid in (child, parent.pid):
        os.kill(pid, signal.SIGKILL)
    parent.communicate()
    end = time.monotonic() + 10
    while shared_memory() > full - (48 << 20):
        assert time.monotonic() < end, "the memory is still there"
        time.sleep(0.05)
