"""Calls a function with a time limit in this process, for code of others that a file has given its work.

The function runs in a thread. Where it is late, its thread is told to end: Python code does at its next instruction, compiled code
runs on until it is done, and nobody waits for it. A call costs about 0.04 ms more.
"""

import ctypes
import os
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

Value = TypeVar("Value")


def call_within(seconds: float, function: Callable[[], Value]) -> Value:
    """Returns what a function returns, or raises what it raises.

    Args:
        seconds: how long it may take.
        function: without arguments.

    Raises:
        TimeoutError: it took longer.
        RuntimeError: it raised no Exception, such as the `PanicException` of extensions written in Rust.
    """
    helper = getattr(_own, "helper", None)
    if helper is None or helper.pid != os.getpid():  # a fork has none of the threads of its parent
        helper = _own.helper = _Helper()
    try:
        is_value, outcome = helper.call(function, seconds)
    except BaseException:
        _own.helper = None
        helper.abandon()
        raise
    if is_value:
        return outcome
    if isinstance(outcome, Exception):
        raise outcome
    raise RuntimeError(f"{type(outcome).__name__}: {outcome}") from outcome


_own = threading.local()


class _Helper:
    """A thread that calls functions for one other thread."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._tasks: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=_serve, args=(self._tasks, self._outcomes), name="time-limit", daemon=True)
        self._thread.start()

    def call(self, function: Callable[[], Any], seconds: float) -> tuple[bool, Any]:
        self._tasks.put(function)
        try:
            return self._outcomes.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError from None

    def abandon(self) -> None:
        """Ends the thread as soon as it runs Python code again."""
        self._tasks.put(None)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread.ident or 0), ctypes.py_object(SystemExit))

    def __del__(self) -> None:
        self._tasks.put(None)


def _serve(tasks: "queue.SimpleQueue[Callable[[], Any] | None]", outcomes: "queue.SimpleQueue[tuple[bool, Any]]") -> None:
    while (task := tasks.get()) is not None:
        try:
            outcome = (True, task())
        except BaseException as error:  # raised in the thread that waits
            outcome = (False, error)
        outcomes.put(outcome)
        del task, outcome
