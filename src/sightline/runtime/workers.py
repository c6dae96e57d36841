"""A pool of child processes in which a task may crash, hang or eat the memory and costs no more than itself.

Decoders of damaged files do all three. Tasks go in and outcomes come out in the same order; a task that fails is a
`TaskFailure`. Children are fresh Python processes (never forks of a parent with threads), each with one task at a time, a limit
on its memory and a deadline; they end when their pipe to the parent ends. Nothing here has a name that could outlive us.
"""

import contextlib
import faulthandler
import math
import os
import queue
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import IO, Any, Generic, Self, TypeVar

from sightline.errors import DistributedError, RecordError, SightlineError

STARTUP_SECONDS = 120.0  # imports from a cold network disk take this long
ALARM_DELAY = 1.0  # a child that the parent does not stop in time stops itself this much later
TASKS_PER_WORKER = 4  # in flight, waiting ones included: one slow task does not idle the other children
MAX_DETAIL = 500

_BOOT = "import sys; sys.path[:] = sys.argv[2:]; from sightline.runtime.workers import serve; serve(int(sys.argv[1]))"

Task = TypeVar("Task")
Result = TypeVar("Result")


def usable_cores() -> int:
    """Number of processors that this process may use; macOS and Windows know only how many the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class TaskFailure:
    """Why a task has no result.

    Attributes:
        reason: `worker_crashed` (a signal, or an exit), `worker_timeout`, `worker_memory`, `worker_error` (an exception), or
            the reason of the RecordError that the function raised.
        detail: one line for people.
    """

    reason: str
    detail: str


def _pickled(function: Callable[[Task], Result]) -> bytes:
    try:
        return bytes(ForkingPickler.dumps(function))
    except Exception as error:  # pickle raises AttributeError, TypeError or its own
        raise ValueError(f"{function!r} cannot be sent to a child ({error}); use a function of a module") from error


class GuardedPool(Generic[Task, Result]):
    """Calls a function in child processes that may die.

    Args:
        function: of one task; of a module that can be imported, as are the types of task and result. What it imports is
            imported once a child, before the first task.
        num_workers: number of children; 0 calls the function in this process, without limits on time and memory.
        timeout_s: seconds that one task may take.
        memory_bytes: address space that a child may take beyond what it has after its imports. Only Linux enforces it.

    Raises:
        ValueError: a number is out of range, or the function cannot be pickled.
    """

    def __init__(
        self,
        function: Callable[[Task], Result],
        num_workers: int,
        timeout_s: float = 60.0,
        memory_bytes: int = 2 << 30,
    ) -> None:
        if num_workers < 0 or memory_bytes < 1 or not (0 < timeout_s < math.inf):
            raise ValueError(
                f"num_workers must be at least 0, memory_bytes and timeout_s positive and finite; "
                f"got {num_workers}, {memory_bytes}, {timeout_s}"
            )
        self.function, self.num_workers, self.timeout_s, self.memory_bytes = function, num_workers, timeout_s, memory_bytes
        # Pickled once and early: a lambda is refused here, not in a child.
        self._function_bytes = _pickled(function) if num_workers else b""
        # Last in, first out: a few tasks start a few children.
        self._places: queue.LifoQueue[_Child | None] = queue.LifoQueue()
        for _ in range(num_workers):
            self._places.put(None)
        self._is_closed = False
        self._children: set[_Child] = set()
        self._finalizer = weakref.finalize(self, _end_all, self._children, os.getpid())

    def run(self, task: Task) -> Result | TaskFailure:
        """Outcome of one task; waits for a free child. May be called from several threads.

        Raises:
            DistributedError: a child cannot start, or the pool is closed.
            SightlineError: the function raised one that is no RecordError: the fault is not in the task.
        """
        return self._run(task, _Batch())

    def map(self, tasks: Iterable[Task]) -> Iterator[Result | TaskFailure]:
        """Outcomes in the order of the tasks, which are taken only as needed: they may be endless.

        Raises:
            DistributedError, SightlineError: as `run` does; the tasks in flight are given up.
        """
        if self.num_workers == 0:
            for task in tasks:
                yield self.run(task)
            return
        batch, waiting = _Batch(), deque[Future[Result | TaskFailure]]()
        executor = ThreadPoolExecutor(self.num_workers, thread_name_prefix="guarded-pool")
        try:
            for task in tasks:
                waiting.append(executor.submit(self._run, task, batch))
                if len(waiting) >= TASKS_PER_WORKER * self.num_workers:
                    yield waiting[0].result()
                    waiting.popleft()
            while waiting:
                yield waiting[0].result()
                waiting.popleft()
        finally:
            # Reached early by an error, Ctrl-C, or a reader that stops reading: what still runs is not wanted any more.
            batch.cancel()
            executor.shutdown(wait=True, cancel_futures=True)

    def close(self) -> None:
        """Kills the children, which hold no state, and waits until they are gone."""
        self._is_closed = True
        for child in tuple(self._children):
            child.process.kill()  # a thread that waits for this one is woken by that and gives its place back
        for child in [self._places.get() for _ in range(self.num_workers)]:
            if child is not None:
                child.end()
        self._children.clear()
        for _ in range(self.num_workers):
            self._places.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _run(self, task: Task, batch: "_Batch") -> Result | TaskFailure:
        if self.num_workers == 0:
            return _attempt(self.function, task)
        child = self._places.get()
        try:
            child = self._ready(child)
            if not batch.enter(child):  # it was not killed, and keeps its place
                return TaskFailure("worker_crashed", "given up")
            try:
                return child.run(task)
            finally:
                if not batch.leave(child):
                    child.end()  # it was killed, perhaps a moment after its answer: the next task must not meet it
        finally:
            if child is not None and not child.is_alive:
                self._children.discard(child)
                child = None
            self._places.put(child)

    def _ready(self, child: "_Child | None") -> "_Child":
        """The child itself, or a new one where there is none or it died in idleness."""
        if self._is_closed:
            raise DistributedError("The pool of workers is closed.")
        if child is not None and child.connection.poll(0):  # it has nothing to say between tasks: this is the end of its pipe
            child.end()
            self._children.discard(child)
            child = None
        if child is None:
            child = _Child(self._function_bytes, self.timeout_s, self.memory_bytes)
            self._children.add(child)
        return child


def _end_all(children: "set[_Child]", owner: int) -> None:
    if os.getpid() == owner:  # not in a process that was forked from the owner
        for child in tuple(children):
            child.end()


@dataclass
class _Batch:
    """The children at work for one call of `map`, so that they can be stopped without touching those of another call."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    running: "set[_Child]" = field(default_factory=set)
    is_cancelled: bool = False

    def enter(self, child: "_Child") -> bool:
        with self.lock:
            if not self.is_cancelled:
                self.running.add(child)
            return not self.is_cancelled

    def leave(self, child: "_Child") -> bool:
        with self.lock:
            self.running.discard(child)
            return not self.is_cancelled

    def cancel(self) -> None:
        with self.lock:
            self.is_cancelled = True
            for child in self.running:
                child.process.kill()


# The parent's side of a child -----------------------------------------------------------------------------------------------


class _Child:
    """One child process, used by one thread at a time."""

    def __init__(self, function: bytes, timeout_s: float, memory_bytes: int) -> None:
        self.timeout_s = timeout_s
        self.is_alive = True
        ours, theirs = socket.socketpair()
        # A stopped child neither reads nor writes; without these limits the parent would wait for it in mid message.
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            ours.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", math.ceil(timeout_s), 0))
        self.connection = Connection(ours.detach())
        self.messages: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 lives as long as the child
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOT, str(theirs.fileno()), *sys.path],
                stdin=subprocess.DEVNULL,
                stdout=self.messages,
                stderr=self.messages,
                pass_fds=[theirs.fileno()],
                process_group=0,  # Ctrl-C in the terminal is for the parent alone
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            )
        try:
            self._greet(function, memory_bytes)
        except BaseException:
            self.end()
            raise

    def run(self, task: Task) -> Any:
        """Outcome of one task; the child is not alive afterwards if it failed in a way that may have damaged it."""
        try:
            self.connection.send(task)
            # Asked twice: after a pause (Ctrl-Z) the first wait may end without a look at what has come meanwhile.
            if not self.connection.poll(self.timeout_s) and not self.connection.poll(0):
                return self._overdue()
            message = self.connection.recv_bytes()
        except BlockingIOError:
            return self._overdue()
        except (EOFError, OSError):
            return self._crashed()
        try:
            kind, outcome = ForkingPickler.loads(message)
        except Exception as error:  # unpickling raises anything; the child may have written over its own memory
            self.end()
            return TaskFailure("worker_error", f"its result cannot be read: {_told(error)}")
        if kind == "raise":
            raise outcome
        if kind == "leaving":
            self.end()
        return outcome

    def end(self) -> None:
        """Kills and buries the child."""
        if self.is_alive:
            self.is_alive = False
            self.process.kill()
            self.process.wait()
            self.connection.close()
            self.messages.close()

    def _greet(self, function: bytes, memory_bytes: int) -> None:
        try:
            self.connection.send((function, self.timeout_s, memory_bytes))
            if not self.connection.poll(STARTUP_SECONDS):
                raise DistributedError(f"A worker did not start in {STARTUP_SECONDS:g} s.", "Use fewer workers.")
            fault = self.connection.recv()
        except (EOFError, OSError) as error:
            self.process.wait(STARTUP_SECONDS)
            raise DistributedError(f"A worker ended while it started: {self._last_words()}.") from error
        if fault:
            raise DistributedError(f"A worker cannot start: {fault}.", "Its function must lie in a module that can be imported.")

    def _overdue(self) -> TaskFailure:
        self.end()
        return TaskFailure("worker_timeout", f"process {self.process.pid} was killed after {self.timeout_s:g} s")

    def _crashed(self) -> TaskFailure:
        try:
            code = self.process.wait(ALARM_DELAY)
        except subprocess.TimeoutExpired:  # it closed its pipe and lives on
            code = None
        words = self._last_words()
        self.end()
        if code == -signal.SIGALRM:
            return self._overdue()
        how = f"ended by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with code {code}"
        return TaskFailure("worker_crashed", f"process {self.process.pid} {how}" + (f": {words}" if words else ""))

    def _last_words(self) -> str:
        """What the child wrote to stderr during its last task: the place of a crash, else the last line."""
        text = os.pread(self.messages.fileno(), 1 << 16, 0).decode("utf-8", "replace")
        crash = re.search(r"Fatal Python error: ([^\n]+)", text)
        if crash is None:
            return " ".join(text.split())[-MAX_DETAIL:]
        place = re.search(r'File "([^"]+)", line (\d+) in (\S+)', text)
        return crash[1] + (f" in {place[3]} ({os.path.basename(place[1])}:{place[2]})" if place else "")


# The child ------------------------------------------------------------------------------------------------------------------


def serve(descriptor: int) -> None:
    """Main function of a child: takes tasks from a socket until its other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    faulthandler.enable()
    connection = Connection(descriptor)
    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        function, timeout_s, memory_bytes = connection.recv()
        try:
            function = ForkingPickler.loads(function)
            _limit_memory(memory_bytes)
        except Exception as error:  # an import can raise anything; the parent reports it and stops
            connection.send(_told(error))
            return
        connection.send("")
        while True:
            message = connection.recv_bytes()
            _forget_messages()
            signal.setitimer(signal.ITIMER_REAL, timeout_s + ALARM_DELAY)
            kind, outcome = _answer(function, message)
            signal.setitimer(signal.ITIMER_REAL, 0)  # a parent that is paused (Ctrl-Z) may read as late as it likes
            try:
                connection.send((kind, outcome))
            except (EOFError, OSError):
                return
            except Exception as error:  # pickle raises anything, and before the first byte is sent
                connection.send(("result", TaskFailure("worker_error", f"its result cannot be sent: {_told(error)}")))
            if kind == "leaving":
                return


def _answer(function: Callable[[Any], Any], message: bytes) -> tuple[str, object]:
    try:
        outcome = _attempt(function, ForkingPickler.loads(message))
    except SightlineError as error:
        return "raise", error
    except Exception as error:  # unpickling raises anything
        return "result", TaskFailure("worker_error", f"the task cannot be read: {_told(error)}")
    # After a MemoryError the heap may be full of what no one frees: a fresh child is cheaper than a doubtful one.
    is_full = isinstance(outcome, TaskFailure) and outcome.reason == "worker_memory"
    return "leaving" if is_full else "result", outcome


def _attempt(function: Callable[[Task], Result], task: Task) -> Result | TaskFailure:
    try:
        return function(task)
    except RecordError as error:
        return TaskFailure(error.reason, error.message)
    except SightlineError:
        raise
    except MemoryError as error:
        return TaskFailure("worker_memory", _told(error))
    except Exception as error:  # the pool's promise: a task costs itself alone, and is counted
        return TaskFailure("worker_error", _told(error))


def _told(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:MAX_DETAIL]}{place}"


def _limit_memory(memory_bytes: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # cores of a thousand broken images would fill the disk
    if sys.platform == "linux":
        with open("/proc/self/statm", encoding="ascii") as file:
            at_rest = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (at_rest + memory_bytes, at_rest + memory_bytes))


def _forget_messages() -> None:
    """Empties the file behind stdout and stderr, so that it holds what the present task wrote, and never grows."""
    os.lseek(2, 0, os.SEEK_SET)
    os.ftruncate(2, 0)
