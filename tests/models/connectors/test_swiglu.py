"""`swiglu` against its formula, and against what is known of TinyVLM."""

import math

import pytest
import torch

from sightline.models.connectors import Connector, ConnectorShape
from sightline.models.connectors.cost import connector_cost
from sightline.models.connectors.swiglu import SwiGLUConfig
from tests.models.connectors.places import affine, assert_equal, features, made, silu, unused, weights

TINYVLM = ConnectorShape(14, 14, 768, 576, 49_152)  # SigLIP-base-patch16-224 and SmolLM2-135M


def test_it_is_the_gated_product_without_biases() -> None:
    connector = made(SwiGLUConfig(hidden=7))
    w = weights(connector.project)
    assert set(w) == {"gate.weight", "up.weight", "down.weight"}
    inner = silu(affine(features(), w["gate.weight"])) * affine(features(), w["up.weight"])
    assert_equal(connector(features(), unused), affine(inner, w["down.weight"]))


@pytest.mark.parametrize("merge", ["blocks", "raster"])
def test_tinyvlms_projector_has_its_82_575_360_parameters_and_49_tokens(merge: str) -> None:
    config = SwiGLUConfig.model_validate({"shuffle": 2, "merge": merge})
    cost = connector_cost(config, TINYVLM)
    assert cost.parameters == 2 * 3072 * 12288 + 12288 * 576 == 82_575_360
    assert cost.tokens == 49
    assert cost.flops == 2 * 49 * 82_575_360


def test_weights_begin_by_xaviers_uniform_rule() -> None:
    torch.manual_seed(0)
    project = Connector(SwiGLUConfig(hidden=300), ConnectorShape(2, 2, 200, 100, 5)).project
    for name, weight in project.named_parameters():
        fan_out, fan_in = weight.shape
        bound = math.sqrt(6 / (fan_in + fan_out))
        values = weight.detach().flatten()
        assert values.abs().max() <= bound, name
        assert values.abs().max() > 0.999 * bound, name
        assert float(values.std()) == pytest.approx(bound / math.sqrt(3), rel=0.02), name  # that of a uniform draw
        assert abs(float(values.mean())) < 0.01 * bound, name


def test_the_middle_is_four_times_as_wide_as_a_merged_token() -> None:
    project = Connector(SwiGLUConfig(shuffle=2), ConnectorShape(4, 4, 3, 5, 7)).project
    assert {name: tuple(value.shape) for name, value in project.named_parameters()} == {
        "gate.weight": (48, 12),
        "up.weight": (48, 12),
        "down.weight": (5, 48),
    }
