"""Working ahead changes when items are made, and nothing else."""

import threading
import time
from collections.abc import Iterator

import pytest

from sightline.runtime.prefetch import prefetched


def threads() -> int:
    return sum(thread.name == "ahead" for thread in threading.enumerate())


def test_items_come_in_their_order_and_all_of_them() -> None:
    assert list(prefetched(iter(range(1000)), 3)) == list(range(1000))
    assert list(prefetched([], 1)) == []
    assert threads() == 0


def test_items_are_made_while_another_is_used_and_no_more_than_wanted() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            made.append(number)
            yield number

    reader = prefetched(items(), 2)
    assert next(reader) == 0
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.05)
    assert made == [0, 1, 2, 3]  # one is used, two wait, one has no place yet
    reader.close()


def test_what_the_iterator_raises_is_raised_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise KeyError("broken")

    reader = prefetched(items(), 5)
    assert [next(reader), next(reader)] == [1, 2]
    with pytest.raises(KeyError, match="broken"):
        next(reader)
    assert threads() == 0


@pytest.mark.parametrize("how", ["close", "forget", "raise"])
def test_a_reader_that_stops_early_leaves_no_thread_and_closes_the_iterator(how: str) -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            closed.set()

    def read() -> None:
        reader = prefetched(items(), 2)
        next(reader)
        if how == "close":
            reader.close()
        elif how == "raise":
            raise RuntimeError("in the loop")

    if how == "raise":
        with pytest.raises(RuntimeError, match="in the loop"):
            read()
    else:
        read()
    assert closed.wait(5)
    assert threads() == 0
