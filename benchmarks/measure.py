"""Measures two implementations side by side, repeat by repeat, and the peak of tensor memory above the start.

A ratio is taken within each repeat, whose two halves share the state of the machine, and reported as lowest, median, highest. A
function compared with itself (`spread`) shows the noise of the machine.
"""

import gc
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

Work = Callable[[], Any]


@dataclass(frozen=True)
class Ratio:
    """A figure over several repeats: lowest, median and highest."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Ratio":
        found = sorted(values)
        return cls(found[0], statistics.median(found), found[-1])

    def to_json(self) -> dict[str, float]:
        return {"low": round(self.low, 4), "median": round(self.median, 4), "high": round(self.high, 4)}

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class Times:
    """Seconds of two functions, repeat by repeat."""

    first: tuple[float, ...]
    second: tuple[float, ...]

    @property
    def ratio(self) -> Ratio:
        """Returns second over first, within each repeat."""
        return Ratio.of(b / a for a, b in zip(self.first, self.second, strict=True))


def side_by_side(first: Work, second: Work, repeats: int = 5) -> Times:
    """Times two functions in turn, after one warm-up call of each; the order alternates.

    Args:
        first: the reference.
        second: the function compared with it.
        repeats: number of pairs.
    """
    first()
    second()
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(repeats):
        order = (0, 1) if number % 2 == 0 else (1, 0)
        for which in order:
            seconds[which].append(seconds_of((first, second)[which]))
    return Times(tuple(seconds[0]), tuple(seconds[1]))


def spread(work: Work, repeats: int = 5) -> Ratio:
    """Returns the ratio of a function to itself: 1 on a quiet machine."""
    return side_by_side(work, work, repeats).ratio


def in_turn(works: Mapping[str, Work], repeats: int = 5) -> dict[str, tuple[float, ...]]:
    """Returns the seconds of several functions, repeat by repeat, after one warm-up call of each.

    Every repeat calls each function once and starts with another one, so that none always has the same position. With one thread on
    a CPU these are CPU seconds of the process, so that other work on the machine does not count; else wall-clock seconds.

    Args:
        works: the functions by name; they compute and do not wait.
        repeats: number of repeats of all of them.
    """
    clock = compute_clock()
    for work in works.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(repeats):
        begin = number % max(len(works), 1)
        for name in [*list(works)[begin:], *list(works)[:begin]]:
            seconds[name].append(seconds_of(works[name], clock))
    return {name: tuple(values) for name, values in seconds.items()}


def compute_clock() -> Callable[[], float]:
    """Returns a CPU-time clock if this process computes on one thread of a CPU; else the wall clock."""
    return time.process_time if torch.get_num_threads() == 1 and not torch.cuda.is_available() else time.perf_counter


def seconds_of(work: Work, clock: Callable[[], float] = time.perf_counter) -> float:
    """Returns the seconds of one call, wall-clock by default; waits for a GPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    begin = clock()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - begin


# Memory ---------------------------------------------------------------------------------------------------------------------------


def peak_memory(work: Work, inputs: Sequence[Tensor]) -> int:
    """Returns the largest number of bytes of tensors during a call, above those that exist before it.

    Gradients of `inputs` are not counted. On a CPU every storage that an operation creates is tracked from its first to its last
    use; scratch memory within one operation is not visible. On a GPU the allocator's peak is used, less the gradients.

    Args:
        work: runs forward and backward.
        inputs: tensors whose gradients `work` computes; existing gradients are dropped.
    """
    for value in inputs:
        value.grad = None
    gc.collect()
    if inputs and inputs[0].is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        gradients = sum(value.grad.untyped_storage().nbytes() for value in inputs if value.grad is not None)
        return torch.cuda.max_memory_allocated() - before - gradients
    with LiveStorages() as seen:
        seen.ignore(inputs)
        work()
    return seen.peak(without=[value.grad for value in inputs if value.grad is not None])


class LiveStorages(TorchDispatchMode):
    """Tracks every storage that operations create: when it appears, when it is freed, and its size."""

    def __init__(self) -> None:
        super().__init__()
        # By address, which may be reused once a storage is freed: its number, a weak reference, its bytes.
        self._live: dict[int, tuple[int, StorageWeakRef, int]] = {}
        self._known: set[int] = set()
        self._events: list[tuple[int, int]] = []  # number of a storage, and bytes that appear (negative: freed)
        self._count = 0

    def ignore(self, tensors: Sequence[Tensor]) -> None:
        """Ignores storages that exist already and stay."""
        self._known |= {StorageWeakRef(value.untyped_storage()).cdata for value in tensors}

    def peak(self, without: Sequence[Tensor] = ()) -> int:
        """Returns the largest number of bytes that were alive at one time.

        Args:
            without: tensors that still exist and are not counted.
        """
        left_out = set()
        for value in without:
            entry = self._live.get(StorageWeakRef(value.untyped_storage()).cdata)
            if entry is not None:
                left_out.add(entry[0])
        highest = now = 0
        for number, size in self._events:
            if number not in left_out:
                now += size
                highest = max(highest, now)
        return highest

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._sweep()
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else [out]:
            if isinstance(value, Tensor):
                self._note(value)
        return out

    def _note(self, value: Tensor) -> None:
        storage = value.untyped_storage()
        reference = StorageWeakRef(storage)
        if reference.cdata in self._live or reference.cdata in self._known:
            return
        self._count += 1
        self._live[reference.cdata] = (self._count, reference, storage.nbytes())
        self._events.append((self._count, storage.nbytes()))

    def _sweep(self) -> None:
        for key, (number, reference, size) in list(self._live.items()):
            if reference.expired():
                del self._live[key]
                self._events.append((number, -size))


def machine() -> dict[str, Any]:
    """Returns the facts about the machine that a timing depends on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
    }
