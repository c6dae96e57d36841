"""What tests let a worker do. A light module: children import it."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sightline.errors import RecordError, StorageError

MEGABYTE = 1 << 20


def act(task: tuple[str, Any]) -> Any:
    """Does what the task says."""
    verb, value = task
    return VERBS[verb](value)


def _loop(value: Any) -> Any:
    while True:
        pass


def _raise(error: Exception) -> Any:
    raise error


def _sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def _chatter(length: int) -> int:
    sys.stdout.write("n" * length)
    sys.stderr.write("n" * length)
    sys.stdout.flush()
    return os.fstat(2).st_size


def _settings(value: Any) -> tuple[bool, bool, str, str]:
    is_deaf, is_apart = signal.getsignal(signal.SIGINT) is signal.SIG_IGN, os.getpgrp() == os.getpid()
    return is_deaf, is_apart, os.environ["OMP_NUM_THREADS"], sys.stdin.read()


def _touch(path: str) -> None:
    Path(path).touch()
    time.sleep(60)


VERBS: dict[str, Callable[[Any], Any]] = {
    "abort": lambda value: os.abort(),
    "allocate": lambda megabytes: len(bytearray(megabytes * MEGABYTE)),
    "bytes": bytes,
    "chatter": _chatter,
    "double": lambda number: 2 * number,
    "exit": os._exit,
    "fatal": lambda value: _raise(StorageError("the disk is full")),
    "local": lambda value: lambda: None,
    "loop": _loop,
    "modules": lambda value: sorted({"numpy", "torch"} & set(sys.modules)),
    "pid": lambda value: os.getpid(),
    "raise": lambda value: _raise(ValueError("no\nway")),
    "segfault": lambda value: ctypes.string_at(0),
    "settings": _settings,
    "signal": lambda number: os.kill(os.getpid(), number),
    "skip": lambda value: _raise(RecordError("image_broken", "torn")),
    "sleep": _sleep,
    "touch": _touch,
}


class Unreadable:
    """Travels out, but cannot be read at the other end."""

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return _refuse, ()


def _refuse() -> None:
    raise KeyError("unreadable")


def unreadable_result(task: int) -> Any:
    return Unreadable() if task else "fine"
