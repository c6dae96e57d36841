"""Exchanged words, against texts that are written down by hand, and the truth of drawn scenes."""

import pytest

from sightline.data.scenes import generate
from sightline.evaluation.counterfactual import KINDS, Counterfactual, counterfactuals
from sightline.types import Record


def of(*texts: str, key: str = "r") -> dict[str, Counterfactual]:
    return {found.kind: found for found in counterfactuals(Record(key, ("a.png",), captions=texts), texts)}


def test_one_word_of_each_kind_is_exchanged_and_nothing_else() -> None:
    text = "Two dogs and a red ball are on the left of a beach."
    found = of(text)
    assert tuple(found) == KINDS
    for kind, old in (("colour", "red"), ("count", "Two"), ("object", "dogs"), ("place", "the left")):
        pair = found[kind]
        before, after = text.split(old, 1)
        assert pair.true == text
        assert pair.false.startswith(before)
        assert pair.false.endswith(after)
        assert pair.false[len(before) : len(pair.false) - len(after)] not in ("", old)
    assert found["place"].false == "Two dogs and a red ball are on the right of a beach."
    assert found["count"].false[0].isupper()
    animals = {"cats", "horses", "cows", "sheep", "birds", "elephants", "bears", "zebras", "giraffes"}
    assert found["object"].false.split()[1] in animals


def test_the_new_word_stands_in_no_text_of_the_record_and_keeps_the_article() -> None:
    for key in map(str, range(40)):
        colours = of("a red car", "a blue and green thing", "black white yellow orange purple pink brown", key=key)
        assert colours["colour"].false == "a gray car"
        assert of("an orange", key=key)["object"].false == "an apple"
    assert "count" not in of("two three four five six seven eight nine ten")  # no other number is left
    assert of("the dog is redder than a stop") == of("the dog is redder than a stop")
    assert "colour" not in of("the dog is redder than a stop")  # words, not parts of words


def test_grey_is_not_exchanged_with_its_other_spelling() -> None:
    for key in map(str, range(60)):
        assert "gray" not in of("the grey cat", key=key)["colour"].false


def test_texts_without_such_words_have_none() -> None:
    assert of("nothing to see here") == {}
    assert of() == {}


@pytest.mark.parametrize("level", [1, 2, 3])
def test_drawn_scenes_give_their_own_false_captions(level: int) -> None:
    seen = set()
    for record, _ in generate(30, 0, level):
        for pair in counterfactuals(record, ()):
            seen.add(pair.kind)
            number = record.negatives.index(pair.false)
            assert record.captions[record.meta["negative_of"][number]] == pair.true
            assert pair.false not in record.captions
            if pair.kind == "colour":
                assert pair.true.split().count("large") == pair.false.split().count("large")
    assert {"colour", "object"} <= seen <= set(KINDS)
