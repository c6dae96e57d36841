"""Numbers about records: how many, how large, how long, and what their labels are."""

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
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


def spread(values: Sequence[float] | np.ndarray, edges: Sequence[float] | None = None) -> dict[str, Any] | None:
    """Count, smallest, mean, median, 95th percentile, largest, sum, and a histogram; None without values.

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
    return {
        "n": len(array_),
        "min": _plain(array_.min()),
        "mean": float(array_.mean()),
        "median": float(np.median(array_)),
        "p95": float(np.quantile(array_, 0.95)),
        "max": _plain(array_.max()),
        "sum": _plain(array_.sum()),
        "histogram": {"edges": [_plain(border) for border in borders], "counts": counts.tolist()},
    }


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
    """The edges around the values; the last bin is extended over what lies beyond."""
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
        if record.captions and record.image_info:
            shown = "\0".join(info.sha256 for info in record.image_info)
            self._caption_images.setdefault(record.split, array("Q")).extend((short_key(shown), text_key(record)))

    def to_json(self) -> dict[str, Any]:
        """All numbers; what does not occur is left out."""
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
        kinds |= {"boxes": self.boxes, "negatives": self.negatives, "text_only": self.text_only}
        out: dict[str, Any] = {"records": self.records, "records_with": {name: count for name, count in kinds.items() if count}}
        out |= {name: value for name, value in spreads.items() if value is not None}
        if self._answers:
            out["labels"] = {split: labels(counts) for split, counts in sorted(self._answers.items())}
            out["majority"] = {split: self._majority(split) for split in sorted(self._answers)}
        if self._caption_images:
            out["images_of_captions"] = {split: _repeats(keys) for split, keys in sorted(self._caption_images.items())}
        return out

    def _majority(self, split: str) -> dict[str, Any]:
        """The most frequent short answer among all questions of a split, those with long answers included."""
        answer, count = min(self._answers[split].items(), key=lambda item: (-item[1], item[0]))
        questions = self._questions[split]
        return {
            "answer": answer,
            "questions": questions,
            "share": count / questions,
            "in_records": self._records_with_answer[split][answer],
        }


def _answers_of(record: Record) -> list[str]:
    """What is to be answered: the most frequent of a question's answers, or every short turn of the assistant."""
    if record.answers:
        told = Counter(_folded(answer) for answer in record.answers)
        return [told.most_common(1)[0][0]]
    said = (_folded(message.text) for message in record.messages if message.role == "assistant")
    return [text for text in said if 0 < len(text.split()) <= SHORT_ANSWER]


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _repeats(keys: array) -> dict[str, int]:
    """How many images of records with captions stand with other captions in other records; `keys` are pairs of image and text."""
    pairs = np.unique(np.asarray(keys, dtype=np.uint64).reshape(-1, 2), axis=0)  # a record that is repeated as a whole counts once
    _, counts = np.unique(pairs[:, 0], return_counts=True)
    often = counts[counts > 1]
    return {
        "records": len(keys) // 2,
        "images": len(counts),
        "repeated": len(often),
        "in_records": int(often.sum()),
        "most": int(counts.max()),
    }


def labels(counts: Counter[str]) -> dict[str, Any]:
    """The most frequent answers, and the share of the first: what is right without a look at the picture."""
    total = counts.total()
    frequent = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:LISTED_ANSWERS]
    return {
        "records": total,
        "distinct": len(counts),
        "majority": frequent[0][0],
        "majority_share": frequent[0][1] / total,
        "most_frequent": dict(frequent),
    }
