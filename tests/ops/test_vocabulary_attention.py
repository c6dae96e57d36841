"""Attention over the vocabulary against a formula of its own in float64, and its promise of memory."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from benchmarks.measure import peak_memory
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sightline.ops import vocabulary_attention as op
from sightline.ops.vocabulary_attention import (
    OuterNorm,
    closed_form_pays,
    outer_statistics,
    vocabulary_attention,
    vocabulary_attention_reference,
    word_distribution,
)

NORMS = ["none", "unit", "scalar", "per_word", "per_word_no_shift"]
# The norm's variance comes from a pass over the scores, or with 8 tokens for each of few dimensions from the keys' covariance.
SIZES = {"by pass": (7, 5, 11, 4), "closed form": (26, 3, 10, 4)}


class Inputs:
    """Queries, keys, words and a norm whose scores spread over several units."""

    def __init__(
        self, norm: str, tokens: int, width: int, words: int, width_out: int, dtype: torch.dtype = torch.float64, live: str = "qkwn"
    ) -> None:
        torch.manual_seed(9)
        self.query = torch.randn(tokens, width, dtype=dtype).requires_grad_("q" in live)
        # An offset that all keys share: the norm takes it out, a mean that is forgotten does not.
        self.keys = (torch.randn(words, width, dtype=dtype) + 0.7).requires_grad_("k" in live)
        self.words = torch.randn(words, width_out, dtype=dtype).requires_grad_("w" in live)
        learns = "n" in live
        self.eps = 0.03  # large, so that it is seen where it stands
        self.gain: Tensor | None = None
        self.bias: Tensor | None = None
        if norm == "unit":
            self.gain = torch.ones((), dtype=dtype)
        elif norm == "scalar":
            self.gain = torch.tensor(2.3, dtype=dtype).requires_grad_(learns)
        elif norm.startswith("per_word"):
            self.gain = (1.5 + torch.randn(words, dtype=dtype)).requires_grad_(learns)
            self.bias = torch.randn(words, dtype=dtype).requires_grad_(learns) if norm == "per_word" else None

    @property
    def norm(self) -> OuterNorm | None:
        return None if self.gain is None else OuterNorm(self.gain, self.bias, self.eps)

    @property
    def trained(self) -> list[Tensor]:
        every = (self.query, self.keys, self.words, self.gain, self.bias)
        return [value for value in every if value is not None and value.requires_grad]

    def fused(self, chunk: int | None = None, allowed: Tensor | None = None) -> Tensor:
        return vocabulary_attention(self.query, self.keys, self.words, self.norm, allowed, chunk)

    def plain(self, allowed: Tensor | None = None) -> Tensor:
        return vocabulary_attention_reference(self.query, self.keys, self.words, self.norm, allowed)

    def formula(self, allowed: Tensor | None = None) -> Tensor:
        """Written out with sums and exponentials alone."""
        return torch.einsum("nv,vw->nw", self.probabilities(allowed), self.words)

    def probabilities(self, allowed: Tensor | None = None) -> Tensor:
        scores = torch.einsum("nd,vd->nv", self.query, self.keys)
        if self.gain is not None:
            mean = scores.sum(1, keepdim=True) / len(self.keys)
            variance = ((scores - mean) ** 2).sum(1, keepdim=True) / len(self.keys)
            scores = self.gain * (scores - mean) / (variance + self.eps) ** 0.5
            scores = scores if self.bias is None else scores + self.bias
        mass = scores.exp() if allowed is None else scores.exp() * allowed
        return mass / mass.sum(1, keepdim=True)


def gradients(out: Tensor, inputs: Inputs) -> tuple[Tensor, ...]:
    """Of a sum that weighs every output differently."""
    weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
    return torch.autograd.grad((out * weights).sum(), inputs.trained)


def assert_close(ours: Iterable[Tensor], theirs: Iterable[Tensor], rtol: float = 1e-10, atol: float = 1e-11) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)


# Values -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("live", ["qkwn", "qkn", "qwn", "qn", "kwn", "kn", "w", "q", "k", "n"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("size", SIZES)
def test_values_and_all_gradients_equal_the_formula_whatever_is_frozen(size: str, norm: str, live: str) -> None:
    tokens, width, *_ = SIZES[size]
    assert closed_form_pays(tokens, width) == (size == "closed form")
    inputs = Inputs(norm, *SIZES[size], live=live)
    if not inputs.trained:
        assert not inputs.fused(3).requires_grad  # a norm that has nothing to learn
        return
    expected = inputs.formula()
    wanted = gradients(expected, inputs)
    for out in (inputs.plain(), inputs.fused(chunk=3)):
        assert_close([out], [expected])
        assert_close(gradients(out, inputs), wanted)


@pytest.mark.parametrize("chunk", [None, 1, 4, 7, 25, 26, 1000])
@pytest.mark.parametrize("norm", ["none", "scalar", "per_word"])
@pytest.mark.parametrize("size", SIZES)
def test_chunks_that_do_not_divide_the_tokens_change_nothing(size: str, norm: str, chunk: int | None) -> None:
    inputs = Inputs(norm, *SIZES[size])
    expected = inputs.formula()
    out = inputs.fused(chunk)
    assert_close([out], [expected])
    assert_close(gradients(out, inputs), gradients(expected, inputs))


@pytest.mark.parametrize("norm", NORMS)
def test_blocks_of_rows_that_do_not_divide_a_chunk_change_nothing(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = Inputs(norm, 23, 4, 11, 3)
    monkeypatch.setattr(op, "BLOCK_ELEMENTS", 4 * 11)  # 4 rows of a chunk of 10
    out, expected = inputs.fused(chunk=10), inputs.formula()
    assert_close([out], [expected])
    assert_close(gradients(out, inputs), gradients(expected, inputs))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("norm", ["none", "scalar", "per_word"])
def test_gradients_equal_finite_differences(norm: str, size: str) -> None:
    tokens, width, words, _ = {"by pass": (4, 3, 5, 2), "closed form": (9, 1, 4, 2)}[size]
    assert closed_form_pays(tokens, width) == (size == "closed form")
    inputs = Inputs(norm, tokens, width, words, 2)

    def function(query: Tensor, keys: Tensor, mixed: Tensor, *rest: Tensor) -> Tensor:
        norm = OuterNorm(rest[0], rest[1] if len(rest) > 1 else None, inputs.eps) if rest else None
        return vocabulary_attention(query, keys, mixed, norm, chunk=5)

    assert torch.autograd.gradcheck(function, inputs.trained)


@settings(max_examples=30, deadline=None)
@given(
    norm=st.sampled_from(NORMS),
    tokens=st.integers(0, 40),
    width=st.integers(1, 5),
    words=st.integers(1, 9),
    width_out=st.integers(1, 4),
    chunk=st.integers(1, 45),
)
def test_any_shape_equals_the_reference(norm: str, tokens: int, width: int, words: int, width_out: int, chunk: int) -> None:
    inputs = Inputs(norm, tokens, width, words, width_out)
    out, expected = inputs.fused(chunk), inputs.plain()
    assert_close([out], [expected])
    assert_close(gradients(out, inputs), gradients(expected, inputs), rtol=1e-8, atol=1e-9)


def test_no_token_gives_no_row_and_gradients_of_zero() -> None:
    inputs = Inputs("per_word", 0, 4, 6, 3)
    out = inputs.fused()
    assert out.shape == (0, 3)
    assert all(not bool(value.any()) for value in gradients(out, inputs))


def test_a_query_of_zeros_gives_the_mean_word() -> None:
    words = torch.randn(13, 4)
    out = vocabulary_attention(torch.zeros(2, 3), torch.randn(13, 3), words, OuterNorm(torch.tensor(2.7)))
    torch.testing.assert_close(out, words.mean(0).expand(2, -1))


def test_two_words_mixed_by_hand() -> None:
    # Scores 3 and 1: mean 2, deviation 1, so z = gain * (1, -1) and p = sigmoid(2 gain).
    query, keys = torch.tensor([[1.0]], dtype=torch.float64), torch.tensor([[3.0], [1.0]], dtype=torch.float64)
    words = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    out = vocabulary_attention(query, keys, words, OuterNorm(torch.tensor(0.5, dtype=torch.float64), eps=0.0))
    p = 1 / (1 + math.exp(-1.0))
    torch.testing.assert_close(out, torch.tensor([[p, 1 - p]], dtype=torch.float64), rtol=1e-14, atol=0)
    out = vocabulary_attention(query, keys, words, None)
    p = 1 / (1 + math.exp(-2.0))
    torch.testing.assert_close(out, torch.tensor([[p, 1 - p]], dtype=torch.float64), rtol=1e-14, atol=0)


def test_the_closed_form_is_the_mean_and_variance_of_the_scores() -> None:
    inputs = Inputs("none", 6, 5, 40, 2)
    scores = inputs.query @ inputs.keys.T
    mean, variance = outer_statistics(inputs.query, inputs.keys)
    torch.testing.assert_close(mean, scores.mean(1), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(variance, scores.var(1, correction=0), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("shift", [0.0, 1.0, 30.0, 300.0])
def test_the_closed_form_does_not_cancel_where_keys_share_a_large_mean(shift: float) -> None:
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(5000, 16, generator=generator) + shift * torch.randn(16, generator=generator)
    query = torch.randn(64, 16, generator=generator)
    variance = (query.double() @ keys.double().T).var(1, correction=0)
    torch.testing.assert_close(outer_statistics(query, keys)[1].double(), variance, rtol=1e-5, atol=0)


# Words that may not be used ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
def test_words_that_are_not_allowed_have_no_mass_and_no_gradient(norm: str) -> None:
    inputs = Inputs(norm, 9, 5, 11, 4)
    allowed = torch.tensor([True, False, True, True, False, False, True, True, True, False, True])
    out, expected = inputs.fused(4, allowed), inputs.formula(allowed)
    assert_close([out, inputs.plain(allowed)], [expected, expected])
    found = gradients(out, inputs)
    assert_close(found, gradients(expected, inputs))
    assert not found[2][~allowed].any()
    assert found[2][allowed].all()
    with torch.no_grad():
        inputs.words[~allowed] = 1e30
    assert_close([inputs.fused(4, allowed)], [expected])


def test_a_single_allowed_word_is_what_every_token_becomes() -> None:
    inputs = Inputs("scalar", 6, 5, 11, 4)
    out = inputs.fused(4, torch.arange(11) == 7)
    assert torch.equal(out, inputs.words[7].expand(6, -1))


# Precision --------------------------------------------------------------------------------------------------------------------


def errors(values: Iterable[Tensor], truth: Iterable[Tensor]) -> list[float]:
    """Error of each tensor relative to its truth, as norms."""
    return [((value.detach().double() - true).norm() / true.norm()).item() for value, true in zip(values, truth, strict=True)]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("tokens", [24, 80])
def test_fp32_errs_by_rounding_alone(norm: str, tokens: int) -> None:
    # Measured at most 2e-6; a bf16 step anywhere would be 4e-3.
    inputs, exact = (Inputs(norm, tokens, 8, 500, 6, dtype) for dtype in (torch.float32, torch.float64))
    copy_values(inputs, exact)
    out, truth = inputs.fused(10), exact.formula()
    found = errors([out, *gradients(out, inputs)], [truth, *gradients(truth, exact)])
    assert max(found) < 1e-5


def copy_values(source: Inputs, target: Inputs) -> None:
    with torch.no_grad():
        pairs = zip((source.query, source.keys, source.words), (target.query, target.keys, target.words), strict=True)
        for one, other in [*pairs, (source.gain, target.gain), (source.bias, target.bias)]:
            if one is not None and other is not None:
                other.copy_(one)


@pytest.mark.parametrize("norm", NORMS)
def test_bf16_autocast_errs_no_more_than_the_plain_bf16_path(norm: str) -> None:
    # As apple/ml-cross-entropy tests itself: the fused error against the true value is about that of the plain low-precision path.
    # Measured at most 1.22 times (`grad_out . out` takes the rounded out); statistics in bf16 would make it 2 to 6 times.
    inputs, exact = (Inputs(norm, 64, 16, 300, 8, dtype) for dtype in (torch.float32, torch.float64))
    copy_values(inputs, exact)
    truth = exact.formula()
    true_gradients = gradients(truth, exact)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain, fused = inputs.plain(), inputs.fused(chunk=16)
    assert fused.dtype == torch.bfloat16
    for ours, theirs in zip(errors([fused], [truth]), errors([plain], [truth]), strict=True):
        assert ours <= 1.3 * theirs + 1e-3
    mine, others = gradients(fused, inputs), gradients(plain, inputs)
    assert all(value.dtype == torch.float32 for value in mine)
    for ours, theirs in zip(errors(mine, true_gradients), errors(others, true_gradients), strict=True):
        assert ours <= 1.3 * theirs + 1e-3


@pytest.mark.parametrize("size", [(40, 16, 300, 8), (200, 16, 300, 8)])
def test_statistics_stay_in_fp32_under_autocast(size: tuple[int, int, int, int]) -> None:
    # In bf16 the partition sum would be off by 3 % of itself; measured 1e-6. The gradient of the shift sums to 0 with it.
    inputs = Inputs("per_word", *size, torch.float32)
    assert inputs.bias is not None
    kept: list[Tensor] = []
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(lambda value: kept.append(value) or value, lambda value: value),
    ):
        out = inputs.fused(chunk=16)
        perceived = [value for value in kept if value.shape == (size[0],)]
        assert [value.dtype for value in perceived] == [torch.float32] * 3
        same_words = inputs.fused(chunk=16)
        loss = (out.float() - same_words.float()).abs().sum() + out.float().square().sum()
        loss.backward()  # within autocast, as some loops do
    assert inputs.bias.grad is not None
    assert inputs.bias.grad.abs().sum() > 1
    assert abs(float(inputs.bias.grad.sum())) < 1e-2 * float(inputs.bias.grad.abs().sum())


def test_the_softmax_is_in_fp32_whatever_the_products_are_in() -> None:
    # 40,000 equal words: a sum in bf16 stops at 256, one in fp32 is exact, and so is the mixture of words that are all 1.
    words = 40_000
    query, keys = torch.zeros(2, 4, dtype=torch.bfloat16), torch.randn(words, 4).bfloat16()
    for norm in (None, OuterNorm(torch.tensor(2.7))):
        out = vocabulary_attention(query, keys, torch.ones(words, 2, dtype=torch.bfloat16), norm)
        assert out.tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_large_scores_do_not_overflow() -> None:
    query = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    keys, words = torch.tensor([[1.0], [-1.0], [0.5]]), torch.eye(3)
    out = vocabulary_attention(query, keys, words, None)
    assert out.tolist() == [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    out.sum().backward()
    assert query.grad is not None
    assert query.grad.tolist() == [[0.0], [0.0]]


# Memory -----------------------------------------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else [out]:
            if isinstance(value, Tensor):
                self.elements = max(self.elements, value.numel())
        return out


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("norm", ["none", "scalar", "per_word"])
@pytest.mark.parametrize("tokens", [300, 20])
def test_no_tensor_of_tokens_by_words_ever_exists(norm: str, tokens: int, autocast: bool) -> None:
    words, chunk = 500, 15
    inputs = Inputs(norm, tokens, 4, words, 6, torch.float32)

    def largest(function: Callable[[], Tensor]) -> int:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast), Largest() as mode:
            function().sum().backward()
        return mode.elements

    assert largest(lambda: inputs.fused(chunk)) == chunk * words
    assert largest(inputs.plain) == tokens * words


@pytest.mark.parametrize("live", ["qkwn", "qkn"])
def test_memory_is_that_of_two_chunks_and_a_third_where_the_words_train(live: str) -> None:
    tokens, width, words, chunk = 512, 8, 2048, 32
    inputs = Inputs("scalar", tokens, width, words, width, torch.float32, live)
    chunks = 4 * chunk * words * (3 if "w" in live else 2)
    # Beside them: out, its gradient and the queries' (and their scaled copy), a few numbers per token, one block of scores.
    small = 4 * (6 * tokens * width + 8 * tokens) + 3 * 4 * min(op.BLOCK_ELEMENTS, chunk * words)
    peak = peak_memory(lambda: inputs.fused(chunk).sum().backward(), inputs.trained)
    gradient = 4 * words * width  # of the keys, and of live words: summed before autograd takes them over
    assert chunks <= peak <= chunks + small + (2 if "w" in live else 1) * gradient
    plain = peak_memory(lambda: inputs.plain().sum().backward(), inputs.trained)
    assert plain >= 3 * 4 * tokens * words


def test_nothing_is_kept_for_the_backward_pass_but_the_inputs_the_output_and_three_numbers_a_token() -> None:
    tokens, words = 40, 500
    inputs = Inputs("scalar", tokens, 4, words, 6)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda value: kept.append(value) or value, lambda value: value):
        out = inputs.fused(8)
    own = {value.data_ptr() for value in (inputs.query, inputs.keys, inputs.words, inputs.gain, out) if value is not None}
    rest = [value for value in kept if value.data_ptr() not in own]
    assert sum(value.numel() for value in rest) == 3 * tokens


def test_the_default_chunk_bounds_the_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(op.CHUNK_ELEMENTS, "cpu", 2**16)
    with Largest() as mode:
        vocabulary_attention(torch.randn(1000, 2), torch.randn(200, 2), torch.randn(200, 2), OuterNorm(torch.tensor(2.0)))
    assert mode.elements == 2**16 // 200 * 200
    with Largest() as mode:  # few tokens would not repay the gradient of all keys
        vocabulary_attention(torch.randn(1000, 2), torch.randn(2000, 2), torch.randn(2000, 2), None)
    assert mode.elements == op.MIN_CHUNK * 2000


def test_the_meta_device_gives_shapes() -> None:
    query, keys, words = (torch.empty(*size, device="meta") for size in ((5, 3), (7, 3), (7, 4)))
    assert vocabulary_attention(query, keys, words, OuterNorm(torch.empty((), device="meta"))).shape == (5, 4)


# What the distributions look like ---------------------------------------------------------------------------------------------


def test_a_tiny_distribution_by_hand() -> None:
    # Scores log 6, log 3, log 1 and no norm: p = 0.6, 0.3, 0.1.
    keys = torch.tensor([[1.0], [3.0], [6.0]], dtype=torch.float64).log()
    found = word_distribution(torch.ones(1, 1, dtype=torch.float64), keys, None, top=2, threshold=0.2)
    torch.testing.assert_close(found.probability_NT, torch.tensor([[0.6, 0.3]], dtype=torch.float64))
    assert found.word_NT.tolist() == [[2, 1]]
    assert found.entropy_N.item() == pytest.approx(-(0.6 * math.log(0.6) + 0.3 * math.log(0.3) + 0.1 * math.log(0.1)), abs=1e-12)
    assert found.above_N.tolist() == [2]
    torch.testing.assert_close(found.mean_V, torch.tensor([0.1, 0.3, 0.6], dtype=torch.float64))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("is_restricted", [False, True])
def test_distributions_are_those_that_words_are_mixed_by(norm: str, is_restricted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = Inputs(norm, 9, 5, 11, 4)
    allowed = torch.arange(11) % 3 != 0 if is_restricted else None
    p = inputs.probabilities(allowed).detach()
    monkeypatch.setitem(op.CHUNK_ELEMENTS, "cpu", 4 * 11)
    found = word_distribution(inputs.query, inputs.keys, inputs.norm, allowed, top=3, threshold=0.01)
    ordered = p.sort(1, descending=True)
    torch.testing.assert_close(found.probability_NT, ordered.values[:, :3])
    assert torch.equal(found.word_NT, ordered.indices[:, :3])
    entropy = -torch.special.xlogy(p, p).sum(1)
    torch.testing.assert_close(found.entropy_N, entropy)
    assert found.above_N.tolist() == (p > 0.01).sum(1).tolist()
    torch.testing.assert_close(found.mean_V, p.mean(0))


def test_a_gain_of_one_spreads_over_six_tenths_of_all_words_and_a_larger_one_over_fewer() -> None:
    # Scores are normal here, so the perplexity is V exp(-g^2 / 2) up to the luck of 20,000 draws.
    torch.manual_seed(0)
    query, keys = torch.randn(20, 64, dtype=torch.float64), torch.randn(20_000, 64, dtype=torch.float64)
    for gain, share in ((1.0, 0.6065), (1.5, 0.3247)):
        found = word_distribution(query, keys, OuterNorm(torch.tensor(gain, dtype=torch.float64)))
        assert found.entropy_N.exp().mean().item() / 20_000 == pytest.approx(share, rel=0.05)


def test_no_token_has_no_distribution() -> None:
    found = word_distribution(torch.zeros(0, 3), torch.randn(6, 3), None, top=9)
    assert found.probability_NT.shape == found.word_NT.shape == (0, 6)
    assert found.mean_V.shape == (6,)
    assert not found.mean_V.any()


def test_more_words_are_asked_for_than_there_are() -> None:
    found = word_distribution(torch.randn(2, 3), torch.randn(4, 3), None, top=9)
    assert found.word_NT.sort(1).values.tolist() == [list(range(4))] * 2
