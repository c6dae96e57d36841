"""`moe` against a loop over tokens, and its terms in the loss by hand."""

import pytest
import torch
from torch import Tensor

from sightline.models.connectors import Connector, ConnectorShape
from sightline.models.connectors.cost import connector_cost
from sightline.models.connectors.moe import MoEConfig
from sightline.objectives.next_token import NextToken
from tests.builders import batch_of, sample, vlm
from tests.models.connectors.places import CROPS, SHAPE, affine, assert_equal, features, gelu, made, unused, weights


def expert(x: Tensor, w: dict[str, Tensor], number: int) -> Tensor:
    name = f"experts.{number}.linears"
    return affine(gelu(affine(x, w[f"{name}.0.weight"], w[f"{name}.0.bias"])), w[f"{name}.1.weight"], w[f"{name}.1.bias"])


@pytest.mark.parametrize(("experts", "top"), [(1, 1), (3, 1), (4, 2), (3, 3)])
def test_each_token_goes_through_its_largest_gates(experts: int, top: int) -> None:
    connector = made(MoEConfig(experts=experts, top=top, hidden=7))
    w, out = weights(connector.project), connector(features(), unused).flatten(0, 1)
    for place, token in enumerate(features().flatten(0, 1)):
        scores = affine(token, w["router.weight"])
        p = (scores.exp() / scores.exp().sum()).tolist()
        chosen = sorted(range(experts), key=lambda number: -p[number])[:top]
        total = sum(p[number] for number in chosen)
        mixed = torch.stack([p[number] / total * expert(token, w, number) for number in chosen]).sum(0)
        # Gates are in fp32, as routers are; a wrong expert would be of order 1.
        torch.testing.assert_close(out[place], mixed, rtol=1e-6, atol=1e-6)


def test_the_grouped_kernel_of_a_gpu_gives_the_tokens_and_gradients_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = ConnectorShape(2, 2, 8, 12, 30)
    torch.manual_seed(3)
    connector = Connector(MoEConfig(experts=4, top=2, hidden=16), shape).train()
    inputs, outcomes = torch.randn(5, 4, 8), []
    for grouped in (False, True):
        monkeypatch.setattr("sightline.models.connectors.moe.grouped_by_default", lambda tokens, grouped=grouped: grouped)
        given = inputs.clone().requires_grad_()
        tokens, losses = connector.tokens_and_losses(given, unused)
        (tokens.square().sum() + sum(losses.values())).backward()
        grads = [parameter.grad for parameter in connector.parameters()]
        connector.zero_grad(set_to_none=True)
        outcomes.append([tokens, given.grad, *grads, *losses.values()])
    for loop, kernel in zip(*outcomes, strict=True):
        torch.testing.assert_close(kernel, loop, rtol=1e-5, atol=1e-5)


def test_one_expert_is_an_mlp() -> None:
    connector = made(MoEConfig(experts=1, top=1, hidden=7))
    assert_equal(connector(features(), unused), expert(features(), weights(connector.project), 0))


def test_the_terms_of_the_loss_by_hand() -> None:
    config = MoEConfig(experts=3, top=2, balance=0.2, z_loss=0.05)
    connector = made(config).train()
    tokens, losses = connector.tokens_and_losses(features(), unused)
    assert torch.equal(tokens, connector(features(), unused))
    scores = affine(features().flatten(0, 1), weights(connector.project)["router.weight"])
    p = torch.softmax(scores, 1)
    first = torch.stack([(p.argmax(1) == number).double().mean() for number in range(3)])
    terms = {name: value.detach() for name, value in losses.items()}
    assert set(terms) == {"balance", "router_z"}
    assert float(terms["balance"]) == pytest.approx(0.2 * 3 * float((first * p.mean(0)).sum()), rel=1e-5)
    assert float(terms["router_z"]) == pytest.approx(0.05 * float(scores.logsumexp(1).square().mean()), rel=1e-5)
    assert connector.log_values()["largest_expert"] == pytest.approx(float(first.max()))


def losses_of(connector: Connector, features_NPE: Tensor) -> dict[str, Tensor]:
    return connector.tokens_and_losses(features_NPE, unused)[1]


def test_balance_is_least_when_all_experts_are_used_alike() -> None:
    connector = made(MoEConfig(experts=4, top=1, balance=1.0))
    router = connector.project.get_submodule("router").get_parameter("weight")
    with torch.no_grad():
        router.zero_()
    connector.train()
    assert losses_of(connector, features())["balance"].item() == pytest.approx(1.0)  # p is 1/4 whatever is chosen
    with torch.no_grad():
        router[0] = 40
    assert losses_of(connector, features().abs())["balance"].item() == pytest.approx(4.0)  # all tokens go to the first
    assert losses_of(connector, features(crops=0)) == {}


def test_there_are_no_losses_in_eval_mode() -> None:
    connector = made(MoEConfig())
    assert losses_of(connector, features()) == {}
    assert connector.log_values() == {}


def test_the_terms_reach_the_loss_and_the_router() -> None:
    model = vlm("siglip", "llama", MoEConfig(shuffle=2, balance=0.3, z_loss=0.0)).train()
    batch = batch_of([sample(1, [4])], [sample(2, [3])])
    loss = NextToken()(model, batch)
    hidden = model.hidden(batch)
    assert set(hidden.auxiliary) == {"balance", "router_z"}
    assert any("balance" in name for name in loss.parts)
    loss.total.backward()
    router = model.connector.project.get_submodule("router").get_parameter("weight")
    assert router.grad is not None
    assert router.grad.any()


def test_an_expert_that_no_token_chose_gets_a_gradient_of_zero() -> None:
    connector = made(MoEConfig(experts=2, top=1)).train()
    with torch.no_grad():
        connector.project.get_submodule("router").get_parameter("weight").copy_(torch.tensor([[100.0] * 6, [-100.0] * 6]))
    connector(features().abs(), unused).sum().backward()
    idle = connector.project.get_submodule("experts.1")
    assert all(value.grad is not None and not value.grad.any() for value in idle.parameters())


def test_parameters_and_operations_by_hand() -> None:
    cost = connector_cost(MoEConfig(experts=4, top=2, hidden=7), SHAPE)
    one = 6 * 7 + 7 + 7 * 10 + 10
    assert cost.parameters == 4 * one + 4 * 6
    assert cost.flops == 2 * 32 * (6 * 4 + 2 * (6 * 7 + 7 * 10))  # of 4 experts each token goes through 2
    assert CROPS > 1
