"""A pool of child processes in which a task that crashes, hangs or runs out of memory fails alone.

Image decoders do all three on damaged files. Results come in the order of the tasks; a failed task gives a `TaskFailure`. Children
are new Python processes (no forks of a parent with threads) that run one task at a time under limits on memory and time; they end
when their pipe to the parent is closed. No named resource (file, semaphore, shared memory) can remain after a crash.
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

from sightline.errors import DistributedError, RecordError, SightlineError, without_addresses

STARTUP_SECONDS = 120.0  # imports from a network disk can take this long
ALARM_DELAY = 1.0  # a child that exceeds its deadline and is not killed by the parent ends itself this much later
TASKS_PER_WORKER = 4  # tasks in flight per child, so that one slow task does not idle the others
MAX_DETAIL = 500

_BOOT = "import sys; sys.path[:] = sys.argv[2:]; from sightline.runtime.workers import serve; serve(int(sys.argv[1]))"

Task = TypeVar("Task")
Result = TypeVar("Result")


def usable_cores() -> int:
    """Returns the number of CPU cores that this process may use; on macOS and Windows all cores of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class TaskFailure:
    """Reason why a task has no result.

    Attributes:
        reason: `worker_crashed` (a signal, or an exit), `worker_timeout`, `worker_memory`, `worker_error` (an exception), or
            the reason of the RecordError that the function raised.
        detail: one line that explains it.
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
        function: function of one task. It, and the types of tasks and results, must be importable from a module; its imports run
            once per child, before the first task.
        num_workers: number of children; 0 calls the function in this process, without limits on time and memory.
        timeout_s: maximum seconds per task.
        memory_bytes: address space in bytes that a child may use beyond its use after the imports. Enforced on Linux only.

    Raises:
        ValueError: an argument is out of range, or the function cannot be pickled.
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
        # Pickled here, so that a lambda is refused before a child starts.
        self._function_bytes = _pickled(function) if num_workers else b""
        # Last in, first out: few tasks start few children.
        self._places: queue.LifoQueue[_Child | None] = queue.LifoQueue()
        for _ in range(num_workers):
            self._places.put(None)
        self._is_closed = False
        self._children: set[_Child] = set()
        self._finalizer = weakref.finalize(self, _end_all, self._children, os.getpid())

    def run(self, task: Task) -> Result | TaskFailure:
        """Runs one task and returns its outcome; waits for a free child. May be called from several threads.

        Raises:
            DistributedError: a child cannot start, or the pool is closed.
            SightlineError: the function raised a SightlineError other than a RecordError.
        """
        return self._run(task, _MapCall())

    def map(self, tasks: Iterable[Task]) -> Iterator[Result | TaskFailure]:
        """Yields the outcomes in the order of the tasks. Tasks are consumed lazily, so the iterable may be endless.

        Raises:
            DistributedError, SightlineError: as `run` does; tasks in flight are cancelled.
        """
        if self.num_workers == 0:
            for task in tasks:
                yield self.run(task)
            return
        batch, waiting = _MapCall(), deque[Future[Result | TaskFailure]]()
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
            # Also reached after an error, Ctrl-C, or when the consumer stops early: cancel what is still running.
            batch.cancel()
            executor.shutdown(wait=True, cancel_futures=True)

    def close(self) -> None:
        """Kills the children and waits until they have ended."""
        self._is_closed = True
        for child in tuple(self._children):
            child.process.kill()  # wakes the thread that waits for this child, which then returns it to the queue
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

    def _run(self, task: Task, batch: "_MapCall") -> Result | TaskFailure:
        if self.num_workers == 0:
            return _attempt(self.function, task)
        child = self._places.get()
        try:
            child = self._living_child(child)
            if not batch.enter(child):  # the child was not killed and stays in the pool
                return TaskFailure("worker_crashed", "cancelled")
            try:
                return child.run(task)
            finally:
                if not batch.leave(child):
                    child.end()  # it was killed, perhaps after its answer, and must not get another task
        finally:
            if child is not None and not child.is_alive:
                self._children.discard(child)
                child = None
            self._places.put(child)

    def _living_child(self, child: "_Child | None") -> "_Child":
        """Returns the child, or starts a new one where there is none or it died while idle."""
        if self._is_closed:
            raise DistributedError("The pool of workers is closed.")
        if child is not None and child.connection.poll(0):  # an idle child sends nothing, so its pipe was closed
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
class _MapCall:
    """The children that work for one call of `map`, so that they can be killed without affecting other calls."""

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
    """The parent's side of one child process; used by one thread at a time."""

    def __init__(self, function: bytes, timeout_s: float, memory_bytes: int) -> None:
        self.timeout_s = timeout_s
        self.is_alive = True
        ours, theirs = socket.socketpair()
        # A stopped child (SIGSTOP) neither reads nor writes; without timeouts the parent would block within a message.
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            ours.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", math.ceil(timeout_s), 0))
        self.connection = Connection(ours.detach())
        self.messages: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 open as long as the child lives
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOT, str(theirs.fileno()), *sys.path],
                stdin=subprocess.DEVNULL,
                stdout=self.messages,
                stderr=self.messages,
                pass_fds=[theirs.fileno()],
                process_group=0,  # Ctrl-C in the terminal reaches only the parent
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            )
        try:
            self._start(function, memory_bytes)
        except BaseException:
            self.end()
            raise

    def run(self, task: Task) -> Any:
        """Runs one task and returns its outcome; ends the child where the failure may have damaged it."""
        try:
            self.connection.send(task)
            # Polled twice: after a pause (Ctrl-Z) the first poll may time out although data has arrived.
            if not self.connection.poll(self.timeout_s) and not self.connection.poll(0):
                return self._timed_out()
            message = self.connection.recv_bytes()
        except BlockingIOError:
            return self._timed_out()
        except (EOFError, OSError):
            return self._crashed()
        try:
            kind, outcome = ForkingPickler.loads(message)
        except Exception as error:  # unpickling raises anything; the child's memory may be corrupt
            self.end()
            return TaskFailure("worker_error", f"its result cannot be read: {_describe_error(error)}")
        if kind == "raise":
            raise outcome
        if kind == "leaving":
            self.end()
        return outcome

    def end(self) -> None:
        """Kills the child and releases its resources."""
        if self.is_alive:
            self.is_alive = False
            self.process.kill()
            self.process.wait()
            self.connection.close()
            self.messages.close()

    def _start(self, function: bytes, memory_bytes: int) -> None:
        try:
            self.connection.send((function, self.timeout_s, memory_bytes))
            if not self.connection.poll(STARTUP_SECONDS):
                raise DistributedError(f"A worker did not start in {STARTUP_SECONDS:g} s.", "Use fewer workers.")
            problem = self.connection.recv()
        except (EOFError, OSError) as error:
            self.process.wait(STARTUP_SECONDS)
            raise DistributedError(f"A worker ended while it started: {self._stderr_summary()}.") from error
        if problem:
            raise DistributedError(f"A worker cannot start: {problem}.", "Its function must lie in a module that can be imported.")

    def _timed_out(self) -> TaskFailure:
        self.end()
        return TaskFailure("worker_timeout", f"process {self.process.pid} was killed after {self.timeout_s:g} s")

    def _crashed(self) -> TaskFailure:
        try:
            code = self.process.wait(ALARM_DELAY)
        except subprocess.TimeoutExpired:  # it closed its pipe but is still running
            code = None
        summary = self._stderr_summary()
        self.end()
        if code == -signal.SIGALRM:
            return self._timed_out()
        how = f"ended by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with code {code}"
        return TaskFailure("worker_crashed", f"process {self.process.pid} {how}" + (f": {summary}" if summary else ""))

    def _stderr_summary(self) -> str:
        """Returns what the child wrote to stderr during its last task: the location of a crash, else the end of the text."""
        text = os.pread(self.messages.fileno(), 1 << 16, 0).decode("utf-8", "replace")
        crash = re.search(r"Fatal Python error: ([^\n]+)", text)
        if crash is None:
            return " ".join(text.split())[-MAX_DETAIL:]
        place = re.search(r'File "([^"]+)", line (\d+) in (\S+)', text)
        return crash[1] + (f" in {place[3]} ({os.path.basename(place[1])}:{place[2]})" if place else "")


# The child ------------------------------------------------------------------------------------------------------------------


def serve(descriptor: int) -> None:
    """Runs a child: receives tasks from a socket until the parent closes it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    faulthandler.enable()
    connection = Connection(descriptor)
    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        function, timeout_s, memory_bytes = connection.recv()
        try:
            function = ForkingPickler.loads(function)
            _limit_memory(memory_bytes)
        except Exception as error:  # an import can raise anything; the parent reports it
            connection.send(_describe_error(error))
            return
        connection.send("")
        while True:
            message = connection.recv_bytes()
            _clear_output()
            signal.setitimer(signal.ITIMER_REAL, timeout_s + ALARM_DELAY)
            kind, outcome = _run_message(function, message)
            signal.setitimer(signal.ITIMER_REAL, 0)  # a parent that is paused (Ctrl-Z) may read the result late
            try:
                connection.send((kind, outcome))
            except (EOFError, OSError):
                return
            except Exception as error:  # pickle raises anything, and before the first byte is sent
                connection.send(("result", TaskFailure("worker_error", f"its result cannot be sent: {_describe_error(error)}")))
            if kind == "leaving":
                return


def _run_message(function: Callable[[Any], Any], message: bytes) -> tuple[str, object]:
    try:
        outcome = _attempt(function, ForkingPickler.loads(message))
    except SightlineError as error:
        return "raise", error
    except Exception as error:  # unpickling raises anything
        return "result", TaskFailure("worker_error", f"the task cannot be read: {_describe_error(error)}")
    # After a MemoryError the heap may stay full; a new child is safer.
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
        return TaskFailure("worker_memory", _describe_error(error))
    except Exception as error:  # any other exception fails this task only
        return TaskFailure("worker_error", _describe_error(error))


def _describe_error(error: BaseException) -> str:
    """Returns type, message and location of an exception in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {without_addresses(' '.join(str(error).split()))[:MAX_DETAIL]}{place}"


def _limit_memory(memory_bytes: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # core dumps of many crashes would fill the disk
    if sys.platform == "linux":
        with open("/proc/self/statm", encoding="ascii") as file:
            at_rest = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (at_rest + memory_bytes, at_rest + memory_bytes))


def _clear_output() -> None:
    """Empties the file behind stdout and stderr, so that it holds only the output of the current task."""
    os.lseek(2, 0, os.SEEK_SET)
    os.ftruncate(2, 0)
