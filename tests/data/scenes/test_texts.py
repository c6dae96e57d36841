"""Texts of scenes: captions and answers are true, negatives false, and no text gives away which it is."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator

import pytest

from sightline.data.records import check_record, record_from_json, record_to_json
from sightline.data.scenes import NOVEL_PAIRS, captions, generate, make_scene, negatives, questions, split_of
from sightline.data.scenes.language import NEGATIVE_KINDS, is_usual
from sightline.data.scenes.statements import Counted, Inventory, Phrase, Reads, Related, Statement, ThingAt, is_true, truth
from sightline.data.scenes.world import COLORS, NUMBERS, PLACES, SHAPES, Background, Scene, Thing
from sightline.types import Record

SEED = 21
LEVELS = [1, 2, 3]


# What truth means -----------------------------------------------------------------------------------------------------------


def thing(name: str, x: float, y: float, radius: float = 0.1) -> Thing:
    size, color, shape = name.split()
    return Thing(shape, color, size, x, y, radius, 0, COLORS[color])


def phrase(name: str) -> Phrase:
    words = dict.fromkeys(("size", "color", "shape"), "")
    for word in name.split():
        words["size" if word in ("small", "large") else "color" if word in COLORS else "shape"] = word
    return Phrase(**words)


def scene_of(*things: Thing) -> Scene:
    return Scene(0, 3, 0, things, None, Background((228, 228, 228), 0, 0))


PAIR = scene_of(thing("small red circle", 0.2, 0.5), thing("large blue square", 0.7, 0.52, 0.17))
SLANTED = scene_of(thing("small red circle", 0.2, 0.2), thing("small blue square", 0.5, 0.45))
NESTED = scene_of(thing("large black ring", 0.5, 0.5, 0.24), thing("small pink star", 0.5, 0.5, 0.08))
TWINS = scene_of(thing("small red circle", 0.2, 0.2), thing("small red circle", 0.8, 0.8), thing("small blue star", 0.2, 0.8))


@pytest.mark.parametrize(
    ("scene", "statement", "expected"),
    [
        (PAIR, Related(phrase("red circle"), "left of", phrase("blue square")), True),
        (PAIR, Related(phrase("blue square"), "right of", phrase("circle")), True),
        (PAIR, Related(phrase("blue square"), "left of", phrase("circle")), False),
        (PAIR, Related(phrase("circle"), "above", phrase("square")), False),  # 0.02 higher is at the same height
        (PAIR, Related(phrase("circle"), "inside", phrase("square")), False),
        (PAIR, Related(phrase("green circle"), "left of", phrase("square")), False),
        (SLANTED, Related(phrase("circle"), "left of", phrase("square")), None),
        (SLANTED, Related(phrase("circle"), "above", phrase("square")), None),
        (SLANTED, Related(phrase("circle"), "below", phrase("square")), False),
        (NESTED, Related(phrase("star"), "inside", phrase("ring")), True),
        (NESTED, Related(phrase("ring"), "around", phrase("star")), True),
        (NESTED, Related(phrase("ring"), "inside", phrase("star")), False),
        (NESTED, Related(phrase("star"), "above", phrase("ring")), False),
        (TWINS, Related(phrase("star"), "below", phrase("circle")), True),  # one of the two is enough
        (TWINS, Related(phrase("circle"), "right of", phrase("star")), True),
        (TWINS, Related(phrase("circle"), "below", phrase("star")), False),
        (TWINS, Counted(phrase("red circle"), 2), True),
        (TWINS, Counted(phrase("circle"), 1), False),
        (TWINS, Counted(phrase(""), 3), True),
        (TWINS, Counted(phrase("green"), 0), True),
        (TWINS, ThingAt(phrase("star"), "bottom left"), True),
        (TWINS, ThingAt(phrase("star"), "bottom"), False),
        (scene_of(thing("small red ring", 0.37, 0.5)), ThingAt(phrase("ring"), "left"), None),
        (scene_of(thing("small red ring", 0.37, 0.5)), ThingAt(phrase("ring"), "center"), None),
        (scene_of(thing("small red ring", 0.37, 0.5)), ThingAt(phrase("ring"), "right"), False),
        (TWINS, Reads("FOX"), False),
        (TWINS, Inventory((Counted(phrase("blue star"), 1), Counted(phrase("red circle"), 2)), "FOX"), False),  # no sign
    ],
)
def test_truth_is_what_a_viewer_would_say(scene: Scene, statement: Statement, expected: bool | None) -> None:
    assert truth(statement, scene) is expected
    assert is_true(statement, scene) is (expected is True)


# A second reader: words back to facts, from the record alone ----------------------------------------------------------------

NUMBER = {"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
NAME = rf"(?:(small|large) )?(?:({'|'.join(COLORS)}) )?({'|'.join(SHAPES)}|shape|thing)"
RELATION = r"(to the left of|to the right of|above|below|inside|around)"


def objects_named(record: Record, size: str, color: str, shape: str) -> list[int]:
    return [
        number
        for number, item in enumerate(record.meta["objects"])
        if size in ("", item["size"]) and color in ("", item["color"]) and shape in ("", "shape", "thing", item["shape"])
    ]


def holds_between(record: Record, one: int, relation: str, other: int) -> bool:
    """By boxes only: which border comes first, or which box holds the other."""
    left, top, right, bottom = record.boxes[one].xyxy
    other_left, other_top, other_right, other_bottom = record.boxes[other].xyxy
    return {
        "to the left of": right < other_left,
        "to the right of": left > other_right,
        "above": bottom < other_top,
        "below": top > other_bottom,
        "inside": left > other_left and top > other_top and right < other_right and bottom < other_bottom,
        "around": left < other_left and top < other_top and right > other_right and bottom > other_bottom,
    }[relation]


def is_so(text: str, record: Record) -> bool:
    """Whether a caption holds, read from its words and the record's objects and boxes."""
    if sign := re.search(r"(?:reads|says|sign is) (\S+)$", text):
        if sign[1] != record.meta["sign"]:
            return False
        if "and a sign" not in text:
            return True
    if related := re.search(rf"an? {NAME} (?:is )?{RELATION} an? {NAME}$", text):
        groups = [group or "" for group in related.groups()]
        pairs = itertools.product(objects_named(record, *groups[:3]), objects_named(record, *groups[4:]))
        return any(holds_between(record, one, groups[3], other) for one, other in pairs)
    if counts := re.findall(rf"({'|'.join(NUMBER)}) {NAME}(?:e?s)?\b", text):
        right = all(len(objects_named(record, *name)) == NUMBER[number] for number, *name in counts)
        everything = sum(NUMBER[number] for number, *_ in counts) == len(record.meta["objects"])
        return right and (everything or "sign" not in text)
    name = re.search(rf"an? {NAME}", text)
    place = re.search(r"(?:at|on|in) the ((?:top|bottom|left|right|center)(?: left| right)?)", text)
    assert name, text
    assert place, text
    (number,) = objects_named(record, *[group or "" for group in name.groups()]) or [None]
    if number is None:
        return False
    column, row = PLACES[place[1]]
    x, y = record.meta["objects"][number]["center"]
    return (int(3 * x), int(3 * y)) == (column, row)


@pytest.mark.parametrize("level", LEVELS)
def test_every_caption_is_true_and_every_negative_false_by_two_independent_readings(level: int) -> None:
    kinds = Counter[str]()
    for record, _ in generate(400, SEED, level, num_captions=6):
        assert record.captions[0] == record.meta["canonical"]
        assert len(set(record.captions)) == len(record.captions) >= 4
        for text in record.captions:
            assert is_so(text, record), (text, record.meta)
        for text in record.negatives:
            assert not is_so(text, record), (text, record.meta)
        kinds.update(record.meta["negative_kinds"])
    usual = {
        1: {"replace_attribute", "replace_object", "replace_position"},
        2: {"replace_attribute", "replace_object", "replace_relation", "swap_attribute", "swap_relation"},
        3: set(NEGATIVE_KINDS) - {"replace_position"},
    }
    assert set(kinds) == usual[level]
    assert min(kinds.values()) > 200  # each kind is found for most scenes


@pytest.mark.parametrize("level", LEVELS)
def test_statements_of_thousands_of_scenes_are_plainly_true_or_plainly_false(level: int) -> None:
    for index in range(1500):
        scene = make_scene(SEED, level, index)
        told = captions(scene, 6)
        assert all(truth(caption.statement, scene) is True and is_usual(caption, level) for caption in told)
        for negative in negatives(scene, told):
            assert truth(negative.caption.statement, scene) is False
            assert negative.caption.template == told[negative.of].template


# Text alone -----------------------------------------------------------------------------------------------------------------


def features(text: str) -> set[str | tuple[str, str]]:
    words = text.replace(",", "").split()
    return {*words, *itertools.pairwise(("<", *words, ">"))}


@pytest.mark.parametrize("level", LEVELS)
def test_a_reader_without_the_image_cannot_tell_captions_from_negatives(level: int) -> None:
    """Naive Bayes on words and word pairs, trained on half of the pairs of a kind, chooses in each of the others."""
    pairs: dict[str, list[tuple[str, str]]] = {}
    for index in range(1200):
        told = captions(scene := make_scene(SEED, level, index))
        for negative in negatives(scene, told):
            pairs.setdefault(negative.kind, []).append((told[negative.of].text, negative.caption.text))
    for kind, both in pairs.items():
        known, rest = both[::2], both[1::2]
        true = Counter(feature for caption, _ in known for feature in features(caption))
        false = Counter(feature for _, negative in known for feature in features(negative))
        odds = {feature: math.log((true[feature] + 1) / (false[feature] + 1)) for feature in (true | false)}

        def score(text: str, odds: dict[str | tuple[str, str], float] = odds) -> float:
            return sum(odds.get(feature, 0.0) for feature in features(text))

        right = sum((score(one) > score(other)) + 0.5 * (score(one) == score(other)) for one, other in rest) / len(rest)
        assert abs(right - 0.5) < 4 * 0.5 / math.sqrt(len(rest)) < 0.11, (kind, right)


VARIABLE = {*NUMBER, *COLORS, *SHAPES, "shape", "small", "large", "a", "an", "is", "are", "at", "on", "in", "the", "to", "of"}
VARIABLE |= {"left", "right", "top", "bottom", "center", "above", "below", "inside", "around"}


@pytest.mark.parametrize("level", LEVELS)
def test_a_negative_keeps_the_frame_of_its_caption(level: int) -> None:
    def bare(text: str) -> list[str]:
        words = [
            re.sub(r"(shape|circle|ring|square|star|triangle|cross)(e?s)$", r"\1", word) for word in text.replace(",", "").split()
        ]
        return ["TEXT" if word.isupper() or word.isdigit() else word for word in words if word not in VARIABLE]

    for record, _ in generate(150, SEED, level):
        for text, of in zip(record.negatives, record.meta["negative_of"], strict=True):
            assert bare(text) == bare(record.captions[of])


# Questions ------------------------------------------------------------------------------------------------------------------


def answers_found(record: Record) -> Iterator[str]:
    """The answer to a record's question, read from its words and the record's objects and boxes."""
    text, kind = record.messages[0].text, record.meta["question_kind"]
    names = [[group or "" for group in groups] for groups in re.findall(NAME, text)]
    things = [objects_named(record, *name) for name in names]
    objects = record.meta["objects"]
    if kind in ("color", "shape", "size"):
        (number,) = things[-1]
        yield objects[number][kind]
    elif kind == "position":
        (number,) = things[0]
        x, y = objects[number]["center"]
        yield next(place for place, cell in PLACES.items() if cell == (int(3 * x), int(3 * y)))
    elif kind == "count":
        yield str(len(things[0]))
    elif kind == "exists":
        yield "yes" if things[0] else "no"
    elif kind == "text":
        yield record.meta["sign"]
    else:
        (one,), (other,) = things
        words = {"left": "to the left of", "right": "to the right of"}
        if kind == "holds":
            relation = re.search(RELATION, text)
            assert relation
            yield "yes" if holds_between(record, one, relation[1], other) else "no"
        else:
            yield from (
                answer
                for answer in ("left", "right", "above", "below", "inside", "around")
                if holds_between(record, one, words.get(answer, answer), other)
            )


@pytest.mark.parametrize("level", LEVELS)
def test_every_answer_is_right(level: int) -> None:
    kinds = Counter[str]()
    for record, _ in generate(300, SEED, level, ask=True):
        check_record(record)
        question, answer = record.messages
        assert question.content[0].is_image
        assert answer.text == record.answers[0]
        assert record.answers[0] in set(answers_found(record)), (question.text, answer.text, record.meta)
        kinds[record.meta["question_kind"]] += 1
    expected = {"color", "shape", "size", "exists"}
    expected |= {"position"} if level == 1 else {"count", "relation", "holds"} | ({"text"} if level == 3 else set())
    assert set(kinds) == expected
    assert min(kinds.values()) > 200


@pytest.mark.parametrize("level", LEVELS)
def test_yes_and_no_and_small_and_large_are_equally_likely(level: int) -> None:
    given = Counter[tuple[str, str]]()
    for index in range(1500):
        given.update((question.kind, question.answers[0]) for question in questions(make_scene(SEED, level, index)))
    for kind, first, second in [("exists", "yes", "no"), ("holds", "yes", "no"), ("size", "small", "large")]:
        both = given[kind, first] + given[kind, second]
        assert abs(given[kind, first] - both / 2) <= 2.6 * math.sqrt(both) / 2 + (0.06 * both if kind == "size" else 0)
    counts = {answer: number for (kind, answer), number in given.items() if kind == "count"}
    assert not counts or max(counts.values()) < 0.52 * sum(counts.values())


# Records --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ask", [False, True])
@pytest.mark.parametrize("level", LEVELS)
def test_records_are_valid_and_come_back_from_json(level: int, ask: bool) -> None:
    made = list(generate(30, SEED, level, ask=ask))
    records = [record for record, _ in made]
    assert len({record.id for record in records}) == len(records)
    assert len({record.images for record in records}) == 30
    assert len({id(image) for _, image in made}) == 30
    for record in records:
        assert record_from_json(record_to_json(record)) == record
        assert len(record.boxes) == len(record.meta["objects"]) + (level == 3)
        assert all(0 < left < right < 1 and 0 < top < bottom < 1 for left, top, right, bottom in (b.xyxy for b in record.boxes))


def test_splits_are_a_fixed_rule_of_the_index() -> None:
    found = Counter(split_of(index) for index in range(20000))
    for name, share in (("train", 0.8), ("val", 0.1), ("test", 0.1)):
        assert abs(found[name] - 20000 * share) < 4 * math.sqrt(20000 * share * (1 - share))
    assert [index for index in range(100) if split_of(index) == "val"] == [10, 18, 21, 41, 48, 68, 82, 83]
    first = 0xE220A8397B1DCDAF / 2**64  # the published first output of SplitMix64 from state 0
    assert [split_of(0, first + error, 0.0) for error in (-1e-9, 1e-9)] == ["train", "val"]
    assert [record.split for record, _ in generate(40, 1, 1)] == [split_of(index) for index in range(40)]
    assert {split_of(index, 0.0, 0.0) for index in range(200)} == {"train"}
    assert {split_of(index, 0.5, 0.5) for index in range(200)} == {"val", "test"}


@pytest.mark.parametrize("ask", [False, True])
@pytest.mark.parametrize("level", LEVELS)
def test_held_out_pairs_are_shown_and_named_in_the_novel_split_only(level: int, ask: bool) -> None:
    held_out = set(NOVEL_PAIRS)
    names = re.compile("|".join(f"{color} {shape}(?:e?s)?\\b" for color, shape in held_out))
    splits = Counter[str]()
    for record, _ in generate(400, SEED, level, ask=ask, novel=NOVEL_PAIRS):
        is_novel = any((item["color"], item["shape"]) in held_out for item in record.meta["objects"])
        assert (record.split == "novel") == is_novel
        texts = [*record.captions, *record.negatives, *(message.text for message in record.messages)]
        assert is_novel or not any(map(names.search, texts))
        splits[record.split] += 1
    assert 0.04 < splits["novel"] / splits.total() < 0.35
    assert {color for color, _ in held_out} != set(COLORS)  # each color and shape stays known from other pairs


def test_numbers_and_words_on_signs_are_equally_likely() -> None:
    texts = [scene.sign.text for index in range(800) if (scene := make_scene(SEED, 3, index)).sign is not None]
    assert len(texts) == 800
    assert 340 < sum(text in NUMBERS for text in texts) < 460
