"""Scores boxes that were written as text: intersection over union, and the share at or above 0.5 (RefCOCOg REC)."""

import re
from collections.abc import Sequence

from sightline.metrics.scores import score_of
from sightline.types import Score

SCORER = "grounding 1"
THRESHOLD = 0.5

Corners = tuple[float, float, float, float]
_NUMBER = re.compile(r"-?(?:\d+\.?\d*|\.\d+)")


def parse_box(text: str) -> Corners | None:
    """Returns the first four numbers of an answer: left, top, right, bottom as fractions; None where it has fewer.

    Numbers on another scale (pixels, 0 to 1000) are read as they are and miss the box.
    """
    numbers = [float(number) for number in _NUMBER.findall(text)[:4]]
    return (numbers[0], numbers[1], numbers[2], numbers[3]) if len(numbers) == 4 else None


def intersection_over_union(first: Corners, second: Corners) -> float:
    """Computes the area that two boxes share over the area that they cover; 0 where a box has no area."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(0.0, width) * max(0.0, height)
    covered = _area(first) + _area(second) - shared
    return shared / covered if shared > 0 else 0.0


def _area(box: Corners) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def score_boxes(
    found: Sequence[Corners | None], right: Sequence[Corners], *, resamples: int = 1000, seed: int = 0
) -> dict[str, Score]:
    """Computes `acc_50`, the share of boxes whose intersection over union is at least 0.5, and `iou`, its mean.

    A box that could not be read has 0.
    """
    values = [0.0 if mine is None else intersection_over_union(mine, box) for mine, box in zip(found, right, strict=True)]
    unparsed = sum(mine is None for mine in found) / len(found)
    hits = [float(value >= THRESHOLD) for value in values]
    return {
        name: score_of(name, items, SCORER, unparsed, resamples=resamples, seed=seed)
        for name, items in (("acc_50", hits), ("iou", values))
    }
