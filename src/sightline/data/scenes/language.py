"""Writes statements as sentences: true captions, and false ones as hard negatives.

A negative is a caption's own sentence with one part changed, in the same template, and obeys every habit of the captions
(`is_usual`): the text alone does not give it away. That is why the draws of `world` are uniform where a negative redraws:
colors, sizes, shapes and places always; relations given the two things; counts of the first group and of all things.
Spelling is American, as in the common caption and question sets.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from sightline.data.scenes.statements import (
    INVERSE,
    RELATIONS,
    Counted,
    Inventory,
    Phrase,
    Reads,
    Related,
    Statement,
    ThingAt,
    is_true,
    plain_relation,
    truth,
)
from sightline.data.scenes.world import COLORS, MAX_COUNT, NUMBERS, PLACES, SHAPES, SIZES, WORDS, Draws, Scene, Stream
from sightline.errors import UsageError

T = TypeVar("T")

MAX_CAPTIONS = 6
NEGATIVE_KINDS = (
    "replace_attribute",  # another color or size
    "replace_object",  # another shape
    "replace_position",  # another place in the image
    "replace_relation",  # another relation between the same two
    "replace_text",  # another text on the sign
    "swap_attribute",  # colors or sizes of two things exchanged
    "swap_relation",  # the two things of a relation exchanged
    "change_count",  # another number, or the numbers of two groups exchanged
)
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six")
PLACE_WORDS = {
    place: f"{'in' if place == 'center' else 'on' if place in ('left', 'right') else 'at'} the {place}" for place in PLACES
}
RELATION_WORDS = {
    "left of": "to the left of",
    "right of": "to the right of",
    "above": "above",
    "below": "below",
    "inside": "inside",
    "around": "around",
}
_PLURALS = {"": "shapes", "cross": "crosses"}

# The first template of each is the canonical one. At level 1 no other one begins with "a", so that a model which has
# learned them all still begins, and goes on, with the canonical caption when it decodes greedily.
_LOCATED = (
    "{thing} {place}",
    "there is {thing} {place}",
    "the picture shows {thing} {place}",
    "{place} there is {thing}",
    "we see {thing} {place}",
    "you can see {thing} {place} of the picture",
)
_RELATED = (
    "{first} {relation} {second}",
    "there is {first} {relation} {second}",
    "{first} is {relation} {second}",
    "the picture shows {first} {relation} {second}",
    "we see {first} {relation} {second}",
)
_COUNTED = ("there {are} {count}", "the picture has {count}", "we see {count}", "exactly {count} {are} drawn")
_READS = ("a sign reads {text}", "there is a sign that reads {text}", "the sign says {text}", "the word on the sign is {text}")
_INVENTORY = (
    "{groups} and a sign that reads {text}",
    "the picture shows {groups} and a sign that reads {text}",
    "we see {groups} and a sign that reads {text}",
)


@dataclass(frozen=True, slots=True)
class SceneCaption:
    """A statement and the template that puts it into words; template 0 is the canonical one."""

    statement: Statement
    template: int

    @property
    def text(self) -> str:
        """The sentence, without capital or full stop."""
        match self.statement:
            case ThingAt(phrase, place):
                return _LOCATED[self.template].format(thing=a(phrase), place=PLACE_WORDS[place])
            case Related(first, relation, second):
                words = RELATION_WORDS[relation]
                return _RELATED[self.template].format(first=a(first), relation=words, second=a(second))
            case Counted(phrase, count):
                return _COUNTED[self.template].format(count=counted(phrase, count), are="is" if count == 1 else "are")
            case Reads(text):
                words = _READS[self.template].format(text=text)
                return words.replace("the word", "the number") if text.isdigit() else words
            case Inventory(groups, text):
                named = ", ".join(counted(group.phrase, group.count) for group in groups)
                return _INVENTORY[self.template].format(groups=named, text=text)


@dataclass(frozen=True, slots=True)
class Negative:
    """A false caption: its text, what was changed, and which caption of the scene it was made from."""

    caption: SceneCaption
    kind: str
    of: int


def named(phrase: Phrase) -> str:
    """Names the attributes: `small red circle`; `shape` where no shape is named."""
    return " ".join(word for word in (phrase.size, phrase.color, phrase.shape or "shape") if word)


def a(phrase: Phrase) -> str:
    """Names a thing with its article: `a small red circle`, `an orange star`."""
    name = named(phrase)
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def plural(phrase: Phrase) -> str:
    """Names things in the plural: `small red circles`, `shapes`."""
    shape = _PLURALS.get(phrase.shape, f"{phrase.shape}s")
    return " ".join(word for word in (phrase.size, phrase.color, shape) if word)


def counted(phrase: Phrase, count: int) -> str:
    """Names a number of things: `one red circle`, `two red circles`."""
    return f"{NUMBER_WORDS[count]} {named(phrase) if count == 1 else plural(phrase)}"


# Captions -------------------------------------------------------------------------------------------------------------------


def captions(scene: Scene, count: int = 3) -> list[SceneCaption]:
    """Returns the canonical caption, then up to `count - 1` others, all different and all true.

    Level 1: size, color, shape and place of the thing. Level 2: both things and their relation; canonical is `left of`, `above`
    or `inside`. Level 3: canonical is the inventory, sorted by color and shape; others tell a relation, a count, the text.

    Raises:
        UsageError: `count` is not 1 to 6.
    """
    if not 1 <= count <= MAX_CAPTIONS:
        raise UsageError(f"{count} captions a scene.", f"Choose 1 to {MAX_CAPTIONS}.")
    draws = scene.draws(Stream.CAPTIONS)
    if scene.level == 1:
        found = _located_captions(scene, draws)
    elif scene.level == 2:
        found = _related_captions(scene, draws)
    else:
        found = _many_captions(scene, draws)
    return list(dict.fromkeys(found))[:count]


def _located_captions(scene: Scene, draws: Draws) -> list[SceneCaption]:
    (thing,) = scene.things
    phrase = Phrase(thing.shape, thing.color, thing.size)
    place = next(place for place in PLACES if is_true(ThingAt(phrase, place), scene))
    return [SceneCaption(ThingAt(phrase, place), 0)] + [
        SceneCaption(ThingAt(phrase, place), template) for template in draws.shuffled(range(1, len(_LOCATED)))
    ]


def _related_captions(scene: Scene, draws: Draws) -> list[SceneCaption]:
    one, other = scene.things
    phrases = [Phrase(thing.shape, thing.color, thing.size) for thing in scene.things]
    relation = plain_relation(one, other)
    assert relation is not None, "level 2 draws them so"
    forward = Related(phrases[0], relation, phrases[1])
    backward = Related(phrases[1], INVERSE[relation], phrases[0])
    canonical = forward if relation in _CANONICAL_RELATIONS else backward
    return [SceneCaption(canonical, 0)] + [
        SceneCaption(draws.choice((forward, backward)), template) for template in draws.shuffled(range(1, len(_RELATED)))
    ]


def _many_captions(scene: Scene, draws: Draws) -> list[SceneCaption]:
    assert scene.sign is not None
    inventory = Inventory(_groups(scene), scene.sign.text)
    first = scene.things[0]
    phrase = draws.choice((Phrase(first.shape, first.color), Phrase()))
    retold = [SceneCaption(inventory, template) for template in draws.shuffled(range(1, len(_INVENTORY)))]
    relations = [SceneCaption(relation, draws.below(len(_RELATED))) for relation in _some_relations(scene, draws)]
    others = [
        SceneCaption(Reads(scene.sign.text), draws.below(len(_READS))),
        SceneCaption(Counted(phrase, sum(map(phrase.matches, scene.things))), draws.below(len(_COUNTED))),
        *(relations + retold)[:2],  # always four, so that the order of draws does not depend on the scene
    ]
    return [SceneCaption(inventory, 0), *draws.shuffled(others), *retold]


def _groups(scene: Scene) -> tuple[Counted, ...]:
    phrases = sorted((thing.color, thing.shape) for thing in scene.things)
    return tuple(Counted(Phrase(shape, color), phrases.count((color, shape))) for color, shape in dict.fromkeys(phrases))


def _some_relations(scene: Scene, draws: Draws) -> list[Related]:
    """Returns up to two plain relations between things of different color or shape, with or without their sizes."""
    plain = [
        (one, relation, other)
        for one in scene.things
        for other in scene.things
        if (one.color, one.shape) != (other.color, other.shape) and (relation := plain_relation(one, other))
    ]
    found = []
    for one, relation, other in draws.shuffled(plain)[:2]:
        with_size = draws.below(2) == 1
        first, second = (Phrase(thing.shape, thing.color, thing.size if with_size else "") for thing in (one, other))
        found.append(Related(first, relation, second))
    return found


# Negatives ------------------------------------------------------------------------------------------------------------------

_CANONICAL_RELATIONS = ("left of", "above", "inside")
_TRIALS = 12  # redraws before a kind is given up for a scene


def negatives(scene: Scene, scene_captions: Sequence[SceneCaption], avoid: Collection[tuple[str, str]] = ()) -> list[Negative]:
    """Returns one false sentence of each kind that the captions allow.

    It is made from the first caption that has such a part, so at levels 1 and 2 from the canonical one. Counts are changed in
    the caption that tells one count, if there is one: whether that is so does not depend on the count, as it would if
    inventories whose groups are of one size came first.

    Args:
        scene_captions: captions of the scene, as `captions` gives them.
        avoid: (color, shape) pairs that no sentence may name, because they are kept for another split.
    """
    draws = scene.draws(Stream.NEGATIVES)
    found = [_negative(scene, scene_captions, kind, draws, avoid) for kind in NEGATIVE_KINDS]
    return [negative for negative in found if negative is not None]


def _negative(
    scene: Scene, scene_captions: Sequence[SceneCaption], kind: str, draws: Draws, avoid: Collection[tuple[str, str]]
) -> Negative | None:
    order = list(range(len(scene_captions)))
    if kind == "change_count":
        order.sort(key=lambda number: not isinstance(scene_captions[number].statement, Counted))
    for number in order:
        for _ in range(_TRIALS):
            statement = _changed(scene_captions[number], kind, draws, scene.level)
            if statement is None:
                break
            changed = SceneCaption(statement, scene_captions[number].template)
            is_false = is_usual(changed, scene.level) and truth(statement, scene) is False
            if is_false and not pairs_named(statement) & set(avoid):
                return Negative(changed, kind, number)
        else:
            return None
    return None


def is_usual(caption: SceneCaption, level: int) -> bool:
    """Returns whether a true caption of that level could have this form; negatives that could not are dropped."""
    match caption.statement:
        case Related(first, relation, second):
            inner, outer = (first, second) if relation == "inside" else (second, first)
            fits = inner.size == "small" and outer.size == "large" and inner.color != outer.color
            if relation in ("inside", "around") and (level != 2 or not fits):
                return False
            if level == 2 and caption.template == 0 and relation not in _CANONICAL_RELATIONS:
                return False
            return (first.color, first.shape) != (second.color, second.shape)
        case Inventory(groups, _):
            pairs = [(group.phrase.color, group.phrase.shape) for group in groups]
            return pairs == sorted(set(pairs))
        case _:
            return True


def pairs_named(statement: Statement) -> set[tuple[str, str]]:
    """Returns the (color, shape) pairs that a statement names."""
    match statement:
        case ThingAt(phrase) | Counted(phrase):
            phrases = [phrase]
        case Related(first, _, second):
            phrases = [first, second]
        case Inventory(groups, _):
            phrases = [group.phrase for group in groups]
        case Reads():
            phrases = []
    return {(phrase.color, phrase.shape) for phrase in phrases if phrase.color and phrase.shape}


def _changed(caption: SceneCaption, kind: str, draws: Draws, level: int) -> Statement | None:
    """Returns one random change of a kind; None when the statement has nothing of that kind."""
    may_resize = level < 3  # small and large are equally frequent, the other size is not the likelier one
    match caption.statement, kind:
        case ThingAt(phrase, place), "replace_attribute" | "replace_object":
            return ThingAt(_redrawn(phrase, kind, draws, may_resize), place)
        case ThingAt(phrase, place), "replace_position":
            return ThingAt(phrase, _other(tuple(PLACES), place, draws))
        case Related(first, relation, second), "replace_attribute" | "replace_object":
            if draws.below(2):
                return Related(_redrawn(first, kind, draws, may_resize), relation, second)
            return Related(first, relation, _redrawn(second, kind, draws, may_resize))
        case Related(first, relation, second), "replace_relation":
            others = [Related(first, other, second) for other in RELATIONS if other != relation]
            return draws.choice([other for other in others if is_usual(SceneCaption(other, caption.template), level)])
        case Related(first, relation, second), "swap_relation":
            return Related(second, relation, first)
        case Related(first, relation, second), "swap_attribute":
            swapped = _attributes_swapped(first, second, draws)
            return None if swapped is None else Related(swapped[0], relation, swapped[1])
        case Counted(phrase, count), "change_count":
            usual = range(1, 4) if phrase.shape else range(3, MAX_COUNT + 1)
            return Counted(phrase, _other(tuple(usual), count, draws))
        case Reads(text), "replace_text":
            return Reads(_other_text(text, draws))
        case Inventory(groups, text), _:
            return _inventory_changed(groups, text, kind, draws)
    return None


def _inventory_changed(groups: tuple[Counted, ...], text: str, kind: str, draws: Draws) -> Inventory | None:
    changed = list(groups)
    if kind == "replace_text":
        return Inventory(groups, _other_text(text, draws))
    if kind in ("replace_attribute", "replace_object"):
        at = draws.below(len(groups))
        changed[at] = replace(groups[at], phrase=_redrawn(groups[at].phrase, kind, draws, may_resize=False))
    elif kind in ("swap_attribute", "change_count") and len(groups) > 1:
        one, other = draws.shuffled(range(len(groups)))[:2]
        if kind == "change_count":
            changed[one], changed[other] = (
                replace(groups[one], count=groups[other].count),
                replace(groups[other], count=groups[one].count),
            )
        else:
            swapped = _attributes_swapped(groups[one].phrase, groups[other].phrase, draws)
            if swapped is not None:
                changed[one], changed[other] = (
                    replace(groups[one], phrase=swapped[0]),
                    replace(groups[other], phrase=swapped[1]),
                )
    else:
        return None
    return Inventory(tuple(sorted(changed, key=lambda group: (group.phrase.color, group.phrase.shape))), text)


def _redrawn(phrase: Phrase, kind: str, draws: Draws, may_resize: bool) -> Phrase:
    if kind == "replace_object":
        return replace(phrase, shape=_other(SHAPES, phrase.shape, draws))
    if may_resize and draws.below(2):
        return replace(phrase, size=_other(SIZES, phrase.size, draws))
    return replace(phrase, color=_other(tuple(COLORS), phrase.color, draws))


def _attributes_swapped(first: Phrase, second: Phrase, draws: Draws) -> tuple[Phrase, Phrase] | None:
    swaps = [
        (replace(first, color=second.color), replace(second, color=first.color)),
        (replace(first, size=second.size), replace(second, size=first.size)),
    ]
    swaps = [swap for swap in swaps if swap != (first, second)]
    return draws.choice(swaps) if swaps else None


def _other_text(text: str, draws: Draws) -> str:
    return _other(NUMBERS if text.isdigit() else WORDS, text, draws)


def _other(items: Sequence[T], item: T, draws: Draws) -> T:
    return draws.choice([other for other in items if other != item])
