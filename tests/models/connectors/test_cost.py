"""Costs: operations against torch's counter on real tensors, and widths that make parameters equal."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sightline.errors import ConfigError
from sightline.models.connectors import CONNECTORS, Connector, ConnectorConfig, ConnectorShape
from sightline.models.connectors.align import AlignConfig
from sightline.models.connectors.cost import connector_cost, match_parameters
from sightline.models.connectors.linear import LinearConfig
from sightline.models.connectors.mlp import MLPConfig
from sightline.models.connectors.moe import MoEConfig
from sightline.models.connectors.resampler import ResamplerConfig
from sightline.models.connectors.vet import VETConfig
from tests.models.connectors.helpers import SMALL
from tests.models.connectors.places import SHAPE

TINYVLM = ConnectorShape(14, 14, 768, 576, 49_152)
WITH_WIDTH = sorted(kind for kind, config in CONNECTORS.items() if config.width_field)


@pytest.mark.parametrize("kind", [*sorted(set(CONNECTORS) - {"moe"}), "align plain", "vet plain"])
def test_operations_are_those_of_a_real_forward_pass(kind: str) -> None:
    config = SMALL[kind.split()[0]]
    if kind.endswith("plain"):
        config = config.model_copy(update={"compute": "plain"})
    torch.manual_seed(0)
    connector = Connector(config, SHAPE)
    words = torch.randn(SHAPE.num_words, SHAPE.width_out)
    # torch's counter does not know the fused attention of CPUs.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        connector(torch.randn(1, SHAPE.num_tokens, SHAPE.width_in), lambda: words)
    cost = connector_cost(config, SHAPE)
    assert cost.flops == counter.get_total_flops()
    assert cost.parameters == sum(value.numel() for value in connector.parameters())


def test_operations_of_experts_are_those_of_evenly_used_ones() -> None:
    config = MoEConfig(experts=4, top=2, hidden=7)
    connector = Connector(config, SHAPE)
    with FlopCounterMode(display=False) as counter:
        connector(torch.randn(1, SHAPE.num_tokens, SHAPE.width_in), torch.Tensor)
    assert connector_cost(config, SHAPE).flops == counter.get_total_flops()  # whoever is chosen, each token goes through two


def test_costs_need_no_memory_for_weights() -> None:
    # ALIGN on a decoder of 128k words and width 4096: 2 GB of weights in fp32 that are never made.
    shape = ConnectorShape(27, 27, 1152, 4096, 128_256)
    cost = connector_cost(AlignConfig(), shape)
    assert cost.parameters == 1152 * 4096 + 2 * 4096 + 4096 * 128_256 + 1
    assert cost.flops == 2 * 729 * (1152 * 4096 + 2 * 4096 * 128_256)


def test_costs_as_json_name_their_units() -> None:
    assert connector_cost(LinearConfig(shuffle=2), SHAPE).to_json() == {
        "kind": "linear",
        "parameters": 250,
        "flops_per_crop": 2 * 8 * 24 * 10,
        "tokens_per_crop": 8,
        "grid": [2, 4],
    }


# Equal parameters -------------------------------------------------------------------------------------------------------------


def test_kinds_with_a_width_are_these() -> None:
    assert WITH_WIDTH == ["c_abstractor", "mlp", "moe", "resampler", "swiglu", "vet"]


@pytest.mark.parametrize("wanted", [3_000_000, 30_000_000])
@pytest.mark.parametrize("kind", WITH_WIDTH)
def test_a_width_brings_parameters_within_a_percent_of_each_other(kind: str, wanted: int) -> None:
    config: ConnectorConfig = CONNECTORS[kind]()
    if kind == "resampler":
        config = config.model_copy(update={"depth": 2, "heads": 4})
    if kind == "c_abstractor":
        config = config.model_copy(update={"num_queries": 49})
    matched = match_parameters(config, TINYVLM, wanted)
    found = connector_cost(matched, TINYVLM).parameters
    assert found == pytest.approx(wanted, rel=0.01)
    # It is the nearest there is.
    step = int(config.model_dump()[config.width_step]) if config.width_step else 1
    width = matched.model_dump()[config.width_field]
    for other in (width - step, width + step):
        near = connector_cost(matched.model_copy(update={config.width_field: other}), TINYVLM).parameters
        assert abs(near - wanted) >= abs(found - wanted)


def test_the_width_of_an_mlp_by_hand() -> None:
    # (6 + 10 + 1) h + 10 parameters
    matched = match_parameters(MLPConfig(), SHAPE, 17 * 40 + 10 + 8)
    assert isinstance(matched, MLPConfig)
    assert matched.hidden == 40


def test_a_resamplers_width_is_a_multiple_of_its_heads() -> None:
    matched = match_parameters(ResamplerConfig(depth=2, heads=6, num_queries=5), SHAPE, 20_000)
    assert isinstance(matched, ResamplerConfig)
    assert matched.width is not None
    assert matched.width % 6 == 0


def test_matching_counts_the_folded_width() -> None:
    matched = match_parameters(VETConfig(shuffle=2), SHAPE, 340)
    assert isinstance(matched, VETConfig)
    assert matched.rows == 10  # each row has 6 * 4 + 10
    assert matched.shuffle == 2


@pytest.mark.parametrize("config", [LinearConfig(), AlignConfig()])
def test_a_kind_without_width_is_not_matched(config: ConnectorConfig) -> None:
    with pytest.raises(ConfigError, match="has no width field"):
        match_parameters(config, SHAPE, 1000)


def test_what_no_width_reaches_is_said() -> None:
    with pytest.raises(ConfigError, match="has 27 parameters at hidden=1, more than 20"):
        match_parameters(MLPConfig(), SHAPE, 20)
