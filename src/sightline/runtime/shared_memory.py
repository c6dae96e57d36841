"""Passes arrays from forked child processes to the parent through shared memory.

A pipe transfers 64 kB at a time and copies the data several times. Instead, an anonymous file (memfd) is divided into slots: the
parent assigns a slot to each task, the child writes the arrays of its result into it and returns only their locations, and the
parent's arrays are views of the slot. The slot is free again when the last view is garbage-collected. The memory is released with
the last process that maps it, however that process ends.
"""

import math
import mmap
import os
import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SLOT_BYTES = 1 << 34  # address space; a slot uses as much memory as its largest result
ALIGN = 64


@dataclass(frozen=True, slots=True)
class ArrayLocation:
    """Location of an array in a slot: first byte, dtype and shape."""

    begin: int
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def end(self) -> int:
        return self.begin + self.dtype.itemsize * math.prod(self.shape)


class SharedSlots:
    """Shared memory for the results of child processes that are forked after its creation.

    The parent calls `acquire`, the child `write`, the parent `views`. On systems without memfd, `acquire` always returns None.

    Args:
        count: number of slots: results in flight plus results in use.
    """

    def __init__(self, count: int) -> None:
        self._maps: dict[int, mmap.mmap] = {}
        self._free: list[int] = []
        if sys.platform == "linux" and count:
            try:
                self._file = os.memfd_create("sightline-results")
                weakref.finalize(self, os.close, self._file)
                os.ftruncate(self._file, count * SLOT_BYTES)
            except OSError:  # a kernel or a limit that does not allow it
                return
            self._free = list(range(count))

    def acquire(self) -> int | None:
        """Returns the most recently freed slot (its pages are already mapped), or None if all are in use."""
        return self._free.pop() if self._free else None

    def release(self, slot: int) -> None:
        """Frees a slot of which `views` was not called."""
        self._free.append(slot)

    def write(self, slot: int, arrays: Sequence[np.ndarray]) -> tuple[ArrayLocation, ...] | None:
        """Copies the arrays of a result into a slot; called in the child.

        Returns:
            The location of each array, for `views`; None where they do not fit.
        """
        locations, end = [], 0
        for array in arrays:
            locations.append(ArrayLocation(-(-end // ALIGN) * ALIGN, array.dtype, array.shape))
            end = locations[-1].end
        if not 0 < end <= SLOT_BYTES:
            return None
        memory = np.frombuffer(self._memory(slot, end), dtype=np.uint8)
        for location, array in zip(locations, arrays, strict=True):
            _view(memory, location)[...] = array
        return tuple(locations)

    def views(self, slot: int, locations: Sequence[ArrayLocation]) -> list[np.ndarray]:
        """Returns views of the arrays that a child wrote; called in the parent. Frees the slot when the last view is gone."""
        end = max(location.end for location in locations)
        # One base array for the whole slot: every view keeps it alive.
        base = np.frombuffer(self._memory(slot, end), dtype=np.uint8)
        weakref.finalize(base, self._free.append, slot)
        return [_view(base, location) for location in locations]

    def _memory(self, slot: int, size: int) -> mmap.mmap:
        """Maps at least the first `size` bytes of a slot."""
        mapped = self._maps.get(slot)
        if mapped is None or len(mapped) < size:
            length = min(1 << (size - 1).bit_length(), SLOT_BYTES) if size > mmap.PAGESIZE else mmap.PAGESIZE
            mapped = self._maps[slot] = mmap.mmap(self._file, length, offset=slot * SLOT_BYTES)
        return mapped


def _view(memory: np.ndarray, location: ArrayLocation) -> np.ndarray:
    return memory[location.begin : location.end].view(location.dtype).reshape(location.shape)
