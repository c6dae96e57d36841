"""Linear cross-entropy: from hidden states and a head to per-token losses, without a `[tokens, vocabulary]` tensor.

The forward pass goes over chunks of tokens and keeps one number per token (the log of the partition sum); the backward pass
recomputes each chunk's logits. With a large frozen head the forward pass keeps the gradient of each token's loss instead, as
large as the hidden states, and nothing is recomputed. Per-token losses and target logits are returned, because weights such as
CAL's depend on the logits. `cross_entropy_reference` is the definition.

On a GPU the kernels of `ops.cut_cross_entropy` may compute the loss instead: within `cross_entropy_kernel("cut")`, where they can.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sightline.ops import cut_cross_entropy
from sightline.ops.precision import add_product, at_least_fp32
from sightline.types import Head

# Logits of one chunk in fp32: 16 MB on a CPU (stays near the cache), 512 MB on a GPU (large enough to fill it).
CHUNK_ELEMENTS = {"cpu": 2**22, "cuda": 2**27}

KEPT_GRADIENT_WORDS = 16_384  # smaller heads cost little, and their results stay bit-equal to those of earlier versions

Kernel = Literal["chunked", "cut"]
_kernel: ContextVar[Kernel] = ContextVar("cross_entropy_kernel", default="chunked")


@contextmanager
def cross_entropy_kernel(name: Kernel) -> Iterator[None]:
    """Sets what computes `linear_cross_entropy` within the context: `chunked` is this module, `cut` is cut_cross_entropy.

    The losses of `cut` differ from those of `chunked` by at most 1 % and its gradients by at most 2 % (of their norm); measured at
    the start of a run, see `assembly.train.speed`. What `cut` cannot compute as precisely is computed by `chunked`.
    """
    before = _kernel.set(name)
    try:
        yield
    finally:
        _kernel.reset(before)


def cross_entropy_reference(
    states_SD: Float[Tensor, "S D"], head: Head, target_S: Int[Tensor, " S"]
) -> tuple[Float[Tensor, " S"], Float[Tensor, " S"]]:
    """Computes the plain formula: `nll_s = logsumexp_v z_sv - z_s[t_s]`, `z = softcap tanh(scale (h W^T + b) / softcap)`.

    Returns:
        The negative log-likelihood of each target, and the target's own logit, in at least fp32.
    """
    logits_SV = F.linear(states_SD, head.weight_VD, head.bias_V)
    logits_SV = _cap(at_least_fp32(logits_SV) * head.scale, head.softcap)
    logit_S = logits_SV.gather(1, target_S[:, None]).squeeze(1)
    return logits_SV.logsumexp(1) - logit_S, logit_S


def linear_cross_entropy(
    states_SD: Float[Tensor, "S D"], head: Head, target_S: Int[Tensor, " S"], chunk: int | None = None
) -> tuple[Float[Tensor, " S"], Float[Tensor, " S"]]:
    """Computes `cross_entropy_reference` with memory for `chunk` rows of logits at a time; differentiable in both outputs.

    Args:
        states_SD: hidden states, one per supervised token.
        head: the language model's head; its weight gets a gradient only if it requires one.
        target_S: id of the token to predict.
        chunk: tokens per chunk; by default as many as fit into `CHUNK_ELEMENTS` logits.

    Returns:
        The negative log-likelihood of each target, and the target's own logit, in fp32 (float64 for float64 states).
    """
    by_default = chunk is None
    if chunk is None:
        elements = CHUNK_ELEMENTS.get(states_SD.device.type, CHUNK_ELEMENTS["cuda"])
        chunk = max(1, elements // head.weight_VD.shape[0])
    weight, bias = head.weight_VD, head.bias_V
    if torch.is_autocast_enabled(states_SD.device.type):
        dtype = torch.get_autocast_dtype(states_SD.device.type)
        states_SD, weight = states_SD.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    if by_default and _kernel.get() == "cut" and cut_cross_entropy.takes(states_SD, weight, bias):
        nll_S = cut_cross_entropy.negative_log_likelihood(states_SD, weight, target_S, head.softcap, head.scale)
        return nll_S, target_logits(states_SD, replace(head, weight_VD=weight), target_S)
    trains = [value.requires_grad for value in (states_SD, weight) if torch.is_grad_enabled()]
    is_frozen = trains == [True, False] and not (bias is not None and bias.requires_grad) and len(weight) >= KEPT_GRADIENT_WORDS
    function = _FrozenHeadCrossEntropy if is_frozen else _LinearCrossEntropy
    nll_S, logit_S = function.apply(states_SD, weight, bias, target_S, head.softcap, head.scale, chunk)
    return nll_S, logit_S


def target_logits(states_SD: Float[Tensor, "S D"], head: Head, target_S: Int[Tensor, " S"]) -> Float[Tensor, " S"]:
    """Computes only the logit of each target: `S x D` products instead of `S x D x V`."""
    raw_S = (at_least_fp32(states_SD) * at_least_fp32(head.weight_VD[target_S])).sum(1)
    if head.bias_V is not None:
        raw_S = raw_S + at_least_fp32(head.bias_V[target_S])
    return _cap(raw_S * head.scale, head.softcap)


def _cap(logits: Tensor, softcap: float) -> Tensor:
    return torch.tanh(logits / softcap) * softcap if softcap else logits


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states_SD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        target_S: Tensor,
        softcap: float,
        scale: float,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.float64 if states_SD.dtype == torch.float64 else torch.float32
        lse_S = torch.empty(len(states_SD), dtype=wide, device=states_SD.device)
        logit_S = torch.empty_like(lse_S)
        for begin in range(0, len(states_SD), chunk):
            rows = slice(begin, begin + chunk)
            logits = _cap(at_least_fp32(F.linear(states_SD[rows], weight_VD, bias_V)) * scale, softcap)
            torch.logsumexp(logits, 1, out=lse_S[rows])
            logit_S[rows] = logits.gather(1, target_S[rows, None]).squeeze(1)
        ctx.save_for_backward(states_SD, weight_VD, bias_V, target_S, lse_S)
        ctx.softcap, ctx.scale, ctx.chunk = softcap, scale, chunk
        return lse_S - logit_S, logit_S

    @staticmethod
    def backward(ctx: Any, grad_nll_S: Tensor, grad_logit_S: Tensor) -> tuple[Tensor | None, ...]:
        states_SD, weight_VD, bias_V, target_S, lse_S = ctx.saved_tensors
        needs_states, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_states = torch.empty_like(states_SD) if needs_states else None
        grad_weight = torch.zeros_like(weight_VD, dtype=lse_S.dtype) if needs_weight else None
        grad_bias = torch.zeros_like(bias_V, dtype=lse_S.dtype) if needs_bias and bias_V is not None else None
        for begin in range(0, len(states_SD), ctx.chunk):
            rows = slice(begin, begin + ctx.chunk)
            logits = _cap(at_least_fp32(F.linear(states_SD[rows], weight_VD, bias_V)) * ctx.scale, ctx.softcap)
            slope = 1 - (logits / ctx.softcap) ** 2 if ctx.softcap else None
            # d nll / d z = p - onehot and d logit / d z = onehot, written over the logits.
            grad = logits.sub_(lse_S[rows, None]).exp_().mul_(grad_nll_S[rows, None])
            grad.scatter_add_(1, target_S[rows, None], (grad_logit_S[rows] - grad_nll_S[rows])[:, None])
            if slope is not None:
                grad.mul_(slope)
            if ctx.scale != 1.0:
                grad.mul_(ctx.scale)
            narrow = grad.to(states_SD.dtype)
            if grad_states is not None:
                grad_states[rows] = narrow @ weight_VD
            if grad_weight is not None:
                add_product(grad_weight, narrow.T, states_SD[rows])
            if grad_bias is not None:
                grad_bias += grad.sum(0)
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight_VD.dtype)
        if grad_bias is not None and bias_V is not None:
            grad_bias = grad_bias.to(bias_V.dtype)
        return grad_states, grad_weight, grad_bias, None, None, None, None


class _FrozenHeadCrossEntropy(torch.autograd.Function):
    """The same where only the hidden states get a gradient: each row of it is the token's own, times its weight in the loss."""

    @staticmethod
    def forward(
        ctx: Any,
        states_SD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        target_S: Tensor,
        softcap: float,
        scale: float,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.float64 if states_SD.dtype == torch.float64 else torch.float32
        lse_S = torch.empty(len(states_SD), dtype=wide, device=states_SD.device)
        logit_S, grad_SD = torch.empty_like(lse_S), torch.empty_like(states_SD)
        for begin in range(0, len(states_SD), chunk):
            rows = slice(begin, begin + chunk)
            logits = _cap(at_least_fp32(F.linear(states_SD[rows], weight_VD, bias_V)) * scale, softcap)
            torch.logsumexp(logits, 1, out=lse_S[rows])
            logit_S[rows] = logits.gather(1, target_S[rows, None]).squeeze(1)
            slope = 1 - (logits / softcap) ** 2 if softcap else None
            grad = logits.sub_(lse_S[rows, None]).exp_()
            grad.scatter_add_(1, target_S[rows, None], grad.new_full((len(grad), 1), -1.0))
            if slope is not None:
                grad.mul_(slope)
            if scale != 1.0:
                grad.mul_(scale)
            grad_SD[rows] = grad.to(states_SD.dtype) @ weight_VD
        ctx.save_for_backward(grad_SD, weight_VD, target_S, logit_S)
        ctx.softcap, ctx.scale = softcap, scale
        return lse_S - logit_S, logit_S

    @staticmethod
    def backward(ctx: Any, grad_nll_S: Tensor, grad_logit_S: Tensor) -> tuple[Tensor | None, ...]:
        grad_SD, weight_VD, target_S, logit_S = ctx.saved_tensors
        slope_S = (1 - (logit_S / ctx.softcap) ** 2 if ctx.softcap else torch.ones_like(logit_S)) * ctx.scale
        wide_SD = at_least_fp32(grad_SD) * grad_nll_S[:, None]
        wide_SD += at_least_fp32(weight_VD[target_S]) * (grad_logit_S * slope_S)[:, None]
        return wide_SD.to(grad_SD.dtype), None, None, None, None, None, None
