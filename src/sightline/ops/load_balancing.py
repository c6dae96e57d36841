"""Load-balancing loss and z-loss of mixture-of-experts layers."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sightline.ops.precision import at_least_fp32


def load_balancing_loss(
    logits: Sequence[Float[Tensor, "N X"]], num_chosen: int, counted_N: Bool[Tensor, " N"]
) -> Float[Tensor, ""]:
    """Computes `X sum_i f_i p_i` over X experts: `num_chosen` when all are used equally, more when they are not.

    `f_i` is the number of tokens that chose expert i, `p_i` the sum of its router probabilities, both divided by the number of
    tokens; tokens of all layers count together. No gradient flows through the choice. Fedus et al. 2021 (Switch Transformers),
    equations 4 to 6, for `num_chosen` experts a token, as transformers' `load_balancing_loss_func` computes it.

    Args:
        logits: of each layer's router.
        num_chosen: number of experts per token.
        counted_N: marks tokens that are not padding; without any the loss is 0.
    """
    chosen_X = probability_X = torch.zeros((), device=counted_N.device)
    for layer_NX in logits:
        p_NX = torch.softmax(layer_NX, 1, dtype=torch.promote_types(layer_NX.dtype, torch.float32))
        chosen_X = chosen_X + choice_counts(p_NX, num_chosen, counted_N)
        probability_X = probability_X + (p_NX * counted_N[:, None]).sum(0)
    total = (counted_N.sum() * len(logits)).clamp(min=1)
    return logits[0].shape[1] * ((chosen_X / total) * (probability_X / total)).sum()


def choice_counts(scores_NX: Float[Tensor, "N X"], num_chosen: int, counted_N: Bool[Tensor, " N"]) -> Float[Tensor, " X"]:
    """Counts how many tokens choose each expert: those with the `num_chosen` largest scores; without gradient.

    Args:
        scores_NX: of the router: logits or probabilities.
        num_chosen: number of experts per token.
        counted_N: marks tokens that count.
    """
    is_chosen_NX = torch.zeros_like(scores_NX).scatter(1, scores_NX.topk(num_chosen, 1).indices, 1.0)
    return (is_chosen_NX * counted_N[:, None]).sum(0)


def load_values(
    logits: Sequence[Float[Tensor, "N X"]], num_chosen: int, counted_N: Bool[Tensor, " N"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Returns the entropy of the experts' load and the largest load, for the log.

    The load of a layer is each expert's share of the choices. The entropy is divided by that of equal use and averaged over layers:
    1 when all are used equally, 0 when one gets everything. The largest load is that of any expert of any layer.

    Args:
        logits, num_chosen, counted_N: as in `load_balancing_loss`.
    """
    with torch.no_grad():
        load_LX = torch.stack([choice_counts(layer_NX.float(), num_chosen, counted_N) for layer_NX in logits])
        load_LX = load_LX / load_LX.sum(1, keepdim=True).clamp(min=1)
        entropy_L = torch.special.entr(load_LX).sum(1) / math.log(max(load_LX.shape[1], 2))
        return entropy_L.mean(), load_LX.max()


def router_z_loss(logits: Sequence[Float[Tensor, "N X"]], counted_N: Bool[Tensor, " N"]) -> Float[Tensor, ""]:
    """Computes the mean of `logsumexp(logits)^2` over tokens and layers, which keeps router logits small.

    Zoph et al. 2022 (ST-MoE), equation 5.

    Args:
        logits: of each layer's router.
        counted_N: marks tokens that are not padding; without any the loss is 0.
    """
    total = torch.zeros((), device=counted_N.device)
    for layer_NX in logits:
        squares_N = at_least_fp32(layer_NX).logsumexp(1).square()
        total = total + (squares_N * counted_N).sum()
    return total / (counted_N.sum() * len(logits)).clamp(min=1)
