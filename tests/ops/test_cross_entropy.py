"""Linear cross-entropy against its reference, torch's own cross-entropy in float64, and its promise of memory."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sightline.ops import cross_entropy
from sightline.ops.cross_entropy import cross_entropy_reference, linear_cross_entropy, target_logits
from sightline.types import Head
from tests.ops.helpers import Largest

HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "softcap": {"softcap": 3.0},
    "scale": {"scale": 0.25},
    "all": {"bias": True, "softcap": 3.0, "scale": 1.7},
}


def make(kind: str, tokens: int, width: int, words: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Head, Tensor]:
    """Hidden states, a head and targets; logits spread over several units, so that softcaps bend them."""
    torch.manual_seed(5)
    wanted = dict(HEADS[kind])
    states = torch.randn(tokens, width, dtype=dtype, requires_grad=True)
    weight = torch.randn(words, width, dtype=dtype, requires_grad=True)
    bias = torch.randn(words, dtype=dtype, requires_grad=True) if wanted.pop("bias", False) else None
    return states, Head(weight, bias, **wanted), torch.randint(words, (tokens,))


def by_torch(states: Tensor, head: Head, target: Tensor) -> tuple[Tensor, Tensor]:
    """The same from torch's cross-entropy and an explicit formula of the logits."""
    logits = states @ head.weight_VD.T
    if head.bias_V is not None:
        logits = logits + head.bias_V
    logits = logits * head.scale
    if head.softcap:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return F.cross_entropy(logits, target, reduction="none"), logits[torch.arange(len(target)), target]


def gradients(outputs: tuple[Tensor, Tensor], states: Tensor, head: Head) -> list[Tensor]:
    """Gradients of a sum that weighs every output differently, with respect to states, weight and bias."""
    nll, logit = outputs
    weights = torch.linspace(-1, 2, len(nll), dtype=nll.dtype)
    inputs = [states, head.weight_VD, *([] if head.bias_V is None else [head.bias_V])]
    return list(torch.autograd.grad((nll * weights).sum() + (logit * weights.flip(0) * 0.7).sum(), inputs))


@pytest.mark.parametrize("chunk", [None, 1, 3, 7, 20])
@pytest.mark.parametrize("kind", HEADS)
def test_losses_logits_and_gradients_equal_torch_in_float64(kind: str, chunk: int | None) -> None:
    states, head, target = make(kind, tokens=7, width=5, words=11)
    expected = by_torch(states, head, target)
    wanted = gradients(expected, states, head)
    for outputs in (cross_entropy_reference(states, head, target), linear_cross_entropy(states, head, target, chunk)):
        for ours, theirs in zip(outputs, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        for ours, theirs in zip(gradients(outputs, states, head), wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", HEADS)
def test_gradients_of_both_outputs_equal_finite_differences(kind: str) -> None:
    states, head, target = make(kind, tokens=4, width=3, words=6)

    def function(states: Tensor, weight: Tensor, *bias: Tensor) -> tuple[Tensor, Tensor]:
        made = Head(weight, bias[0] if bias else None, head.softcap, head.scale)
        return linear_cross_entropy(states, made, target, chunk=3)

    inputs = [states, head.weight_VD, *([] if head.bias_V is None else [head.bias_V])]
    assert torch.autograd.gradcheck(function, inputs)


@settings(max_examples=25, deadline=None)
@given(tokens=st.integers(0, 9), width=st.integers(1, 5), words=st.integers(1, 9), chunk=st.integers(1, 12))
def test_any_shape_and_chunk_equals_the_reference(tokens: int, width: int, words: int, chunk: int) -> None:
    states, head, target = make("all", tokens, width, words)
    expected = cross_entropy_reference(states, head, target)
    outputs = linear_cross_entropy(states, head, target, chunk)
    for ours, theirs in zip(outputs, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)
    for ours, theirs in zip(gradients(outputs, states, head), gradients(expected, states, head), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)


def test_a_uniform_head_costs_the_log_of_the_vocabulary() -> None:
    head = Head(torch.zeros(50, 4))
    nll, logit = linear_cross_entropy(torch.randn(3, 4), head, torch.tensor([0, 7, 49]))
    torch.testing.assert_close(nll, torch.full((3,), math.log(50.0)))
    assert torch.equal(logit, torch.zeros(3))


def test_large_logits_do_not_overflow() -> None:
    states = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    head = Head(torch.tensor([[1.0], [-1.0]], requires_grad=True))
    nll, _ = linear_cross_entropy(states, head, torch.tensor([0, 0]))
    assert nll.tolist() == [0.0, 2e4]
    nll.sum().backward()
    assert states.grad is not None
    assert states.grad.flatten().tolist() == [0.0, -2.0]


def test_a_frozen_head_gets_no_gradient_and_frozen_states_get_none() -> None:
    states, head, target = make("bias", tokens=5, width=3, words=8)
    frozen = Head(head.weight_VD.detach(), head.bias_V.detach() if head.bias_V is not None else None)
    linear_cross_entropy(states, frozen, target)[0].sum().backward()
    assert frozen.weight_VD.grad is None
    assert states.grad is not None
    expected = torch.autograd.grad(by_torch(states, frozen, target)[0].sum(), states)[0]
    torch.testing.assert_close(states.grad, expected, rtol=1e-11, atol=1e-12)

    assert head.weight_VD.grad is None
    linear_cross_entropy(states.detach(), head, target)[0].sum().backward()
    assert head.weight_VD.grad is not None
    both_frozen, _ = linear_cross_entropy(states.detach(), frozen, target)
    assert not both_frozen.requires_grad


@pytest.mark.parametrize("chunk", [None, 1, 3, 20])
@pytest.mark.parametrize("kind", HEADS)
def test_gradients_before_a_frozen_head_equal_torch(kind: str, chunk: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "KEPT_GRADIENT_WORDS", 1)
    states, head, target = make(kind, tokens=7, width=5, words=11)
    bias = None if head.bias_V is None else head.bias_V.detach()
    frozen = Head(head.weight_VD.detach(), bias, head.softcap, head.scale)
    outputs = linear_cross_entropy(states, frozen, target, chunk), by_torch(states, frozen, target)
    for ours, theirs in zip(*outputs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    weights = torch.linspace(-1, 2, 7, dtype=torch.float64)
    ours, theirs = (
        torch.autograd.grad((nll * weights).sum() + (logit * weights.flip(0) * 0.7).sum(), states)[0] for nll, logit in outputs
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_a_frozen_head_is_multiplied_twice_in_training_and_once_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits are not recomputed in the backward pass."""
    monkeypatch.setattr(cross_entropy, "KEPT_GRADIENT_WORDS", 1)
    states, head, target = make("plain", tokens=7, width=5, words=11)
    frozen = Head(head.weight_VD.detach(), None)
    with Products() as training:
        linear_cross_entropy(states, frozen, target)[0].sum().backward()
    with Products() as evaluation, torch.no_grad():
        linear_cross_entropy(states, frozen, target)
    assert (training.count, evaluation.count) == (2, 1)


class Products(TorchDispatchMode):
    """Counts matrix products."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm)
        return func(*args, **(kwargs or {}))


def test_only_the_bias_may_train() -> None:
    states, head, target = make("bias", tokens=5, width=3, words=8)
    assert head.bias_V is not None
    nll, _ = linear_cross_entropy(states.detach(), Head(head.weight_VD.detach(), head.bias_V), target, chunk=2)
    (ours,) = torch.autograd.grad(nll.sum(), head.bias_V)
    (theirs,) = torch.autograd.grad(by_torch(states, head, target)[0].sum(), head.bias_V)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_no_target_costs_nothing_and_moves_nothing() -> None:
    states, head, target = make("all", tokens=0, width=4, words=6)
    nll, logit = linear_cross_entropy(states, head, target)
    assert nll.shape == logit.shape == (0,)
    total = nll.sum()
    assert total.item() == 0.0
    total.backward()
    assert states.grad is not None
    assert states.grad.shape == (0, 4)
    assert head.weight_VD.grad is not None
    assert head.bias_V is not None
    assert head.bias_V.grad is not None
    assert not head.weight_VD.grad.any()
    assert not head.bias_V.grad.any()


@pytest.mark.parametrize("kind", HEADS)
def test_target_logits_equal_the_gathered_logits(kind: str) -> None:
    states, head, target = make(kind, tokens=6, width=5, words=9)
    ours, theirs = target_logits(states, head, target), by_torch(states, head, target)[1]
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    (mine,) = torch.autograd.grad(ours.sum(), head.weight_VD)
    (other,) = torch.autograd.grad(theirs.sum(), head.weight_VD)
    torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


def worst(values: tuple[Tensor, ...] | list[Tensor], truth: tuple[Tensor, ...] | list[Tensor]) -> list[float]:
    """Largest error of each tensor relative to the largest value of its truth."""
    pairs = zip(values, truth, strict=True)
    return [((value.detach().double() - true).abs().max() / true.abs().max()).item() for value, true in pairs]


@pytest.mark.parametrize("kind", HEADS)
def test_bf16_autocast_errs_no_more_than_the_plain_bf16_path(kind: str) -> None:
    # As apple/ml-cross-entropy tests itself: the fused error against the true value is at most that of the plain low-precision
    # path plus a tolerance. Forward and bias errors are equal; the weight's gradient is a sum of eight rounded products, measured
    # at most 3.1e-3 worse. 2^-8 is one rounding of bf16; a wrong factor in a gradient is 100 times that.
    states, head, target = make(kind, tokens=64, width=16, words=96, dtype=torch.float32)
    double = Head(
        head.weight_VD.detach().double().requires_grad_(),
        None if head.bias_V is None else head.bias_V.detach().double().requires_grad_(),
        head.softcap,
        head.scale,
    )
    exact = states.detach().double().requires_grad_()
    truth = by_torch(exact, double, target)
    true_gradients = gradients(truth, exact, double)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = cross_entropy_reference(states, head, target)
        fused = linear_cross_entropy(states, head, target, chunk=8)
    assert fused[0].dtype == torch.float32
    for ours, theirs in zip(worst(fused, truth), worst(plain, truth), strict=True):
        assert ours <= theirs + 1e-6
        assert ours < 2e-2
    mine, others = gradients(fused, states, head), gradients(plain, states, head)
    assert all(value.dtype == torch.float32 for value in mine)
    for ours, theirs in zip(worst(mine, true_gradients), worst(others, true_gradients), strict=True):
        assert ours <= theirs + 2**-8


def test_bf16_weights_get_bf16_gradients_summed_in_fp32() -> None:
    # 512 chunks of one token, measured 2.3e-3; summed in bf16 the gradient errs by 3.2e-2.
    states, head, target = make("plain", tokens=512, width=4, words=6, dtype=torch.bfloat16)
    nll, _ = linear_cross_entropy(states, head, target, chunk=1)
    assert nll.dtype == torch.float32
    (ours,) = torch.autograd.grad(nll.sum(), head.weight_VD)
    assert ours.dtype == torch.bfloat16
    exact, weight = states.detach().double(), head.weight_VD.detach().double().requires_grad_()
    (truth,) = torch.autograd.grad(by_torch(exact, Head(weight), target)[0].sum(), weight)
    assert worst([ours], [truth])[0] < 1e-2


@pytest.mark.parametrize("autocast", [False, True])
def test_no_tensor_of_tokens_by_vocabulary_ever_exists(autocast: bool) -> None:
    tokens, width, words, chunk = 300, 4, 500, 20
    states, head, target = make("all", tokens, width, words, dtype=torch.float32)

    def largest(function: Any) -> int:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast), Largest() as mode:
            nll, logit = function()
            (nll.sum() + logit.sum()).backward()
        return mode.elements

    assert largest(lambda: linear_cross_entropy(states, head, target, chunk)) == chunk * words
    assert largest(lambda: cross_entropy_reference(states, head, target)) == tokens * words


def test_the_default_chunk_bounds_the_logits() -> None:
    words = 2**16
    states, target = torch.randn(200, 2), torch.randint(words, (200,))
    with Largest() as mode:
        linear_cross_entropy(states, Head(torch.randn(words, 2)), target)
    assert mode.elements <= 2**22
