"""Statements about a scene, and whether each is true.

A statement is a small structure, not a text; `sightline.data.scenes.language` puts it into words. `truth` answers True or False
only where a person who sees the image would not hesitate, and None where the image is too close to call (a thing both
right of and below another one is not plainly "below" it). Captions are made of statements that are True, negatives of
statements that are False; None serves neither.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from sightline.data.scenes.world import PLACES, Scene, Thing

RELATIONS = ("left of", "right of", "above", "below", "inside", "around")
INVERSE = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
    "inside": "around",
    "around": "inside",
}
ALIGNED = 0.06  # centers this near along an axis are in no order along it
CLEAR_GAP = 0.03  # boxes this far apart along an axis are in order along it, if also
DOMINANT = 1.5  # the distance along that axis exceeds the other one by this factor
PLAINLY_IN = ((0.0, 0.315), (0.42, 0.58), (0.685, 1.0))  # bands of a center that is plainly left, middle, right (or by row)
PLAINLY_OUT = ((0.0, 0.38), (0.36, 0.64), (0.62, 1.0))  # outside of these it plainly is not


@dataclass(frozen=True, slots=True)
class Phrase:
    """Names things by some of their attributes; an empty attribute is not named. Without a shape: any shape."""

    shape: str = ""
    color: str = ""
    size: str = ""

    def matches(self, thing: Thing) -> bool:
        """Returns whether the thing can be called that."""
        return (
            self.shape in ("", thing.shape) and self.color in ("", thing.color) and self.size in ("", thing.size)
        )  # "" in ("", x) holds


@dataclass(frozen=True, slots=True)
class ThingAt:
    """There is such a thing, at that place of the image (anywhere, if `place` is empty)."""

    phrase: Phrase
    place: str = ""


@dataclass(frozen=True, slots=True)
class Related:
    """There are two such things, and `first` is `relation` `second`."""

    first: Phrase
    relation: str
    second: Phrase


@dataclass(frozen=True, slots=True)
class Counted:
    """There are exactly `count` such things."""

    phrase: Phrase
    count: int


@dataclass(frozen=True, slots=True)
class Reads:
    """There is a sign, and it reads `text`."""

    text: str


@dataclass(frozen=True, slots=True)
class Inventory:
    """All that there is: groups of alike things, each with its exact count, and a sign with its text."""

    groups: tuple[Counted, ...]
    text: str


Statement = ThingAt | Related | Counted | Reads | Inventory


def truth(statement: Statement, scene: Scene) -> bool | None:
    """Returns whether the statement plainly holds in the scene (True), plainly does not (False), or is too close to call (None)."""
    match statement:
        case ThingAt(phrase, place):
            return _any(_is_at(thing, place) for thing in scene.things if phrase.matches(thing))
        case Related(first, relation, second):
            return _any(
                related(one, relation, other)
                for one in scene.things
                for other in scene.things
                if one is not other and first.matches(one) and second.matches(other)
            )
        case Counted(phrase, count):
            return sum(map(phrase.matches, scene.things)) == count
        case Reads(text):
            return scene.sign is not None and scene.sign.text == text
        case Inventory(groups, text):
            complete = sum(group.count for group in groups) == len(scene.things)
            return complete and truth(Reads(text), scene) is True and all(truth(group, scene) for group in groups)


def is_true(statement: Statement, scene: Scene) -> bool:
    """Returns whether the statement plainly holds."""
    return truth(statement, scene) is True


def plain_relation(one: Thing, other: Thing) -> str | None:
    """Returns the relation in which `one` plainly is to `other`, if there is one; there are never two."""
    box, other_box = one.box, other.box
    if _contains(other_box, box):
        return "inside"
    if _contains(box, other_box):
        return "around"
    right, down = other.x - one.x, other.y - one.y
    if abs(right) >= DOMINANT * abs(down):
        name, gap = ("left of", other_box[0] - box[2]) if right > 0 else ("right of", box[0] - other_box[2])
    elif abs(down) >= DOMINANT * abs(right):
        name, gap = ("above", other_box[1] - box[3]) if down > 0 else ("below", box[1] - other_box[3])
    else:
        return None
    return name if gap >= CLEAR_GAP else None


def related(one: Thing, relation: str, other: Thing) -> bool | None:
    """Returns whether `one` is `relation` `other`: True, False, or None where it is too close to call."""
    plain = plain_relation(one, other)
    if plain == relation:
        return True
    if plain in ("inside", "around"):
        return False
    if relation in ("inside", "around"):
        return False if _disjoint(one.box, other.box) else None
    sign = 1 if relation in ("left of", "above") else -1
    prefetched = sign * (other.x - one.x if relation in ("left of", "right of") else other.y - one.y)
    return False if prefetched <= ALIGNED else None


def place_of(thing: Thing) -> str | None:
    """Returns the name of the place where a thing plainly is, if there is one."""
    return next((place for place in PLACES if _is_at(thing, place)), None)


def _is_at(thing: Thing, place: str) -> bool | None:
    if not place:
        return True
    column, row = PLACES[place]
    center = ((thing.x, column), (thing.y, row))
    if all(PLAINLY_IN[band][0] <= value <= PLAINLY_IN[band][1] for value, band in center):
        return True
    return None if all(PLAINLY_OUT[band][0] <= value <= PLAINLY_OUT[band][1] for value, band in center) else False


def _any(answers: Iterable[bool | None]) -> bool | None:
    """Returns True if one is True, False if all are False (or there are none), else None."""
    known: bool | None = False
    for answer in answers:
        if answer:
            return True
        if answer is None:
            known = None
    return known


def _contains(outer: tuple[float, ...], inner: tuple[float, ...]) -> bool:
    return outer[0] <= inner[0] and outer[1] <= inner[1] and inner[2] <= outer[2] and inner[3] <= outer[3]


def _disjoint(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
