"""The load-balancing loss against transformers' own, and at its known values."""

import pytest
import torch
from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from sightline.ops.load_balancing import load_balancing_loss


def routers(layers: int = 3, tokens: int = 24, experts: int = 5, seed: int = 1) -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(tokens, experts, generator=draw, requires_grad=True) for _ in range(layers))


@pytest.mark.parametrize("num_chosen", [1, 2, 5])
def test_it_is_the_loss_of_transformers_and_has_its_gradient(num_chosen: int) -> None:
    logits = routers()
    counted = torch.arange(24) % 6 < 4  # four rows of six tokens, the last two of each are padding
    ours = load_balancing_loss(logits, num_chosen, counted)
    theirs = load_balancing_loss_func(logits, 5, num_chosen, counted.view(4, 6).long())
    assert isinstance(theirs, Tensor)
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(torch.autograd.grad(ours, logits), torch.autograd.grad(theirs, logits), strict=True):
        torch.testing.assert_close(mine, other)
        assert mine[counted].any()
        assert not mine[~counted].any()


def test_it_is_the_number_of_choices_where_all_experts_are_used_alike() -> None:
    logits = 1e-4 * torch.eye(4).repeat(5, 1)  # each token prefers another expert, by next to nothing
    assert load_balancing_loss([logits], 1, torch.ones(20, dtype=torch.bool)).item() == pytest.approx(1.0)
    same = torch.tensor([[50.0, 0.0, 0.0, 0.0]]).repeat(20, 1)
    assert load_balancing_loss([same], 1, torch.ones(20, dtype=torch.bool)).item() == pytest.approx(4.0)


def test_padding_alone_has_no_loss_and_a_gradient_of_zero() -> None:
    (logits,) = routers(layers=1)
    loss = load_balancing_loss([logits], 2, torch.zeros(24, dtype=torch.bool))
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, logits)[0].any()
