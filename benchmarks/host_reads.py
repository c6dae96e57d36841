"""Counts the places where the host would wait for a GPU: values that are read, and results whose shape depends on values."""

import contextlib
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from sightline.runtime import process_group
from sightline.training import loop
from sightline.training.checkpoint import Progress
from sightline.types import Batch, PairBatch

# Python's ways to a value; item, bool, int and float end in `_local_scalar_dense`, which is counted below.
READS = {Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__array__}
SHAPED_BY_VALUES = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_consecutive", "bincount", "equal"}
SHAPED_BY_VALUES |= {"unique_dim", "_assert_async"}


class HostReads(contextlib.ExitStack):
    """Within it, `places` collects where reads happen; nothing is counted inside of `paused`."""

    def __enter__(self) -> "HostReads":
        super().__enter__()
        self.places: list[str] = []
        self._paused = False
        self.enter_context(_Functions(self.note))
        self.enter_context(_Operations(self.note))
        return self

    def note(self, name: str) -> None:
        if not self._paused:
            frames = [frame for frame in traceback.extract_stack() if "host_reads" not in frame.filename]
            own = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in frames if "sightline" in frame.filename]
            self.places.append(f"{name} at {' < '.join(reversed(own[-3:]))}")

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before


ON_THE_HOST = ((Batch, "counts"), (PairBatch, "counts"), (process_group, "host_sum"))  # whatever the device of the model


def reads_of(given: loop.Job, skip: int = 0) -> list[str]:
    """Trains a job with fused AdamW, as on a GPU, and returns where its steps read.

    Args:
        given: the job; a name per element of the result says which function read.
        skip: first steps that are not counted: ranks exchange the names of their sums once.
    """
    groups = [{name: group[name] for name in ("params", "lr", "peak", "part")} for group in given.optimiser.param_groups]
    given = replace(given, optimiser=torch.optim.AdamW(groups, fused=True))
    at = Progress()
    if skip:
        at = loop.fit(replace(given, schedule=replace(given.schedule, steps=skip)), at)
    with HostReads() as counted, contextlib.ExitStack() as patches:
        for owner, name in ON_THE_HOST:
            patches.enter_context(patch.object(owner, name, _paused(counted, getattr(owner, name))))
        loop.fit(given, at)
    return counted.places


def _paused(counted: HostReads, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        with counted.paused():
            return function(*arguments)

    return call


class _Functions(TorchFunctionMode):
    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()
        self.note = note

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READS:
            self.note(func.__name__)
        return func(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):
    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()
        self.note = note

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else ()
        by_mask = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)
        if (
            name in SHAPED_BY_VALUES
            or by_mask
            or (name == "repeat_interleave" and len(args) == 1 and "output_size" not in (kwargs or {}))
        ):
            self.note(name)
        return func(*args, **(kwargs or {}))
