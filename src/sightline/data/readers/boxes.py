"""Boxes of any source as labelled fractions of the image as it is shown, cut to it.

Sources give boxes in stored pixels, before the turn that a JPEG's EXIF orientation asks for, unless the width and height that they
state are those of the turned image. `turned_box` brings the former to the image as shown.

A box without area inside the image, or whose numbers are none, is dropped and noted as `bad_box`: its record stays. The places
of crowd boxes (COCO) are listed in `meta["crowd"]`.
"""

import math
from collections.abc import Sequence
from typing import Any

from sightline.data.readers.base import Tally, shown
from sightline.errors import RecordError
from sightline.types import Box

Found = tuple[str, list[float] | None, bool]  # label; left, top, right, bottom in fractions; is a crowd


def pixel_fractions(bbox: object, size: tuple[int, int] | None) -> list[float] | None:
    """Returns `[x, y, width, height]` in pixels as left, top, right, bottom in fractions; None when that cannot be said."""
    if size is None or not isinstance(bbox, list) or len(bbox) != 4 or not _numbers(*bbox):
        return None
    width, height = size
    return [bbox[0] / width, bbox[1] / height, (bbox[0] + bbox[2]) / width, (bbox[1] + bbox[3]) / height]


def labelled_box(item: Any) -> Found:
    """Returns an object of a row: `{"category", "bbox_xywh_frac", "crowd"}`, or `{"text", "box_xyxy_frac"}`.

    Raises:
        RecordError: reason `bad_boxes`.
    """
    match item:
        case {"category": str(label), "bbox_xywh_frac": [x, y, width, height]} if _numbers(x, y, width, height):
            return label, [x, y, x + width, y + height], bool(item.get("crowd"))
        case {"text": str(label), "box_xyxy_frac": [left, top, right, bottom]} if _numbers(left, top, right, bottom):
            return label, [left, top, right, bottom], False
    raise RecordError("bad_boxes", f"an object is {{'category', 'bbox_xywh_frac': [x, y, width, height]}}, got {shown(item)}")


def _numbers(*values: object) -> bool:
    """Returns whether all are finite numbers that fit a float; JSON allows hundreds of digits."""
    return all(isinstance(value, int | float) and -1e9 < value < 1e9 for value in values)


def turned_box(xyxy: Sequence[float], orientation: int) -> tuple[float, float, float, float]:
    """Returns a box in fractions of the stored image as fractions of the image as shown.

    Args:
        xyxy: left, top, right, bottom.
        orientation: EXIF's, 1 to 8.
    """
    left, top, right, bottom = xyxy
    if orientation in (2, 3, 6, 7):  # the stored x axis (5 to 8: y axis) runs against the shown x axis
        x = (1 - right, 1 - left) if orientation < 5 else (1 - bottom, 1 - top)
    else:
        x = (left, right) if orientation < 5 else (top, bottom)
    if orientation in (3, 4, 7, 8):
        y = (1 - bottom, 1 - top) if orientation < 5 else (1 - right, 1 - left)
    else:
        y = (top, bottom) if orientation < 5 else (left, right)
    return round(x[0], 6), round(y[0], 6), round(x[1], 6), round(y[1], 6)


def refers_to_shown(stated: tuple[int, int] | None, shown_size: tuple[int, int], orientation: int) -> bool:
    """Returns whether the size that a source states is that of the turned image; False where that cannot be known."""
    if orientation < 5 or stated is None or stated[0] == stated[1]:
        return False
    return (stated[0] > stated[1]) == (shown_size[0] > shown_size[1])


def kept_boxes(found: Sequence[Found], tally: Tally) -> tuple[tuple[Box, ...], dict[str, list[int]]]:
    """Returns the boxes that are left after cutting, and `{"crowd": [places]}` where there are crowds."""
    boxes: list[Box] = []
    crowd: list[int] = []
    for label, xyxy, is_crowd in found:
        box = clipped_box(label, xyxy)
        if box is None:
            tally.notes["bad_box"] += 1
            continue
        if is_crowd:
            crowd.append(len(boxes))
        boxes.append(box)
    return tuple(boxes), {"crowd": crowd} if crowd else {}


def clipped_box(label: str, xyxy: Sequence[float] | None) -> Box | None:
    """Returns a box cut to the image; None when nothing of it is left, or its numbers are none."""
    if xyxy is None or not all(math.isfinite(value) for value in xyxy):
        return None
    left, top, right, bottom = (min(max(round(float(value), 6), 0.0), 1.0) for value in xyxy)
    return Box(label, (left, top, right, bottom)) if left < right and top < bottom else None
