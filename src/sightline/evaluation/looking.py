"""Whether a model looks at the image, from the scores of its items with the image and under a control (`items.json`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sightline.errors import StorageError
from sightline.evaluation.tasks import ScoreInfo
from sightline.metrics.statistics import Difference, Statistic, mean_by_cluster, paired_bootstrap
from sightline.metrics.verdict import Verdict, verdict_of
from sightline.runtime import storage

Items = Mapping[str, Any]
"""What `items.json` holds: `records`, `image` (equal ones are drawn together) and `items`, the values by score."""


def stored_items(file: Path) -> Items | None:
    """Reads an `items.json`; None where it is not there, or its lists do not belong together."""
    try:
        found = storage.read_json(file)
        records, images, items = found["records"], found.get("image", found.get("picture")), found["items"]
        lists = [records, images, *items.values()]
        if not all(isinstance(own, list) and len(own) == len(records) for own in lists):
            return None
        if not all(isinstance(value, int | float) for own in items.values() for value in own):
            return None
    except (StorageError, KeyError, TypeError, AttributeError):
        return None
    return {**found, "image": images}  # older versions wrote `picture`


def paired_scores(seen: Items, control: Items, name: str) -> tuple[Statistic, Statistic, int] | None:
    """Returns a score with the image and under a control on the items that both have, and the number of their images.

    Returns None where one of them lacks the score or they share no item.
    """
    if name not in seen["items"] or name not in control["items"]:
        return None
    theirs = dict(zip(control["records"], control["items"][name], strict=True))
    rows = [row for row in zip(seen["records"], seen["image"], seen["items"][name], strict=True) if row[0] in theirs]
    if not rows:
        return None
    numbers: dict[str, int] = {}
    cluster = np.array([numbers.setdefault(image, len(numbers)) for _, image, _ in rows])
    with_image, count = mean_by_cluster([value for _, _, value in rows], cluster)
    without, _ = mean_by_cluster([theirs[record] for record, _, _ in rows], cluster)
    return with_image, without, count


def image_difference(seen: Items, control: Items, info: ScoreInfo, resamples: int = 1000) -> Difference | None:
    """Returns by how much a score is better with the image than under a control, paired by item; None as `paired_scores`.

    `n` is the number of images, which are what a resample draws.
    """
    pair = paired_scores(seen, control, info.name)
    if pair is None:
        return None
    first, second, count = pair if info.higher_is_better else (pair[1], pair[0], pair[2])
    return paired_bootstrap(first, second, count, resamples=resamples)


def verdict_of_items(
    seen: Items, control: Items | None, info: ScoreInfo, name: str, command: str = "", resamples: int = 1000, note: str = ""
) -> Verdict:
    """Decides whether a model looks.

    Args:
        seen, control: items with the image and under the control; None where no control is stored.
        info: the score, the headline of its task.
        name: of the control.
        command: what would make a control.
        resamples: of the bootstrap.
        note: why there is no control, where that is known.
    """
    if control is None or (difference := image_difference(seen, control, info, resamples)) is None:
        return verdict_of(None, 0.0, command=command, note=note)
    pair = paired_scores(seen, control, info.name)
    assert pair is not None  # there is a difference
    return verdict_of(difference, pair[0].value, name)
