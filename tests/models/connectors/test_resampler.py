"""`resampler` against Flamingo's layers written out head by head."""

import pytest
import torch
from torch import Tensor

from sightline.models.connectors.cost import connector_cost
from sightline.models.connectors.resampler import ResamplerConfig
from tests.models.connectors.places import SHAPE, affine, assert_equal, features, layer_norm, made, unused, weights

CONFIG = ResamplerConfig(num_queries=5, depth=2, heads=2, width=4)


def normed(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    return layer_norm(x, w[f"{name}.weight"], w[f"{name}.bias"])


def test_queries_look_at_patches_and_at_each_other() -> None:
    connector = made(CONFIG)
    w = weights(connector.project)
    for crop in features():
        patches = affine(crop, w["w_in.weight"])
        queries = w["queries"]
        for number in range(2):
            layer = f"layers.{number}"
            own = normed(queries, w, f"{layer}.norm_queries")
            seen = torch.cat([normed(patches, w, f"{layer}.norm_patches"), own])
            q = affine(own, w[f"{layer}.to_query.weight"])
            k, v = affine(seen, w[f"{layer}.to_key.weight"]), affine(seen, w[f"{layer}.to_value.weight"])
            heads = []
            for head in (slice(0, 2), slice(2, 4)):
                mass = (q[:, head] @ k[:, head].T / 2**0.5).exp()
                heads.append(mass / mass.sum(1, keepdim=True) @ v[:, head])
            queries = queries + affine(torch.cat(heads, 1), w[f"{layer}.to_out.weight"])
            inner = affine(normed(queries, w, f"{layer}.norm_inner"), w[f"{layer}.w_a.weight"])
            queries = queries + affine(inner.clamp(min=0) ** 2, w[f"{layer}.w_b.weight"])
        expected = affine(normed(queries, w, "norm"), w["w_out.weight"])
        assert_equal(connector(crop[None], unused)[0], expected)


def test_every_image_becomes_as_many_tokens_as_there_are_queries() -> None:
    connector = made(ResamplerConfig(num_queries=5, depth=1, heads=2, shuffle=2))
    assert connector.tokens_per_crop == 5
    assert connector.token_grid == (1, 5)


def test_the_order_of_patches_does_not_matter_but_what_they_hold_does() -> None:
    connector, seen = made(CONFIG), features()
    assert_equal(connector(seen.flip(1), unused), connector(seen, unused))
    assert (connector(seen * seen, unused) - connector(seen, unused)).abs().max() > 1e-4


def test_parameters_and_operations_by_hand() -> None:
    width, queries, patches = 4, 5, 32
    cost = connector_cost(CONFIG, SHAPE)
    layer = 3 * 2 * width + 4 * width**2 + 8 * width**2
    assert cost.parameters == 6 * width + queries * width + 2 * layer + 2 * width + width * 10
    keys = patches + queries
    each = 2 * (2 * queries + 2 * keys) * width**2 + 2 * 2 * queries * keys * width + 2 * queries * 8 * width**2
    assert cost.flops == 2 * patches * 6 * width + 2 * each + 2 * queries * width * 10


def test_sizes_that_it_begins_with() -> None:
    config = ResamplerConfig()
    assert (config.num_queries, config.depth, config.heads) == (64, 6, 16)
    queries = weights(ResamplerConfig(num_queries=400, depth=1, heads=2).build(SHAPE))["queries"]
    assert float(queries.std()) == pytest.approx(0.02, rel=0.05)
