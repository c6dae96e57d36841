"""A function of others ends in time, whatever it does, and its thread does not stay."""

import os
import threading
import time

import pytest

from sightline.runtime.time_limit import call_within


def spin() -> None:
    while True:
        pass


def helpers() -> int:
    return sum(thread.name == "time-limit" for thread in threading.enumerate())


def test_values_and_errors_come_back() -> None:
    assert call_within(5, lambda: 3) == 3
    with pytest.raises(KeyError, match="a"):
        call_within(5, lambda: {}["a"])

    class Panic(BaseException):
        pass

    def panics() -> None:
        raise Panic("over")

    with pytest.raises(RuntimeError, match="Panic: over"):
        call_within(5, panics)


def test_one_thread_serves_all_calls_and_ends_when_it_is_late() -> None:
    call_within(5, lambda: None)
    before = helpers()
    for _ in range(100):
        call_within(5, lambda: None)
    assert helpers() == before
    start = time.perf_counter()
    with pytest.raises(TimeoutError):
        call_within(0.1, spin)
    assert time.perf_counter() - start < 5
    assert call_within(5, lambda: 4) == 4
    deadline = time.monotonic() + 10
    while helpers() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert helpers() <= before


def test_each_thread_and_a_forked_process_has_its_own() -> None:
    assert call_within(5, lambda: 1) == 1
    values: list[int] = []
    threads = [threading.Thread(target=lambda n=n: values.append(call_within(5, lambda: n))) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(values) == list(range(8))
    child = os.fork()
    if child == 0:
        os._exit(call_within(5, lambda: 7))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
