"""Turns signals into a flag that long-running work polls; the signal handler only stores the signal.

    with watch_signals() as stopped:
        for item in work:
            ...
            if stopped():
                raise Stopped(...)

A second signal of the same kind has its default effect, so that pressing Ctrl-C twice always ends the program.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

WATCHED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@contextlib.contextmanager
def watch_signals() -> Iterator[Callable[[], str]]:
    """Yields a function that returns the name of the first signal that arrived, or an empty string.

    Python allows signal handlers only in the main thread; in other threads signals keep their effect and the function returns an
    empty string.
    """
    arrived: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: ""
        return
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in WATCHED}

    def store(number: int, frame: FrameType | None) -> None:
        arrived.append(signal.Signals(number).name)
        signal.signal(number, before[signal.Signals(number)])

    for number in WATCHED:
        signal.signal(number, store)
    try:
        yield lambda: arrived[0] if arrived else ""
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
