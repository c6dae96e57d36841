"""Counts of what stands twice, against counting by hand with sets."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sightline.data.check.duplicates import Index, Near, Occurrences, near_between, text_key
from sightline.data.images.reader import ImageLocation
from sightline.types import Message, Part, Record

PLACES = 3
THINGS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, PLACES - 1), st.integers(0, 9)), min_size=1, max_size=40)


def index_of(things: list[tuple[int, int, int]]) -> Index:
    """An index of (key, place, record)."""
    found = Occurrences()
    for number, (key, place, record) in enumerate(things):
        found.add(key * 2**60, place, ImageLocation(place, record, number))
    return Index(found, PLACES)


@given(THINGS)
def test_what_is_repeated_within_a_place(things: list[tuple[int, int, int]]) -> None:
    index = index_of(things)
    for place in range(PLACES):
        records: dict[int, set[int]] = {}
        for key, where, record in things:
            if where == place:
                records.setdefault(key, set()).add(record)
        often = {key: own for key, own in records.items() if len(own) > 1}
        count, in_records, pairs = index.repeated(place)
        assert index.count(place) == len(records)
        assert (count, in_records) == (len(often), sum(map(len, often.values())))
        assert len(pairs) == len(often)
        for pair in pairs:
            key = things[pair.a.image][0]
            assert things[pair.b.image][0] == key
            assert pair.a.record != pair.b.record
            assert {pair.a.record, pair.b.record} <= often[key]


@given(THINGS)
def test_what_two_places_share(things: list[tuple[int, int, int]]) -> None:
    index = index_of(things)
    own = [{key for key, where, _ in things if where == place} for place in range(PLACES)]
    for a in range(PLACES):
        for b in range(a + 1, PLACES):
            shared = index.common(a, b)
            assert int(shared.both.sum()) == len(own[a] & own[b])
            assert shared.inside_a == sum(where == a and key in own[b] for key, where, _ in things)
            assert shared.inside_b == sum(where == b and key in own[a] for key, where, _ in things)
            assert [(things[pair.a.image][1], things[pair.b.image][1]) for pair in shared.pairs] == [(a, b)] * len(shared.pairs)
            assert all(things[pair.a.image][0] == things[pair.b.image][0] for pair in shared.pairs)


def test_near_images_are_counted_in_the_places_where_they_stand() -> None:
    # Keys 0 to 4; 0 and 1 look alike, 2 and 3 look alike.
    index = index_of([(0, 0, 0), (1, 1, 1), (2, 0, 2), (3, 0, 3), (4, 1, 4), (1, 2, 5)])
    near = Near(np.array([0, 2]), np.array([1, 3]), np.array([4, 2]), np.array([0.99, 0.98], dtype=np.float32))
    of_a, of_b, pairs = near_between(near, index, 0, 1)
    assert (of_a.nonzero()[0].tolist(), of_b.nonzero()[0].tolist()) == ([0], [1])
    assert [(pair.a.record, pair.b.record, pair.bits, pair.is_exact) for pair in pairs] == [(0, 1, 4, False)]
    of_a, of_b, _ = near_between(near, index, 1, 0)
    assert (of_a.nonzero()[0].tolist(), of_b.nonzero()[0].tolist()) == ([1], [0])
    within, _, pairs = near_between(near, index, 0, 0)
    assert within.nonzero()[0].tolist() == [2, 3]
    assert [(pair.a.record, pair.b.record) for pair in pairs] == [(2, 3)]
    assert not near_between(near, index, 1, 2)[0].any()  # the same image is not near, it is equal


def caption(*texts: str) -> Record:
    return Record("x", captions=texts)


def asked(question: str, answer: str) -> Record:
    return Record("x", messages=(Message("user", (Part(question),)), Message("assistant", (Part(answer),))))


def test_texts_are_equal_up_to_order_case_and_spaces() -> None:
    assert text_key(caption("A dog.", "Two cats")) == text_key(caption("two  cats", "a Dog."))
    assert text_key(caption("A dog.")) != text_key(caption("A dog.", "Two cats"))
    assert text_key(caption("a", "b")) != text_key(caption("a b"))
    assert text_key(asked("What is it?", "a dog")) == text_key(asked("what is  it?", "a cat"))
    assert text_key(asked("What is it?", "x")) != text_key(caption("What is it?"))
    assert text_key(asked("", "a dog")) != text_key(asked("", "a cat"))  # without a question the answer is the text
