"""`mlp` against affine maps and the exact GELU written out."""

import pytest
import torch

from sightline.models.connectors import ConnectorShape
from sightline.models.connectors.cost import connector_cost
from sightline.models.connectors.mlp import MLPConfig
from tests.models.connectors.places import SHAPE, affine, assert_equal, features, gelu, made, unused, weights


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("depth", [2, 3, 4])
def test_it_is_affine_maps_with_an_exact_gelu_between_them(depth: int, bias: bool) -> None:
    connector = made(MLPConfig(depth=depth, hidden=7, bias=bias))
    w = weights(connector.project)
    states = features()
    for number in range(depth):
        states = affine(gelu(states) if number else states, w[f"linears.{number}.weight"], w.get(f"linears.{number}.bias"))
    assert_equal(connector(features(), unused), states)
    assert sum(value.numel() for value in w.values()) == 6 * 7 + (depth - 2) * 49 + 70 + bias * (7 * (depth - 1) + 10)


def test_the_gelu_is_not_the_tanh_approximation() -> None:
    connector = made(MLPConfig())
    w = weights(connector.project)
    inner = affine(features(), w["linears.0.weight"], w["linears.0.bias"])
    approximate = affine(torch.nn.functional.gelu(inner, approximate="tanh"), w["linears.1.weight"], w["linears.1.bias"])
    assert (connector(features(), unused) - approximate).abs().max() > 1e-5


def test_the_middle_is_as_wide_as_the_decoder_as_in_llava_15() -> None:
    # CLIP-L/14-336 (24 x 24 of 1024) and a decoder of 4096: mlp2x_gelu has 20,979,712 parameters.
    cost = connector_cost(MLPConfig(), ConnectorShape(24, 24, 1024, 4096, 32_000))
    assert cost.parameters == 1024 * 4096 + 4096 + 4096 * 4096 + 4096 == 20_979_712
    assert cost.tokens == 576
    assert cost.flops == 2 * 576 * (1024 * 4096 + 4096 * 4096)
    assert connector_cost(MLPConfig(), SHAPE).parameters == 6 * 10 + 10 + 100 + 10
