"""`data check --gain`: finds the texts that a model finds least supported by their images.

Texts are ranked by the mean visual gain of their tokens. Where an image lowers the words of its own text (a mean below 0) the two
hardly belong together: an exchanged or machine-made caption, a wrong answer. The model must have learnt to look; whether it has
says `probe --what gain` (how well it tells own images from foreign ones).
"""

import heapq
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from sightline.assembly.evaluate.gain import gains
from sightline.assembly.evaluate.opened import OpenedModel, open_model
from sightline.data.check import CheckReport
from sightline.data.check.report import GainFigures, LowText
from sightline.data.dataset import Dataset
from sightline.data.images.pixels import VisualInputLoader
from sightline.errors import DataError, RecordError
from sightline.evaluation.probes.gain import PERCENTILES, TextGain, percentiles
from sightline.runtime.device import process_settings_restored
from sightline.types import Record

LISTED = 100
REASON = "low_gain"


@dataclass(frozen=True)
class GainRequest:
    """Which model looks.

    Attributes:
        model: a run, RUN@STAGE, or a model folder.
        features: a feature store instead of images.
        device, threads: the machine.
    """

    model: str
    features: str | None = None
    device: str = "auto"
    threads: int | None = None


@process_settings_restored()
def gain_report(checked: CheckReport, request: GainRequest, on_low: Callable[[LowText], None]) -> GainFigures:
    """Asks the model about every text with an image of the checked folders.

    Args:
        checked: the folders.
        request: the model.
        on_low: called with each text whose mean gain is below 0.

    Returns:
        Percentiles of the texts' mean gain, how many are below 0, and the `LISTED` lowest texts, lowest first.

    Raises:
        UsageError: the model takes no images.
    """
    model = open_model(request.model, features=request.features, device=request.device, threads=request.threads)
    model.runtime.apply()
    loader = model.visual_loader()
    means, below, skipped = array("d"), 0, Counter[str]()
    lowest: list[LowText] = []
    for folder, dataset in enumerate(checked.datasets[: checked.num_checked]):
        for line in _lines(model, folder, dataset, loader, skipped):
            means.append(line.gain)
            lowest.append(line)
            if line.gain < 0:
                below += 1
                on_low(line)
            if len(lowest) >= 4 * LISTED:
                lowest = heapq.nsmallest(LISTED, lowest, key=_rank)
    return GainFigures(
        model=request.model,
        texts=len(means),
        mean=float(np.mean(means)) if means else 0.0,
        percentiles=percentiles(means, PERCENTILES),
        below_zero=below,
        lowest=heapq.nsmallest(LISTED, lowest, key=_rank),
        skipped=dict(skipped),
    )


def _rank(line: LowText) -> tuple[float, int, int, int]:
    return line.gain, line.folder, line.record, line.text


def _lines(
    model: OpenedModel, folder: int, dataset: Dataset, loader: VisualInputLoader | None, skipped: Counter[str]
) -> Iterator[LowText]:
    """Yields one line per text of a folder."""
    place: dict[str, tuple[int, str]] = {}

    def records() -> Iterator[Record]:
        for index in range(len(dataset)):
            try:
                record = dataset.record(index)
            except (DataError, RecordError):
                continue  # counted by the check itself
            if record.images:
                place[record.id] = index, record.split
                yield record

    for text in gains(model.bundle, dataset, records(), loader, skipped, model.runtime.bf16, len(dataset)):
        index, split = place[text.record_id]
        yield _line(text, folder, index, split)


def _line(text: TextGain, folder: int, index: int, split: str) -> LowText:
    return LowText(text.record_id, split, folder, index, 0, REASON, text.said, text.text, text.mean, text.tokens)
