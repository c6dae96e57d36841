"""The order of an epoch: everything exactly once, a pure function of seed and epoch, and local where shards are read."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.data.batches.order import epoch_order
from sightline.runtime.keyed import keyed_generator


@settings(deadline=None, max_examples=80)
@given(
    num=st.integers(0, 3000),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 1000),
    windowed=st.booleans(),
    block=st.integers(1, 70),
    window=st.integers(1, 9),
)
def test_every_number_comes_exactly_once(num: int, seed: int, epoch: int, windowed: bool, block: int, window: int) -> None:
    order = epoch_order(num, seed, epoch, windowed, block, window)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(num))


@pytest.mark.parametrize("windowed", [False, True])
def test_seed_and_epoch_alone_decide(windowed: bool) -> None:
    first = epoch_order(5000, 3, 7, windowed)
    np.random.default_rng(1).random(100)
    keyed_generator("something", "else").random(100)
    assert np.array_equal(first, epoch_order(5000, 3, 7, windowed))
    for seed, epoch in [(4, 7), (3, 8), (37, 0)]:
        assert not np.array_equal(first, epoch_order(5000, seed, epoch, windowed))


def test_another_process_finds_the_same_order() -> None:
    code = (
        "from sightline.data.batches.order import epoch_order as order; "
        "print(order(50, 1, 2).tolist(), order(50, 1, 2, True).tolist())"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert told == f"{epoch_order(50, 1, 2).tolist()} {epoch_order(50, 1, 2, True).tolist()}"


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_ranks_share_an_epoch_without_gap_or_overlap(ranks: int) -> None:
    """Rank r takes places r, r + ranks, ...; together they are the epoch of one rank."""
    order = epoch_order(1001, 5, 2, windowed=True, block=16, window=4)
    parts = [order[rank::ranks] for rank in range(ranks)]
    rebuilt = np.empty_like(order)
    for rank, part in enumerate(parts):
        rebuilt[rank::ranks] = part
    assert np.array_equal(rebuilt, order)
    assert sum(map(len, parts)) == 1001


def test_a_window_reads_few_blocks_at_a_time_and_mixes_them() -> None:
    block, window = 50, 4
    order = epoch_order(5000, 0, 0, windowed=True, block=block, window=window)
    for at in range(0, 5000, block * window):
        stretch = order[at : at + block * window]
        assert len(set((stretch // block).tolist())) == window
        assert not np.array_equal(stretch, np.sort(stretch))
    blocks = [number // block for number in order[:: block * window].tolist()]
    assert blocks != sorted(blocks)


def test_places_are_uniform_over_epochs() -> None:
    """Number 0 of 10 lands in each place about as often as in any other (chi-square with 9 degrees, 99.9 % at 27.9)."""
    places = [int(np.flatnonzero(epoch_order(10, 1, epoch) == 0)[0]) for epoch in range(2000)]
    counts = np.bincount(places, minlength=10)
    assert ((counts - 200) ** 2 / 200).sum() < 27.9
