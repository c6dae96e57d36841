"""ALIGN's mixture of input embeddings: single-head attention over the vocabulary, without a `[tokens, vocabulary]` tensor.

    u = q K^T,   z = gain * (u - mean_V u) / sqrt(var_V u + eps) + bias,   p = softmax(z),   out = p E

The forward pass keeps three numbers per token; the backward pass recomputes each chunk of tokens. Chunks span the full vocabulary,
so that norm and softmax are exact and every product stays a large matrix product. Elementwise steps between two products run over
a few rows at a time on a CPU, so that the rows stay in its cache, and as one compiled kernel per chunk on a GPU.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from sightline.ops.precision import add_product, at_least_fp32

# Scores of one chunk, of which the backward pass holds two (three if the embeddings train): 100 MB in fp32 on a CPU.
CHUNK_ELEMENTS = {"cpu": 256 * 49_152, "cuda": 512 * 49_152}
MIN_CHUNK = 256  # each chunk reads and writes the gradient of all keys, which does not pay for fewer tokens
# Scores per elementwise step on a CPU: 1 MB in fp32, so that a dozen passes read and write the cache.
BLOCK_ELEMENTS = 2**18
COVARIANCE_ROWS = 4096  # keys that are centred at a time: 9 MB at a width of 576


@dataclass(frozen=True)
class OuterNorm:
    """The norm over the vocabulary.

    Attributes:
        gain: learned scale, one number or one per vocabulary entry.
        bias_V: learned shift per vocabulary entry, or None.
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
    """Computes the plain formula with the full `[tokens, vocabulary]` tensor; norm and softmax in at least fp32.

    Args:
        query_ND: normalised projections of visual features.
        keys_VD: rows of W2.
        words_VW: embeddings that are mixed.
        norm: the norm over the vocabulary; None for a plain softmax of the products.
        allowed_V: vocabulary entries that may be used; the norm still runs over all of them.
    """
    scores = at_least_fp32(query_ND @ keys_VD.T)
    if norm is not None:
        scores = F.layer_norm(scores, (len(keys_VD),), eps=norm.eps) * norm.gain
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
    """Computes `vocabulary_attention_reference` with memory for `chunk` rows of scores at a time; all inputs are differentiable.

    Args:
        query_ND, keys_VD, words_VW, norm, allowed_V: as in the reference.
        chunk: tokens per chunk; by default as many as `CHUNK_ELEMENTS` allows.
    """
    device = query_ND.device.type
    if device == "meta":  # only shapes matter
        return vocabulary_attention_reference(query_ND, keys_VD, words_VW, norm, allowed_V)
    if chunk is None:
        elements = CHUNK_ELEMENTS.get(device, CHUNK_ELEMENTS["cuda"])
        chunk = max(MIN_CHUNK, elements // keys_VD.shape[0])
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        query_ND, keys_VD, words_VW = query_ND.to(dtype), keys_VD.to(dtype), words_VW.to(dtype)
    gain, bias_V, eps = (norm.gain, norm.bias_V, norm.eps) if norm is not None else (None, None, 0.0)
    # Only the large products use the low precision of the inputs; autocast would also lower the statistics.
    with torch.autocast(device, enabled=False):
        return _VocabularyAttention.apply(query_ND, keys_VD, words_VW, gain, bias_V, allowed_V, eps, chunk)


def closed_form_pays(num_tokens: int, width: int) -> bool:
    """Returns whether the covariance of the keys (`V D^2` products) costs less than the passes over the scores that it saves."""
    return num_tokens >= 8 * width


def outer_statistics(
    query_ND: Float[Tensor, "N D"], keys_VD: Float[Tensor, "V D"]
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Computes mean and variance over the vocabulary of `q K^T` in closed form: `q . mean(K)` and `q^T Cov(K) q`.

    The keys are centred block by block before they are multiplied: `mean(k k^T) - mean(k) mean(k)^T` cancels when all keys share a
    mean that is far larger than their spread.
    """
    query = at_least_fp32(query_ND)
    mean_D = keys_VD.mean(0, dtype=query.dtype)
    covariance_DD = query.new_zeros(len(mean_D), len(mean_D))
    for rows in _slices(len(keys_VD), COVARIANCE_ROWS):
        centred = at_least_fp32(keys_VD[rows]) - mean_D
        covariance_DD.addmm_(centred.T, centred)
    variance_N = ((query @ covariance_DD) * query).sum(1) / len(keys_VD)
    return query @ mean_D, variance_N


@dataclass(frozen=True)
class WordDistribution:
    """Summary of the mixture weights of some queries.

    Attributes:
        probability_NT: the largest probabilities of each query.
        word_NT: their vocabulary entries.
        entropy_N: in nats.
        above_N: number of vocabulary entries above the threshold.
        mean_V: mean distribution over all queries.
    """

    probability_NT: Float[Tensor, "N top"]
    word_NT: Int[Tensor, "N top"]
    entropy_N: Float[Tensor, " N"]
    above_N: Int[Tensor, " N"]
    mean_V: Float[Tensor, " V"]


@torch.no_grad()
def word_distribution(
    query_ND: Float[Tensor, "N D"],
    keys_VD: Float[Tensor, "V D"],
    norm: OuterNorm | None,
    allowed_V: Bool[Tensor, " V"] | None = None,
    top: int = 5,
    threshold: float = 1e-6,
) -> WordDistribution:
    """Computes the mixture weights that `vocabulary_attention` uses, chunk by chunk.

    Args:
        query_ND, keys_VD, norm, allowed_V: as in `vocabulary_attention`.
        top: number of vocabulary entries returned per query.
        threshold: probability above which a vocabulary entry counts as used.
    """
    found: list[tuple[Tensor, ...]] = []
    mean_V = torch.zeros(len(keys_VD), dtype=torch.float64, device=keys_VD.device)
    for rows in _slices(len(query_ND), max(1, CHUNK_ELEMENTS["cpu"] // max(len(keys_VD), 1))):
        scores = at_least_fp32(query_ND[rows] @ keys_VD.T)
        if norm is not None:
            scores = F.layer_norm(scores, (len(keys_VD),), eps=norm.eps) * norm.gain
            scores = scores if norm.bias_V is None else scores + norm.bias_V
        if allowed_V is not None:
            scores = scores.masked_fill(~allowed_V, float("-inf"))
        log_p = torch.log_softmax(scores, 1)
        p = log_p.exp()
        largest = p.topk(min(top, p.shape[1]), 1)
        entropy = -torch.where(p > 0, p * log_p, torch.zeros_like(p)).sum(1)  # an entry that is not allowed has log 0
        found.append((largest.values, largest.indices, entropy, (p > threshold).sum(1)))
        mean_V += p.sum(0)
    if not found:
        empty = mean_V.new_zeros(0, min(top, len(keys_VD)))
        return WordDistribution(empty, empty.long(), mean_V.new_zeros(0), empty.new_zeros(0).long(), mean_V)
    probability, word, entropy, above = (torch.cat(parts) for parts in zip(*found, strict=True))
    return WordDistribution(probability, word, entropy, above, mean_V / len(query_ND))


def _slices(num: int, size: int) -> Iterator[slice]:
    return (slice(begin, min(begin + size, num)) for begin in range(0, num, size))


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
        mean_N = torch.zeros(num, dtype=at_least_fp32(query_ND[:0]).dtype, device=query_ND.device)
        rstd_N, lse_N = torch.ones_like(mean_N), torch.empty_like(mean_N)
        closed = gain is not None and closed_form_pays(num, keys_VD.shape[1])
        if closed:
            mean_N, variance_N = outer_statistics(query_ND, keys_VD)
            rstd_N = torch.rsqrt(variance_N + eps)
        elif gain is not None:
            mean_N = at_least_fp32(query_ND) @ keys_VD.mean(0, dtype=mean_N.dtype)
        out = torch.empty(num, words_VW.shape[1], dtype=words_VW.dtype, device=query_ND.device)
        buffer = query_ND.new_empty(min(chunk, num), len(keys_VD))
        total_N = torch.empty_like(lse_N)
        for rows in _slices(num, chunk):
            scores = torch.mm(query_ND[rows], keys_VD.T, out=buffer[: rows.stop - rows.start])
            rstd = rstd_N[rows] if closed else None
            shape = _Shape(gain, bias_V, allowed_V, eps)
            weights, rstd_N[rows], lse_N[rows], total_N[rows] = _weights(scores, mean_N[rows], rstd, shape, words_VW.dtype)
            torch.mm(weights, words_VW, out=out[rows])
        out.div_(total_N[:, None])
        ctx.save_for_backward(query_ND, keys_VD, words_VW, gain, bias_V, allowed_V, mean_N, rstd_N, lse_N, out)
        ctx.chunk = chunk
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(grad_outputs[0].device.type, enabled=False):
            return _VocabularyAttention._gradients(ctx, *grad_outputs)

    @staticmethod
    def _gradients(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        query_ND, keys_VD, words_VW, gain, bias_V, allowed_V, mean_N, rstd_N, lse_N, out = ctx.saved_tensors
        grad_out = grad_outputs[0].contiguous()
        wide, num, chunk = lse_N.dtype, len(query_ND), ctx.chunk
        needed = zip((query_ND, keys_VD, words_VW, gain, bias_V), ctx.needs_input_grad, strict=False)
        grads = _Gradients(*(torch.zeros_like(value, dtype=wide) if needs else None for value, needs in needed))
        # d z = p (d p - sum_V p d p), and the sum is `grad_out . out`
        inner_N = (at_least_fp32(grad_out) * at_least_fp32(out)).sum(1)
        # The norm's factor is applied to the smaller side of each product.
        scale_N = rstd_N if gain is None or gain.ndim else rstd_N * gain
        scaled_ND = (query_ND * scale_N[:, None]).to(query_ND.dtype)
        buffers = [query_ND.new_empty(min(chunk, num), len(keys_VD)) for _ in range(2)]
        p_buffer = None if grads.words is None else words_VW.new_empty(min(chunk, num), len(keys_VD))
        shape = _Shape(gain, bias_V, allowed_V)
        wanted = _Wanted(grads.words is not None, grads.gain is not None, grads.bias is not None)
        for rows in _slices(num, chunk):
            count = rows.stop - rows.start
            scores = torch.mm(query_ND[rows], keys_VD.T, out=buffers[0][:count])
            slopes = torch.mm(grad_out[rows].to(query_ND.dtype), words_VW.T.to(query_ND.dtype), out=buffers[1][:count])
            statistics = (mean_N[rows], rstd_N[rows], lse_N[rows], inner_N[rows])
            into = None if p_buffer is None else p_buffer[:count]
            slopes, p, gain_sum, bias_sum = _slopes(scores, slopes, statistics, shape, wanted, into)
            if grads.words is not None and p is not None:
                add_product(grads.words, p.T, grad_out[rows].to(p.dtype))
            if grads.gain is not None and gain_sum is not None:
                grads.gain += gain_sum
            if grads.bias is not None and bias_sum is not None:
                grads.bias += bias_sum
            if grads.query is not None:
                grads.query[rows] = slopes @ keys_VD
            if grads.keys is not None:
                add_product(grads.keys, slopes.T, scaled_ND[rows])
        if grads.query is not None:
            grads.query.mul_(scale_N[:, None])
        return (*grads.like(query_ND, keys_VD, words_VW, gain, bias_V), None, None, None)


@dataclass
class _Gradients:
    query: Tensor | None
    keys: Tensor | None
    words: Tensor | None
    gain: Tensor | None
    bias: Tensor | None

    def like(self, *inputs: Tensor | None) -> list[Tensor | None]:
        """Casts each gradient to the dtype of its input."""
        own = (self.query, self.keys, self.words, self.gain, self.bias)
        return [None if a is None or b is None else a.to(b.dtype) for a, b in zip(own, inputs, strict=True)]


# Elementwise steps between the products -----------------------------------------------------------------------------------------
#
# Each step is written once, in place. On a CPU it runs over a few rows at a time; on a GPU a chunk is one compiled kernel, for
# which the tensors that it changes are copied (to the kernel's registers, in effect).


class _Shape(NamedTuple):
    """How scores are computed from products."""

    gain: Tensor | None
    bias_V: Tensor | None
    allowed_V: Tensor | None
    eps: float = 0.0


class _Wanted(NamedTuple):
    """Which additional gradients the backward pass needs."""

    p: bool
    gain: bool
    bias: bool


def _weights(
    scores: Tensor, mean: Tensor, rstd: Tensor | None, shape: _Shape, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Applies `_to_weights` to a chunk and casts to `dtype`; overwrites the products."""
    if scores.is_cuda:
        values, *rest = _compiled(_to_weights, 1)(at_least_fp32(scores), mean, rstd, shape)
        return (values.to(dtype), *rest)
    weights = scores if dtype == scores.dtype else torch.empty_like(scores, dtype=dtype)
    found = [torch.empty_like(mean) for _ in range(3)]
    for block in _blocks(scores):
        values, *rest = _to_weights(at_least_fp32(scores[block]), mean[block], None if rstd is None else rstd[block], shape)
        if values.dtype != weights.dtype or weights is not scores:
            weights[block] = values
        for whole, part in zip(found, rest, strict=True):
            whole[block] = part
    return weights, found[0], found[1], found[2]


def _slopes(
    scores: Tensor,
    slopes: Tensor,
    statistics: tuple[Tensor, Tensor, Tensor, Tensor],
    shape: _Shape,
    wanted: _Wanted,
    p_whole: Tensor | None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Applies `_to_gradient` to a chunk, in the dtype of `slopes`, with `p` in `p_whole`; overwrites products and slopes."""
    if scores.is_cuda:
        values, p, *sums = _compiled(_to_gradient, 2)(at_least_fp32(scores), at_least_fp32(slopes), statistics, shape, wanted)
        return (values.to(slopes.dtype), p if p_whole is None else p_whole.copy_(p), *sums)
    totals: list[Tensor | None] = [None, None]
    for block in _blocks(scores):
        own = (statistics[0][block], statistics[1][block], statistics[2][block], statistics[3][block])
        values, p, *sums = _to_gradient(at_least_fp32(scores[block]), at_least_fp32(slopes[block]), own, shape, wanted)
        if values.dtype != slopes.dtype:
            slopes[block] = values
        if p_whole is not None and p is not None:
            p_whole[block] = p
        totals = [part if total is None or part is None else total.add_(part) for total, part in zip(totals, sums, strict=True)]
    return slopes, p_whole, totals[0], totals[1]


def _blocks(scores: Tensor) -> Iterator[slice]:
    return _slices(len(scores), max(1, BLOCK_ELEMENTS // max(scores.shape[1], 1)))


@cache
def _compiled(step: Callable[..., Any], changed: int) -> Callable[..., Any]:
    """Compiles a step whose first `changed` arguments it changes in place. Not tested on a GPU."""

    def pure(*arguments: Any) -> Any:
        return step(*(value.clone() for value in arguments[:changed]), *arguments[changed:])

    return torch.compile(pure, dynamic=True)


def _to_weights(scores: Tensor, mean: Tensor, rstd: Tensor | None, shape: _Shape) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Replaces products by `exp(z - max z)` in place; returns also inverse deviation, log of the partition sum, and divisor."""
    gain, bias_V, allowed_V, eps = shape
    if gain is not None:
        scores.sub_(mean[:, None])
        if rstd is None:
            rstd = torch.rsqrt(scores.square().mean(1) + eps)
        if gain.ndim == 0:
            scores.mul_((rstd * gain)[:, None])
        else:
            scores.mul_(rstd[:, None]).mul_(gain)
    if bias_V is not None:
        scores.add_(bias_V)
    if allowed_V is not None:
        scores.masked_fill_(~allowed_V, float("-inf"))
    top = scores.amax(1)
    total = scores.sub_(top[:, None]).exp_().sum(1)
    return scores, torch.ones_like(mean) if rstd is None else rstd, top + total.log(), total


def _to_gradient(
    scores: Tensor,
    slope: Tensor,
    statistics: tuple[Tensor, Tensor, Tensor, Tensor],
    shape: _Shape,
    wanted: _Wanted,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Replaces the gradient of the probabilities (`slope`) by that of the products, without the norm's factor, in place.

    Returns:
        The slopes, and if requested the probabilities and the gradients of gain and bias.
    """
    mean, rstd, lse, inner = statistics
    gain, bias_V, allowed_V, _ = shape
    normal = scores if gain is None else scores.sub_(mean[:, None]).mul_(rstd[:, None])
    p = normal.clone() if gain is None else normal * gain
    if bias_V is not None:
        p.add_(bias_V)
    if allowed_V is not None:
        p.masked_fill_(~allowed_V, float("-inf"))
    p.sub_(lse[:, None]).exp_()
    slope.sub_(inner[:, None]).mul_(p)
    kept = p if wanted.p else None
    if gain is None:
        return slope, kept, None, None
    bias_sum = slope.sum(0) if wanted.bias else None
    if gain.ndim == 0:  # its slopes sum to 0 over the vocabulary, so the norm's mean needs no correction
        along = (slope * normal).sum(1)
        gain_sum = along.sum() if wanted.gain else None
    else:
        gain_sum = (slope * normal).sum(0) if wanted.gain else None
        slope.mul_(gain)
        slope.sub_(slope.mean(1, keepdim=True))
        along = (slope * normal).sum(1)
    slope.sub_(normal.mul_((along / normal.shape[1])[:, None]))
    return slope, kept, gain_sum, bias_sum
