"""Boxes read from text and their overlap, against hand-computed areas."""

import pytest

from sightline.metrics.grounding import intersection_over_union, parse_box, score_boxes

HALF = (0.0, 0.0, 0.5, 1.0)


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("[0.1, 0.2, 0.3, 0.4]", (0.1, 0.2, 0.3, 0.4)),
        ("It is at (.5,0,1,1.) of the image 7", (0.5, 0.0, 1.0, 1.0)),
        ("-0.1 0 2 3", (-0.1, 0.0, 2.0, 3.0)),
        ("0.1, 0.2, 0.3", None),
        ("", None),
    ],
)
def test_a_box_is_the_first_four_numbers(text: str, box: tuple[float, ...] | None) -> None:
    assert parse_box(text) == box


@pytest.mark.parametrize(
    ("other", "value"),
    [
        (HALF, 1.0),
        ((0.5, 0.0, 1.0, 1.0), 0.0),  # they touch
        ((0.0, 0.0, 1.0, 1.0), 0.5),
        ((0.25, 0.0, 0.75, 1.0), 0.25 / 0.75),
        ((0.5, 1.0, 0.0, 0.0), 0.0),  # corners exchanged: no area
        ((0.2, 0.2, 0.2, 0.2), 0.0),
    ],
)
def test_overlap_is_the_shared_area_over_the_covered_one(other: tuple[float, float, float, float], value: float) -> None:
    assert intersection_over_union(HALF, other) == pytest.approx(value)
    assert intersection_over_union(other, HALF) == pytest.approx(value)


def test_half_counts_as_found_and_an_unreadable_box_as_missed() -> None:
    scores = score_boxes([HALF, (0.0, 0.0, 1.0, 1.0), None, (0.25, 0.0, 0.75, 1.0)], [HALF] * 4, resamples=20)
    assert scores["acc_50"].items == (1.0, 1.0, 0.0, 0.0)
    assert scores["iou"].value == pytest.approx((1 + 0.5 + 0 + 1 / 3) / 4)
    assert {score.unparsed for score in scores.values()} == {0.25}
