"""The guarded pool: tasks that crash, hang or eat memory cost themselves alone."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sightline.errors import DistributedError, StorageError
from sightline.runtime import workers
from sightline.runtime.workers import TASKS_PER_WORKER, GuardedPool, TaskFailure, usable_cores
from tests.runtime import worker_hooks
from tests.runtime.worker_hooks import act

MEGABYTE = 1 << 20


def children() -> set[int]:
    """Processes, zombies included, whose parent this one is."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            found.add(int(stat.parent.name))
    return found


@pytest.fixture(autouse=True)
def _no_child_and_no_descriptor_is_left() -> Iterator[None]:
    processes, descriptors = children(), len(os.listdir("/proc/self/fd"))
    yield
    assert children() == processes
    assert len(os.listdir("/proc/self/fd")) == descriptors


def reasons(outcomes: list[object]) -> list[object]:
    return [outcome.reason if isinstance(outcome, TaskFailure) else outcome for outcome in outcomes]


def test_cores_are_those_that_the_process_may_use_where_the_system_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert usable_cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")  # macOS
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert usable_cores() == 5
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1


BAD = {
    "segfault": ("segfault", 0),
    "abort": ("abort", 0),
    "loop": ("loop", 0),
    "stop": ("signal", signal.SIGSTOP),
    "kill": ("signal", signal.SIGKILL),
    "exit": ("exit", 3),
    "allocate": ("allocate", 8192),
    "raise": ("raise", 0),
    "skip": ("skip", 0),
    "local": ("local", 0),
}
REASONS = {
    "segfault": "worker_crashed",
    "abort": "worker_crashed",
    "loop": "worker_timeout",
    "stop": "worker_timeout",
    "kill": "worker_crashed",
    "exit": "worker_crashed",
    "allocate": "worker_memory",
    "raise": "worker_error",
    "skip": "image_broken",
    "local": "worker_error",
}


def test_each_bad_task_costs_itself_alone_and_order_is_kept() -> None:
    tasks, expected = [], []
    for index, name in enumerate(BAD):
        tasks += [("double", index), BAD[name], ("double", -index)]
        expected += [2 * index, REASONS[name], -2 * index]
    with GuardedPool(act, 2, timeout_s=1.0, memory_bytes=500 * MEGABYTE) as pool:
        outcomes = list(pool.map(tasks))
    assert reasons(outcomes) == expected
    details = {name: outcomes[3 * index + 1].detail for index, name in enumerate(BAD)}
    assert "SIGSEGV" in details["segfault"]
    assert "Segmentation fault in string_at" in details["segfault"]
    assert "SIGABRT" in details["abort"]
    assert "after 1 s" in details["loop"]
    assert "SIGKILL" in details["kill"]
    assert "code 3" in details["exit"]
    assert "MemoryError" in details["allocate"]
    assert details["raise"].startswith("ValueError: no way (worker_hooks.py:")
    assert details["skip"] == "torn"
    assert "cannot be sent" in details["local"]


def test_one_worker_survives_crash_after_crash() -> None:
    with GuardedPool(act, 1, timeout_s=5) as pool:
        outcomes = list(pool.map([("segfault", 0), ("segfault", 0), ("exit", 0), ("double", 4)]))
    assert reasons(outcomes) == ["worker_crashed", "worker_crashed", "worker_crashed", 8]


def test_without_workers_the_function_runs_here_with_the_same_outcomes() -> None:
    with GuardedPool(act, 0) as pool:
        outcomes = list(pool.map([("pid", 0), ("raise", 0), ("skip", 0), ("double", 4)]))
    assert reasons(outcomes) == [os.getpid(), "worker_error", "image_broken", 8]


def test_results_keep_their_order_when_tasks_take_unequal_time() -> None:
    delays = [0.2, 0.0, 0.1, 0.0, 0.05, 0.0, 0.0, 0.15]
    with GuardedPool(act, 3) as pool:
        assert list(pool.map([("sleep", delay) for delay in delays])) == delays


def test_an_endless_input_is_taken_only_as_needed() -> None:
    taken = 0

    def endless() -> Iterator[tuple[str, int]]:
        nonlocal taken
        for taken in itertools.count(1):
            yield "double", taken

    with GuardedPool(act, 2) as pool:
        outcomes = pool.map(endless())
        assert list(itertools.islice(outcomes, 30)) == [2 * number for number in range(1, 31)]
        assert taken <= 30 + TASKS_PER_WORKER * 2
        outcomes.close()
        assert pool.run(("double", 5)) == 10, "the pool can be used again"


def test_a_child_that_is_killed_just_after_its_answer_does_not_meet_the_next_task(monkeypatch: pytest.MonkeyPatch) -> None:
    run = workers._Child.run
    with GuardedPool(act, 1) as pool:
        for number in range(10):
            batch = workers._MapCall()

            def run_and_cancel(child: workers._Child, task: object, batch: workers._MapCall = batch) -> object:
                outcome = run(child, task)
                batch.cancel()
                return outcome

            monkeypatch.setattr(workers._Child, "run", run_and_cancel)
            assert pool._run(("double", number), batch) == 2 * number
            monkeypatch.setattr(workers._Child, "run", run)
            assert pool.run(("double", number)) == 2 * number


def test_large_tasks_and_results_pass() -> None:
    with GuardedPool(act, 2) as pool:
        assert [len(outcome) for outcome in pool.map([("bytes", b"x" * 5_000_000)] * 3)] == [5_000_000] * 3


def test_many_threads_share_a_pool() -> None:
    with GuardedPool(act, 2) as pool:
        results: dict[int, object] = {}

        def call(number: int) -> None:
            results[number] = pool.run(("double", number) if number % 5 else ("exit", 1))

        threads = [threading.Thread(target=call, args=(number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert reasons([results[number] for number in range(20)]) == [2 * n if n % 5 else "worker_crashed" for n in range(20)]


def test_a_child_that_dies_or_stops_between_tasks_is_replaced() -> None:
    with GuardedPool(act, 1, timeout_s=0.5) as pool:
        first = pool.run(("pid", 0))
        os.kill(first, signal.SIGKILL)
        time.sleep(0.1)
        second = pool.run(("pid", 0))
        assert second not in (first, None)
        os.kill(second, signal.SIGSTOP)
        outcome = pool.run(("bytes", bytes(4_000_000)))  # more than a pipe holds: sending it must not wait for ever either
        assert isinstance(outcome, TaskFailure)
        assert outcome.reason == "worker_timeout"
        assert pool.run(("double", 1)) == 2


def test_memory_is_limited_beyond_what_a_child_has_at_rest() -> None:
    with GuardedPool(act, 1, memory_bytes=100 * MEGABYTE) as pool:
        outcomes = list(pool.map([("allocate", 90), ("allocate", 101), ("allocate", 90)]))
    assert reasons(outcomes) == [90 * MEGABYTE, "worker_memory", 90 * MEGABYTE]


def test_children_are_quiet_and_deaf_and_import_no_torch(capfd: pytest.CaptureFixture[str]) -> None:
    with GuardedPool(act, 1) as pool:
        assert pool.run(("modules", 0)) == []
        assert pool.run(("settings", 0)) == (True, True, "1", "")
        sizes = [pool.run(("chatter", length)) for length in (500_000, 10, 20)]
    assert sizes == [1_000_000, 20, 40], "what a task prints is forgotten before the next"
    assert capfd.readouterr() == ("", "")


def test_children_start_quickly() -> None:
    with GuardedPool(act, 1) as pool:
        begin = time.monotonic()
        pool.run(("double", 1))
        assert time.monotonic() - begin < 5, "measured 0.07 s on an idle machine"


def test_an_error_that_is_not_the_tasks_fault_ends_the_map() -> None:
    with GuardedPool(act, 2) as pool:
        outcomes = pool.map([("double", 1), ("fatal", 0), ("sleep", 30), ("sleep", 30)])
        assert next(outcomes) == 2
        begin = time.monotonic()
        with pytest.raises(StorageError, match="disk is full"):
            list(outcomes)
        assert time.monotonic() - begin < 5, "tasks in flight are given up"


def test_an_error_of_the_input_stops_everything() -> None:
    def tasks() -> Iterator[tuple[str, int]]:
        yield "sleep", 30
        raise OSError("input is gone")

    begin = time.monotonic()
    with GuardedPool(act, 1) as pool, pytest.raises(OSError, match="input is gone"):
        list(pool.map(tasks()))
    assert time.monotonic() - begin < 5


def test_a_pool_that_is_left_early_leaves_nothing() -> None:
    pool = GuardedPool(act, 2)
    outcomes = pool.map([("double", 1), ("sleep", 30), ("sleep", 30)])
    assert next(outcomes) == 2
    outcomes.close()
    pool.close()
    pool.close()
    with pytest.raises(DistributedError, match="closed"):
        pool.run(("double", 1))


def test_a_forgotten_pool_is_cleaned_up() -> None:
    pool = GuardedPool(act, 1)
    pool.run(("double", 1))
    del pool  # the fixture looks for its child


def test_a_function_that_cannot_be_sent_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be sent"):
        GuardedPool(lambda task: task, 1)


def test_a_function_that_a_child_cannot_import_is_an_error_and_no_endless_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [path for path in sys.path if not (Path(path) / "tests").is_dir()])
    monkeypatch.chdir("/")
    with GuardedPool(act, 1) as pool, pytest.raises(DistributedError, match="cannot start: ModuleNotFoundError"):
        pool.run(("double", 1))


def test_a_task_or_result_that_cannot_be_read_costs_itself() -> None:
    with GuardedPool(act, 1) as pool:
        outcome = pool.run(worker_hooks.Unreadable())
        assert isinstance(outcome, TaskFailure)
        assert "cannot be read" in outcome.detail
        assert pool.run(("double", 1)) == 2
    with GuardedPool(worker_hooks.unreadable_result, 1) as pool:
        assert reasons([pool.run(1), pool.run(0)]) == ["worker_error", "fine"]


@pytest.mark.parametrize("numbers", [(-1, 1.0, 1), (1, 0.0, 1), (1, float("inf"), 1), (1, float("nan"), 1), (1, 1.0, 0)])
def test_limits_out_of_range_are_refused(numbers: tuple[int, float, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        GuardedPool(act, *numbers)


PARENT = """
import os, signal, sys
from sightline.runtime.workers import GuardedPool
from tests.runtime.worker_hooks import act
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs deaf to it
with GuardedPool(act, 2, timeout_s=float(sys.argv[2])) as pool:
    print(pool.run(("pid", 0)), flush=True)
    list(pool.map([("touch", sys.argv[1]), ("loop", 0)]))
"""


def start_parent(mark: Path, timeout_s: float) -> tuple[subprocess.Popen[str], int]:
    """A process that uses a pool, once one of its children is at work, and the pid of that child."""
    root = Path(__file__).parents[2]
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(mark), str(timeout_s)],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    while not mark.exists():
        time.sleep(0.01)
    return parent, pid


def wait_until_gone(pid: int, seconds: float) -> None:
    end = time.monotonic() + seconds
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]:
        assert time.monotonic() < end, "the child lives on"
        time.sleep(0.02)


def test_ctrl_c_ends_parent_and_children_at_once(tmp_path: Path) -> None:
    parent, pid = start_parent(tmp_path / "mark", 60)
    begin = time.monotonic()
    parent.send_signal(signal.SIGINT)
    _, message = parent.communicate(timeout=20)
    assert time.monotonic() - begin < 10, "no waiting for the deadline of a task"
    assert "KeyboardInterrupt" in message
    assert message.count("Traceback") <= 2, "children say nothing"
    wait_until_gone(pid, 1)


def test_children_do_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    parent, pid = start_parent(tmp_path / "mark", 1)
    parent.kill()
    parent.communicate()
    wait_until_gone(pid, 5)  # deadline of its task and one second more


def test_a_parent_with_torch_and_threads_can_use_a_pool() -> None:
    code = """
import threading, torch
from sightline.runtime.workers import GuardedPool
from tests.runtime.worker_hooks import act
torch.ones(300, 300) @ torch.ones(300, 300)
stop = threading.Event()
thread = threading.Thread(target=stop.wait)
thread.start()
with GuardedPool(act, 2) as pool:
    assert list(pool.map(("double", i) for i in range(50))) == [2 * i for i in range(50)]
    assert pool.run(("modules", 0)) == []
stop.set()
"""
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=root, check=True, timeout=120)
