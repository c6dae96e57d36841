"""ALIGN's map from a query to a mixture of words: single-head attention over the vocabulary, without a `[tokens, words]` tensor.

    u = q K^T,   z = gain * (u - mean_V u) / sqrt(var_V u + eps) + bias,   p = softmax(z),   out = p E

The forward pass keeps three numbers per token; the backward pass computes each chunk of tokens again. Chunks span all words, so
that norm and softmax are exact and every product stays a large matrix product. The mean and variance over words have a closed
form through the mean and covariance of K, which saves two passes over each chunk where computing the covariance pays.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# Entries of one chunk's `[tokens, words]` buffer, of which the backward pass holds three: 150 MB in fp32 on a CPU.
CHUNK_ELEMENTS = {"cpu": 256 * 49_152, "cuda": 4096 * 49_152}
MIN_CHUNK = 32


@dataclass(frozen=True)
class OuterNorm:
    """The norm over words.

    Attributes:
        gain: learned scale, one number or one per word.
        bias_V: learned shift per word, or None.
        eps: added to the variance.
    """

    gain: Float[Tensor, "*words"]
    bias_V: Float[Tensor, " V"] | None = None
    eps: float = 1e-5


def vocabulary_attention_reference(
    query_ND: Float[Tensor, "N D"],
    keys_VD: Float[Tensor, "V D"],
    words_VW: Float[Tensor, "V W"],
    norm: OuterNorm | None,
    allowed_V: Bool[Tensor, " V"] | None = None,
) -> Float[Tensor, "N W"]:
    """The plain formula, all `[tokens, words]` at once; softmax in at least fp32.

    Args:
        query_ND: normalised projections of visual features.
        keys_VD: rows of W2.
        words_VW: embeddings that are mixed.
        norm: the norm over words; None for a plain softmax of the products.
        allowed_V: words that may be used; the norm still runs over all of them.
    """
    scores = _wide(query_ND @ keys_VD.T)
    if norm is not None:
        centred = scores - scores.mean(1, keepdim=True)
        scores = centred * torch.rsqrt(centred.square().mean(1, keepdim=True) + norm.eps) * norm.gain
        if norm.bias_V is not None:
            scores = scores + norm.bias_V
    if allowed_V is not None:
        scores = scores.masked_fill(~allowed_V, float("-inf"))
    return torch.softmax(scores, 1).to(words_VW.dtype) @ words_VW


def vocabulary_attention(
    query_ND: Float[Tensor, "N D"],
    keys_VD: Float[Tensor, "V D"],
    words_VW: Float[Tensor, "V W"],
    norm: OuterNorm | None,
    allowed_V: Bool[Tensor, " V"] | None = None,
    chunk: int | None = None,
) -> Float[Tensor, "N W"]:
    """Equals `vocabulary_attention_reference` with memory for `chunk` rows of scores at a time; all inputs may have gradients.

    Args:
        query_ND, keys_VD, words_VW, norm, allowed_V: as in the reference.
        chunk: tokens per chunk; by default as many as `CHUNK_ELEMENTS` allows.
    """
    device = query_ND.device.type
    if chunk is None:
        elements = CHUNK_ELEMENTS.get(device, CHUNK_ELEMENTS["cuda"])
        chunk = max(MIN_CHUNK, elements // keys_VD.shape[0])
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        query_ND, keys_VD, words_VW = query_ND.to(dtype), keys_VD.to(dtype), words_VW.to(dtype)
    gain, bias_V, eps = (norm.gain, norm.bias_V, norm.eps) if norm is not None else (None, None, 0.0)
    return _VocabularyAttention.apply(query_ND, keys_VD, words_VW, gain, bias_V, allowed_V, eps, chunk)


def closed_form_pays(num_tokens: int, width: int, keys_train: bool) -> bool:
    """Whether the covariance of the keys (`V D^2` products) costs less than the passes over the scores that it saves."""
    return num_tokens >= 8 * width or not keys_train


def outer_statistics(
    query_ND: Float[Tensor, "N D"], keys_VD: Float[Tensor, "V D"]
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Mean and variance over words of `q K^T` in closed form: `q . mean(K)` and `q^T Cov(K) q`."""
    keys, query = _wide(keys_VD), _wide(query_ND)
    mean_D = keys.mean(0)
    covariance_DD = (keys.T @ keys) / len(keys) - torch.outer(mean_D, mean_D)
    variance_N = ((query @ covariance_DD) * query).sum(1)
    return query @ mean_D, variance_N.clamp(min=0)


def word_distribution(
    query_ND: Float[Tensor, "N D"],
    keys_VD: Float[Tensor, "V D"],
    norm: OuterNorm | None,
    top: int,
    threshold: float = 1e-6,
    chunk: int = 256,
) -> tuple[Float[Tensor, "N top"], Int[Tensor, "N top"], Float[Tensor, " N"], Int[Tensor, " N"], Float[Tensor, " V"]]:
    """What the distribution over words looks like.

    Returns:
        The `top` largest probabilities of each query and their words, the entropy in nats, the number of words above
        `threshold`, and the mean distribution over all queries.
    """
    values, words, entropies, counts = [], [], [], []
    mean_V = torch.zeros(len(keys_VD), dtype=torch.float32, device=keys_VD.device)
    for begin in range(0, len(query_ND), chunk):
        scores = _wide(query_ND[begin : begin + chunk] @ keys_VD.T)
        if norm is not None:
            centred = scores - scores.mean(1, keepdim=True)
            scores = centred * torch.rsqrt(centred.square().mean(1, keepdim=True) + norm.eps) * norm.gain
            scores = scores if norm.bias_V is None else scores + norm.bias_V
        log_p = torch.log_softmax(scores, 1)
        p = log_p.exp()
        found = p.topk(min(top, p.shape[1]), 1)
        values.append(found.values)
        words.append(found.indices)
        entropies.append(-(p * log_p).sum(1))
        counts.append((p > threshold).sum(1))
        mean_V += p.sum(0).float()
    return torch.cat(values), torch.cat(words), torch.cat(entropies), torch.cat(counts), mean_V / max(len(query_ND), 1)


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


class _VocabularyAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_ND: Tensor,
        keys_VD: Tensor,
        words_VW: Tensor,
        gain: Tensor | None,
        bias_V: Tensor | None,
        allowed_V: Tensor | None,
        eps: float,
        chunk: int,
    ) -> Tensor:
        num = len(query_ND)
        wide = torch.float64 if query_ND.dtype == torch.float64 else torch.float32
        mean_N = torch.zeros(num, dtype=wide, device=query_ND.device)
        rstd_N = torch.ones_like(mean_N)
        lse_N = torch.empty_like(mean_N)
        closed = gain is not None and closed_form_pays(num, keys_VD.shape[1], keys_VD.requires_grad)
        if closed:
            mean_N, variance_N = outer_statistics(query_ND, keys_VD)
            rstd_N = torch.rsqrt(variance_N + eps)
        out = torch.empty(num, words_VW.shape[1], dtype=words_VW.dtype, device=query_ND.device)
        for begin in range(0, num, chunk):
            rows = slice(begin, begin + chunk)
            scores = _wide(query_ND[rows] @ keys_VD.T)
            if gain is not None and not closed:
                variance, mean = torch.var_mean(scores, 1, correction=0)
                mean_N[rows], rstd_N[rows] = mean, torch.rsqrt(variance + eps)
            _normalise(scores, mean_N[rows], rstd_N[rows], gain, bias_V, allowed_V)
            top = scores.amax(1, keepdim=True)
            scores.sub_(top).exp_()
            total = scores.sum(1, keepdim=True)
            lse_N[rows] = (top + total.log()).squeeze(1)
            out[rows] = (scores.to(words_VW.dtype) @ words_VW).div_(total.to(words_VW.dtype))
        ctx.save_for_backward(query_ND, keys_VD, words_VW, gain, bias_V, allowed_V, mean_N, rstd_N, lse_N, out)
        ctx.chunk = chunk
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        query_ND, keys_VD, words_VW, gain, bias_V, allowed_V, mean_N, rstd_N, lse_N, out = ctx.saved_tensors
        grad_out = grad_outputs[0]
        needs_query, needs_keys, needs_words, needs_gain, needs_bias = ctx.needs_input_grad[:5]
        grads = _Gradients(
            torch.empty_like(query_ND) if needs_query else None,
            torch.zeros_like(keys_VD, dtype=lse_N.dtype) if needs_keys else None,
            torch.zeros_like(words_VW, dtype=lse_N.dtype) if needs_words else None,
            torch.zeros_like(gain, dtype=lse_N.dtype) if needs_gain and gain is not None else None,
            torch.zeros_like(bias_V, dtype=lse_N.dtype) if needs_bias and bias_V is not None else None,
        )
        for begin in range(0, len(query_ND), ctx.chunk):
            rows = slice(begin, begin + ctx.chunk)
            normal = _wide(query_ND[rows] @ keys_VD.T)
            if gain is not None:
                normal.sub_(mean_N[rows, None]).mul_(rstd_N[rows, None])
            p = normal.clone()
            _affine(p, gain, bias_V, allowed_V)
            p.sub_(lse_N[rows, None]).exp_()
            if grads.words is not None:
                _add_product(grads.words, p.to(words_VW.dtype).T, grad_out[rows])
            # d z = p (d p - sum_V p d p), and the sum is `grad_out . out`
            grad = _wide(grad_out[rows] @ words_VW.T)
            grad.sub_(_wide(grad_out[rows] * out[rows]).sum(1, keepdim=True)).mul_(p)
            del p
            if gain is not None:
                _backward_of_norm(grad, normal, rstd_N[rows], gain, grads)
            narrow = grad.to(query_ND.dtype)
            if grads.query is not None:
                torch.mm(narrow, keys_VD, out=grads.query[rows])
            if grads.keys is not None:
                _add_product(grads.keys, narrow.T, query_ND[rows])
        return (
            grads.query,
            None if grads.keys is None else grads.keys.to(keys_VD.dtype),
            None if grads.words is None else grads.words.to(words_VW.dtype),
            None if grads.gain is None else grads.gain.to(gain.dtype),
            None if grads.bias is None else grads.bias.to(bias_V.dtype),
            None,
            None,
            None,
        )


@dataclass
class _Gradients:
    query: Tensor | None
    keys: Tensor | None
    words: Tensor | None
    gain: Tensor | None
    bias: Tensor | None


def _normalise(
    scores: Tensor, mean: Tensor, rstd: Tensor, gain: Tensor | None, bias_V: Tensor | None, allowed_V: Tensor | None
) -> None:
    """Products become scores, in place."""
    if gain is not None and gain.ndim == 0:  # one pass instead of two
        scores.sub_(mean[:, None]).mul_((rstd * gain)[:, None])
    elif gain is not None:
        scores.sub_(mean[:, None]).mul_(rstd[:, None]).mul_(gain)
    if bias_V is not None:
        scores.add_(bias_V)
    if allowed_V is not None:
        scores.masked_fill_(~allowed_V, float("-inf"))


def _affine(normal: Tensor, gain: Tensor | None, bias_V: Tensor | None, allowed_V: Tensor | None) -> None:
    if gain is not None:
        normal.mul_(gain)
    if bias_V is not None:
        normal.add_(bias_V)
    if allowed_V is not None:
        normal.masked_fill_(~allowed_V, float("-inf"))


def _backward_of_norm(grad: Tensor, normal: Tensor, rstd: Tensor, gain: Tensor, grads: _Gradients) -> None:
    """Gradient of the scores becomes that of the products, in place; gain and bias get theirs. `normal` is used up."""
    if grads.bias is not None:
        grads.bias += grad.sum(0)
    if gain.ndim == 0:
        along = torch.linalg.vecdot(grad, normal)  # sum over words of grad * normal, for gain and norm alike
        if grads.gain is not None:
            grads.gain += along.sum()
        grad.mul_(gain)
        along = along * gain
    else:
        if grads.gain is not None:
            grads.gain += (grad * normal).sum(0)
        grad.mul_(gain)
        along = torch.linalg.vecdot(grad, normal)
    words = grad.shape[1]
    grad.sub_(grad.mean(1, keepdim=True)).sub_(normal.mul_((along / words)[:, None])).mul_(rstd[:, None])


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
