"""Linear cross-entropy by the kernels of cut_cross_entropy, which never write logits to memory.

Source: Wijmans et al. 2024, arXiv 2411.09009. The package is optional (`pip install sightline[gpu]`) and needs CUDA and Triton. It
computes the loss of each token, so tokens may have weights, and a soft cap. It has no bias, and it adds up the gradient of the
head's weight in bf16; `takes` returns False for both, and the caller then uses its own definition.
"""

import importlib.util

import torch
from jaxtyping import Float, Int
from torch import Tensor


def is_installed() -> bool:
    """Returns whether the package and Triton are there."""
    return all(importlib.util.find_spec(name) is not None for name in ("cut_cross_entropy", "triton"))


def takes(states_SD: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> bool:
    """Returns whether the kernels compute this as precisely as our definition does.

    They do for states in bf16 and a head without bias that gets no gradient. Their sums have no fixed order, so they are not used
    where only deterministic kernels are allowed.
    """
    head_trains = weight_VD.requires_grad and torch.is_grad_enabled()
    exact = torch.are_deterministic_algorithms_enabled()
    return len(states_SD) > 0 and states_SD.dtype == torch.bfloat16 and bias_V is None and not head_trains and not exact


def negative_log_likelihood(
    states_SD: Float[Tensor, "S D"], weight_VD: Float[Tensor, "V D"], target_S: Int[Tensor, " S"], softcap: float, scale: float
) -> Float[Tensor, " S"]:
    """Returns the negative log-likelihood of each target in fp32, differentiable in the states.

    Args:
        states_SD: hidden states.
        weight_VD: the head's weight.
        target_S: id of the token to predict.
        softcap: of the logits; 0 for none.
        scale: factor on the logits before the cap; it is applied to the states.
    """
    from cut_cross_entropy.cce import CCEParams, linear_cross_entropy_apply  # pyrefly: ignore

    # The package's own entry point looks for ignored targets, for which the host waits; ours has none.
    params = CCEParams(
        targets=target_S.contiguous(),
        valids=None,
        softcap=softcap or None,
        reduction="none",
        filter_eps=None,  # leave no gradient out, however small
        shift=False,
        batch_shape=target_S.shape,
    )
    return linear_cross_entropy_apply((states_SD if scale == 1.0 else states_SD * scale).contiguous(), weight_VD, params)
