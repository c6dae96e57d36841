"""Finds duplicate images, texts and records within a split, between two splits, and in another data set.

Images are equal by their sha256, or near by their looks. Texts are equal when all captions of a record, or its whole
conversation, are the same up to case and spaces; a conversation of short answers about images only where its images are the
same too, for many share a question and the answer "yes". Records repeat each other when images and captions, or images and
questions, are equal.
"""

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from sightline.data.check.examine import ImageTable, short_key
from sightline.data.check.perceptual_hash import ALIKE, near_pairs, similarity
from sightline.data.images.reader import ImageLocation
from sightline.runtime.logs import logger
from sightline.types import Record

LISTED = 100  # pairs of each kind
MAX_PAIRS = 5_000_000  # of near images: 80 MB


class FolderSplit(NamedTuple):
    """A split of a folder, and the name it has in the report."""

    folder: int
    split: str
    name: str


@dataclass(frozen=True)
class Pair:
    """Two locations that hold the same, with the distance of their hashes and the likeness of their thumbnails."""

    a: ImageLocation
    b: ImageLocation
    bits: int = 0
    similarity: float = 1.0

    is_exact: bool = True

    def to_json(self, name: "Namer") -> dict[str, Any]:
        """Returns the pair with the ids of its records, and where they stand."""
        near = {} if self.is_exact else {"bits": self.bits, "likeness": round(self.similarity, 4)}
        ends = {side: {"id": name(location), **location._asdict()} for side, location in (("a", self.a), ("b", self.b))}
        return {**ends, "kind": "exact" if self.is_exact else "near", **near}


Namer = Callable[[ImageLocation], str]
"""From a location to the id of its record."""


SHORT_ANSWER = 5  # words up to which a turn of the assistant is an answer that many questions have


def leak_key(record: Record) -> int:
    """Returns a key that is equal for records with the same set of captions, or with the same conversation."""
    if not record.messages:
        return text_key(record)
    parts = [f"{message.role} {_folded(message.text)}" for message in record.messages]
    answers = [message.text for message in record.messages if message.role == "assistant"]
    if record.images and all(len(answer.split()) <= SHORT_ANSWER for answer in answers):
        parts += record.image_keys
    return short_key("\2" + "\0".join(parts))


def text_key(record: Record) -> int:
    """Returns a key that is equal for records with the same set of captions, or with the same questions."""
    if record.captions:
        return short_key("\0".join(sorted({_folded(caption) for caption in record.captions})))
    asked = [message.text for message in record.messages if message.role == "user"]
    texts = asked if any(text.strip() for text in asked) else [message.text for message in record.messages]
    return short_key("\1" + "\0".join(_folded(text) for text in texts))


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


# Equal things ---------------------------------------------------------------------------------------------------------------


@dataclass
class Occurrences:
    """Where each of many things stands: a key that is equal for equal things, a place, and a location."""

    keys: array = field(default_factory=lambda: array("Q"))
    places: array = field(default_factory=lambda: array("I"))
    locations: array = field(default_factory=lambda: array("Q"))

    def add(self, key: int, place: int, location: ImageLocation) -> None:
        """Adds an occurrence."""
        self.keys.append(key)
        self.places.append(place)
        self.locations.extend(location)


class Index:
    """Things by place: each different key is a thing, numbered from 0.

    Args:
        found: their occurrences.
        num_places: how many places there are.
    """

    def __init__(self, found: Occurrences, num_places: int) -> None:
        self.keys, self.thing_of = np.unique(np.asarray(found.keys, dtype=np.uint64), return_inverse=True)
        self.places = np.asarray(found.places, dtype=np.int64)
        self.locations = np.asarray(found.locations, dtype=np.int64).reshape(-1, 3)
        numbers = np.arange(len(self.places))[::-1]
        self.first = np.full((num_places, len(self.keys)), -1, dtype=np.int64)  # the first occurrence of a thing in a place
        self.first[self.places[numbers], self.thing_of[numbers]] = numbers

    def has(self, place: int) -> Bool[np.ndarray, " things"]:
        """Returns the things that a place has."""
        return self.first[place] >= 0

    def count(self, place: int) -> int:
        """Returns the number of different things in a place."""
        return int(self.has(place).sum())

    def total(self, place: int) -> int:
        """Returns the number of occurrences in a place."""
        return int((self.places == place).sum())

    def location(self, place: int, thing: int) -> ImageLocation:
        """Returns the first location of a thing in a place."""
        return ImageLocation(*self.locations[self.first[place, thing]].tolist())

    def repeated(self, place: int) -> tuple[int, int, list[Pair]]:
        """Returns things that stand in several records of one place: how many things, in how many records, and some pairs."""
        here = np.flatnonzero(self.places == place)
        # Once in a record counts, however often it stands there.
        _, chosen = np.unique(np.stack([self.thing_of[here], self.locations[here, 1]]), axis=1, return_index=True)
        here = here[np.sort(chosen)]
        things, counts = np.unique(self.thing_of[here], return_counts=True)
        often = things[counts > 1]
        often = often[np.argsort(self.first[place, often])]
        listed = often[:LISTED]
        rest = here[np.isin(self.thing_of[here], listed) & (self.first[place, self.thing_of[here]] != here)]
        second = dict(zip(self.thing_of[rest][::-1].tolist(), rest[::-1].tolist(), strict=True))
        pairs = [
            Pair(self.location(place, thing), ImageLocation(*self.locations[second[thing]].tolist())) for thing in listed.tolist()
        ]
        return len(often), int(counts[counts > 1].sum()), pairs

    def common(self, a: int, b: int) -> "Common":
        """Returns things that stand in both of two places."""
        both = self.has(a) & self.has(b)
        shared = np.flatnonzero(both)
        shared = shared[np.argsort(self.first[b, shared])][:LISTED]
        pairs = [Pair(self.location(a, thing), self.location(b, thing)) for thing in shared.tolist()]
        inside = both[self.thing_of]
        return Common(both, int((inside & (self.places == a)).sum()), int((inside & (self.places == b)).sum()), pairs)


class Common(NamedTuple):
    """What two places share: which things, how many occurrences of each place they make up, and some pairs."""

    both: Bool[np.ndarray, " things"]
    inside_a: int
    inside_b: int
    pairs: list[Pair]


# Near images --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Near:
    """Pairs of different images that look alike, by their numbers in the index of images.

    Attributes:
        first, second: the pairs.
        bits, likeness: how near each pair is.
        is_whole: False when the search was stopped because there are too many.
    """

    first: Int[np.ndarray, " pairs"]
    second: Int[np.ndarray, " pairs"]
    bits: Int[np.ndarray, " pairs"]
    similarity: Float[np.ndarray, " pairs"]
    is_whole: bool = True


_NONE = np.zeros(0, dtype=np.int64)
NONE_NEAR = Near(_NONE, _NONE, _NONE, np.zeros(0, dtype=np.float32))


def near_duplicates(image_table: ImageTable, index: Index, max_bits: int) -> Near:
    """Returns pairs of images whose hashes differ in at most `max_bits` bits and whose thumbnails agree.

    Args:
        image_table: of what was examined.
        index: of the images by content.
        max_bits: from 0 to 16.
    """
    keys = image_table.keys
    rows = np.flatnonzero(~image_table.is_flat)
    _, first_rows = np.unique(keys[rows], return_index=True)
    rows = rows[first_rows]  # one row for each content
    logger.info("looking for near duplicates among %d images", len(rows))
    hashes, thumbnails = image_table.hashes[rows], image_table.thumbnails
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    total = 0
    for i, j in near_pairs(hashes, max_bits):
        alike = similarity(thumbnails[rows[i]], thumbnails[rows[j]])
        same = alike > ALIKE
        found.append((i[same], j[same], alike[same]))
        total += int(same.sum())
        if total > MAX_PAIRS:
            break
    if not total:
        return NONE_NEAR
    i, j, alike = (np.concatenate(column) for column in zip(*found, strict=True))
    thing = np.searchsorted(index.keys, keys[rows])
    bits = np.bitwise_count(hashes[i] ^ hashes[j]).astype(np.int64)
    return Near(thing[i], thing[j], bits, alike, total <= MAX_PAIRS)


def near_between(
    near: Near, index: Index, a: int, b: int
) -> tuple[Bool[np.ndarray, " things"], Bool[np.ndarray, " things"], list[Pair]]:
    """Returns which images of each place look like one of the other (of the same, for `a == b`), and the nearest pairs."""
    of_a, of_b = (np.zeros(len(index.keys), dtype=bool) for _ in range(2))
    has_a, has_b = index.has(a), index.has(b)
    pairs: list[tuple[float, Pair]] = []
    ways = ((near.first, near.second), (near.second, near.first))
    for one, other in ways[: 1 if a == b else 2]:
        hold = np.flatnonzero(has_a[one] & has_b[other])
        of_a[one[hold]] = True
        of_b[other[hold]] = True
        for n in hold[np.argsort(-near.similarity[hold], kind="stable")][:LISTED].tolist():
            alike = float(near.similarity[n])
            pair = Pair(index.location(a, int(one[n])), index.location(b, int(other[n])), int(near.bits[n]), alike, is_exact=False)
            pairs.append((-alike, pair))
    if a == b:
        of_a = of_b = of_a | of_b
    pairs.sort(key=lambda item: item[0])
    return of_a, of_b, [pair for _, pair in pairs[:LISTED]]


# The report -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RepeatsWithin:
    """What several records of a place have.

    Attributes:
        place: name of the split.
        distinct: different things.
        repeated: things that several records have; `in_records` counts these records.
        near: images that look like another one of the place.
        pairs: some of them.
    """

    place: str
    distinct: int
    repeated: int
    in_records: int
    near: int
    pairs: list[Pair]

    def to_json(self, kind: str, name: Namer) -> dict[str, Any]:
        what = "distinct" if kind == "records" else kind
        counts = {what: self.distinct, "repeated": self.repeated, "in_records": self.in_records}
        near = {"near": self.near} if kind == "images" else {}
        return {"place": self.place, **counts, **near, "pairs": [pair.to_json(name) for pair in self.pairs]}


@dataclass(frozen=True)
class OverlapBetween:
    """What two places have in common.

    Attributes:
        a, b: names of the splits.
        exact: things that both have.
        total_a, total_b: images of each place, or records of each place that have one of these things.
        near_a, near_b: images of each place that look like one of the other and are none of those that both have.
        share_a, share_b: share of each place that stands in the other, images alike included.
        pairs: some of them.
    """

    a: str
    b: str
    exact: int
    total_a: int
    total_b: int
    near_a: int
    near_b: int
    share_a: float
    share_b: float
    pairs: list[Pair]

    def to_json(self, kind: str, name: Namer) -> dict[str, Any]:
        if kind == "images":
            counts = {"images_a": self.total_a, "images_b": self.total_b, "exact": self.exact}
            counts |= {"near_a": self.near_a, "near_b": self.near_b}
        else:
            counts = {"exact": self.exact, "records_a": self.total_a, "records_b": self.total_b}
        pairs = [pair.to_json(name) for pair in self.pairs]
        return {"a": self.a, "b": self.b, **counts, "share_a": self.share_a, "share_b": self.share_b, "pairs": pairs}


@dataclass(frozen=True)
class Duplicates:
    """Everything that stands twice: `images`, `texts` and `records`, each within a place and between two."""

    within: dict[str, list[RepeatsWithin]]
    between: dict[str, list[OverlapBetween]]
    near_bits: int | None
    is_whole: bool

    def to_json(self, name: Namer) -> dict[str, Any]:
        near = None if self.near_bits is None else {"bits": self.near_bits, "likeness": ALIKE, "complete": self.is_whole}
        parts = {
            kind: {
                "within": [repeats.to_json(kind, name) for repeats in self.within[kind]],
                "between": [overlap.to_json(kind, name) for overlap in self.between[kind]],
            }
            for kind in self.within
        }
        return {"near": near, **parts}


def find_duplicates(
    places: Sequence[FolderSplit],
    num_checked: int,
    image_table: ImageTable,
    found: "dict[str, Occurrences]",
    max_bits: int | None,
) -> Duplicates:
    """Compares all places that are checked with themselves, with each other, and with those they are checked against.

    Args:
        places: splits of folders.
        num_checked: folders below this number are checked; the others are compared with them alone.
        image_table: of what was examined.
        found: occurrences of `images`, `texts` and `records`.
        max_bits: how far hashes of near images may differ; None looks for equal files alone.
    """
    index = {kind: Index(occurrences, len(places)) for kind, occurrences in found.items()}
    near = NONE_NEAR if max_bits is None else near_duplicates(image_table, index["images"], max_bits)
    within: dict[str, list[RepeatsWithin]] = {kind: [] for kind in found}
    between: dict[str, list[OverlapBetween]] = {kind: [] for kind in found}
    for a, place in enumerate(places):
        if place.folder >= num_checked:
            continue
        for kind, own in index.items():
            within[kind].append(_within(kind, own, near, a, place.name))
        for b in range(a + 1, len(places)):
            for kind, own in index.items():
                between[kind].append(_between(kind, own, near, a, b, (place.name, places[b].name)))
    return Duplicates(within, between, max_bits, near.is_whole)


def _within(kind: str, index: Index, near: Near, place: int, name: str) -> RepeatsWithin:
    repeated, records, pairs = index.repeated(place)
    num_alike = 0
    if kind == "images":
        alike, _, near_ones = near_between(near, index, place, place)
        num_alike, pairs = int(alike.sum()), [*pairs, *near_ones]
    return RepeatsWithin(name, index.count(place), repeated, records, num_alike, pairs)


def _between(kind: str, index: Index, near: Near, a: int, b: int, names: tuple[str, str]) -> OverlapBetween:
    shared = index.common(a, b)
    exact = int(shared.both.sum())
    if kind != "images":
        inside = shared.inside_a, shared.inside_b
        shares = inside[0] / max(index.total(a), 1), inside[1] / max(index.total(b), 1)
        return OverlapBetween(*names, exact, *inside, 0, 0, *shares, shared.pairs)
    of_a, of_b, near_ones = near_between(near, index, a, b)
    totals = index.count(a), index.count(b)
    alike = int((of_a & ~shared.both).sum()), int((of_b & ~shared.both).sum())
    shares = (exact + alike[0]) / max(totals[0], 1), (exact + alike[1]) / max(totals[1], 1)
    return OverlapBetween(*names, exact, *totals, *alike, *shares, [*shared.pairs, *near_ones])
