"""Visual gain: how much the picture raises the logit of each supervised token of a text.

It is the number that CAL weighs tokens by (`objectives/cal.py`). Asked of texts with another record's picture it shows what a text
looks like that does not belong to its picture, which is what makes it a filter for noisy data.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from sightline.assembly.model import Assembled
from sightline.data.batches import collate
from sightline.data.corpus import Pictures, text_sample
from sightline.data.dataset import Dataset
from sightline.data.samples import RowBuilder
from sightline.errors import RecordError, UsageError
from sightline.models.text import TextModel
from sightline.objectives.cal import CAL, CALConfig
from sightline.ops.cross_entropy import target_logits
from sightline.runtime.logs import progress
from sightline.types import Record, Sample

BATCH = 8  # records at a time


@dataclass(frozen=True)
class TextGain:
    """The gain of one text of a record.

    Attributes:
        record_id: of the record.
        text: the conversation's number in the record (a caption).
        pieces: what each supervised token stands for.
        gains: gain of each of them; NaN where nothing but the picture precedes the token.
    """

    record_id: str
    text: int
    pieces: tuple[str, ...]
    gains: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean gain of the text's tokens, the number that it is ranked by; 0 where no token has one."""
        known = [gain for gain in self.gains if gain == gain]
        return sum(known) / len(known) if known else 0.0


@dataclass(frozen=True)
class Gained:
    """Gains of texts, and the records that could not be used, by id and reason."""

    texts: list[TextGain]
    skipped: dict[str, str]


def gains(made: Assembled, dataset: Dataset, records: Sequence[Record], pictures: Pictures | None, bf16: bool = False) -> Gained:
    """The gain of every supervised token of all texts of some records.

    Args:
        made: the model, on its device and in `eval` mode.
        dataset: holds the pictures.
        records: those with pictures are asked.
        pictures: fills visual slots.

    Raises:
        UsageError: the model takes no pictures.
    """
    if isinstance(made.model, TextModel) or pictures is None:
        raise UsageError("this model is a decoder alone; a picture raises nothing.", "Name a run of a vision-language model.")
    builder = made.builder()
    texts: list[TextGain] = []
    skipped: dict[str, str] = {}
    with progress("gain", len(records)) as bar:
        for begin in range(0, len(records), BATCH):
            group = records[begin : begin + BATCH]
            ready = []
            for record in group:
                try:
                    ready.append((record, _sample(made, dataset, record, builder, pictures)))
                except RecordError as error:
                    skipped[record.id] = error.reason
            if ready:
                values = _gains_of([sample for _, sample in ready], made, bf16)
                texts.extend(_texts(ready, values, builder))
            bar.step(len(group))
    return Gained(texts, skipped)


def _sample(made: Assembled, dataset: Dataset, record: Record, builder: RowBuilder, pictures: Pictures) -> Sample:
    layouts = builder.layouts(record)
    if not layouts:
        raise RecordError("no_image", "the record has no image")
    rows = [builder.row(messages, layouts) for messages in builder.conversations(record)]
    pixels, features = pictures.fill(dataset, record)
    text = text_sample(rows, [record.id] * len(rows), layouts, made.tokens_per_crop)
    return replace(text, images=pixels, features=features)


def _gains_of(samples: list[Sample], made: Assembled, bf16: bool) -> np.ndarray:
    """Gain of every target of the samples in order, NaN where there is none."""
    device = made.inner.device
    batch = collate([[sample] for sample in samples], made.pad_id).to_batch().to(device)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        blind_S, known_S = CAL(CALConfig()).blind_logits(made.model, batch)
        hidden = made.model.hidden(batch)
        seen_S = target_logits(hidden.states_SD, hidden.head, batch.supervision.target_S)
    gain_S = torch.where(known_S, seen_S - blind_S, torch.full_like(seen_S, float("nan")))
    return gain_S.float().cpu().numpy()


def _texts(ready: list[tuple[Record, Sample]], values: np.ndarray, builder: RowBuilder) -> Iterator[TextGain]:
    at = 0
    for record, sample in ready:
        layouts = builder.layouts(record)
        for number, (branch, messages) in enumerate(zip(sample.branches, builder.conversations(record), strict=True)):
            pieces = builder.pieces(messages, layouts)
            places = [place for span in branch.spans for place in range(span.start, span.end)]
            own = values[at : at + len(places)]
            at += len(places)
            yield TextGain(record.id, number, tuple(pieces[place] for place in places), tuple(map(float, own)))


def percentiles(texts: Sequence[TextGain], shares: Sequence[float]) -> dict[str, float]:
    """Percentiles of the tokens' gain, by which a clamp for a small model is chosen (the paper's 5 is near its 90th)."""
    known = np.array([gain for text in texts for gain in text.gains if gain == gain])
    return {f"p{share:g}": float(np.percentile(known, share)) if len(known) else 0.0 for share in shares}


def separation(true: Sequence[TextGain], noisy: Sequence[TextGain]) -> float:
    """Chance that a text's mean gain is higher with its own picture than another text's with a foreign one (area under ROC)."""
    own, foreign = np.array([text.mean for text in true]), np.sort([text.mean for text in noisy])
    if not len(own) or not len(foreign):
        return 0.5
    below, up_to = (np.searchsorted(foreign, own, side=side) for side in ("left", "right"))
    return float((below + up_to).mean() / (2 * len(foreign)))  # equal means count half
