"""Removes the visual tokens of a batch, for the pass without images of contrastive alignment."""

from dataclasses import replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sightline.types import PADDING, Batch, Tokens


def text_only(batch: Batch) -> Batch:
    """Removes the visual tokens of a batch: rows become shorter, positions stay.

    A target that was predicted by a visual token is now predicted by the last text token before it in its sample (own branch, else
    prefix); if there is none its slot is -1. No value is copied from the device to the host.
    """
    if batch.visual is None:
        return batch
    tokens, supervision = batch.tokens, batch.supervision
    num_rows, width = tokens.ids_BT.shape
    new_width = batch.visual.text_width
    assert new_width > 0  # guaranteed by `collate`
    keep_X = (tokens.sample_BT != PADDING).flatten().index_fill(0, batch.visual.slot_M, False)
    column_BT = keep_X.view(num_rows, width).cumsum(1) - 1
    row_BT = torch.arange(num_rows, device=keep_X.device)[:, None]
    # Removed values go to one extra slot behind the last row, which is then cut off.
    new_slot_X = torch.where(keep_X, (row_BT * new_width + column_BT).flatten(), num_rows * new_width)

    def compact(values_BT: Tensor, fill: int) -> Tensor:
        out = values_BT.new_full((num_rows * new_width + 1,), fill)
        return out.scatter(0, new_slot_X, values_BT.flatten())[:-1].view(num_rows, new_width)

    last_S = last_kept(tokens, keep_X)[supervision.slot_S]
    last_S = torch.where(supervision.slot_S >= 0, last_S, -1)
    return replace(
        batch,
        tokens=Tokens(
            ids_BT=compact(tokens.ids_BT, 0),
            position_BT=compact(tokens.position_BT, 0),
            sample_BT=compact(tokens.sample_BT, PADDING),
            branch_BT=compact(tokens.branch_BT, PADDING),
            is_plain=False,  # positions skip the image, so only an explicit mask is correct
        ),
        visual=None,
        supervision=replace(supervision, slot_S=torch.where(last_S >= 0, new_slot_X[last_S], -1)),
        blind_logits_S=None,
    )


def last_kept(tokens: Tokens, keep_X: Bool[Tensor, " X"]) -> Int[Tensor, " X"]:
    """Returns for each slot of the flattened rows the last kept slot up to it that it may see: in its branch, else in the prefix.

    Args:
        tokens: the tokens of a sample are adjacent, the prefix first, then branch after branch.
        keep_X: marks the slots of the `B * T` that are kept.

    Returns:
        Slots; -1 if there is none.
    """
    sample_X, branch_X = tokens.sample_BT.flatten(), tokens.branch_BT.flatten()
    slot_X = torch.arange(len(keep_X), device=keep_X.device)
    new_sample_X = torch.ones_like(keep_X)
    new_sample_X[1:] = sample_X[1:] != sample_X[:-1]
    new_branch_X = new_sample_X.clone()
    new_branch_X[1:] |= branch_X[1:] != branch_X[:-1]

    def last(where_X: Tensor) -> Tensor:
        """Returns for each position the last position up to it where the condition is true; -1 if there is none."""
        return torch.where(where_X, slot_X, -1).cummax(0).values

    own_X, prefix_X = last(keep_X), last(keep_X & (branch_X == PADDING))
    in_sample_X = torch.where(prefix_X >= last(new_sample_X), prefix_X, -1)
    return torch.where(own_X >= last(new_branch_X), own_X, in_sample_X)
