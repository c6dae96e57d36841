"""Totals of a step over its micro-batches, then over ranks, for the log. Means are computed only from such sums.

Sums stay on the device, so that no micro-batch waits for the host; `GatheredTotals.read` copies those of all ranks at once.
"""

import functools
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from sightline.data.batches.loader import MicroBatch
from sightline.ops.precision import widest
from sightline.types import Loss

LOSS = ""  # key of the loss among the sums of its parts
CAPACITY = 2048  # numbers that a rank sends in a step: 16 kB


@dataclass
class StepTotals:
    """Totals of one optimiser step.

    Attributes:
        loss, weight: `Loss.total` and `Loss.weight`; 0 until they are read.
        parts: `(sum, weight)` of each named part.
        counts: samples, tokens and so on, as the batches count them (`TrainingBatch.counts`).
        skipped: number of samples whose images could not be opened.
        stop: name of a signal that has arrived on any rank.
        sums: what is not read yet: `[sum, weight]` of the loss and of each part, on the device.
    """

    loss: float = 0.0
    weight: float = 0.0
    parts: dict[str, tuple[float, float]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    skipped: int = 0
    stop: str = ""
    sums: dict[str, Tensor] = field(default_factory=dict)

    def count(self, micro: MicroBatch) -> None:
        """Adds the counts of a micro-batch, which is still on the CPU."""
        self._add_counts(micro.batch.counts())
        self.skipped += len(micro.skipped)

    def add(self, loss: Loss) -> None:
        """Adds the loss of a micro-batch, without waiting for it."""
        for name, (total, weight) in {LOSS: (loss.total, loss.weight), **loss.parts}.items():
            value = torch.stack([widest(total.detach()), widest(weight.detach())])
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def reduced(self, accelerator: Accelerator) -> "StepTotals":
        """Returns the totals over all ranks, added in the order of ranks."""
        return self.gathered(accelerator).read()[0]

    def gathered(self, accelerator: Accelerator) -> "GatheredTotals":
        """Returns the totals of all ranks, still on the device."""
        if accelerator.num_processes == 1:
            return GatheredTotals(self, self._vector()[None], accelerator)
        values = self._vector()
        layout = self.layout()
        head = [zlib.crc32(layout.encode()), self.skipped, *self.counts.values()]
        row = torch.zeros(CAPACITY, dtype=values.dtype, device=values.device)
        assert len(head) + len(values) <= CAPACITY, f"a step has {len(values)} sums for the log"
        row[: len(head)] = _sent(head, values)
        row[len(head) : len(head) + len(values)] = values
        return GatheredTotals(self, accelerator.gather(row).view(-1, CAPACITY), accelerator)  # pyrefly: ignore

    def layout(self) -> str:
        """Names the numbers that a rank sends, and the signal that has arrived there."""
        return json.dumps([list(self.counts), list(self.sums), self.stop])

    def _vector(self) -> Tensor:
        """Returns the sums of the loss and of the parts, one after the other."""
        return torch.cat(list(self.sums.values())) if self.sums else torch.zeros(2, dtype=torch.float64)

    def read(self) -> "StepTotals":
        """Reads what is still on the device."""
        if self.sums:
            self.take(list(self.sums), self._vector().tolist())
        return self

    def take(self, names: Sequence[str], values: Sequence[float]) -> None:
        """Adds sums that were read."""
        for name, total, weight in zip(names, values[::2], values[1::2], strict=True):
            if name == LOSS:
                self.loss, self.weight = self.loss + total, self.weight + weight
            else:
                before = self.parts.get(name, (0.0, 0.0))
                self.parts[name] = (before[0] + total, before[1] + weight)
        self.sums = {}

    def _add_counts(self, counts: Mapping[str, int]) -> None:
        for name, count in counts.items():
            self.counts[name] = self.counts.get(name, 0) + count

    @property
    def mean(self) -> float:
        """The loss of the step; 0 if nothing has weight."""
        self.read()
        return self.loss / self.weight if self.weight else 0.0

    def line(self, sources: Sequence[str] = ()) -> dict[str, float]:
        """Returns means for the log: the loss and every part.

        Args:
            sources: names of the data sources, which replace numbers in the keys (`nll/0` becomes `nll/captions`). With fewer
                than two, values of the only source equal those of all data and are left out.
        """
        values = {"loss": self.mean}  # reads all sums
        seen = {name.rpartition("/")[2] for name in self.parts if "/" in name}
        for name, (total, weight) in sorted(self.parts.items()):
            figure, _, number = name.rpartition("/")
            if not weight or (figure and len(sources) < 2 and seen == {"0"}):
                continue
            is_named = figure and number.isdecimal() and int(number) < len(sources)
            values[f"{figure}/{sources[int(number)]}" if is_named else name] = total / weight
        return values


class GatheredTotals:
    """Totals of a step of all ranks, on the device.

    Args:
        own: those of this rank.
        rows: the numbers of each rank, one rank after the other; of a single process its sums alone.
        accelerator: the ranks.
    """

    def __init__(self, own: StepTotals, rows: Tensor, accelerator: Accelerator) -> None:
        self.own, self.rows, self.accelerator = own, rows, accelerator

    @property
    def weight(self) -> Tensor:
        """Weight of the step over all ranks, added in their order; a scalar on the device."""
        place = 1 if self.accelerator.num_processes == 1 else 2 + len(self.own.counts) + 1
        return functools.reduce(torch.add, self.rows[:, place].unbind())  # CUDA has no deterministic `cumsum`

    def read(self, *others: Tensor) -> tuple[StepTotals, list[float]]:
        """Copies the totals and further scalars to the host, all at once.

        Returns:
            The totals over all ranks, and the further scalars.
        """
        extra = [widest(other.detach()).to(self.rows.device)[None] for other in others]
        numbers = torch.cat([self.rows.flatten(), *extra]).tolist()
        width = self.rows.shape[1]
        rows = [numbers[begin : begin + width] for begin in range(0, self.rows.numel(), width)]
        values = numbers[self.rows.numel() :]
        if self.accelerator.num_processes == 1:
            if self.own.sums:
                self.own.take(list(self.own.sums), rows[0])
            return self.own, values
        return self._merged(rows), values

    def _merged(self, rows: Sequence[Sequence[float]]) -> StepTotals:
        codes = [int(row[0]) for row in rows]
        known = _LAYOUTS.setdefault(self.accelerator, {})
        if not known.keys() >= set(codes):  # the same on every rank: all know what all have sent so far
            known |= {zlib.crc32(layout.encode()): layout for layout in gather_object([self.own.layout()])}
        out = StepTotals()
        for code, row in zip(codes, rows, strict=True):
            counts, names, stop = json.loads(known[code])
            begin = 2 + len(counts)
            out.skipped += int(row[1])
            out._add_counts({name: int(value) for name, value in zip(counts, row[2:begin], strict=True)})
            out.take(names, row[begin : begin + 2 * len(names)])
            out.stop = out.stop or stop
        return out


_LAYOUTS: WeakKeyDictionary[Accelerator, dict[int, str]] = WeakKeyDictionary()  # what ranks have sent, by its checksum


def _sent(values: Sequence[float], like: Tensor) -> Tensor:
    """Numbers of the host as a tensor like another one, without waiting for the device."""
    found = torch.tensor(values, dtype=like.dtype)
    return found.pin_memory().to(like.device, non_blocking=True) if like.device.type == "cuda" else found.to(like.device)
