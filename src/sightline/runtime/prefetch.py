"""Prefetches the items of an iterator in a thread: while one item is used, the next ones are computed.

Items and order are those of the iterator, so results do not change.
"""

import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
POLL_SECONDS = 0.1


def prefetched(items: Iterable[Item], depth: int) -> Iterator[Item]:
    """Yields the same items in the same order, with up to `depth` of them computed in advance by a thread.

    An exception of the iterator is raised here, after the items before it. When the consumer stops early (an error, `close`), the
    thread ends after the current item, and the iterator is closed.

    Args:
        items: only the thread may use it.
        depth: maximum number of finished items in the queue; one more is being computed.
    """
    waiting: queue.Queue[tuple[Item | None, BaseException | None, bool]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: Item | None, error: BaseException | None, is_end: bool) -> bool:
        while not stopped.is_set():
            try:
                waiting.put((item, error, is_end), timeout=POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put(item, None, False):
                    break
            else:
                put(None, None, True)
        except BaseException as error:  # any exception is passed on to the consumer
            put(None, error, True)
        finally:
            if isinstance(items, Generator):
                items.close()

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error, is_end = waiting.get()
            if error is not None:
                raise error
            if is_end:
                return
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()
