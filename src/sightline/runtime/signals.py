"""Signals as a flag that long work polls: the handler itself does nothing but remember.

    with watch_signals() as stopped:
        for item in work:
            ...
            if stopped():
                raise Stopped(...)

A second signal of the same kind acts as if nobody watched, so that Ctrl-C twice always ends the program.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

WATCHED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@contextlib.contextmanager
def watch_signals() -> Iterator[Callable[[], str]]:
    """Yields a function that names the signal that has arrived, or returns an empty text.

    In a thread other than the main one, where Python allows no handlers, signals act as before and nothing is seen.
    """
    arrived: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: ""
        return
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in WATCHED}

    def remember(number: int, frame: FrameType | None) -> None:
        arrived.append(signal.Signals(number).name)
        signal.signal(number, before[signal.Signals(number)])

    for number in WATCHED:
        signal.signal(number, remember)
    try:
        yield lambda: arrived[0] if arrived else ""
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
