"""Outlines of the shapes, as polygons in whole numbers.

A unit outline is turned first and then scaled so that the longer side of its box is 2 and the box's center is 0: a thing's size
is that of its box, whatever its shape and angle. Coordinates are rounded to 1/65536 once, here; everything after this is
whole-number arithmetic, so that images do not depend on a library's rasteriser.
"""

import math
from functools import lru_cache

import numpy as np

UNIT = 1 << 16
CIRCLE_CORNERS = 64  # 0.3 pixels off a true circle at 1024 x 1024
HOLE = 0.6  # inner radius of a ring, of its outer one
STAR_WAIST = 0.5  # inner radius of a star, of its outer one
CROSS_ARM = 0.36  # half the width of an arm, of half the cross

Contour = tuple[tuple[int, int], ...]
_Points = list[tuple[float, float]]


def _regular(corners: int, radius: float = 1.0, first: float = -90.0) -> _Points:
    angles = [math.radians(first + 360.0 * corner / corners) for corner in range(corners)]
    return [(radius * math.cos(angle), radius * math.sin(angle)) for angle in angles]


def _star() -> _Points:
    tips, waists = _regular(5), _regular(5, STAR_WAIST, -54.0)
    return [point for both in zip(tips, waists, strict=True) for point in both]


def _cross() -> _Points:
    arm = CROSS_ARM
    quarter = [(arm, -1.0), (arm, -arm), (1.0, -arm)]
    turned = quarter
    out: _Points = []
    for _ in range(4):
        out += turned
        turned = [(-y, x) for x, y in turned]
    return out


_UNIT_OUTLINES: dict[str, list[_Points]] = {
    "circle": [_regular(CIRCLE_CORNERS)],
    "cross": [_cross()],
    "ring": [_regular(CIRCLE_CORNERS), _regular(CIRCLE_CORNERS, HOLE)],
    "square": [[(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]],
    "star": [_star()],
    "triangle": [_regular(3)],
}

# Degrees to either side: a square stays a square, not a diamond; a cross is no letter X. Twice as much would be as clear to a
# viewer, but costs a model that starts from nothing a quarter more steps.
MAX_TURN = {"circle": 0, "cross": 8, "ring": 0, "square": 8, "star": 15, "triangle": 12}


@lru_cache(maxsize=512)
def unit_outline(shape: str, angle: int) -> tuple[tuple[Contour, ...], tuple[int, int], tuple[int, int]]:
    """Returns a turned outline in units of 1/65536 of its radius.

    Returns:
        Its contours (even-odd filled), half the width and height of its box, and its middle (the center of the largest circle
        in it, which is not the box's center in a star or a triangle) relative to the box's center.
    """
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    contours = [[(x * cosine - y * sine, x * sine + y * cosine) for x, y in points] for points in _UNIT_OUTLINES[shape]]
    left, right = min(x for x, _ in contours[0]), max(x for x, _ in contours[0])
    top, bottom = min(y for _, y in contours[0]), max(y for _, y in contours[0])
    scale = 2 * UNIT / max(right - left, bottom - top)
    center_x, center_y = (left + right) / 2, (top + bottom) / 2
    rounded = tuple(tuple((round((x - center_x) * scale), round((y - center_y) * scale)) for x, y in points) for points in contours)
    half = max(x for x, _ in rounded[0]), max(y for _, y in rounded[0])
    return rounded, half, (round(-center_x * scale), round(-center_y * scale))


def _scaled(value: int, radius: int) -> int:
    return (value * radius + UNIT // 2) >> 16


@lru_cache(maxsize=4096)
def extents(shape: str, angle: int, radius: float) -> tuple[float, float]:
    """Returns half the width and height of the box of a thing, as fractions of the image."""
    _, half, _ = unit_outline(shape, angle)
    units = round(radius * UNIT)
    return _scaled(half[0], units) / UNIT, _scaled(half[1], units) / UNIT


def middle(shape: str, angle: int, radius: float) -> tuple[float, float]:
    """Returns where the largest circle inside a thing has its center, relative to the center of its box, on the grid of 1/4096."""
    _, _, offset = unit_outline(shape, angle)
    return round(offset[0] * radius / 16) / 4096, round(offset[1] * radius / 16) / 4096


@lru_cache(maxsize=512)
def _unit_edges(shape: str, angle: int) -> np.ndarray:
    contours, _, _ = unit_outline(shape, angle)
    ends = [(*start, *end) for points in contours for start, end in zip(points, (*points[1:], points[0]), strict=True)]
    return np.array(ends, dtype=np.int64)


def edges(shape: str, angle: int, radius: float, x: float, y: float) -> np.ndarray:
    """Returns the edges of a thing, int64 [edges, 4], as x and y of both ends, in units of 1/65536 of the image's side.

    They close one contour or two; what lies inside follows from the even-odd rule.
    """
    center = [round(x * UNIT), round(y * UNIT)] * 2
    return ((_unit_edges(shape, angle) * round(radius * UNIT) + UNIT // 2) >> 16) + np.array(center, dtype=np.int64)
