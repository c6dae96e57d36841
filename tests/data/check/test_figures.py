"""Numbers about records, against numpy and counting by hand."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.data.check.figures import ASPECTS, Figures, Histogram, labels, spread
from sightline.types import Box, Message, Part, Record


@given(st.lists(st.integers(0, 10**7), min_size=1, max_size=200))
def test_a_spread_of_whole_numbers_loses_none(values: list[int]) -> None:
    found = spread(np.array(values))
    assert found is not None
    assert (found.n, found.min, found.max, found.sum) == (len(values), min(values), max(values), sum(values))
    assert found.mean == pytest.approx(np.mean(values))
    assert found.median == pytest.approx(np.median(values))
    edges, counts = found.histogram.edges, found.histogram.counts
    assert edges == sorted(set(edges))
    assert len(edges) == len(counts) + 1 <= 60
    assert sum(counts) == len(values)
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        assert count == sum(low <= value < high for value in values) or high == edges[-1]


@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=50))
def test_given_edges_hold_everything(values: list[float]) -> None:
    found = spread(np.array(values), ASPECTS)
    assert found is not None
    assert sum(found.histogram.counts) == len(values)
    assert found.histogram.counts[0] > 0


def test_few_whole_numbers_have_a_bin_each_and_nothing_has_no_spread() -> None:
    found = spread([3, 5, 5, 7])
    assert found is not None
    assert found.histogram == Histogram([3, 4, 5, 6, 7, 8], [1, 0, 2, 0, 1])
    assert spread([]) is None


def test_records_are_counted_by_what_they_hold() -> None:
    figures = Figures()
    figures.add(
        Record("a", images=("a.png",), captions=("a dog runs", "a  dog"), boxes=(Box("dog", (0, 0, 1, 1)),), negatives=("x",))
    )
    figures.add(Record("b", captions=("only text",)))
    turns = (
        Message("system", (Part("be kind"),)),
        Message("user", (Part(), Part("what is it?"))),
        Message("assistant", (Part("a dog"),)),
        Message("user", (Part("sure?"),)),
        Message("assistant", (Part("yes"),)),
    )
    figures.add(Record("c", images=("a.png", "b.png"), messages=turns, answers=("Dog", "dog ", "cat"), split="val"))
    told = figures.summary().to_json()
    assert told["records"] == 3
    assert told["records_with"] == {"captions": 2, "conversations": 1, "answers": 1, "boxes": 1, "negatives": 1, "text_only": 1}
    assert told["images_per_record"]["sum"] == 3
    assert told["captions_per_record"]["sum"] == 3
    assert [told["caption_words"][name] for name in ("n", "min", "max", "sum")] == [3, 2, 3, 7]
    assert told["turns_per_conversation"]["sum"] == 4  # the system turn is none
    assert told["question_words"]["sum"] == 4
    assert told["answer_words"]["sum"] == 3
    assert told["labels"] == {
        "val": {"records": 1, "distinct": 1, "majority": "dog", "majority_share": 1.0, "most_frequent": {"dog": 1}}
    }


def test_short_turns_of_the_assistant_are_answers_where_none_are_listed() -> None:
    figures = Figures()
    for number, said in enumerate(["Yes", "yes ", "no", "", "a sentence of more than five words"]):
        turns = (Message("user", (Part("is it?"),)), Message("assistant", (Part(said),)))
        figures.add(Record(str(number), messages=turns * 2))
    told = figures.summary().to_json()
    assert told["records_with"] == {"conversations": 5, "text_only": 5}
    assert told["labels"]["train"]["most_frequent"] == {"yes": 4, "no": 2}


def test_the_majority_is_the_most_frequent_answer_and_ties_are_settled() -> None:
    told = labels(Counter({"yes": 3, "no": 3, "red": 2}))
    assert (told.majority, told.majority_share, told.distinct) == ("no", 3 / 8, 3)
    assert list(told.most_frequent) == ["no", "yes", "red"]
    many = labels(Counter({str(number): number + 1 for number in range(100)}))
    assert len(many.most_frequent) == 20
    assert many.majority == "99"
