"""Numbers about records: how many, how large, how long, and what their labels are."""

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from sightline.data.check.duplicates import SHORT_ANSWER, text_key
from sightline.data.check.examine import short_key
from sightline.types import Record

FEW = 40  # whole numbers up to this range get a bin each
BINS = 24
LISTED_ANSWERS = 20
ASPECTS = (0.0, 0.1, 0.2, 1 / 3, 0.5, 2 / 3, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)  # width over height; the last bin is open
SIDES = (0, 16, 32, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192)


@dataclass(frozen=True)
class Histogram:
    """Counts of the values between neighbouring edges, the lower edge included."""

    edges: list[float]
    counts: list[int]


@dataclass(frozen=True)
class Spread:
    """How values are distributed; field names are JSON keys."""

    n: int
    min: float
    mean: float
    median: float
    p95: float
    max: float
    sum: float
    histogram: Histogram


@dataclass(frozen=True)
class Labels:
    """The answers of a split; `majority` is the most frequent one, right without a look at the image for `majority_share`."""

    records: int
    distinct: int
    majority: str
    majority_share: float
    most_frequent: dict[str, int]


@dataclass(frozen=True)
class Majority:
    """The most frequent short answer among all questions of a split, those with long answers included."""

    answer: str
    questions: int
    share: float
    in_records: int


@dataclass(frozen=True)
class ImageRepeats:
    """Images of records with captions that stand with other captions in other records.

    Attributes:
        records: with captions and images.
        images: different ones.
        repeated: images that several of these records have.
        in_records: these records.
        most: highest number of records of one image.
    """

    records: int
    images: int
    repeated: int
    in_records: int
    most: int


@dataclass(frozen=True)
class RecordFigures:
    """Numbers about records.

    Attributes:
        records: how many.
        records_with: how many have captions, boxes, ...
        spreads: of their parts, by name; what does not occur is left out.
        labels, majority: of each split with answers.
        images_of_captions: of each split with captions.
    """

    records: int
    records_with: dict[str, int]
    spreads: dict[str, Spread]
    labels: dict[str, Labels]
    majority: dict[str, Majority]
    images_of_captions: dict[str, ImageRepeats]

    def to_json(self) -> dict[str, Any]:
        """Returns all numbers in one object."""
        out = asdict(self)
        spreads = out.pop("spreads")
        kept = {key: value for key, value in out.items() if value or key in ("records", "records_with")}
        return {"records": kept.pop("records"), "records_with": kept.pop("records_with"), **spreads, **kept}


def spread(values: Sequence[float] | np.ndarray, edges: Sequence[float] | None = None) -> Spread | None:
    """Summarises values; None without any.

    Args:
        values: what was counted or measured.
        edges: of the bins; those below and above the values are left out. By default one bin for each whole number while they
            are few, else round bins.
    """
    array_ = np.asarray(values)
    if not len(array_):
        return None
    borders = _round_edges(array_) if edges is None else _fitting(array_, edges)
    counts, _ = np.histogram(array_, borders)
    return Spread(
        n=len(array_),
        min=_plain(array_.min()),
        mean=float(array_.mean()),
        median=float(np.median(array_)),
        p95=float(np.quantile(array_, 0.95)),
        max=_plain(array_.max()),
        sum=_plain(array_.sum()),
        histogram=Histogram([_plain(border) for border in borders], counts.tolist()),
    )


def _plain(value: Any) -> int | float:
    return int(value) if float(value).is_integer() else float(value)


def _round_edges(values: np.ndarray) -> np.ndarray:
    """Bins `[a, b)` of a round width that begin at a multiple of it."""
    low, high = float(values.min()), float(values.max())
    is_whole = values.dtype.kind in "iu"
    if is_whole and high - low <= FEW:
        return np.arange(low, high + 2)
    raw = (high - low) / BINS or 1.0
    power = 10.0 ** np.floor(np.log10(raw))
    width = next(float(factor * power) for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    width = max(1.0, width) if is_whole else width
    first = np.floor(low / width)
    return np.arange(first, np.floor(high / width) + 2) * width


def _fitting(values: np.ndarray, edges: Sequence[float]) -> np.ndarray:
    """Returns the edges around the values; the last bin is extended over what lies beyond."""
    borders = np.asarray(edges, dtype=np.float64)
    low, high = values.min(), values.max()
    first = max(int(np.searchsorted(borders, low, side="right")) - 1, 0)
    last = max(int(np.searchsorted(borders, high, side="right")), first + 1)
    kept = borders[first : last + 1]
    if last >= len(borders):
        kept = np.append(kept, np.ceil(high) + 1)
    return kept


@dataclass
class Figures:
    """Gathers numbers record by record."""

    records: int = 0
    boxes: int = 0
    negatives: int = 0
    components: int = 0
    text_only: int = 0
    answered: int = 0
    _images: array = field(default_factory=lambda: array("I"))
    _captions: array = field(default_factory=lambda: array("I"))
    _caption_words: array = field(default_factory=lambda: array("I"))
    _caption_characters: array = field(default_factory=lambda: array("I"))
    _turns: array = field(default_factory=lambda: array("I"))
    _question_words: array = field(default_factory=lambda: array("I"))
    _answer_words: array = field(default_factory=lambda: array("I"))
    _answers: dict[str, Counter[str]] = field(default_factory=dict)
    _records_with_answer: dict[str, Counter[str]] = field(default_factory=dict)
    _questions: Counter[str] = field(default_factory=Counter)
    _caption_images: dict[str, array] = field(default_factory=dict)  # 16 bytes for each record of captions

    def add(self, record: Record) -> None:
        """Counts a record."""
        self.records += 1
        self.boxes += bool(record.boxes)
        self.negatives += bool(record.negatives)
        self.components += bool(record.components)
        self.text_only += not record.images
        self._images.append(len(record.images))
        if record.captions:
            self._captions.append(len(record.captions))
            self._caption_words.extend(len(caption.split()) for caption in record.captions)
            self._caption_characters.extend(len(caption) for caption in record.captions)
        if record.messages:
            self._turns.append(sum(message.role != "system" for message in record.messages))
            for message in record.messages:
                if message.role != "system":
                    words = self._answer_words if message.role == "assistant" else self._question_words
                    words.append(len(message.text.split()))
        self.answered += bool(record.answers)
        answers = _answers_of(record)
        self._questions[record.split] += 1 if record.answers else sum(message.role == "assistant" for message in record.messages)
        if answers:
            self._answers.setdefault(record.split, Counter()).update(answers)
            self._records_with_answer.setdefault(record.split, Counter()).update(set(answers))
        if record.captions and record.images:
            shown = short_key("\0".join(record.image_keys))
            self._caption_images.setdefault(record.split, array("Q")).extend((shown, text_key(record)))

    def summary(self) -> RecordFigures:
        """Returns all numbers."""
        spreads = {
            "images_per_record": spread(self._images),
            "captions_per_record": spread(self._captions),
            "caption_words": spread(self._caption_words),
            "caption_characters": spread(self._caption_characters),
            "turns_per_conversation": spread(self._turns),
            "question_words": spread(self._question_words),
            "answer_words": spread(self._answer_words),
        }
        kinds = {
            "captions": len(self._captions),
            "conversations": len(self._turns),
            "answers": self.answered,
        }
        kinds |= {"boxes": self.boxes, "negatives": self.negatives, "components": self.components, "text_only": self.text_only}
        return RecordFigures(
            records=self.records,
            records_with={name: count for name, count in kinds.items() if count},
            spreads={name: value for name, value in spreads.items() if value is not None},
            labels={split: labels(counts) for split, counts in sorted(self._answers.items())},
            majority={split: self._majority(split) for split in sorted(self._answers)},
            images_of_captions={split: _repeats(keys) for split, keys in sorted(self._caption_images.items())},
        )

    def _majority(self, split: str) -> Majority:
        answer, count = min(self._answers[split].items(), key=lambda item: (-item[1], item[0]))
        questions = self._questions[split]
        return Majority(answer, questions, count / questions, self._records_with_answer[split][answer])


def _answers_of(record: Record) -> list[str]:
    """Returns the most frequent of a question's answers, or every short turn of the assistant."""
    if record.answers:
        counts = Counter(_folded(answer) for answer in record.answers)
        return [counts.most_common(1)[0][0]]
    said = (_folded(message.text) for message in record.messages if message.role == "assistant")
    return [text for text in said if 0 < len(text.split()) <= SHORT_ANSWER]


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _repeats(keys: array) -> ImageRepeats:
    """Counts repeated images; `keys` are pairs of image and text."""
    pairs = np.unique(np.asarray(keys, dtype=np.uint64).reshape(-1, 2), axis=0)  # a record that is repeated as a whole counts once
    _, counts = np.unique(pairs[:, 0], return_counts=True)
    often = counts[counts > 1]
    return ImageRepeats(len(keys) // 2, len(counts), len(often), int(often.sum()), int(counts.max()))


def labels(counts: Counter[str]) -> Labels:
    """Summarises the answers of a split."""
    total = counts.total()
    frequent = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:LISTED_ANSWERS]
    return Labels(total, len(counts), frequent[0][0], frequent[0][1] / total, dict(frequent))
