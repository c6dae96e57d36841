"""The attention rule of packed rows as a mask.

A query sees a key when both belong to the same sample, the key lies in the sample's prefix or in the query's own branch, and
the key's position is not after the query's (nor further back than a sliding window reaches). The mask is additive and of
float type: transformers takes boolean masks for sdpa only, eager attention would add 0 and 1.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sightline.types import PADDING, Tokens


def visible(tokens: Tokens, window: int | None = None) -> Bool[Tensor, "B T T"]:
    """True where the query (second axis) may see the key (third axis).

    Padding sees itself only, so that no softmax runs over nothing.

    Args:
        tokens: packed rows.
        window: number of latest positions that a query reaches, its own included; None for all.
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
    """`visible` as a mask to add to attention scores: 0 where seen, the lowest finite number where not."""
    seen = visible(tokens, window)
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]
