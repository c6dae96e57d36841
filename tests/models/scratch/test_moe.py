"""Router and experts against a float64 loop written from the equations; the router losses against values worked by hand."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.models.scratch.moe import Router, SparseMoE
from sightline.ops.experts import ExpertWeights, can_group, experts_grouped, experts_loop
from sightline.ops.load_balancing import load_balancing_loss, load_values, router_z_loss

WIDTH, HIDDEN, EXPERTS, CHOSEN = 16, 24, 4, 2


def config(**changes: Any) -> Any:
    values = {
        "hidden_size": WIDTH,
        "intermediate_size": HIDDEN,
        "num_experts": EXPERTS,
        "num_experts_per_tok": CHOSEN,
        "hidden_act": "relu",
        "gated": False,
        "bias": True,
        "shared_expert_size": 0,
        "router_noise": True,
        "noise_in_evaluation": False,
        "experts_kernel": "grouped",
    }
    return SimpleNamespace(**{**values, **changes})


def weights(gated: bool, bias: bool, dtype: torch.dtype = torch.float64, experts: int = EXPERTS) -> ExpertWeights:
    draw = torch.Generator().manual_seed(3)

    def one(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype).requires_grad_()

    return ExpertWeights(
        one(experts, HIDDEN, WIDTH),
        one(experts, WIDTH, HIDDEN),
        F.silu,
        one(experts, HIDDEN, WIDTH) if gated else None,
        one(experts, HIDDEN) if bias else None,
        one(experts, WIDTH) if bias else None,
    )


def by_hand(tokens: Tensor, chosen: Tensor, share: Tensor, held: ExpertWeights) -> Tensor:
    """One token and one expert at a time."""
    rows = []
    for token, experts, shares in zip(tokens, chosen, share, strict=True):
        total = torch.zeros_like(token)
        for number, part in zip(experts.tolist(), shares, strict=True):
            up = held.up_XFD[number] @ token + (0 if held.up_bias_XF is None else held.up_bias_XF[number])
            hidden = held.activation(up) if held.gate_XFD is None else held.activation(held.gate_XFD[number] @ token) * up
            total = total + part * (
                held.down_XOF[number] @ hidden + (0 if held.down_bias_XO is None else held.down_bias_XO[number])
            )
        rows.append(total)
    return torch.stack(rows)


ROUTINGS = {
    "spread": torch.tensor([[0, 1], [2, 3], [3, 0], [1, 2], [2, 0], [1, 3], [3, 2]]),
    "one expert has all, two have none": torch.tensor([[2, 0]] * 4 + [[0, 2]] * 3),
}


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize(("gated", "bias"), [(False, True), (True, False)])
def test_loop_and_grouped_kernel_give_the_sum_and_its_gradients(routing: str, gated: bool, bias: bool) -> None:
    chosen = ROUTINGS[routing]
    draw = torch.Generator().manual_seed(4)
    exact = weights(gated, bias)
    tokens = torch.randn(len(chosen), WIDTH, generator=draw, dtype=torch.float64).requires_grad_()
    share = torch.rand(chosen.shape, generator=draw, dtype=torch.float64).requires_grad_()
    aim = torch.randn(len(chosen), WIDTH, generator=draw, dtype=torch.float64)

    def outcome(function: Any, dtype: torch.dtype) -> list[Tensor]:
        held = weights(gated, bias, dtype)
        x, s = (value.detach().to(dtype).requires_grad_() for value in (tokens, share))
        out = function(x, chosen, s, held)
        leaves = [x, s, *(value for value in vars(held).values() if isinstance(value, Tensor))]
        return [out.detach(), *torch.autograd.grad((out * aim.to(dtype)).sum(), leaves)]

    truth = outcome(by_hand, torch.float64)
    for ours, theirs in zip(outcome(experts_loop, torch.float64), truth, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    single = torch.randn(len(chosen), WIDTH)
    assert can_group(single, weights(gated, bias, torch.float32))
    assert not can_group(tokens, exact)  # the kernel has no float64
    for ours, theirs in zip(outcome(experts_grouped, torch.float32), truth, strict=True):
        assert torch.isfinite(ours).all()
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-4)


def test_rows_that_the_grouped_kernel_cannot_read_go_through_the_loop() -> None:
    odd = ExpertWeights(torch.randn(2, 6, 5), torch.randn(2, 5, 6), F.relu)
    assert not can_group(torch.randn(3, 5), odd)  # 5 x 4 bytes are no multiple of 16
    layer = SparseMoE(config(hidden_size=5, intermediate_size=6))
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    assert layer(torch.randn(1, 3, 5))[0].shape == (1, 3, 5)


def test_the_grouped_kernel_computes_in_the_dtype_of_autocast() -> None:
    held, tokens = weights(False, True, torch.float32), torch.randn(6, WIDTH)
    share, chosen = torch.rand(6, CHOSEN), ROUTINGS["spread"][:6]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ours, theirs = (function(tokens, chosen, share, held) for function in (experts_grouped, experts_loop))
    assert ours.dtype == theirs.dtype == torch.float32
    exact = experts_loop(tokens, chosen, share, held)
    assert 1e-4 < ((ours - exact).norm() / exact.norm()) < 0.02
    torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05 * exact.abs().max().item())


# Router -----------------------------------------------------------------------------------------------------


def router(**changes: Any) -> Router:
    torch.manual_seed(6)
    made = Router(config(**changes))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made


def test_the_router_is_noisy_top_k_gating() -> None:
    made, tokens = router().double().train(), torch.randn(9, WIDTH, dtype=torch.float64)
    torch.manual_seed(8)
    logits, chosen, share = made(tokens)
    torch.manual_seed(8)
    noise = torch.randn(9, EXPERTS, dtype=torch.float64)
    assert made.noise is not None
    scale = torch.log1p(torch.exp(tokens @ made.noise.weight.T + made.noise.bias))
    wanted = tokens @ made.score.weight.T + made.score.bias + noise * scale
    torch.testing.assert_close(logits, wanted)
    for row in range(9):
        best = sorted(range(EXPERTS), key=lambda number: -wanted[row, number].item())[:CHOSEN]
        assert chosen[row].tolist() == best
        kept = wanted[row, best].exp()
        torch.testing.assert_close(share[row], kept / kept.sum())


def test_noise_is_off_in_evaluation_unless_the_published_fault_is_asked_for() -> None:
    tokens = torch.randn(5, WIDTH)
    for fault in (False, True):
        made = router(noise_in_evaluation=fault).eval()
        once, again = made(tokens)[0], made(tokens)[0]
        assert torch.equal(once, again) is not fault
        assert not torch.equal(made.train()(tokens)[0], made(tokens)[0])


def test_of_equal_experts_the_first_are_chosen() -> None:
    made = router(router_noise=False)
    torch.nn.init.zeros_(made.score.weight)
    torch.nn.init.zeros_(made.score.bias)
    _, chosen, share = made(torch.randn(50, WIDTH))
    assert chosen.tolist() == [[0, 1]] * 50
    assert share.tolist() == [[0.5, 0.5]] * 50


def test_a_router_that_sends_all_to_one_pair_of_experts_trains() -> None:
    layer = SparseMoE(config(router_noise=False, shared_expert_size=8))
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    torch.nn.init.zeros_(layer.router.score.weight)
    with torch.no_grad():
        layer.router.score.bias.copy_(torch.tensor([0.0, 50.0, -50.0, 60.0]))
    out, logits = layer(torch.randn(2, 5, WIDTH))
    (out.sum() + load_balancing_loss([logits], CHOSEN, torch.ones(10, dtype=torch.bool))).backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    assert layer.experts.up_proj.grad is not None
    assert layer.experts.up_proj.grad[[0, 2]].eq(0).all()
    assert layer.experts.up_proj.grad[[1, 3]].ne(0).any()


# Losses -----------------------------------------------------------------------------------------------------


def test_losses_are_those_worked_by_hand() -> None:
    """Two experts, one per token, probabilities 3/4 and 1/4: ln 3 apart.

    Tokens a and b prefer expert 0, c expert 1, d is padding. f = (2/3, 1/3), p = ((.75 + .75 + .25) / 3, (.25 + .25 + .75) / 3) =
    (7/12, 5/12). Balance: 2 (2/3 * 7/12 + 1/3 * 5/12) = 19/18. Each logsumexp is ln(3 + 1), so z = (ln 4)^2.
    """
    high = float(torch.tensor(3.0, dtype=torch.float64).log())
    logits = torch.tensor([[high, 0], [high, 0], [0, high], [99, 0]], dtype=torch.float64)
    counted = torch.tensor([True, True, True, False])
    assert load_balancing_loss([logits], 1, counted).item() == pytest.approx(19 / 18, rel=1e-6)
    assert router_z_loss([logits], counted).item() == pytest.approx(1.3862943611198906**2, rel=1e-6)
    assert router_z_loss([logits, 0 * logits], counted).item() == pytest.approx((1.3862943611**2 + 0.6931471806**2) / 2, rel=1e-6)
    assert router_z_loss([logits], torch.zeros(4, dtype=torch.bool)).item() == 0


def test_the_load_of_the_log_is_that_of_the_choices() -> None:
    """Layer 1: experts 0 and 1 get 3 and 1 of 4 choices; layer 2: all go to expert 1."""
    first = torch.tensor([[2.0, 0], [2, 0], [2, 0], [0, 2], [9, 0]])
    counted = torch.tensor([True, True, True, True, False])
    entropy, largest = load_values([first, first.flip(1) * 0 + torch.tensor([0.0, 1.0])], 1, counted)
    assert largest.item() == 1
    quarter = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(2)
    assert entropy.item() == pytest.approx(quarter / 2, rel=1e-6)
    nothing = load_values([first], 1, torch.zeros(5, dtype=torch.bool))
    assert [value.item() for value in nothing] == [0, 0]
