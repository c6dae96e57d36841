"""The light networks of ComAlign: the published one against its formula, the residual one at its start, boxes on a grid."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, normalize, softmax
from transformers import AutoModel

from sightline.assembly.config.schema import ModelConfig
from sightline.assembly.model.blueprint import section_blueprint
from sightline.assembly.model.build import build_model
from sightline.errors import ConfigError
from sightline.models.comalign import AlignedModel, pooling_weights
from sightline.models.light_network import AlignmentConfig, LightNetwork, published_state
from sightline.types import ComponentInputs, PairBatch, Texts
from tests.builders import encoder_folder, pictures, side_of
from tests.duals import dual_folder, text_folder


def published(width: int, seed: int = 0) -> LightNetwork:
    torch.manual_seed(seed)
    network = LightNetwork(AlignmentConfig(variant="published"), width)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network.double().eval()


def authors_names(network: LightNetwork) -> dict[str, Tensor]:
    """The weights under the names of the authors' module, with the parts of theirs that inference never uses."""
    renamed = {
        name.replace("project.", "bottleneck_box.0.").replace("encoder.", "transformer_encoder_box."): value
        for name, value in network.state_dict().items()
    }
    return renamed | {
        "bottleneck_encoder.0.weight": torch.zeros(2, 2),
        "encoder_pos_embedding.positional_encodings": torch.zeros(1),
    }


def by_hand(state: dict[str, Tensor], x: Tensor, heads: int) -> Tensor:
    """The published network as a formula: one image, `[tokens, width]`."""
    tokens, width = x.shape
    x = torch.relu(x @ state["bottleneck_box.0.weight"].T + state["bottleneck_box.0.bias"])
    for position in range(tokens):
        for i in range(width):
            angle = position / 10000 ** (2 * i / width)
            x[position, i] += math.cos(angle) if i % 2 == 0 else math.sin(angle)
    for layer in range(2):
        weights = {name.partition(f"layers.{layer}.")[2]: value for name, value in state.items() if f"layers.{layer}." in name}
        q, k, v = (x @ weights["self_attn.in_proj_weight"].T + weights["self_attn.in_proj_bias"]).chunk(3, dim=-1)
        outs = []
        for part in torch.arange(width).chunk(heads):
            attention = softmax(q[:, part] @ k[:, part].T / (width / heads) ** 0.5, dim=-1)
            outs.append(attention @ v[:, part])
        attended = torch.cat(outs, dim=-1) @ weights["self_attn.out_proj.weight"].T + weights["self_attn.out_proj.bias"]
        x = layer_norm(x + attended, (width,), weights["norm1.weight"], weights["norm1.bias"])
        hidden = torch.relu(x @ weights["linear1.weight"].T + weights["linear1.bias"])
        x = x + hidden @ weights["linear2.weight"].T + weights["linear2.bias"]
        x = layer_norm(x, (width,), weights["norm2.weight"], weights["norm2.bias"])
    return x


def test_the_published_network_is_its_formula_and_has_its_size() -> None:
    network = published(16)
    x = torch.randn(2, 21, 16, dtype=torch.float64)
    mask = torch.rand(2, 21) < 0.5  # it knows no padding
    found = network(x, mask)
    for row in range(2):
        torch.testing.assert_close(found[row], by_hand(authors_names(network), x[row].clone(), 4), rtol=1e-9, atol=1e-9)
    other = published(16, seed=1)
    other.load_state_dict(published_state(authors_names(network)))
    assert torch.equal(other(x, mask), found)
    with pytest.raises(KeyError, match="head"):
        published_state({"head.weight": torch.zeros(1)})
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in LightNetwork(AlignmentConfig(variant="published"), 512).parameters())
    assert size == 3_418_624


def test_boxes_are_means_of_the_tokens_that_they_cover() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 1.0, 1.0], [0.5, 0.0, 1.0, 0.5], [0.25, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]])
    found = pooling_weights(boxes, (2, 2))[0]
    assert found[0].tolist() == [0.25] * 4
    assert found[1].tolist() == [0, 1, 0, 0]
    torch.testing.assert_close(found[2], torch.tensor([1 / 6, 1 / 3, 1 / 6, 1 / 3]))  # a quarter of the left half is cut off
    assert found[3].tolist() == [0] * 4


def aligned(alignment: dict[str, Any], grid: bool = True) -> AlignedModel:
    if grid:
        text = {"path": str(text_folder())}
        section: dict[str, Any] = {
            "vision": {"path": str(encoder_folder("mobilenet_v2"))},
            "dual": {"text": text, "pooling": "mean", "width": 8, "alignment": alignment},
        }
    else:
        section = {"dual": {"path": str(dual_folder("clip")), "alignment": alignment}}
    model = build_model(section_blueprint(ModelConfig.model_validate(section)))
    assert isinstance(model, AlignedModel)
    return model.eval()


def batch_of(model: AlignedModel) -> PairBatch:
    """Two pairs with two boxes and two pairs of boxes each; the second text has no relation."""
    boxes = torch.tensor([[[0, 0, 1, 1], [0, 0, 0.5, 0.5], [0, 0, 1, 0.5], [0, 0, 0, 0]]] * 2, dtype=torch.float32)
    ids = torch.tensor([[5, 6, 7], [8, 9, 3]])
    phrases = Texts(torch.tensor([[5, 6], [8, 9], [7, 7]]), torch.ones(3, 2, dtype=torch.long))
    components = ComponentInputs(boxes, phrases, torch.tensor([[0, -1, 2, -1], [1, 0, -1, -1]]))
    crops = 1 + boxes.shape[1] if model.encodes_crops else 1
    side = 32 if model.encodes_crops else side_of("mobilenet_v2")
    pixels = torch.from_numpy(pictures(1, 2 * crops, side))
    number = torch.arange(2)
    return PairBatch(pixels, None, Texts(ids, torch.ones_like(ids)), number, number, number, components=components)


SIZES = {"entities": 2, "relations": 2, "boxes": "record"}


@pytest.mark.parametrize("grid", [True, False])
@pytest.mark.parametrize("sides", ["image", "both"])
def test_a_residual_network_begins_as_the_encoder(grid: bool, sides: str, tmp_path: Path) -> None:
    model = aligned({**SIZES, "sides": sides}, grid)
    assert model.encodes_crops is not grid
    batch = batch_of(model)
    found = model.embeddings(batch)
    torch.testing.assert_close(found.images.whole_NW, found.images.plain_NW)
    torch.testing.assert_close(found.texts.whole_NW, found.texts.plain_NW)
    features = model.features(batch)
    states = features.mean(1).reshape(2, -1, features.shape[2]) if not grid else features.mean(1)[:, None]
    torch.testing.assert_close(found.images.plain_NW, normalize(model.image_head(states[:, 0]), dim=-1), rtol=1e-4, atol=1e-5)
    second = states[:, 2] if not grid else features.unflatten(1, model.grid)[:, :2, :2].mean((1, 2))
    torch.testing.assert_close(found.images.entity_NKW[:, 1], normalize(model.image_head(second), dim=-1), rtol=1e-4, atol=1e-5)
    phrase = model.text_vectors(model.text_states(Texts(torch.tensor([[8, 9]]), torch.ones(1, 2, dtype=torch.long))))
    torch.testing.assert_close(found.texts.entity_NKW[1, 0], phrase[0], rtol=1e-4, atol=1e-5)
    assert found.images.relation_NK.tolist() == [[True, False]] * 2
    assert found.texts.entity_NK.tolist() == [[True, False], [True, True]]
    assert found.texts.relation_NK.tolist() == [[True, False]] * 2  # the second has none: the whole caption takes its place
    assert torch.equal(found.texts.relation_NKW[1, 0], found.texts.whole_NW[1])
    parts = model.parts()
    assert set(parts) == {"vision", "text", "projection", "alignment"}
    assert sum(map(len, parts.values())) == len(list(model.parameters()))
    model.inner.save_pretrained(tmp_path)
    opened = AutoModel.from_pretrained(tmp_path).eval()
    assert torch.equal(opened.image_network.project.weight, model.inner.image_network.project.weight)
    assert (opened.text_network is None) == (sides == "image")


def test_masked_padding_changes_nothing_and_published_padding_counts() -> None:
    for variant in ("residual", "published"):
        model = aligned({**SIZES, "variant": variant, "sides": "both"})
        for parameter in model.parts()["alignment"].values():
            nn.init.normal_(parameter, std=0.3)
        batch = batch_of(model)
        assert batch.components is not None
        with torch.no_grad():
            before = model.embeddings(batch)
        fewer = ComponentInputs(
            batch.components.boxes_NK4, batch.components.phrases, torch.tensor([[0, -1, 2, -1], [1, -1, -1, -1]])
        )
        ids = batch.texts
        after = model.text_components(model.text_states(ids), fewer)
        torch.testing.assert_close(before.texts.entity_NKW[0], after.entity_NKW[0])  # another text does not change the first
        assert float((before.texts.whole_NW[1] - after.whole_NW[1]).detach().abs().max()) > 1e-4
        if variant == "published":
            assert bool(before.images.relation_NK.all())
            assert float(before.images.relation_NKW[:, 1].norm(dim=-1).min()) > 0.9  # zero boxes become vectors
        else:
            wide = torch.cat([batch.components.boxes_NK4[:, :3], torch.full((2, 1, 4), 0.0)], dim=1)
            torch.testing.assert_close(model.image_components(model.features(batch), wide).whole_NW, before.images.whole_NW)
            assert before.images.relation_NK[:, 1].tolist() == [False, False]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not divide the width 8"):
        aligned({**SIZES, "heads": 3})
    with pytest.raises(ConfigError, match="not a grid"):
        aligned({**SIZES, "encode": "grid"}, grid=False)
    with pytest.raises(ValueError, match="at most 10"):
        AlignmentConfig(entities=11)
    with pytest.raises(ValueError, match="belongs to a dual encoder"):
        ModelConfig.model_validate({"tiling": {"kind": "boxes"}, "vision": {"path": "x"}, "language": {"path": "y"}})
