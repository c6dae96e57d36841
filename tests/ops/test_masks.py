"""The attention rule of packed rows against a loop over all pairs of slots."""

import pytest
import torch
from benchmarks.host_reads import HostReads
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask, create_mask

from sightline.ops.masks import BLOCK, additive_mask, block_mask, computed_blocks, dense_blocks, visible
from sightline.types import PADDING, Tokens
from tests.ops.helpers import Largest


@st.composite
def layouts(draw: st.DrawFn) -> Tokens:
    """Rows of samples with prefixes and branches, padding anywhere between them, positions with gaps (as without images)."""
    width = draw(st.integers(1, 14))
    columns: list[list[list[int]]] = []
    number = 0
    for _ in range(draw(st.integers(1, 3))):
        row: list[list[int]] = []
        while len(row) < width:
            if draw(st.booleans()):
                row.append([draw(st.integers(0, 9)), PADDING, draw(st.sampled_from([0, PADDING]))])
                continue
            begin = draw(st.integers(0, 2))
            prefix = draw(st.integers(0, 4))
            place = begin
            for _ in range(prefix):
                row.append([place, number, PADDING])
                place += draw(st.integers(1, 3))
            for branch in range(draw(st.integers(1, 3))):
                own = place
                for _ in range(draw(st.integers(1, 4))):
                    row.append([own, number, branch])
                    own += draw(st.integers(1, 3))
            number += 1
        columns.append(row[:width])
    position, sample, branch = torch.tensor(columns).unbind(-1)
    return Tokens(torch.zeros_like(position), position, sample, branch, is_plain=False)


def rule(tokens: Tokens, row: int, query: int, key: int, window: int | None) -> bool:
    """The sentence of DESIGN: same sample, key in the prefix or in the same branch, key position not after the query's."""
    position, sample, branch = (values[row].tolist() for values in (tokens.position_BT, tokens.sample_BT, tokens.branch_BT))
    if query == key:
        return True
    if sample[query] != sample[key] or sample[key] == PADDING:
        return False
    if branch[key] not in (PADDING, branch[query]):
        return False
    back = position[query] - position[key]
    return back >= 0 and (window is None or back < window)


@settings(max_examples=60, deadline=None)
@given(tokens=layouts(), window=st.sampled_from([None, 1, 3, 5]))
def test_the_mask_follows_the_rule_for_every_pair(tokens: Tokens, window: int | None) -> None:
    rows, width = tokens.ids_BT.shape
    ours = visible(tokens, window)
    expected = [[[rule(tokens, b, q, k, window) for k in range(width)] for q in range(width)] for b in range(rows)]
    assert ours.tolist() == expected
    assert ours.any(-1).all()  # a softmax over nothing would be NaN


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_additive_mask_hides_by_the_lowest_finite_number(dtype: torch.dtype) -> None:
    tokens = Tokens(
        ids_BT=torch.zeros(1, 4, dtype=torch.long),
        position_BT=torch.tensor([[0, 1, 0, 1]]),
        sample_BT=torch.tensor([[0, 0, 1, 1]]),
        branch_BT=torch.zeros(1, 4, dtype=torch.long),
        is_plain=False,
    )
    mask = additive_mask(tokens, dtype)
    low = torch.finfo(dtype).min
    assert mask.dtype == dtype
    assert mask.shape == (1, 1, 4, 4)
    assert mask[0, 0].tolist() == [[0, low, low, low], [0, 0, low, low], [low, low, 0, low], [low, low, 0, 0]]
    assert torch.isfinite(mask).all()


def test_a_window_counts_positions_and_not_slots() -> None:
    # Positions 0, 1, 7, 8: an image of five tokens was taken out between. A window of 3 reaches back two positions.
    tokens = Tokens(
        ids_BT=torch.zeros(1, 4, dtype=torch.long),
        position_BT=torch.tensor([[0, 1, 7, 8]]),
        sample_BT=torch.zeros(1, 4, dtype=torch.long),
        branch_BT=torch.zeros(1, 4, dtype=torch.long),
        is_plain=False,
    )
    assert visible(tokens, 3)[0].tolist() == [
        [True, False, False, False],
        [True, True, False, False],
        [False, False, True, False],
        [False, False, True, True],
    ]


# Block masks ------------------------------------------------------------------------------------------------------------------


def long_layout() -> Tokens:
    """Two rows of six blocks and a rest: samples longer than a block, many short ones, groups, padding."""
    generator = torch.Generator().manual_seed(3)
    rows = []
    for lengths in ([700, 90], [40] * 16):
        row: list[list[int]] = []
        for number, length in enumerate(lengths):
            prefix = length // 2
            row += [[place, number, PADDING] for place in range(prefix)]
            cut = int(torch.randint(1, length - prefix, (), generator=generator))
            for branch, size in enumerate((cut, length - prefix - cut)):
                row += [[prefix + place, number, branch] for place in range(size)]
        rows.append(row + [[place, PADDING, 0] for place in range(len(row), 805)])
    position, sample, branch = torch.tensor(rows).unbind(-1)
    return Tokens(torch.zeros_like(position), position, sample, branch, is_plain=False)


@pytest.mark.parametrize("window", [None, 50, 300])
def test_the_block_mask_is_that_of_torch_for_the_dense_mask(window: int | None) -> None:
    tokens = long_layout()
    dense = visible(tokens, window)
    rows, width = tokens.ids_BT.shape
    expected = create_block_mask(lambda b, h, q, k: dense[b, q, k], rows, None, width, width, "cpu", BLOCK)
    ours = block_mask(tokens, window)
    assert torch.equal(create_mask(ours.mask_mod, rows, None, width, width, "cpu")[:, 0], dense)
    for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(ours, name), getattr(expected, name)), name
    for name, count in (("kv_indices", "kv_num_blocks"), ("full_kv_indices", "full_kv_num_blocks")):
        for place in torch.cartesian_prod(torch.arange(rows), torch.arange(7)).tolist():
            used = int(getattr(expected, count)[place[0], 0, place[1]])
            one, other = (getattr(mask, name)[place[0], 0, place[1], :used] for mask in (ours, expected))
            assert torch.equal(one, other), (name, place)
    assert ours.seq_lengths == (width, width)
    blocks = torch.nn.functional.pad(dense, (0, 91, 0, 91)).unflatten(2, (7, BLOCK)).unflatten(1, (7, BLOCK)).any(4).any(2)
    assert computed_blocks(ours) == blocks.sum()
    assert dense_blocks(ours) == 2 * 7 * 7
    assert ours.full_kv_num_blocks.sum() > 0 or window == 50


@settings(max_examples=30, deadline=None)
@given(tokens=layouts(), window=st.sampled_from([None, 1, 3, 5]))
def test_the_rule_of_the_block_mask_is_that_of_the_dense_mask(tokens: Tokens, window: int | None) -> None:
    rows, width = tokens.ids_BT.shape
    assert torch.equal(
        create_mask(block_mask(tokens, window).mask_mod, rows, None, width, width, "cpu")[:, 0], visible(tokens, window)
    )


def test_the_block_mask_is_made_without_reading_a_value_and_without_all_pairs() -> None:
    tokens = long_layout()
    wide = Tokens(*(value.repeat(1, 5) for value in (tokens.ids_BT, tokens.position_BT, tokens.sample_BT, tokens.branch_BT)), False)
    with HostReads() as counted:
        block_mask(wide, 50)
    assert counted.places == []
    with Largest() as mode:
        block_mask(wide, 50)
    assert mode.elements < 4025 * 4025 / 2
