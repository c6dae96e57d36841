"""`h_reducer` against sums over neighbours in a row."""

import pytest
import torch

from sightline.models.connectors import ConnectorShape
from sightline.models.connectors.cost import connector_cost
from sightline.models.connectors.h_reducer import HReducerConfig
from tests.models.connectors.places import CROPS, SHAPE, affine, assert_equal, features, made, unused, weights


@pytest.mark.parametrize("reach", [1, 2, 4, 8])
def test_a_token_is_a_weighted_sum_of_neighbours_in_its_row(reach: int) -> None:
    connector = made(HReducerConfig(reach=reach))
    w, seen = weights(connector.project), features()
    expected = []
    for row in range(4):
        for begin in range(0, 8, reach):
            joined = w["convolution.bias"].expand(CROPS, -1)
            for place in range(reach):
                joined = joined + affine(seen[:, row * 8 + begin + place], w["convolution.weight"][:, :, 0, place])
            expected.append(affine(joined, w["linear.weight"], w["linear.bias"]))
    assert_equal(connector(seen, unused), torch.stack(expected, 1))
    assert connector.token_grid == (4, 8 // reach)


def test_parameters_operations_and_tokens_by_hand() -> None:
    cost = connector_cost(HReducerConfig(), SHAPE)
    assert cost.parameters == 6 * 6 * 4 + 6 + 6 * 10 + 10
    assert cost.tokens == 8
    assert cost.flops == 2 * 8 * (6 * 6 * 4 + 6 * 10)
    # DocOwl 1.5: a crop of 448 pixels is 32 x 32 patches and 256 tokens.
    assert connector_cost(HReducerConfig(), ConnectorShape(32, 32, 1024, 4096, 32_000)).tokens == 256
