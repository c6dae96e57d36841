"""The model as transformers' common model tests would see it: contract of `forward`, weights, embeddings, saving."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

from sightline.models.connectors.align import AlignConfig
from sightline.models.connectors.linear import LinearConfig
from sightline.models.vlm import SightlineConfig, SightlineForConditionalGeneration
from tests.builders import DECODERS, SIDE, Exact, batch_of, sample, vlm
from tests.models.helpers import PER_IMAGE, close, left_padded, prompt

TIED = ["gemma", "gemma2", "gemma3", "gpt2", "llama", "qwen2"]


# forward ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DECODERS)
def test_left_padded_rows_give_the_logits_of_each_row_alone(kind: str) -> None:
    model = vlm("siglip", kind).double()
    rows = [prompt(model, 1, 2), prompt(model, 2, 0, words=9), prompt(model, 3, 1)]
    ids, mask, position = left_padded([row for row, _ in rows])
    pixels = torch.cat([images for _, images in rows if images is not None])
    with Exact(), torch.no_grad():
        together = model(input_ids=ids, pixel_values=pixels, attention_mask=mask, position_ids=position).logits
        for number, (row, images) in enumerate(rows):
            alone = model(input_ids=row, pixel_values=images).logits[0]
            assert close(together[number, -row.shape[1] :], alone)


@pytest.mark.parametrize("kind", [kind for kind in DECODERS if kind != "gemma2"])
def test_eager_and_sdpa_agree(kind: str) -> None:
    outputs = []
    for kernel in ("eager", "sdpa"):
        model = vlm("siglip", kind, attention=kernel).double()
        ids, pixels = prompt(model, 1, 2)
        with Exact(), torch.no_grad():
            outputs.append(model(input_ids=ids, pixel_values=pixels).logits)
    assert close(*outputs)
    assert model.vision.config._attn_implementation == model.language.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("kind", ["gemma2", "gpt2", "llama"])
def test_labels_give_the_mean_loss_of_shifted_targets(kind: str) -> None:
    model = vlm("siglip", kind)
    ids, pixels = prompt(model, 1, 1, words=8)
    labels = ids.clone()
    labels[:, :8] = -100
    with torch.no_grad():
        out = model(input_ids=ids, pixel_values=pixels, labels=labels)
        expected = F.cross_entropy(out.logits[0, :-1].double(), labels[0, 1:], ignore_index=-100)
        assert abs(out.loss.item() - expected.item()) < 1e-5
        summed = model(input_ids=ids, pixel_values=pixels, labels=labels, num_items_in_batch=torch.tensor(10)).loss
    assert abs(summed.item() - expected.item() * int((labels[0, 1:] != -100).sum()) / 10) < 1e-5


def test_the_loss_of_forward_is_that_of_the_objective() -> None:
    from sightline.objectives.next_token import NextToken

    model = vlm("siglip", "llama").double()
    one = sample(1, [6])
    ids = torch.from_numpy(one.branches[0].ids)[None].clone()
    ids[0, torch.from_numpy(one.image_slots)] = model.config.image_token_id
    labels = ids.clone()
    labels[:, : one.branches[0].spans[0].start] = -100
    assert one.images is not None
    with Exact():
        pixels = model.normalise(torch.from_numpy(one.images))
        theirs = model(input_ids=ids, pixel_values=pixels, labels=labels).loss
        loss = NextToken()(model, batch_of([one]))
    assert close(loss.total / loss.weight, theirs.double(), 1e-7)  # transformers computes the loss in fp32


def test_logits_to_keep_are_the_last_or_the_chosen_ones() -> None:
    model = vlm("siglip", "qwen2")
    ids, pixels = prompt(model, 1, 1)
    with torch.no_grad():
        everything = model(input_ids=ids, pixel_values=pixels).logits
        for keep in (1, 3):
            last = model(input_ids=ids, pixel_values=pixels, logits_to_keep=keep).logits
            assert close(last, everything[:, -keep:], 1e-5)
        chosen = torch.tensor([0, 4, 7])
        assert close(model(input_ids=ids, pixel_values=pixels, logits_to_keep=chosen).logits, everything[:, chosen], 1e-5)


@pytest.mark.parametrize("kind", ["gemma", "gpt2", "llama"])
def test_embeddings_may_be_given_instead_of_ids(kind: str) -> None:
    model = vlm("siglip", kind)
    text, _ = prompt(model, 1, 0)
    ids, pixels = prompt(model, 2, 2)
    assert pixels is not None
    with torch.no_grad():
        embed = model.get_input_embeddings()
        assert torch.equal(model(inputs_embeds=embed(text)).logits, model(input_ids=text).logits)
        merged = embed(ids)
        merged[ids == model.config.image_token_id] = model.get_image_features(pixels).pooler_output.flatten(0, 1)
        assert torch.equal(model(inputs_embeds=merged).logits, model(input_ids=ids, pixel_values=pixels).logits)


def test_tuples_hidden_states_and_attentions_come_out_on_request() -> None:
    model = vlm("siglip", "llama", attention="eager")
    ids, pixels = prompt(model, 1, 1)
    with torch.no_grad():
        out = model(input_ids=ids, pixel_values=pixels, output_hidden_states=True, output_attentions=True)
        pair = model(input_ids=ids, pixel_values=pixels, return_dict=False)
    assert len(out.hidden_states) == 3
    assert len(out.attentions) == 2
    assert isinstance(pair, tuple)
    assert torch.equal(pair[0], out.logits)


def test_images_fill_their_places_in_order_and_each_changes_what_follows() -> None:
    model = vlm("siglip", "llama")
    ids, pixels = prompt(model, 1, 2)
    assert pixels is not None
    with torch.no_grad():
        one = model(input_ids=ids, pixel_values=pixels).logits
        swapped = model(input_ids=ids, pixel_values=pixels.flip(0)).logits
        second = model(input_ids=ids, pixel_values=torch.stack([pixels[0], -pixels[1]])).logits
        by_source = model(input_ids=ids, pixel_values=pixels.flip(0), visual_sources=torch.tensor([4, 5, 6, 7, 0, 1, 2, 3])).logits
    assert not close(one, swapped, 1e-3)
    assert torch.equal(one, by_source)
    begin = 1 + PER_IMAGE + 1  # where the second image's tokens begin
    assert torch.equal(one[:, :begin], second[:, :begin])
    assert (one[:, begin:] - second[:, begin:]).abs().amax(2).min() > 1e-3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"input_ids": None}, "either input_ids or inputs_embeds"),
        ({"inputs_embeds": torch.zeros(1, 15, 32), "pixel_values": None}, "either input_ids or inputs_embeds"),
        ({"input_ids": None, "inputs_embeds": torch.zeros(1, 15, 32)}, "0 image tokens in input_ids, but 8 visual tokens"),
        ({"pixel_values": torch.zeros(3, 3, SIDE, SIDE)}, "8 image tokens in input_ids, but 12 visual tokens"),
        ({"pixel_values": torch.zeros(1, 3, SIDE, SIDE)}, "8 image tokens in input_ids, but 4 visual tokens"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_in_words(change: dict[str, Tensor | None], words: str) -> None:
    model = vlm("siglip", "llama")
    ids, pixels = prompt(model, 1, 2)
    with pytest.raises(ValueError, match=words):
        model(**({"input_ids": ids, "pixel_values": pixels} | change))


# Embeddings -------------------------------------------------------------------------------------------------------------------


def test_image_tokens_without_pixels_are_an_error_and_not_a_blind_answer() -> None:
    model = vlm("siglip", "llama")
    ids, _ = prompt(model, 1, 1)
    with pytest.raises(ValueError, match=f"hold {PER_IMAGE} image tokens, but pixel_values are missing"):
        model(input_ids=ids)
    with pytest.raises(ValueError, match="pixel_values are missing"):
        model.generate(input_ids=ids, max_new_tokens=2)


def test_a_vocabulary_whose_words_the_connector_mixes_does_not_shrink() -> None:
    model = vlm("siglip", "llama", AlignConfig())
    with pytest.raises(ValueError, match=f"mixes {model.config.num_words} vocabulary entries"):
        model.resize_token_embeddings(model.config.num_words - 1)
    assert model.resize_token_embeddings(model.config.num_words + 8).num_embeddings == model.config.num_words + 8


@pytest.mark.parametrize("kind", ["gemma2", "gemma3", "gpt2", "llama", "llama_untied"])
@pytest.mark.parametrize("change", [7, -20])
def test_token_embeddings_can_be_resized(kind: str, change: int, tmp_path: Path) -> None:
    model = vlm("siglip", kind)
    ids = prompt(model, 1, 0, words=6)[0] % 250
    old_size, num_words = model.get_input_embeddings().weight.shape[0], model.config.num_words
    with torch.no_grad():
        before = model(input_ids=ids).logits
        kept_words = model.words()[:250].clone()
        model.resize_token_embeddings(old_size + change, mean_resizing=False)
        out = model(input_ids=ids, labels=ids)
    assert model.config.text_config.vocab_size == model.language.config.vocab_size == old_size + change
    assert out.logits.shape[-1] == old_size + change
    kept = min(old_size, old_size + change)
    assert close(out.logits[..., :kept], before[..., :kept], 1e-5)
    assert torch.isfinite(out.loss)
    assert model.config.num_words == min(num_words, old_size + change)
    assert torch.equal(model.words()[:250], kept_words)
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == (kind in TIED)

    model.save_pretrained(tmp_path)
    again = SightlineForConditionalGeneration.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, out.logits)


def test_added_rows_may_begin_at_the_mean_of_the_others() -> None:
    model = vlm("siglip", "llama")
    size = model.get_input_embeddings().weight.shape[0]
    mean = model.get_input_embeddings().weight.detach().mean(0)
    model.resize_token_embeddings(size + 400)  # transformers draws around the mean by default
    added = model.get_input_embeddings().weight.detach()[size:]
    assert (added.mean(0) - mean).abs().max() < 0.01


@pytest.mark.parametrize("kind", DECODERS)
def test_words_are_what_the_embedding_gives_for_the_decoders_own_vocabulary(kind: str) -> None:
    model = vlm("siglip", kind)
    words = model.words()
    assert words.shape[0] == model.config.num_words == model.config.image_token_id
    assert torch.equal(words, model.get_input_embeddings()(torch.arange(model.config.num_words)))
    words.sum().backward()
    assert model.get_input_embeddings().weight.grad is not None


@pytest.mark.parametrize("kind", DECODERS)
def test_tied_weights_stay_tied_and_are_stored_once(kind: str, tmp_path: Path) -> None:
    model = vlm("siglip", kind)
    model.save_pretrained(tmp_path)
    again = SightlineForConditionalGeneration.from_pretrained(tmp_path)
    for one in (model, again):
        tied = one.get_input_embeddings().weight is one.get_output_embeddings().weight
        assert tied == (kind in TIED)
        assert one.config.tie_word_embeddings == tied
    from safetensors import safe_open

    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        stored = set(file.keys())
    heads = {name for name in stored if name.endswith("lm_head.weight")}
    assert (not heads) == (kind in TIED)
    with torch.no_grad():
        again.get_input_embeddings().weight.add_(1)
    moved = torch.equal(again.get_input_embeddings().weight, again.get_output_embeddings().weight)
    assert moved == (kind in TIED)


# Saving and configuration -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eye", ["clip", "dinov2_registers", "mobilenet_v2", "siglip", "siglip_headless", "vit"])
def test_saved_and_loaded_models_are_bit_equal(eye: str, tmp_path: Path) -> None:
    model = vlm(eye, "llama", LinearConfig(shuffle=2), num_separators=2)
    model.save_pretrained(tmp_path)
    again, info = SightlineForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    mine, theirs = model.state_dict(), again.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert not again.training
    side = SIDE * 4 if eye == "mobilenet_v2" else SIDE
    batch = batch_of([sample(1, [4], side=side)])
    with torch.no_grad():
        assert torch.equal(model.hidden(batch).states_SD, again.hidden(batch).states_SD)


def test_state_dict_names_tell_the_part() -> None:
    model = vlm("siglip", "llama", num_separators=1)
    assert {name.split(".")[0] for name in model.state_dict()} == {"vision", "connector", "language", "separators"}
    parts = model.parts()
    assert list(parts) == ["vision", "connector", "language"]
    assert "separators" in parts["connector"]
    assert sorted(name for part in parts.values() for name in part) == sorted(name for name, _ in model.named_parameters())


def test_a_model_loads_by_the_auto_class_in_a_fresh_process(tmp_path: Path) -> None:
    model = vlm("clip", "gemma3", num_separators=1)
    model.save_pretrained(tmp_path)
    ids, pixels = prompt(model, 1, 2)
    with torch.no_grad():
        logits = model(input_ids=ids, pixel_values=pixels).logits
        said = model.generate(input_ids=ids, pixel_values=pixels, max_new_tokens=4, do_sample=False, eos_token_id=None)
    torch.save({"ids": ids, "pixels": pixels}, tmp_path / "inputs.pt")
    script = f"""
import torch, transformers
import sightline.models
model = transformers.AutoModelForImageTextToText.from_pretrained({str(tmp_path)!r})
inputs = torch.load({str(tmp_path / "inputs.pt")!r})
with torch.no_grad():
    logits = model(input_ids=inputs["ids"], pixel_values=inputs["pixels"]).logits
said = model.generate(input_ids=inputs["ids"], pixel_values=inputs["pixels"], max_new_tokens=4, do_sample=False, eos_token_id=None)
torch.save({{"logits": logits, "said": said, "name": type(model).__name__}}, {str(tmp_path / "outputs.pt")!r})
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ, timeout=120)
    assert done.returncode == 0, done.stderr
    outputs = torch.load(tmp_path / "outputs.pt")
    assert outputs["name"] == "SightlineForConditionalGeneration"
    assert torch.equal(outputs["logits"], logits)
    assert torch.equal(outputs["said"], said)


def test_loading_in_half_precision_takes_every_weight_along(tmp_path: Path) -> None:
    model = vlm("siglip", "llama", num_separators=1)
    model.save_pretrained(tmp_path)
    half = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {value.dtype for value in half.parameters()} == {torch.bfloat16}
    ids, pixels = prompt(model, 1, 2)
    batch = batch_of([sample(1, [4, 2]), sample(2, [3])])
    with torch.no_grad():
        exact, rough = model(input_ids=ids, pixel_values=pixels).logits, half(input_ids=ids, pixel_values=pixels).logits
        assert rough.dtype == torch.bfloat16
        assert close(rough.float(), exact, 0.1)
        assert close(half.hidden(batch).states_SD.float(), model.hidden(batch).states_SD, 0.1)


def test_the_configuration_survives_json_and_has_defaults(tmp_path: Path) -> None:
    model = vlm("dinov2", "gemma3", num_separators=3)
    model.config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(again, SightlineConfig)
    skipped = {"_name_or_path", "_attn_implementation", "dtype", "transformers_version"}

    def plain(config: SightlineConfig) -> dict[str, object]:
        return {key: value for key, value in json.loads(config.to_json_string(use_diff=False)).items() if key not in skipped}

    assert plain(again) == plain(model.config)
    assert again.get_text_config() is again.text_config
    assert SightlineConfig().model_type == "sightline"
    assert again.connector_shape() == model.config.connector_shape()


def test_a_model_is_built_from_its_configuration_alone() -> None:
    model = vlm("siglip", "qwen3")
    fresh = SightlineForConditionalGeneration(SightlineConfig.from_dict(model.config.to_dict()))
    mine, theirs = model.state_dict(), fresh.state_dict()
    assert {name: value.shape for name, value in mine.items()} == {name: value.shape for name, value in theirs.items()}
    assert all(torch.isfinite(value).all() for value in theirs.values())
    assert not torch.equal(mine["connector.project.linears.0.weight"], theirs["connector.project.linears.0.weight"])


def test_building_around_parts_keeps_every_weight_that_they_have() -> None:
    from tests.builders import decoder, encoder

    model = vlm("dinov2", "llama_untied")
    for part, alone in (("vision", encoder("dinov2")), ("language", decoder("llama_untied", spare=1))):
        for name, value in alone.state_dict().items():
            assert torch.equal(model.state_dict()[f"{part}.{name}"], value), name


def test_separate_rows_and_their_images_may_have_any_number_of_images() -> None:
    model = vlm("vit", "llama").double()
    rows = [prompt(model, 1, 0), prompt(model, 2, 3), prompt(model, 3, 1)]
    ids, mask, position = left_padded([row for row, _ in rows])
    pixels = torch.cat([images for _, images in rows if images is not None])
    with Exact(), torch.no_grad():
        together = model(input_ids=ids, pixel_values=pixels, attention_mask=mask, position_ids=position).logits
        alone = model(input_ids=rows[1][0], pixel_values=rows[1][1]).logits
    assert close(together[1, -alone.shape[1] :], alone[0])
