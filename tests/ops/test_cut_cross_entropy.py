"""The adapter of cut_cross_entropy gives the package the right arguments, and is left out where the package is less precise.

The package needs a GPU. Here a stand-in with its interface (version 25.1.1) computes what its kernels compute, in torch.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sightline.ops import cut_cross_entropy
from sightline.ops.cross_entropy import cross_entropy_kernel, cross_entropy_reference, linear_cross_entropy
from sightline.types import Head
from tests.ops.helpers import CCEParams, stand_in_for_cut_cross_entropy


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[CCEParams]]:
    """The parameters of each call of the stand-in."""
    was_exact = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    yield stand_in_for_cut_cross_entropy(monkeypatch)
    torch.use_deterministic_algorithms(was_exact)


def inputs(**changes: Any) -> tuple[Tensor, Head, Tensor, Tensor]:
    torch.manual_seed(0)
    states = torch.randn(40, 16).bfloat16().requires_grad_()
    weight = torch.randn(90, 16).bfloat16()
    return states, replace(Head(weight), **changes), torch.randint(90, (40,)), torch.rand(40)


@pytest.mark.parametrize("changes", [{}, {"softcap": 3.0}, {"scale": 0.25}, {"softcap": 2.0, "scale": 0.5}], ids=str)
def test_losses_and_weighted_gradients_are_those_of_the_definition_in_float64(
    calls: list[CCEParams], changes: dict[str, Any]
) -> None:
    states, head, target, weight = inputs(**changes)
    with cross_entropy_kernel("cut"):
        nll, logit = linear_cross_entropy(states, head, target)
    assert len(calls) == 1
    assert nll.dtype == logit.dtype == torch.float32
    wide = states.detach().double().requires_grad_()
    expected, expected_logit = cross_entropy_reference(wide, replace(head, weight_VD=head.weight_VD.double()), target)
    assert torch.allclose(nll.double(), expected, rtol=1e-4, atol=1e-4)
    assert torch.allclose(logit.double(), expected_logit, rtol=1e-4, atol=1e-4)
    (nll * weight).sum().backward()
    (expected * weight).sum().backward()
    assert states.grad is not None
    assert wide.grad is not None
    assert (states.grad.double() - wide.grad).norm() < 0.01 * wide.grad.norm()  # bf16


@pytest.mark.parametrize("case", ["bias", "trained head", "fp32", "no tokens", "deterministic", "outside", "given chunk"])
def test_our_definition_is_used_where_the_package_is_less_precise(calls: list[CCEParams], case: str) -> None:
    states, head, target, _ = inputs()
    if case == "bias":
        head = replace(head, bias_V=torch.randn(90).bfloat16())
    if case == "trained head":
        head = replace(head, weight_VD=head.weight_VD.requires_grad_())
    if case == "fp32":
        states, head = states.detach().float(), replace(head, weight_VD=head.weight_VD.float())
    if case == "no tokens":
        states, target = states[:0], target[:0]
    if case == "deterministic":
        torch.use_deterministic_algorithms(True)
    with cross_entropy_kernel("chunked" if case == "outside" else "cut"):
        nll, _ = linear_cross_entropy(states, head, target, 8 if case == "given chunk" else None)
    assert calls == []
    assert torch.allclose(nll, cross_entropy_reference(states, head, target)[0], rtol=1e-4, atol=1e-4)


def test_under_autocast_states_and_head_are_given_in_bf16(calls: list[CCEParams]) -> None:
    states, head, target, _ = inputs()
    wide = states.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16), cross_entropy_kernel("cut"):
        nll, _ = linear_cross_entropy(wide, replace(head, weight_VD=head.weight_VD.float()), target)
    nll.sum().backward()
    assert len(calls) == 1
    assert wide.grad is not None


def test_the_package_counts_as_missing_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    finders = cut_cross_entropy.importlib.util
    monkeypatch.setattr(finders, "find_spec", lambda name: None if name == "triton" else name)
    assert not cut_cross_entropy.is_installed()
    monkeypatch.setattr(finders, "find_spec", lambda name: name)
    assert cut_cross_entropy.is_installed()
