"""Smooths per-token weights, and computes the weights of contrastive alignment as in the authors' code."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def pool_within_spans(values_S: Float[Tensor, " S"], span_S: Int[Tensor, " S"], window: int) -> Float[Tensor, " S"]:
    """Averages over `window` neighbours of the same span; at the ends of a span over fewer.

    Args:
        values_S: one value per supervised token.
        span_S: number of the contiguous run that each token belongs to; the tokens of a run are adjacent.
        window: odd width; 1 changes nothing.
    """
    if window == 1 or not len(values_S):
        return values_S
    total, count = values_S.clone(), torch.ones_like(values_S)
    for shift in range(1, window // 2 + 1):
        same = (span_S[shift:] == span_S[:-shift]).to(values_S.dtype)
        total[shift:] += values_S[:-shift] * same
        count[shift:] += same
        total[:-shift] += values_S[shift:] * same
        count[:-shift] += same
    return total / count


def published_weights(gain_BT: Float[Tensor, "B T"], low: float, high: float, window: int) -> Float[Tensor, "B T"]:
    """Computes weights as the authors' code of CAL does: clamp, then average over the flattened micro-batch.

    The average runs over prompt, padding and image positions and across rows, as `AvgPool1d(window, stride=1,
    count_include_pad=False)` on the flattened tensor does.

    Args:
        gain_BT: gain at every predicting position of the padded rows (one fewer than tokens).
        low, high: range of the clamp.
        window: odd width.
    """
    flat = gain_BT.clamp(low, high).flatten()[None, None]
    if window == 1:
        return flat.view_as(gain_BT)
    return F.avg_pool1d(flat, window, stride=1, padding=window // 2, count_include_pad=False).view_as(gain_BT)


def published_loss(
    nll_BT: Float[Tensor, "B T"], weight_BT: Float[Tensor, "B T"], labelled_BT: Bool[Tensor, "B T"]
) -> Float[Tensor, ""]:
    """Computes `sum(nll w) / (sum(w) + 1e-6)` over the labelled positions of the micro-batch, as in the authors' code."""
    keep = labelled_BT.to(nll_BT.dtype)
    return (nll_BT * weight_BT * keep).sum() / ((weight_BT * keep).sum() + 1e-6)
