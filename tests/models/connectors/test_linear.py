"""`linear` against `W f + b` written out."""

import pytest

from sightline.models.connectors.cost import connector_cost
from sightline.models.connectors.linear import LinearConfig
from tests.models.connectors.places import SHAPE, affine, assert_equal, features, made, unused, weights


@pytest.mark.parametrize("bias", [True, False])
def test_it_is_one_affine_map(bias: bool) -> None:
    connector = made(LinearConfig(bias=bias))
    w = weights(connector.project)
    assert_equal(connector(features(), unused), affine(features(), w["linear.weight"], w.get("linear.bias")))
    assert set(w) == ({"linear.weight", "linear.bias"} if bias else {"linear.weight"})
    assert connector_cost(LinearConfig(bias=bias), SHAPE).parameters == 6 * 10 + 10 * bias


def test_after_a_pixel_shuffle_of_two_it_is_nanovlms_projector() -> None:
    # SigLIP-base at 224: 14 x 14 of 768; SmolLM2-135M: 576. nanoVLM: Linear(3072, 576, bias=False), 49 tokens.
    from sightline.models.connectors import ConnectorShape

    cost = connector_cost(LinearConfig(bias=False, shuffle=2), ConnectorShape(14, 14, 768, 576, 49_152))
    assert cost.parameters == 3072 * 576
    assert cost.tokens == 49
    assert cost.flops == 2 * 49 * 3072 * 576
