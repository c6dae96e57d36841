"""Which regions of an image ComAlign looks at: cells, or the boxes of records and pairs of them.

Boxes are fractions of the image (left, top, right, bottom); a box without area is padding.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Float
from PIL import Image

from sightline.data.images.preparation import ImagePreparation
from sightline.runtime.keyed import keyed_generator
from sightline.types import BoxChoice, Record, RegionChoice

Array = Float[np.ndarray, "K 4"]

_THIRDS = [(column / 3, row / 3, (column + 1) / 3, (row + 1) / 3) for row in range(3) for column in range(3)]
CELLS = np.array([*_THIRDS, (0.25, 0.25, 0.75, 0.75)])  # nine cells and the middle
LARGE_CELLS = np.array(
    [
        (0, 0, 0.5, 1), (0.5, 0, 1, 1), (0, 0, 1, 0.5), (0, 0.5, 1, 1),  # halves
        (0, 0, 2 / 3, 2 / 3), (1 / 3, 0, 1, 2 / 3), (0, 1 / 3, 2 / 3, 1), (1 / 3, 1 / 3, 1, 1),  # four cells each
        (0, 1 / 3, 1, 2 / 3), (1 / 3, 0, 2 / 3, 1),  # the middle row and column
    ]
)  # fmt: skip


def boxes_of(
    record: Record, choice: BoxChoice, entities: int, relations: int, view: ImagePreparation | None = None
) -> Float[np.ndarray, "K 4"]:
    """Returns the boxes of a record's first image, `[entities + relations, 4]`, padded with zeros.

    Args:
        record: of which boxes, images and sizes are read.
        choice: see `AlignmentConfig.boxes`.
        entities, relations: number of boxes, and of larger ones for pairs of things.
        view: the preparation whose view of the image boxes of records are fractions of; None for the image itself.
    """
    if choice == "record":
        found = _in_view(_record_boxes(record, entities, relations), record, view)
    elif choice == "random":
        found = _random_boxes(record, entities, relations)
    else:
        found = np.concatenate([CELLS[:entities], LARGE_CELLS[:relations]])
    return found.astype(np.float32)


def _record_boxes(record: Record, entities: int, relations: int) -> Array:
    """Returns the boxes with the highest scores, and unions of the pairs with the highest products of scores."""
    ranked = sorted(record.boxes, key=lambda box: -box.score)[:entities]
    pairs = sorted(combinations(ranked, 2), key=lambda pair: -pair[0].score * pair[1].score)[:relations]
    out = np.zeros((entities + relations, 4))
    for row, box in enumerate(ranked):
        out[row] = box.xyxy
    for row, (one, other) in enumerate(pairs):
        out[entities + row] = (
            *np.minimum(one.xyxy[:2], other.xyxy[:2]),
            *np.maximum(one.xyxy[2:], other.xyxy[2:]),
        )
    return out


def _random_boxes(record: Record, entities: int, relations: int) -> Array:
    """Returns boxes of random places and sizes, the same for an image each time; those of pairs are larger."""
    generator = keyed_generator("boxes", *record.image_keys)
    low = np.repeat([[0.15], [0.3]], [entities, relations], axis=0)
    size = generator.uniform(low, low + 0.4, (entities + relations, 2))
    start = generator.uniform(0, 1, size.shape) * (1 - size)
    return np.concatenate([start, start + size], axis=1)


def _in_view(boxes: Array, record: Record, view: ImagePreparation | None) -> Array:
    """Returns boxes as fractions of what the encoder sees of the image; what lies outside is cut off."""
    if view is None or not record.image_info:
        return boxes
    left, top, right, bottom = view.view((record.image_info[0].width, record.image_info[0].height))
    start, size = np.array([left, top, left, top]), np.array([right - left, bottom - top] * 2)
    inside = np.clip((boxes - start) / size, 0, 1)
    has_area = (inside[:, 2] > inside[:, 0]) & (inside[:, 3] > inside[:, 1]) & (boxes[:, 2] > boxes[:, 0])
    return np.where(has_area[:, None], inside, 0)


def region_of(image: Image.Image, box: Sequence[float], region: RegionChoice) -> Image.Image:
    """Returns the part of an image in a box, at least one pixel of it, or the image with everything else painted grey."""
    left, top = (min(int(box[axis] * side), side - 1) for axis, side in enumerate(image.size))
    right = max(min(round(box[2] * image.width), image.width), left + 1)
    bottom = max(min(round(box[3] * image.height), image.height), top + 1)
    part = image.crop((left, top, right, bottom))
    if region == "crop":
        return part
    out = Image.new("RGB", image.size, (128, 128, 128))
    out.paste(part, (left, top))
    return out
