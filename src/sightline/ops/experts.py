"""Experts of a mixture: many small MLPs of one shape, each applied to the tokens that chose it.

`experts_loop` is the definition: one expert after the other. `experts_grouped` computes the same with one grouped matrix product
per layer (`torch.nn.functional.grouped_mm`) over tokens sorted by expert. No token is dropped, whatever its expert's load.

    N tokens    C experts per token    X experts    D width    F hidden width of an expert    O width of the results
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

ALIGNMENT = 16  # bytes: rows of the matrices that the grouped kernel reads must begin at a multiple


@dataclass(frozen=True)
class ExpertWeights:
    """`expert_i(x) = down_i act(up_i x + b_i) + c_i`, or with a gate `down_i (act(gate_i x) * (up_i x + b_i)) + c_i`."""

    up_XFD: Float[Tensor, "X F D"]
    down_XOF: Float[Tensor, "X O F"]
    activation: Callable[[Tensor], Tensor]
    gate_XFD: Float[Tensor, "X F D"] | None = None
    up_bias_XF: Float[Tensor, "X F"] | None = None
    down_bias_XO: Float[Tensor, "X O"] | None = None


def experts_loop(
    tokens_ND: Float[Tensor, "N D"], chosen_NC: Int[Tensor, "N C"], share_NC: Float[Tensor, "N C"], weights: ExpertWeights
) -> Float[Tensor, "N O"]:
    """Computes `y_n = sum_c share_nc expert_{chosen_nc}(x_n)`, one expert after the other.

    Args:
        tokens_ND: inputs.
        chosen_NC: the experts of each token, all different.
        share_NC: their weights in the sum.
        weights: of the experts.
    """
    out_NO = tokens_ND.new_zeros(len(tokens_ND), weights.down_XOF.shape[1])
    for number in range(len(weights.up_XFD)):
        token, choice = (chosen_NC == number).nonzero(as_tuple=True)
        taken_MD = tokens_ND.index_select(0, token)
        hidden_MF = F.linear(taken_MD, weights.up_XFD[number], None if weights.up_bias_XF is None else weights.up_bias_XF[number])
        if weights.gate_XFD is None:
            hidden_MF = weights.activation(hidden_MF)
        else:
            hidden_MF = weights.activation(F.linear(taken_MD, weights.gate_XFD[number])) * hidden_MF
        bias_O = None if weights.down_bias_XO is None else weights.down_bias_XO[number]
        result_MO = F.linear(hidden_MF, weights.down_XOF[number], bias_O) * share_NC[token, choice][:, None]
        out_NO = out_NO.index_add(0, token, result_MO.to(out_NO.dtype))
    return out_NO


def experts_grouped(
    tokens_ND: Float[Tensor, "N D"], chosen_NC: Int[Tensor, "N C"], share_NC: Float[Tensor, "N C"], weights: ExpertWeights
) -> Float[Tensor, "N O"]:
    """Computes `experts_loop` with tokens sorted by expert and one grouped product per layer; arguments as there."""
    num_choices, num_experts = chosen_NC.shape[1], len(weights.up_XFD)
    expert_M, order_M = chosen_NC.flatten().sort(stable=True)
    numbers_X = torch.arange(num_experts, device=expert_M.device)
    ends_X = torch.searchsorted(expert_M, numbers_X, right=True).to(torch.int32)
    dtype = _dtype(tokens_ND)

    def linear(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        out = F.grouped_mm(rows.to(dtype), weight.to(dtype).transpose(1, 2), offs=ends_X)
        return out if bias is None else out + bias.to(dtype).index_select(0, expert_M)

    taken_MD = tokens_ND.index_select(0, order_M // num_choices)
    hidden_MF = linear(taken_MD, weights.up_XFD, weights.up_bias_XF)
    if weights.gate_XFD is None:
        hidden_MF = weights.activation(hidden_MF)
    else:
        hidden_MF = weights.activation(linear(taken_MD, weights.gate_XFD, None)) * hidden_MF
    result_MO = linear(hidden_MF, weights.down_XOF, weights.down_bias_XO)
    result_MO = result_MO * share_NC.flatten().index_select(0, order_M)[:, None]
    place_M = torch.empty_like(order_M).scatter(0, order_M, torch.arange(len(order_M), device=order_M.device))
    return result_MO.index_select(0, place_M).unflatten(0, (-1, num_choices)).sum(1).to(tokens_ND.dtype)


def grouped_by_default(tokens_ND: Tensor) -> bool:
    """Returns whether the grouped kernel is the better choice: on a GPU, where the loop waits for the device once per expert."""
    return tokens_ND.is_cuda


def can_group(tokens_ND: Tensor, weights: ExpertWeights) -> bool:
    """Returns whether the grouped kernel takes these tensors: their dtype, the alignment of their rows, and the device."""
    dtype = _dtype(tokens_ND)
    if len(tokens_ND) == 0 or dtype not in (torch.float32, torch.bfloat16) or tokens_ND.device.type not in ("cpu", "cuda"):
        return False
    if tokens_ND.is_cuda and torch.cuda.get_device_capability(tokens_ND.device) < (8, 0):
        return False
    sizes = (*weights.up_XFD.shape[1:], weights.down_XOF.shape[1])
    return all(size * dtype.itemsize % ALIGNMENT == 0 for size in sizes)


def _dtype(tokens: Tensor) -> torch.dtype:
    """Returns the dtype of products: that of autocast, which does not know the grouped product, else that of the tokens."""
    device = tokens.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tokens.dtype
