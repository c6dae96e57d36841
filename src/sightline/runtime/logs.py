"""Logging and progress bars, both on stderr; only the command line prints to stdout."""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

SECONDS_BETWEEN_LINES = 15.0

logger = logging.getLogger("sightline")


class _StderrHandler(logging.Handler):
    """Writes to the current `sys.stderr`, which a caller may have replaced since the handler was made."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except (OSError, ValueError):  # stderr is closed, or its disk is full: that must not end the program
            self.handleError(record)


def configure(level: str = "INFO") -> None:
    """Sends log messages to stderr, one line each, and silences messages of transformers and the Hub client."""
    handler = _StderrHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def is_shown() -> bool:
    """Returns whether messages go to stderr, as they do for a command, and not to a program that uses the library."""
    return logger.level <= logging.INFO and bool(logger.handlers)


class Bar:
    """Handle of a progress bar.

    Args:
        update: called with the number of steps to advance and the text to show beside the bar.
    """

    def __init__(self, update: Callable[[int, str], None]) -> None:
        self._update = update

    def step(self, count: int = 1, figures: str = "") -> None:
        """Advances the bar by `count` and shows `figures` beside it."""
        self._update(count, figures)


@contextmanager
def progress(title: str, total: int | None, done: int = 0, show: bool = True) -> Iterator[Bar]:
    """Shows a progress bar on stderr with the time left; where stderr is no terminal, one plain line every 15 seconds.

    Args:
        title: name of the work.
        total: number of steps; None where it is unknown.
        done: steps already done by an earlier run that is resumed.
        show: False shows nothing, as on ranks other than the first.
    """
    if not show or not is_shown():
        yield Bar(lambda count, figures: None)
    elif sys.stderr.isatty():
        with _terminal_columns() as bars:
            task = bars.add_task(title, total=total, completed=done, figures="")
            yield Bar(lambda count, figures: bars.update(task, advance=count, figures=figures))
    else:
        yield Bar(_PlainLines(title, total, done))


def _terminal_columns() -> "Progress":
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
        console=Console(stderr=True),
    )


class _PlainLines:
    def __init__(self, title: str, total: int | None, done: int) -> None:
        self.title, self.total, self.first, self.done = title, total, done, done
        self.begin = time.monotonic()
        self.next = self.begin + SECONDS_BETWEEN_LINES

    def __call__(self, count: int, figures: str) -> None:
        self.done += count
        now = time.monotonic()
        if now < self.next:
            return
        self.next = now + SECONDS_BETWEEN_LINES
        rate = (self.done - self.first) / (now - self.begin)
        of = f"/{self.total}" if self.total else ""
        left = f", {readable_clock((self.total - self.done) / rate)} left" if self.total and rate > 0 else ""
        logger.info("%s %.0f%s%s %s", self.title, self.done, of, left, figures)


def readable_duration(seconds: float) -> str:
    """Formats a duration: `2 h 05 min`, `3 min`, `40 s`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"


def readable_clock(seconds: float) -> str:
    """Formats a duration as `h:mm:ss`."""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
