"""Results of forked children whose arrays are not sent: they lie in memory that both sides map.

A pipe takes 64 kB at a time and copies what goes through it several times over. Here a file without a name (a memfd) is cut into
slots. The parent lends one with each task, the child lays the arrays of its result there and answers with a few hundred bytes, and
the parent's arrays are views of the slot, which is free again when the last of them is gone. The memory goes with the last process
that maps it, however that process ends.
"""

import math
import mmap
import os
import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SLOT_BYTES = 1 << 34  # addresses, not memory: a slot takes as many bytes as its largest result
ALIGN = 64


@dataclass(frozen=True, slots=True)
class ArrayLocation:
    """Where an array lies in a slot: its first byte, its type and shape."""

    begin: int
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def end(self) -> int:
        return self.begin + self.dtype.itemsize * math.prod(self.shape)


class SharedSlots:
    """Memory for the results of children that are forked after it is made.

    Parent and children use it in turn: `take`, then in a child `lay`, then `lend`. Where the system has no such memory no slot is
    ever free.

    Args:
        count: how many results may lie in it, those that are still in use included.
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

    def take(self) -> int | None:
        """A slot for the next result: the one used last of those that are free, whose pages are there; None when none is."""
        return self._free.pop() if self._free else None

    def give_back(self, slot: int) -> None:
        """Ends the use of a slot that nothing was lent from."""
        self._free.append(slot)

    def lay(self, slot: int, arrays: Sequence[np.ndarray]) -> tuple[ArrayLocation, ...] | None:
        """In the child: copies the arrays of a result into a slot that was taken for it.

        Returns:
            Where each lies, for `lend`; None where they do not fit.
        """
        places, end = [], 0
        for array in arrays:
            places.append(ArrayLocation(-(-end // ALIGN) * ALIGN, array.dtype, array.shape))
            end = places[-1].end
        if not 0 < end <= SLOT_BYTES:
            return None
        memory = np.frombuffer(self._memory(slot, end), dtype=np.uint8)
        for place, array in zip(places, arrays, strict=True):
            _view(memory, place)[...] = array
        return tuple(places)

    def lend(self, slot: int, places: Sequence[ArrayLocation]) -> list[np.ndarray]:
        """In the parent: the arrays that a child laid down, as views of the slot, which is free again when the last is gone."""
        end = max(place.end for place in places)
        # One array for the whole slot: whatever is made of its parts keeps it alive.
        whole = np.frombuffer(self._memory(slot, end), dtype=np.uint8)
        weakref.finalize(whole, self._free.append, slot)
        return [_view(whole, place) for place in places]

    def _memory(self, slot: int, size: int) -> mmap.mmap:
        """The beginning of a slot, at least `size` bytes of it."""
        known = self._maps.get(slot)
        if known is None or len(known) < size:
            length = min(1 << (size - 1).bit_length(), SLOT_BYTES) if size > mmap.PAGESIZE else mmap.PAGESIZE
            known = self._maps[slot] = mmap.mmap(self._file, length, offset=slot * SLOT_BYTES)
        return known


def _view(memory: np.ndarray, place: ArrayLocation) -> np.ndarray:
    return memory[place.begin : place.end].view(place.dtype).reshape(place.shape)
