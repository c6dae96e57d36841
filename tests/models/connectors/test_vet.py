"""`vet` against Ovis' formula written out, and its kinship with `align`."""

import pytest
import torch

from sightline.models.connectors.align import AlignConfig
from sightline.models.connectors.cost import connector_cost
from sightline.models.connectors.vet import VETConfig
from tests.models.connectors.places import SHAPE, WORDS, affine, assert_equal, embeddings, features, made, unused, weights


@pytest.mark.parametrize("compute", ["fused", "plain"])
@pytest.mark.parametrize("norm", [False, True])
def test_it_is_a_softmax_over_visual_words_that_mixes_their_table(norm: bool, compute: str) -> None:
    connector = made(VETConfig.model_validate({"rows": 9, "norm": norm, "compute": compute}))
    w = weights(connector.project)
    scores = affine(features(), w["w.weight"])
    if norm:
        centred = scores - scores.mean(2, keepdim=True)
        scores = centred / (centred.square().mean(2, keepdim=True) + 1e-5).sqrt() * w["gain"] + w["shift"]
    mass = scores.exp()
    expected = (mass / mass.sum(2, keepdim=True)) @ w["table.weight"]
    assert_equal(connector(features(), unused), expected)


def test_parameters_and_operations_by_hand() -> None:
    cost = connector_cost(VETConfig(rows=9), SHAPE)
    assert cost.parameters == 9 * 6 + 9 * 10
    assert cost.flops == 2 * 32 * (6 * 9 + 9 * 10)
    assert connector_cost(VETConfig(rows=9, norm=True), SHAPE).parameters == 9 * 6 + 9 * 10 + 18


def test_rows_of_the_table_are_drawn_with_deviation_one() -> None:
    table = weights(VETConfig(rows=4000).build(SHAPE))["table.weight"]
    assert float(table.std()) == pytest.approx(1, rel=0.02)


def test_align_without_norms_is_a_table_of_low_rank_on_the_words_that_are_there() -> None:
    align = made(AlignConfig(outer_norm="none", inner_affine=False))
    vet = made(VETConfig(rows=WORDS))
    torch.nn.Module.register_module(align.project, "inner", torch.nn.Identity())
    with torch.no_grad():
        w = weights(align.project)
        vet.project.get_submodule("w").get_parameter("weight").copy_(w["w2.weight"] @ w["w1.weight"])
        vet.project.get_submodule("table").get_parameter("weight").copy_(embeddings())
    assert_equal(vet(features(), unused), align(features(), embeddings))
