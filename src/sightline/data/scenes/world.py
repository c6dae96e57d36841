"""The contents of a scene: things with shape, color, size and place, and at level 3 a sign to read.

`make_scene(seed, level, index)` draws everything from a Philox stream keyed by the three numbers, by whole-number arithmetic
on the raw stream, so that a scene is the same on every machine and in every order of making. Lengths are fractions of the
image's side, multiples of 1/4096. Names are chosen first and geometry after, inside bands with gaps between them: nothing is
half small, half left, or half red.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

import numpy as np

from sightline.data.scenes.outlines import MAX_TURN, extents, middle
from sightline.errors import UsageError

T = TypeVar("T")

SHAPES = ("circle", "cross", "ring", "square", "star", "triangle")
COLORS = {
    "black": (28, 28, 34),
    "blue": (35, 80, 215),
    "green": (25, 150, 60),
    "orange": (245, 135, 15),
    "pink": (250, 130, 190),
    "purple": (125, 40, 165),
    "red": (215, 30, 35),
    "yellow": (245, 222, 40),
}
SIZES = ("small", "large")
PLACES = {  # column and row of the 3 x 3 grid
    "top left": (0, 0),
    "top": (1, 0),
    "top right": (2, 0),
    "left": (0, 1),
    "center": (1, 1),
    "right": (2, 1),
    "bottom left": (0, 2),
    "bottom": (1, 2),
    "bottom right": (2, 2),
}
# fmt: off
WORDS = (
    "ANT", "ARM", "BAG", "BED", "BEE", "BOX", "BUS", "CAR", "CAT", "COW", "CUP", "DOG", "EGG", "FAN", "FOX", "GYM", "HAT",
    "ICE", "INK", "JAM", "KEY", "LEG", "MAP", "MUD", "NET", "NUT", "OIL", "OWL", "PEN", "PIE", "RUG", "SKY", "SUN", "TEA",
    "TOY", "VAN", "WEB", "YAK", "ZIP", "ZOO",
)
# fmt: on
NUMBERS = tuple(str(number) for number in range(10, 100))

# Half of the longer side of a thing's box. Small never exceeds 0.12 and large never falls below 0.155, at any level.
RADIUS = {
    1: {"small": (0.10, 0.12), "large": (0.17, 0.21)},
    2: {"small": (0.09, 0.115), "large": (0.16, 0.19)},
    3: {"small": (0.075, 0.095), "large": (0.155, 0.165)},
}
RADIUS_INSIDE, RADIUS_AROUND = (0.075, 0.08), (0.235, 0.25)  # the inner thing fits into every shape (ring: into its hole)
PLACE_BANDS = ((0.0, 0.31), (0.43, 0.57), (0.69, 1.0))  # of a thing's center, by column or row
EDGE = 0.02  # between a box and the border of the image
GAP = 0.04  # between two boxes
DRIFT = 0.05  # of the centers across the direction of the relation that level 2 shows
GRID = 4096
SIGN_CELLS = 64  # a dot of a letter is 1/64 of the side: one pixel of the default image
SIGN_FRAME = 3  # cells around the letters: a border of one, a gap of two
MAX_COUNT = 6  # things at level 3


class Stream(IntEnum):
    """Independent streams of one scene: what one of them draws never moves another."""

    WORLD = 0
    CAPTIONS = 1
    NEGATIVES = 2
    QUESTIONS = 3
    NOISE = 4


class Draws:
    """Whole-number draws from the raw Philox stream of a scene (numpy keeps raw streams stable, not its distributions)."""

    def __init__(self, seed: int, level: int, index: int, stream: Stream) -> None:
        self._philox = np.random.Philox(key=_words(seed, level), counter=_words(0, 0, int(stream), index))
        self._raw: list[int] = []

    def below(self, bound: int) -> int:
        """Draws a whole number in [0, bound)."""
        if not self._raw:
            self._raw = self._philox.random_raw(32).tolist()[::-1]
        return ((self._raw.pop() >> 32) * bound) >> 32

    def fraction(self, low: float, high: float) -> float:
        """Draws a multiple of 1/4096 in [low, high], both rounded to that grid."""
        first, last = round(low * GRID), round(high * GRID)
        return (first + self.below(last - first + 1)) / GRID

    def choice(self, items: Sequence[T]) -> T:
        """Draws one of the items."""
        return items[self.below(len(items))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """Returns the items in random order (Fisher-Yates)."""
        out = list(items)
        for last in range(len(out) - 1, 0, -1):
            other = self.below(last + 1)
            out[last], out[other] = out[other], out[last]
        return out

    def bytes(self, count: int) -> np.ndarray:
        """Draws `count` bytes as uint8, in the same order on every platform."""
        return self._philox.random_raw(-(-count // 8)).astype("<u8").view(np.uint8)[:count]


def _words(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


@dataclass(frozen=True, slots=True)
class Thing:
    """A shape in the image.

    Attributes:
        x, y: center of its box; y grows downwards.
        radius: half of the longer side of its box.
        angle: degrees by which the outline is turned.
        rgb: the color as drawn, near that of its name.
    """

    shape: str
    color: str
    size: str
    x: float
    y: float
    radius: float
    angle: int
    rgb: tuple[int, int, int]

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom of its outline, exact."""
        width, height = extents(self.shape, self.angle, self.radius)
        return self.x - width, self.y - height, self.x + width, self.y + height


@dataclass(frozen=True, slots=True)
class Sign:
    """A white board with dark letters; `left` and `top` count cells of 1/64 of the side."""

    text: str
    left: int
    top: int

    @property
    def cells(self) -> tuple[int, int]:
        """Width and height in cells; a letter is 5 x 7, one cell apart from the next."""
        return 6 * len(self.text) - 1 + 2 * SIGN_FRAME, 7 + 2 * SIGN_FRAME

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom of the board."""
        width, height = self.cells
        left, top, right, bottom = self.left, self.top, self.left + width, self.top + height
        return left / SIGN_CELLS, top / SIGN_CELLS, right / SIGN_CELLS, bottom / SIGN_CELLS


@dataclass(frozen=True, slots=True)
class Background:
    """A light tint, and by how much it brightens from left to right and from top to bottom."""

    rgb: tuple[int, int, int]
    across: int
    down: int


@dataclass(frozen=True, slots=True)
class Scene:
    """All that is in image `index` of a series, a pure function of `seed`, `level` and `index`.

    Attributes:
        things: the shapes, later ones drawn over earlier ones. At level 3 the first one has one to three equals (same shape and
            color, itself counted), every other one none.
        sign: what there is to read, at level 3.
    """

    seed: int
    level: int
    index: int
    things: tuple[Thing, ...]
    sign: Sign | None
    background: Background

    @property
    def pairs(self) -> frozenset[tuple[str, str]]:
        """The (color, shape) pairs that it shows."""
        return frozenset((thing.color, thing.shape) for thing in self.things)

    def draws(self, stream: Stream) -> Draws:
        """Returns the stream of random numbers of this scene that is kept for one purpose."""
        return Draws(self.seed, self.level, self.index, stream)


def make_scene(seed: int, level: int, index: int) -> Scene:
    """Returns scene `index` of the series (`seed`, `level`).

    Args:
        seed: 0 or more, below 2^64.
        level: 1 one thing; 2 two things in a relation; 3 three to six things, some alike, and a sign.
        index: 0 or more, below 2^64.

    Raises:
        UsageError: an argument is out of range.
    """
    if level not in RADIUS:
        raise UsageError(f"level is {level!r}.", f"Choose one of {', '.join(map(str, RADIUS))}.")
    for name, value in (("seed", seed), ("index", index)):
        if not 0 <= value < 2**64:
            raise UsageError(f"{name} is {value}.", "Choose a whole number from 0 to 2^64 - 1.")
    draws = Draws(seed, level, index, Stream.WORLD)
    background = Background(_jitter((228, 228, 228), 14, draws), draws.below(25) - 12, draws.below(25) - 12)
    sign = None
    if level == 1:
        things = [_placed_thing(draws)]
    elif level == 2:
        things = _related_things(draws)
    else:
        things, sign = _many_things(draws)
    return Scene(seed, level, index, tuple(things), sign, background)


def _jitter(rgb: tuple[int, int, int], reach: int, draws: Draws) -> tuple[int, int, int]:
    red, green, blue = (min(max(value + draws.below(2 * reach + 1) - reach, 0), 255) for value in rgb)
    return red, green, blue


@dataclass(frozen=True, slots=True)
class _Look:
    """A thing that has no place yet; `width` and `height` are half the sides of its box."""

    shape: str
    color: str
    size: str
    radius: float
    angle: int
    rgb: tuple[int, int, int]
    width: float
    height: float

    def at(self, x: float, y: float) -> Thing:
        return Thing(self.shape, self.color, self.size, x, y, self.radius, self.angle, self.rgb)


def _look(draws: Draws, shape: str, color: str, size: str, band: tuple[float, float]) -> _Look:
    radius, turn = draws.fraction(*band), MAX_TURN[shape]
    angle = draws.below(2 * turn + 1) - turn
    width, height = extents(shape, angle, radius)
    return _Look(shape, color, size, radius, angle, _jitter(COLORS[color], 10, draws), width, height)


def _pairs(draws: Draws, count: int) -> list[tuple[str, str]]:
    """Returns `count` different (color, shape) pairs."""
    pairs: list[tuple[str, str]] = []
    while len(pairs) < count:
        pair = (draws.choice(tuple(COLORS)), draws.choice(SHAPES))
        if pair not in pairs:
            pairs.append(pair)
    return pairs


def _placed_thing(draws: Draws) -> Thing:
    """Makes the thing of level 1: size, color, shape and place, all independent and uniform."""
    (color, shape), size = _pairs(draws, 1)[0], draws.choice(SIZES)
    column, row = draws.choice(tuple(PLACES.values()))
    look = _look(draws, shape, color, size, RADIUS[1][size])
    return look.at(_center(draws, column, look.width), _center(draws, row, look.height))


def _center(draws: Draws, band: int, half: float) -> float:
    low, high = PLACE_BANDS[band]
    return draws.fraction(max(low, half + EDGE), min(high, 1 - half - EDGE))


def _related_things(draws: Draws) -> list[Thing]:
    """Makes the things of level 2: side by side, one above the other, or one inside the other.

    A small thing is as often inside a large one of another color as it is left of such a one, or above, and so on: the names do
    not tell the relation. Left of, with these sizes and two colors, are 1/8 * 42/47 of the scenes side by side or one above the
    other, which makes 42 of 418 the share of scenes with one thing inside the other.
    """
    is_nested = draws.below(418) < 42
    pairs = _pairs(draws, 2)
    while is_nested and pairs[0][0] == pairs[1][0]:
        pairs = _pairs(draws, 2)
    if is_nested:
        return _nested_things(draws, pairs)
    sizes = [draws.choice(SIZES), draws.choice(SIZES)]
    is_sideways = draws.below(2) == 0
    first, second = (_look(draws, shape, color, size, RADIUS[2][size]) for (color, shape), size in zip(pairs, sizes, strict=True))
    along, across = (first.width, second.width), (first.height, second.height)
    if not is_sideways:
        along, across = across, along
    room = 1 - 2 * EDGE - GAP - 2 * sum(along)
    start = draws.fraction(0, room)
    near = EDGE + along[0] + start
    far = near + along[0] + along[1] + GAP + draws.fraction(0, room - start)
    half = max(across)
    level = draws.fraction(EDGE + half + DRIFT / 2, 1 - EDGE - half - DRIFT / 2)
    drift = draws.fraction(-DRIFT / 2, DRIFT / 2)
    if is_sideways:
        return [first.at(near, level + drift), second.at(far, level - drift)]
    return [first.at(level + drift, near), second.at(level - drift, far)]


def _nested_things(draws: Draws, pairs: list[tuple[str, str]]) -> list[Thing]:
    (outer_color, outer_shape), (inner_color, inner_shape) = pairs
    outer = _look(draws, outer_shape, outer_color, "large", RADIUS_AROUND)
    inner = _look(draws, inner_shape, inner_color, "small", RADIUS_INSIDE)
    x = draws.fraction(EDGE + outer.width, 1 - EDGE - outer.width)
    y = draws.fraction(EDGE + outer.height, 1 - EDGE - outer.height)
    across, down = middle(outer.shape, outer.angle, outer.radius)
    shift = 0.006  # the tightest pair, a square in a star, leaves 0.01 free
    inner_x, inner_y = x + across + draws.fraction(-shift, shift), y + down + draws.fraction(-shift, shift)
    return [outer.at(x, y), inner.at(inner_x, inner_y)]


def _many_things(draws: Draws) -> tuple[list[Thing], Sign]:
    """Makes the things of level 3: a sign, then things from large to small at free places."""
    total, alike = 3 + draws.below(MAX_COUNT - 2), 1 + draws.below(3)
    pairs = _pairs(draws, total - alike + 1)
    pairs = pairs[:1] * (alike - 1) + pairs
    max_large = 2 if total <= 5 else 1  # more than these often do not fit
    num_large = 1 + draws.below(max_large)
    sizes = draws.shuffled(["large"] * num_large + ["small"] * (total - num_large))
    looks = [_look(draws, shape, color, size, RADIUS[3][size]) for (color, shape), size in zip(pairs, sizes, strict=True)]
    text = draws.choice(WORDS if draws.below(2) else NUMBERS)
    order = sorted(range(total), key=lambda number: -looks[number].radius)
    while True:  # an attempt fails in about 1 of 10 cases
        width, height = Sign(text, 0, 0).cells
        sign = Sign(text, 1 + draws.below(SIGN_CELLS - width - 1), 1 + draws.below(SIGN_CELLS - height - 1))
        placed = _scattered(draws, [looks[number] for number in order], sign)
        if placed:
            things = dict(zip(order, placed, strict=True))
            return [things[number] for number in range(total)], sign


def _scattered(draws: Draws, looks: Sequence[_Look], sign: Sign) -> list[Thing]:
    """Returns the things at free places; empty when one of them found none in 60 trials."""
    boxes, things = [sign.box], []
    for look in looks:
        for _ in range(60):
            thing = look.at(
                draws.fraction(EDGE + look.width, 1 - EDGE - look.width),
                draws.fraction(EDGE + look.height, 1 - EDGE - look.height),
            )
            box = thing.box
            if all(_apart(box, other) for other in boxes):
                break
        else:
            return []
        boxes.append(box)
        things.append(thing)
    return things


def _apart(first: tuple[float, ...], second: tuple[float, ...]) -> bool:
    sideways = first[2] + GAP <= second[0] or second[2] + GAP <= first[0]
    return sideways or first[3] + GAP <= second[1] or second[3] + GAP <= first[1]
