"""Counts the places where the host would wait for a GPU: values that are read, and results whose shape depends on values."""

import contextlib
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

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
