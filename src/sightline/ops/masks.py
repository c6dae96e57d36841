"""Attention masks for packed rows.

A query sees a key if both belong to the same sample, the key lies in the sample's prefix or in the query's own branch, and the
key's position is not after the query's (nor beyond a sliding window). The dense mask is the definition. It is additive and of float
type: transformers accepts boolean masks for sdpa only, eager attention would add 0 and 1. The block mask is its form for
FlexAttention, which skips blocks of scores in which no query sees a key.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from sightline.types import PADDING, Tokens

BLOCK = 128  # tokens of a side of a block of scores: the size that torch's kernels are made for
KEY_BLOCKS = 4  # blocks of keys that are examined at once: 16 MB of booleans a row of 32,768 tokens


Places = tuple[Tensor, Tensor, Tensor, Tensor]
"""Where tokens stand: index of the sample and of the branch, position in the sample, and index in the row."""


def sees(query: Places, key: Places, window: int | None) -> Tensor:
    """Returns True where a query sees a key; padding sees only itself, so that no softmax is empty. Shapes are broadcast."""
    sample, branch, position, slot = query
    key_sample, key_branch, key_position, key_slot = key
    distance = position - key_position
    seen = (sample == key_sample) & ((branch == key_branch) | (key_branch == PADDING)) & (distance >= 0) & (key_sample != PADDING)
    if window is not None:
        seen = seen & (distance < window)
    return seen | (slot == key_slot)


def visible(tokens: Tokens, window: int | None = None) -> Bool[Tensor, "B T T"]:
    """Returns True where the query (second axis) sees the key (third axis).

    Args:
        tokens: packed rows.
        window: number of latest positions that a query sees, including its own; None for all.
    """
    slot = torch.arange(tokens.sample_BT.shape[1], device=tokens.sample_BT.device)
    places = (tokens.sample_BT, tokens.branch_BT, tokens.position_BT, slot[None])
    return sees(_along(places, 1), _along(places, 2), window)


def _along(places: Places, axis: int) -> Places:
    """Returns places of `[B, T]` along the axis of the queries (1) or of the keys (2)."""
    sample, branch, position, slot = (value.unsqueeze(3 - axis) for value in places)
    return sample, branch, position, slot


def additive_mask(tokens: Tokens, dtype: torch.dtype, window: int | None = None) -> Float[Tensor, "B 1 T T"]:
    """Returns `visible` as a mask to add to attention scores: 0 where visible, the lowest finite number elsewhere."""
    seen = visible(tokens, window)
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


def block_mask(tokens: Tokens, window: int | None = None) -> BlockMask:
    """Returns `visible` for FlexAttention: which blocks hold a visible pair, which hold nothing else, and the rule for the others.

    No `[T, T]` tensor is made and no value is read by the host: blocks are counted for a few blocks of keys at a time.

    Args:
        tokens: packed rows.
        window: as in `visible`.
    """
    length = tokens.sample_BT.shape[1]
    short = -length % BLOCK
    sample, branch, position = (
        torch.nn.functional.pad(value.int(), (0, short), value=PADDING)
        for value in (tokens.sample_BT, tokens.branch_BT, tokens.position_BT)
    )
    slot = torch.arange(length + short, dtype=torch.int32, device=sample.device)[None]
    queries = _along((sample, branch, position, slot), 1)
    counts = []
    for begin in range(0, length + short, KEY_BLOCKS * BLOCK):
        some = slice(begin, begin + KEY_BLOCKS * BLOCK)
        keys = _along((sample[:, some], branch[:, some], position[:, some], slot[:, some]), 2)
        seen = sees(queries, keys, window).unflatten(2, (-1, BLOCK)).unflatten(1, (-1, BLOCK))
        counts.append(seen.sum((2, 4), dtype=torch.int32))
    count = torch.cat(counts, 2)[:, None]

    def places(row: Tensor, slot: Tensor) -> Places:
        return sample[row, slot], branch[row, slot], position[row, slot], slot

    is_full = count == BLOCK * BLOCK
    return BlockMask.from_kv_blocks(
        *_ordered((count > 0) & ~is_full),
        *_ordered(is_full),
        BLOCK_SIZE=BLOCK,
        mask_mod=lambda row, head, query, key: sees(places(row, query), places(row, key), window),
        seq_lengths=(length, length),
    )


def _ordered(blocks: Bool[Tensor, "B 1 Q K"]) -> tuple[Int[Tensor, "B 1 Q"], Int[Tensor, "B 1 Q K"]]:
    """Returns for each block of queries the number of its blocks of keys, and their indices before all others."""
    order = torch.argsort(blocks.int(), dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32), order.int()


def computed_blocks(mask: BlockMask) -> Int[Tensor, ""]:
    """Returns the number of blocks of scores that FlexAttention computes per head, over all rows."""
    full = 0 if mask.full_kv_num_blocks is None else mask.full_kv_num_blocks.sum()
    return mask.kv_num_blocks.sum() + full


def dense_blocks(mask: BlockMask) -> int:
    """Returns the number of blocks of scores that a dense mask computes per head, over all rows."""
    rows, _, queries, keys = mask.kv_indices.shape
    return rows * queries * keys
