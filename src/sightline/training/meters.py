"""StepTotals over the micro-batches of a step, then over ranks, for the log. Means are computed only from such sums."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from accelerate import Accelerator
from accelerate.utils import gather_object

from sightline.data.batches.loader import MicroBatch
from sightline.types import Loss


@dataclass
class StepTotals:
    """Totals of one optimiser step.

    Attributes:
        loss, weight: `Loss.total` and `Loss.weight`.
        parts: `(sum, weight)` of each named part.
        counts: samples, tokens and so on, as the batches count them (`TrainingBatch.counts`).
        skipped: number of samples whose images could not be opened.
        stop: name of a signal that has arrived on any rank.
    """

    loss: float = 0.0
    weight: float = 0.0
    parts: dict[str, tuple[float, float]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    skipped: int = 0
    stop: str = ""

    def count(self, micro: MicroBatch) -> None:
        """Adds the counts of a micro-batch, which is still on the CPU."""
        self._add_counts(micro.batch.counts())
        self.skipped += len(micro.skipped)

    def add(self, loss: Loss) -> None:
        """Adds the loss of a micro-batch."""
        self.loss += float(loss.total.detach())
        self.weight += float(loss.weight)
        for name, (total, weight) in loss.parts.items():
            before = self.parts.get(name, (0.0, 0.0))
            self.parts[name] = (before[0] + float(total), before[1] + float(weight))

    def reduced(self, accelerator: Accelerator) -> "StepTotals":
        """Returns the totals over all ranks, added in the order of ranks."""
        if accelerator.num_processes == 1:
            return self
        out = StepTotals()
        for other in gather_object([vars(self)]):
            out._merge(other)
        return out

    def _merge(self, other: Mapping) -> None:
        for name in ("loss", "weight", "skipped"):
            setattr(self, name, getattr(self, name) + other[name])
        self._add_counts(other["counts"])
        self.stop = self.stop or other["stop"]
        for name, (total, weight) in other["parts"].items():
            before = self.parts.get(name, (0.0, 0.0))
            self.parts[name] = (before[0] + total, before[1] + weight)

    def _add_counts(self, counts: Mapping[str, int]) -> None:
        for name, count in counts.items():
            self.counts[name] = self.counts.get(name, 0) + count

    @property
    def mean(self) -> float:
        """The loss of the step; 0 if nothing has weight."""
        return self.loss / self.weight if self.weight else 0.0

    def line(self, sources: Sequence[str] = ()) -> dict[str, float]:
        """Returns means for the log: the loss and every part.

        Args:
            sources: names of the data sources, which replace numbers in the keys (`nll/0` becomes `nll/captions`). With fewer
                than two, values of the only source equal those of all data and are left out.
        """
        values = {"loss": self.mean}
        seen = {name.rpartition("/")[2] for name in self.parts if "/" in name}
        for name, (total, weight) in sorted(self.parts.items()):
            figure, _, number = name.rpartition("/")
            if not weight or (figure and len(sources) < 2 and seen == {"0"}):
                continue
            is_named = figure and number.isdecimal() and int(number) < len(sources)
            values[f"{figure}/{sources[int(number)]}" if is_named else name] = total / weight
        return values
