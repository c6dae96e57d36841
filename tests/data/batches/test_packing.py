"""Packing: nothing is lost, both limits hold, and rows are as full as brute force can make them."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.data.batches import packing
from sightline.data.batches.packing import by_length, fullest, pack
from sightline.errors import ConfigError

UNITS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3)), max_size=60)


def columns(units: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    table = np.array(units, dtype=np.int64).reshape(len(units), 2)
    return table[:, 0], table[:, 1]


@settings(max_examples=200, deadline=None)
@given(UNITS, st.integers(0, 9), st.integers(1, 30), st.integers(3, 8))
def test_every_unit_is_in_one_row_and_rows_keep_both_limits_and_the_order(
    units: list[tuple[int, int]], seed: int, look_ahead: int, row_images: int
) -> None:
    tokens, images = columns(units)
    order = np.random.default_rng(seed).permutation(len(units))
    packed = pack(order, tokens, images, 48, row_images, look_ahead)
    assert sorted(unit for row in packed.rows for unit in row) == list(range(len(units)))
    place = {int(unit): number for number, unit in enumerate(order)}
    for row in packed.rows:
        assert sum(tokens[list(row)]) <= 48
        assert sum(images[list(row)]) <= row_images
        assert [place[unit] for unit in row] == sorted(place[unit] for unit in row)
    firsts = [place[row[0]] for row in packed.rows]
    assert firsts == sorted(firsts)
    assert packed.capacity == 48 * len(packed.rows)
    assert packed.tokens == tokens.sum()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 4)), max_size=9), st.integers(0, 50), st.integers(0, 6))
def test_the_choice_for_a_row_is_the_best_of_all_choices(sizes: list[tuple[int, int]], tokens: int, images: int) -> None:
    def fits(chosen: tuple[int, ...]) -> bool:
        return sum(sizes[k][0] for k in chosen) <= tokens and sum(sizes[k][1] for k in chosen) <= images

    subsets = [part for count in range(len(sizes) + 1) for part in itertools.combinations(range(len(sizes)), count)]
    best = max(sum(sizes[k][0] for k in part) for part in subsets if fits(part))
    chosen = fullest(sizes, tokens, images)
    assert fits(tuple(chosen))
    assert len(set(chosen)) == len(chosen)
    assert sum(sizes[k][0] for k in chosen) == best


def test_very_long_rows_are_chosen_by_rounded_sizes_and_never_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "STEPS", 100)
    draw = np.random.default_rng(0)
    for _ in range(50):
        sizes = [(int(size), 1) for size in draw.integers(1, 400, 30)]
        for images in (3, 30):
            chosen = fullest(sizes, 1000, images)
            assert len(chosen) <= images
            assert 900 < sum(sizes[k][0] for k in chosen) <= 1000


def test_rows_of_one_epoch_are_nearly_full_and_no_unit_moves_far() -> None:
    draw = np.random.default_rng(0)
    tokens = draw.integers(100, 900, 5000)
    order = draw.permutation(5000)
    packed = pack(order, tokens, np.ones(5000, dtype=np.int64), 2048, 64)
    assert packed.fill > 0.99
    place = np.empty(5000, dtype=np.int64)
    place[order] = np.arange(5000)
    now = np.array([place[unit] for row in packed.rows for unit in row])
    assert np.abs(now - np.arange(5000)).max() < 4 * packing.LOOK_AHEAD


def test_many_images_of_few_tokens_fill_a_row_to_its_limit_of_images() -> None:
    tokens = np.full(1000, 10)
    packed = pack(np.arange(1000), tokens, np.ones(1000, dtype=np.int64), 2048, 50)
    assert [len(row) for row in packed.rows] == [50] * 20
    mixed = pack(np.arange(1000), tokens, np.arange(1000) % 2, 2048, 50)  # text fills what images may not
    assert [sum(unit % 2 for unit in row) for row in mixed.rows[:9]] == [50] * 9


def test_without_look_ahead_rows_are_filled_in_order() -> None:
    tokens = np.array([5, 4, 3, 9, 1, 2])
    packed = pack(np.arange(6), tokens, np.zeros(6, dtype=np.int64), 10, 1, look_ahead=1)
    assert packed.rows == ((0, 1), (2,), (3, 4), (5,))


@pytest.mark.parametrize("unit", [(49, 0), (1, 4)])
def test_a_unit_over_a_limit_is_refused_with_its_sizes(unit: tuple[int, int]) -> None:
    tokens, images = columns([(1, 1), unit])
    with pytest.raises(ConfigError, match=rf"{unit[0]} tokens and {unit[1]} crops exceeds a row of 48 tokens and 3 crops"):
        pack(np.arange(2), tokens, images, 48, 3)


def test_nothing_gives_no_rows() -> None:
    none = np.zeros(0, dtype=np.int64)
    assert pack(none, none, none, 8, 1).rows == ()
    assert pack(none, none, none, 8, 1).fill == 0.0


def test_neighbours_of_like_length_stand_in_the_order_of_their_first_unit() -> None:
    tokens = np.array([9, 1, 8, 2, 7, 3, 6, 4])
    found = by_length(np.arange(8), tokens, batch=2, window=2)
    np.testing.assert_array_equal(found, [2, 0, 1, 3, 6, 4, 5, 7])
