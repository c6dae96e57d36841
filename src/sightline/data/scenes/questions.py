"""Questions about a scene, with every answer that is accepted.

A question names a thing by attributes that only it has (`the circle`, `the small red circle`), never by the one that is
asked for. Yes and no are equally likely, whatever the image shows, and so are the counts and sizes that the image can give.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

from sightline.data.scenes.language import RELATION_WORDS, a, named, pairs_named, plural
from sightline.data.scenes.statements import RELATIONS, Phrase, Related, Statement, ThingAt, place_of, plain_relation, truth
from sightline.data.scenes.world import COLORS, SHAPES, Draws, Scene, Stream, Thing

NUMERALS = (("0", "zero", "none"), ("1", "one"), ("2", "two"), ("3", "three"), ("4", "four"), ("5", "five"), ("6", "six"))
_RELATION_ANSWERS = {
    "left of": ("left", "to the left", "to the left of it"),
    "right of": ("right", "to the right", "to the right of it"),
    "above": ("above", "above it"),
    "below": ("below", "below it"),
    "inside": ("inside", "inside it"),
    "around": ("around", "around it"),
}
_TRIALS = 12


@dataclass(frozen=True, slots=True)
class Question:
    """A question and its accepted answers, the preferred one first.

    Attributes:
        kind: color, shape, size, position, count, exists, relation, holds, or text.
        statement: for kinds exists and holds, what is to be confirmed or denied.
    """

    kind: str
    text: str
    answers: tuple[str, ...]
    statement: Statement | None = None


def questions(scene: Scene, avoid: Collection[tuple[str, str]] = ()) -> list[Question]:
    """Returns one question of each kind that the scene allows.

    Args:
        avoid: (color, shape) pairs that no question may name, because they are kept for another split.
    """
    draws = scene.draws(Stream.QUESTIONS)
    found = [_about(scene, asked, draws) for asked in ("color", "shape", "size")]
    if scene.level == 1:
        found.append(_position(scene, draws))
    else:
        found += [_count(scene, draws), *_relation(scene, draws)]
    found.append(_exists(scene, draws, avoid))
    if scene.sign is not None:
        word = "number" if scene.sign.text.isdigit() else "word"
        text = draws.choice(("What does the sign read?", f"What {word} is on the sign?"))
        found.append(Question("text", text, (scene.sign.text, scene.sign.text.lower())))
    return [question for question in found if question is not None]


def _only(scene: Scene, thing: Thing, draws: Draws, hidden: str = "") -> Phrase | None:
    """Returns a phrase that names this thing and no other one, without the attribute `hidden`."""
    whole = Phrase(thing.shape, thing.color, thing.size)
    shorter = [replace(whole, size="", color=""), replace(whole, size=""), replace(whole, color=""), whole]
    if hidden == "shape":
        shorter = [replace(whole, size="", shape=""), replace(whole, shape="")]
    elif hidden:
        shorter = [replace(phrase, **{hidden: ""}) for phrase in shorter]
    fitting = [phrase for phrase in dict.fromkeys(shorter) if sum(map(phrase.matches, scene.things)) == 1]
    return draws.choice(fitting) if fitting else None


def _the(phrase: Phrase) -> str:
    return f"the {named(phrase)}"


def _about(scene: Scene, asked: str, draws: Draws) -> Question | None:
    things = draws.shuffled(scene.things)
    if asked == "size":  # small things are more frequent in full images
        wanted = draws.choice(sorted({thing.size for thing in things}))
        things.sort(key=lambda thing: thing.size != wanted)
    for thing in things:
        phrase = _only(scene, thing, draws, hidden=asked)
        if phrase is None:
            continue
        if asked == "color":
            return Question(asked, f"What color is {_the(phrase)}?", (thing.color,))
        if asked == "size":
            return Question(asked, f"Is {_the(phrase)} small or large?", (thing.size,))
        return Question(asked, f"What is the shape of {_the(phrase).replace('shape', 'thing')}?", (thing.shape,))
    return None


def _position(scene: Scene, draws: Draws) -> Question:
    (thing,) = scene.things
    phrase, place = _only(scene, thing, draws), place_of(thing)
    assert phrase is not None, "nothing else is there"
    assert place is not None, "level 1 puts its thing into a band"
    accepted = (place, "middle") if place == "center" else (place,)
    return Question("position", f"Where in the picture is {_the(phrase)}?", accepted)


def _count(scene: Scene, draws: Draws) -> Question:
    """Chooses the answer among those that some phrase gives, then the phrase."""
    phrases = [Phrase(shape) for shape in SHAPES] + [Phrase("", color) for color in COLORS]
    phrases += [Phrase(shape, color) for color, shape in sorted(scene.pairs)]
    by_count: dict[int, list[Phrase]] = {}
    for phrase in phrases:
        by_count.setdefault(sum(map(phrase.matches, scene.things)), []).append(phrase)
    count = draws.choice(sorted(by_count))
    return Question("count", f"How many {plural(draws.choice(by_count[count]))} are there?", NUMERALS[count])


def _relation(scene: Scene, draws: Draws) -> list[Question]:
    """Asks where a thing is from another one, and whether a relation holds."""
    plain = [
        (one, relation, other)
        for one in scene.things
        for other in scene.things
        if one is not other and (relation := plain_relation(one, other))
    ]
    for one, relation, other in draws.shuffled(plain):
        first, second = _only(scene, one, draws), _only(scene, other, draws)
        if first is not None and second is not None:
            text = f"Where is {_the(first)} relative to {_the(second)}?"
            return [
                Question("relation", text, _RELATION_ANSWERS[relation]),
                _holds(scene, Related(first, relation, second), draws),
            ]
    return []


def _holds(scene: Scene, true: Related, draws: Draws) -> Question:
    statement = true
    if draws.below(2):
        others = [replace(true, relation=relation) for relation in RELATIONS[:4]]
        false = [other for other in others if truth(other, scene) is False]
        statement = draws.choice(false)
    words = RELATION_WORDS[statement.relation]
    text = f"Is {_the(statement.first)} {words} {_the(statement.second)}?"
    return Question("holds", text, ("no" if statement is not true else "yes",), statement)


def _exists(scene: Scene, draws: Draws, avoid: Collection[tuple[str, str]]) -> Question | None:
    """Yes about a thing that is there; no about one with another color or another shape."""
    thing = draws.choice(scene.things)
    phrase, answer = Phrase(thing.shape, thing.color), "yes"
    if draws.below(2):
        answer = "no"
        for _ in range(_TRIALS):
            other = draws.choice((replace(phrase, color=draws.choice(tuple(COLORS))), replace(phrase, shape=draws.choice(SHAPES))))
            statement = ThingAt(other)
            if truth(statement, scene) is False and not pairs_named(statement) & set(avoid):
                phrase = other
                break
        else:
            return None
    return Question("exists", f"Is there {a(phrase)}?", (answer,), ThingAt(phrase))
