"""The result of `data check` as one value: the folders, the training samples made of them, and the visual gain of their texts."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from sightline.data.check.rows import EpochFigures, RowSummary
from sightline.data.check.run import CheckReport
from sightline.data.check.warnings import warnings_of
from sightline.data.samples.length_table import SampleTotals


@dataclass(frozen=True)
class StageFigures:
    """What a stage trains on; field names are JSON keys.

    Attributes:
        sources: `path` and `split` of each.
        data: all samples together; None where there are none.
        epoch: the first epoch; None where there are no samples.
        why: there are none.
        refused: why training would stop.
        ends_answers: whether the chat template ends an answer with a special token.
    """

    name: str
    sources: list[dict[str, str]]
    pack: bool
    row_tokens: int
    row_images: int
    steps: int | None
    epochs: float | None
    data: SampleTotals | None = None
    epoch: EpochFigures | None = None
    why: str = ""
    refused: str = ""
    ends_answers: bool = True


@dataclass(frozen=True)
class TrainingFigures:
    """What a configuration makes of the folders; field names are JSON keys.

    Attributes:
        model: facts about it, as JSON.
        rows: of each split, by its name.
        stages: in order; none for a model folder alone.
    """

    model: Mapping[str, Any]
    rows: dict[str, RowSummary]
    stages: list[StageFigures]


@dataclass(frozen=True)
class LowText:
    """A text with its mean visual gain; field names are JSON keys.

    Attributes:
        id, split, folder, record, image: where it stands, as for a fault.
        detail: the text.
        text: its number in the record.
        gain: mean over its tokens.
        tokens: each with its gain; None where nothing but the image precedes it.
    """

    id: str
    split: str
    folder: int
    record: int
    image: int
    reason: str
    detail: str
    text: int
    gain: float
    tokens: list[tuple[str, float | None]]


@dataclass(frozen=True)
class GainFigures:
    """What a model says of all texts; field names are JSON keys.

    Attributes:
        model: as the user named it.
        texts: how many.
        mean, percentiles: of their mean gains.
        below_zero: texts whose mean gain is below 0.
        lowest: the lowest texts, lowest first.
        skipped: records that could not be asked, by reason.
    """

    model: str
    texts: int
    mean: float
    percentiles: dict[str, float]
    below_zero: int
    lowest: list[LowText]
    skipped: dict[str, int]


@dataclass(frozen=True)
class DataReport:
    """Everything that a check found.

    Attributes:
        checked: the folders themselves.
        training: None without a configuration.
        gain: None where no model was asked.
    """

    checked: CheckReport
    training: TrainingFigures | None = None
    gain: GainFigures | None = None

    @cached_property
    def warnings(self) -> list[str]:
        """What a person should know, the gravest first."""
        return warnings_of(self)

    def to_json(self) -> dict[str, Any]:
        """Returns the value that `data check --json` prints."""
        parts = {name: asdict(part) for name, part in (("training", self.training), ("gain", self.gain)) if part is not None}
        return {**self.checked.to_json(), **parts, "warnings": self.warnings}
