"""An iterator that works ahead in a thread: while one item is used, the next ones are made.

The items and their order are those of the iterator itself, so nothing that is computed from them can change.
"""

import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
POLL_SECONDS = 0.1


def prefetched(items: Iterable[Item], depth: int) -> Iterator[Item]:
    """The same items in the same order, up to `depth` of them made before they are asked for.

    What the iterator raises is raised here, after the items before it. When the reader stops early (an error, a `close`), the
    thread ends after the item that it is making, and the iterator is closed.

    Args:
        items: is used by the thread alone.
        depth: items that wait at most; one more is being made.
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
        except BaseException as error:  # whatever it is, the reader has to see it
            put(None, error, True)
        finally:
            if isinstance(items, Generator):
                items.close()

    thread = threading.Thread(target=work, name="ahead", daemon=True)
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
