"""`c_abstractor` against its blocks written out with shifts and sums; no convolution is called."""

import pytest
import torch
from torch import Tensor

from sightline.models.connectors.c_abstractor import CAbstractorConfig
from sightline.models.connectors.cost import connector_cost
from tests.models.connectors.places import SHAPE, affine, assert_equal, features, layer_norm, made, silu, unused, weights

CONFIG = CAbstractorConfig(num_queries=9, depth=2, hidden=8, mlp_depth=3)


def depthwise(x: Tensor, kernel: Tensor) -> Tensor:
    """3 x 3 over `[rows, columns, channels]` with zeros around."""
    rows, columns, channels = x.shape
    padded = x.new_zeros(rows + 2, columns + 2, channels)
    padded[1:-1, 1:-1] = x
    out = torch.zeros_like(x)
    for dy in range(3):
        for dx in range(3):
            out += padded[dy : dy + rows, dx : dx + columns] * kernel[:, 0, dy, dx]
    return out


def block(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    """RegNet's bottleneck with squeeze-and-excitation on `[rows, columns, channels]`."""

    def norm(states: Tensor, which: str) -> Tensor:
        return layer_norm(states, w[f"{name}.{which}.weight"], w[f"{name}.{which}.bias"], 1e-6)

    def point(states: Tensor, which: str) -> Tensor:
        return affine(states, w[f"{name}.{which}.weight"][:, :, 0, 0])

    states = silu(norm(point(x, "enter"), "norms.0"))
    states = silu(norm(depthwise(states, w[f"{name}.spread.weight"]), "norms.1"))
    squeezed = silu(affine(states.mean((0, 1)), w[f"{name}.squeeze.weight"], w[f"{name}.squeeze.bias"]))
    excited = affine(squeezed, w[f"{name}.excite.weight"], w[f"{name}.excite.bias"])
    states = norm(point(states / (1 + torch.exp(-excited)), "leave"), "norms.2")
    aside = norm(point(x, "shortcut"), "shortcut_norm") if f"{name}.shortcut.weight" in w else x
    return silu(states + aside)


def pooled(x: Tensor, side: int) -> Tensor:
    """Means of cells whose borders are rounded outwards, as adaptive pooling does."""
    rows, columns = x.shape[:2]
    cells = [
        x[i * rows // side : -(-(i + 1) * rows // side), j * columns // side : -(-(j + 1) * columns // side)].mean((0, 1))
        for i in range(side)
        for j in range(side)
    ]
    return torch.stack(cells).view(side, side, -1)


def test_it_is_blocks_pooling_blocks_and_an_mlp() -> None:
    connector = made(CONFIG)
    w, seen = weights(connector.project), features()
    out = connector(seen, unused)
    assert out.shape == (3, 9, 10)
    for number, crop in enumerate(seen):
        states = (crop + w["position"]).view(4, 8, 6)
        for which in ("before.0", "before.1"):
            states = block(states, w, which)
        states = pooled(states, 3)
        for which in ("after.0", "after.1"):
            states = block(states, w, which)
        states = affine(states.flatten(0, 1), w["linears.0.weight"], w["linears.0.bias"])
        for place in (1, 2):
            states = affine(silu(states), w[f"linears.{place}.weight"], w[f"linears.{place}.bias"])
        assert_equal(out[number], states)


def test_only_the_block_whose_width_changes_has_a_map_beside_it() -> None:
    names = set(weights(made(CONFIG).project))
    assert {name.split(".shortcut")[0] for name in names if ".shortcut" in name} == {"before.0"}


def test_parameters_operations_and_tokens_by_hand() -> None:
    cost = connector_cost(CAbstractorConfig(num_queries=4, depth=1, hidden=8), SHAPE)
    first = 6 * 8 + 9 * 8 + (8 * 2 + 2) + (2 * 8 + 8) + 64 + 6 * 8 + (6 * 8 + 16)
    second = 64 + 9 * 8 + (8 * 2 + 2) + (2 * 8 + 8) + 64 + 6 * 8
    assert cost.parameters == 32 * 6 + first + second + (80 + 10) + (100 + 10)
    before, after = 32, 4
    maps = before * (48 + 72 + 64 + 48) + 32 + after * (64 + 72 + 64) + 32
    assert cost.flops == 2 * (maps + after * (80 + 100))
    assert cost.tokens == 4


def test_what_stands_near_stays_near() -> None:
    # A change in the image's top left corner: a block sees one patch further, pooled or not. What is further away feels it
    # through the squeeze alone.
    connector = made(CAbstractorConfig(num_queries=16, depth=1, hidden=8))
    seen = features(crops=1)
    moved = seen.clone()
    moved[0, 0] += 1
    change = (connector(moved, unused) - connector(seen, unused)).detach().norm(dim=2)[0]
    near, all_moved = change.view(4, 4)[:3, :2], float(change.sum())
    assert float(near.sum()) > 0.9 * all_moved


@pytest.mark.parametrize("queries", [1, 4, 9, 16])
def test_the_number_of_tokens_is_a_square_of_choice(queries: int) -> None:
    assert made(CAbstractorConfig(num_queries=queries, depth=1, hidden=8))(features(), unused).shape[1] == queries
