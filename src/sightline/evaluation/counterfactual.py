"""Texts with one word exchanged, so that they no longer fit their image: another colour, count, object or place.

Photos have word lists. The new word never stands in another text of the record, so that it is not true for another reason. Drawn
scenes bring their own false captions, which are known to be false (`negatives`, with `meta.negative_kinds` and `negative_of`).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sightline.runtime.keyed import keyed_generator
from sightline.types import Record

KINDS = ("colour", "count", "object", "place")
COLOURS = "black white red green blue yellow orange purple pink brown gray"
_COUNTS = "two three four five six seven eight nine ten"
_OBJECTS = (
    "man woman boy girl",
    "dog cat horse cow sheep bird elephant bear zebra giraffe",
    "car bus truck train bicycle motorcycle boat airplane",
    "ball frisbee kite umbrella skateboard surfboard snowboard guitar camera",
    "chair table bench bed couch",
    "pizza cake sandwich banana apple orange",
    "hat shirt jacket dress coat helmet",
)
_SCENES = "beach street park kitchen forest field desert mountain river lake playground"
_OPPOSITES = (
    ("the left", "the right"),
    ("at the top", "at the bottom"),
    ("above", "below"),
    ("in front of", "behind"),
    ("indoors", "outdoors"),
    ("inside", "outside"),
)
_PLURALS = {"man": "men", "woman": "women", "sheep": "sheep"}
_SCENE_KINDS = {"replace_attribute": "colour", "replace_object": "object", "replace_position": "place", "change_count": "count"}
SCENE_SIZES = ("small", "large")  # the other attribute of a drawn thing


@dataclass(frozen=True)
class Counterfactual:
    """A true text and the same with one word exchanged.

    Attributes:
        kind: `colour`, `count`, `object` or `place`.
        true, false: the texts.
    """

    kind: str
    true: str
    false: str


def counterfactuals(record: Record, texts: Sequence[str]) -> list[Counterfactual]:
    """Returns at most one counterfactual of each kind, of the first text that has a word for it.

    Args:
        record: gives the false captions of a drawn scene, and keys the draws: equal records give equal counterfactuals.
        texts: true texts of the record.
    """
    known = _of_scene(record)
    if known:
        return known
    found = (_first(kind, record.id, texts) for kind in KINDS)
    return [counterfactual for counterfactual in found if counterfactual is not None]


def _of_scene(record: Record) -> list[Counterfactual]:
    kinds, origins = record.meta.get("negative_kinds"), record.meta.get("negative_of")
    if not isinstance(kinds, list) or not isinstance(origins, list) or not len(kinds) == len(origins) == len(record.negatives):
        return []
    out: dict[str, Counterfactual] = {}
    for false, scene_kind, origin in zip(record.negatives, kinds, origins, strict=True):
        kind = _SCENE_KINDS.get(scene_kind)
        true = record.captions[origin] if isinstance(origin, int) and 0 <= origin < len(record.captions) else None
        if kind is None or true is None or (kind == "colour" and _differ_in_size(true, false)):
            continue
        out.setdefault(kind, Counterfactual(kind, true, false))
    return [out[kind] for kind in KINDS if kind in out]


def _differ_in_size(true: str, false: str) -> bool:
    return any(true.split().count(size) != false.split().count(size) for size in SCENE_SIZES)


def _first(kind: str, key: str, texts: Sequence[str]) -> Counterfactual | None:
    everything = " ".join(texts).casefold()
    for text in texts:
        for match in _PATTERNS[kind].finditer(text):
            old = match.group().casefold()
            used = [new for new in _EXCHANGES[kind][old] if not re.search(rf"\b{re.escape(new)}\b", everything)]
            before = text[: match.start()].casefold().split()[-1:]
            if before in (["a"], ["an"]):
                used = [new for new in used if (new[0] in "aeiou") == (old[0] in "aeiou")]
            if used:
                new = used[int(keyed_generator("counterfactual", kind, key).integers(len(used)))]
                new = new[0].upper() + new[1:] if match.group()[0].isupper() else new
                return Counterfactual(kind, text, text[: match.start()] + new + text[match.end() :])
    return None


def _plural(word: str) -> str:
    return _PLURALS.get(word) or word + ("es" if re.search(r"(s|x|ch|sh)$", word) else "s")


def _exchanges(groups: Sequence[Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Returns each word with the others of its group."""
    return {word: tuple(other for other in group if other != word) for group in groups for word in group}


_EXCHANGES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "colour": {**_exchanges([COLOURS.split()]), "grey": tuple(word for word in COLOURS.split() if word != "gray")},
    "count": _exchanges([_COUNTS.split()]),
    "object": _exchanges([*map(str.split, _OBJECTS), *([_plural(word) for word in group.split()] for group in _OBJECTS)]),
    "place": _exchanges([_SCENES.split(), *_OPPOSITES]),
}
_PATTERNS = {
    kind: re.compile(rf"\b(?:{'|'.join(sorted(map(re.escape, words), key=len, reverse=True))})\b", re.IGNORECASE)
    for kind, words in _EXCHANGES.items()
}
