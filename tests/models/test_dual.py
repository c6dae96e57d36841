"""Dual encoders: vectors equal to transformers', parts, frozen encoders, stored features, folders."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize
from transformers import AutoModel, CLIPModel, SiglipModel

from sightline.assembly.config.schema import ModelConfig
from sightline.assembly.model import towers
from sightline.assembly.model.blueprint import section_blueprint
from sightline.assembly.model.build import build_model, read_model
from sightline.data.batches.pairs import TextTokens
from sightline.errors import ConfigError, UsageError
from sightline.models.dual import MAX_SCALE, DualModel
from sightline.training import stages
from sightline.types import PairBatch, Texts
from tests.builders import decoder_folder, encoder_folder, pictures, side_of
from tests.duals import dual_folder, text_folder

CAPTIONS = ["a red dog", "two children on the beach, and a ball", "blue"]


def joined(eye: str = "siglip", text: Path | None = None, **changes: Any) -> DualModel:
    """A vision and a text encoder joined by new heads of width 12."""
    tower = {"path": str(text or text_folder()), "pooling": changes.pop("text_pooling", "mean")}
    section = {"vision": {"path": str(encoder_folder(eye))}, "dual": {"text": tower, "width": 12, **changes}}
    blueprint = section_blueprint(ModelConfig.model_validate(section))
    model = build_model(blueprint)
    assert isinstance(model, DualModel)
    return model.eval()


def batch_of(model: DualModel, tokens: TextTokens, side: int) -> PairBatch:
    ids, mask = (torch.from_numpy(value) for value in tokens(CAPTIONS))
    number = torch.arange(len(CAPTIONS))
    return PairBatch(torch.from_numpy(pictures(1, len(CAPTIONS), side)), None, Texts(ids, mask), number, number, number)


def tokens_of(model: DualModel, folder: Path) -> TextTokens:
    tokenizer = towers.load_tokenizer(str(folder))
    length = model.text_length
    return TextTokens(tokenizer, length.limit, length.is_fixed, int(tokenizer.eos_token_id))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_stock_model_gives_the_vectors_of_transformers(kind: str) -> None:
    bundle = read_model(dual_folder(kind))
    assert bundle.pairs is not None
    stock = (CLIPModel if kind == "clip" else SiglipModel).from_pretrained(dual_folder(kind)).eval()
    batch = batch_of(bundle.pairs, tokens_of(bundle.pairs, dual_folder(kind)), 32)
    found = bundle.pairs.embeddings(batch)
    assert batch.pixels_NHWC is not None
    values = ((batch.pixels_NHWC.float() / 255 - 0.5) / 0.5).permute(0, 3, 1, 2)
    ids = batch.texts.ids_CT
    if kind == "siglip":
        assert ids is not None
        assert ids.shape[1] == 24  # every text has the length that SigLIP was trained with
    attention = {"attention_mask": batch.texts.mask_CT} if kind == "clip" else {}
    image, text = stock.get_image_features(values), stock.get_text_features(ids, **attention)
    torch.testing.assert_close(found.image_NW, normalize(image.pooler_output, dim=-1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.text_CW, normalize(text.pooler_output, dim=-1), rtol=1e-4, atol=1e-5)
    assert found.scale.item() == pytest.approx(stock.logit_scale.exp().item())
    assert (found.bias is None) == (kind == "clip")


@pytest.mark.parametrize("eye", ["clip", "dinov2", "mobilenet_v2", "siglip", "vit"])
@pytest.mark.parametrize("pooling", ["own", "mean"])
def test_any_vision_encoder_joins_a_text_encoder_and_opens_as_a_transformers_folder(eye: str, pooling: str, tmp_path: Path) -> None:
    model = joined(eye, pooling=pooling, projection="mlp", bias=-5.0)
    batch = batch_of(model, tokens_of(model, text_folder()), side_of(eye))
    model.inner.save_pretrained(tmp_path)
    opened = AutoModel.from_pretrained(tmp_path).eval()
    found = model.embeddings(batch)
    pixels = batch.pixels_NHWC
    assert pixels is not None
    config = opened.config
    mean, std = torch.tensor(config.image_mean), torch.tensor(config.image_std)
    values = ((pixels.float() * config.rescale_factor - mean) / std).permute(0, 3, 1, 2)
    image = opened.get_image_features(values).pooler_output
    text = opened.get_text_features(batch.texts.ids_CT, batch.texts.mask_CT).pooler_output
    torch.testing.assert_close(found.image_NW, normalize(image, dim=-1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.text_CW, normalize(text, dim=-1), rtol=1e-4, atol=1e-5)
    logits = opened(batch.texts.ids_CT, values, batch.texts.mask_CT).logits_per_image
    torch.testing.assert_close(found.scale * found.image_NW @ found.text_CW.T + found.bias, logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "pooling"), [("llama", "mean"), ("llama", "last"), ("gpt2", "last"), ("bert", "own"), ("bert", "first")]
)
def test_padding_does_not_change_the_vector_of_a_text(kind: str, pooling: str) -> None:
    folder = text_folder() if kind == "bert" else decoder_folder(kind)
    model = joined(text=folder, text_pooling=pooling)
    tokens = tokens_of(model, folder)
    together = model.text_states(Texts(*(torch.from_numpy(value) for value in tokens(CAPTIONS))))
    for row, caption in enumerate(CAPTIONS):
        alone = model.text_states(Texts(*(torch.from_numpy(value) for value in tokens([caption]))))
        torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-5)


def test_long_texts_are_cut_and_end_with_the_end_token() -> None:
    tokenizer = towers.load_tokenizer(str(text_folder()))
    tokens = TextTokens(tokenizer, 6, False, 0)
    ids, mask = tokens(["a red dog runs over the green field", ""])
    assert ids.shape == (2, 6)
    assert ids[0, -1] == tokenizer.eos_token_id
    assert mask.sum(1).tolist() == [6, 1]
    assert ids[0, :5].tolist() == tokenizer("a red dog runs over the green field")["input_ids"][:5]


def test_parts_freeze_and_adapt_by_name() -> None:
    bundle = read_model(dual_folder("clip"))
    model = bundle.module
    rules: Any = {"text": stages.PartConfig.model_validate({"lr": 0.1, "lora": {"r": 2, "targets": ("q_proj", "v_proj")}})}
    stage = stages.apply(model, "s", rules, 0.1, 0.0)
    sizes = {row.name: (row.parameters > 0, row.trainable > 0, row.rank) for row in stage.table}
    assert sizes == {"vision": (True, False, 0), "text": (True, True, 2), "projection": (True, False, 0)}
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    assert trained
    assert all("text_model" in name and ".lora_" in name for name in trained)
    assert not model.get_submodule("vision").training
    assert model.get_submodule("text").training


def test_a_frozen_encoder_has_no_graph_and_stored_outputs_take_its_place() -> None:
    model = joined("mobilenet_v2", pooling="mean")
    batch = batch_of(model, tokens_of(model, text_folder()), side_of("mobilenet_v2"))
    stages.apply(model, "s", {"projection": "train"}, 0.1, 0.0)
    features, states = model.features(batch), model.text_states(batch.texts)
    assert features.shape[1:] == (16, model.inner.config.vision_width)
    assert not features.requires_grad
    assert not states.requires_grad
    stored = PairBatch(None, features, Texts(states_CU=states), batch.image_N, batch.owner_C, batch.text_C)
    one, two = model.embeddings(batch), model.embeddings(stored)
    assert torch.equal(one.image_NW, two.image_NW)
    assert torch.equal(one.text_CW, two.text_CW)
    assert one.image_NW.requires_grad


def test_the_scale_is_learned_and_clamped_without_a_bias() -> None:
    model = joined()
    stages.apply(model, "s", {"projection": "train"}, 0.1, 0.0)
    parameter = model.inner.projection.logit_scale
    parameter.data.fill_(9.0)
    model.train()
    scale = model.logit_scale()
    scale.backward()
    assert scale.item() == pytest.approx(MAX_SCALE)
    assert parameter.grad.item() == pytest.approx(MAX_SCALE)  # so that it can fall again
    sigmoid = joined(bias=-10.0)
    sigmoid.inner.projection.logit_scale.data.fill_(9.0)
    assert sigmoid.logit_scale().item() == pytest.approx(torch.tensor(9.0).exp().item())


def test_what_a_dual_encoder_has_not_is_said() -> None:
    model = joined()
    with pytest.raises(UsageError, match="has no decoder"):
        model.generate()
    with pytest.raises(ConfigError, match="no pooled output"):
        joined("siglip_headless")
    both = {"dual": {"path": "x"}, "language": {"path": "y"}}
    with pytest.raises(ValueError, match="has no decoder"):
        ModelConfig.model_validate(both)
