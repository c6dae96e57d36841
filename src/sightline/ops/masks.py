"""Attention masks for packed rows.

A query sees a key if both belong to the same sample, the key lies in the sample's prefix or in the query's own branch, and the
key's position is not after the query's (nor beyond a sliding window). The mask is additive and of float type: transformers accepts
boolean masks for sdpa only, eager attention would add 0 and 1.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sightline.types import PADDING, Tokens


def visible(tokens: Tokens, window: int | None = None) -> Bool[Tensor, "B T T"]:
    """Returns True where the query (second axis) sees the key (third axis).

    Padding sees only itself, so that no softmax is empty.

    Args:
        tokens: packed rows.
        window: number of latest positions that a query sees, including its own; None for all.
    """
    sample, branch, position = tokens.sample_BT, tokens.branch_BT, tokens.position_BT
    same_sample = sample[:, :, None] == sample[:, None, :]
    same_branch = (branch[:, :, None] == branch[:, None, :]) | (branch[:, None, :] == PADDING)
    distance = position[:, :, None] - position[:, None, :]
    seen = same_sample & same_branch & (distance >= 0) & (sample != PADDING)[:, None, :]
    if window is not None:
        seen = seen & (distance < window)
    itself = torch.eye(sample.shape[1], dtype=torch.bool, device=sample.device)
    return seen | itself


def additive_mask(tokens: Tokens, dtype: torch.dtype, window: int | None = None) -> Float[Tensor, "B 1 T T"]:
    """Returns `visible` as a mask to add to attention scores: 0 where visible, the lowest finite number elsewhere."""
    seen = visible(tokens, window)
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]
