"""Boxes as fractions of the image, against values computed by hand."""

import math

import pytest

from sightline.data.readers.base import Tally
from sightline.data.readers.boxes import clipped_box, kept_boxes, labelled_box, pixel_fractions
from sightline.errors import RecordError
from sightline.types import Box


def test_pixels_become_fractions_of_width_and_height() -> None:
    assert pixel_fractions([20, 10, 100, 50], (200, 100)) == [0.1, 0.1, 0.6, 0.6]


@pytest.mark.parametrize(
    "bbox", [None, [1, 2, 3], ["1", 2, 3, 4], [10**400, 0, 1, 1], [math.nan, 0, 1, 1], [0, 0, math.inf, 1], "1234"]
)
def test_numbers_that_are_none_give_no_box(bbox: object) -> None:
    assert pixel_fractions(bbox, (200, 100)) is None
    assert pixel_fractions([1, 2, 3, 4], None) is None


@pytest.mark.parametrize(
    ("xyxy", "kept"),
    [
        ((0.1, 0.2, 0.3, 0.4), (0.1, 0.2, 0.3, 0.4)),
        ((-0.5, 0.2, 0.3, 1.7), (0.0, 0.2, 0.3, 1.0)),
        ((0.1, 0.2, 1.0000004, 0.4), (0.1, 0.2, 1.0, 0.4)),
        ((0.3, 0.2, 0.3, 0.4), None),
        ((0.4, 0.2, 0.3, 0.4), None),
        ((1.2, 0.2, 1.4, 0.4), None),
        ((math.nan, 0.2, 1.4, 0.4), None),
        (None, None),
    ],
)
def test_boxes_are_cut_to_the_image(xyxy: tuple[float, ...] | None, kept: tuple[float, ...] | None) -> None:
    box = clipped_box("x", xyxy)
    assert (None if box is None else box.xyxy) == kept


def test_dropped_boxes_are_noted_and_crowds_keep_their_places() -> None:
    tally = Tally()
    boxes, crowd = kept_boxes([("a", [0, 0, 0, 0], True), ("b", [0, 0, 1, 1], False), ("c", [0, 0, 0.5, 1], True)], tally)
    assert boxes == (Box("b", (0.0, 0.0, 1.0, 1.0)), Box("c", (0.0, 0.0, 0.5, 1.0)))
    assert crowd == {"crowd": [1]}
    assert tally.notes == {"bad_box": 1}


@pytest.mark.parametrize(
    "item", [None, {}, {"category": "a", "bbox_xywh_frac": [10**400, 0, 0, 0]}, {"text": 1, "box_xyxy_frac": [0] * 4}]
)
def test_objects_of_another_form_are_refused(item: object) -> None:
    with pytest.raises(RecordError) as caught:
        labelled_box(item)
    assert caught.value.reason == "bad_boxes"
