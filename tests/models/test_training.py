"""What trains and what does not: frozen parts to the bit, gradient checkpointing, and LoRA by peft."""

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from sightline.models.gradient_checkpointing import checkpoint_activations
from sightline.models.language import LanguageConfig, build_decoder
from sightline.models.vlm import SightlineForConditionalGeneration
from sightline.objectives.next_token import NextToken
from sightline.training import optim, stages
from sightline.types import Batch
from tests.builders import SIDE, batch_of, sample, vlm


def bits(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, those that are not saved included."""
    return {name: value.detach().clone() for name, value in [*model.named_parameters(), *model.named_buffers()]}


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor], part: str = "") -> bool:
    names = [name for name in ours if name.startswith(part)]
    assert names
    return all(torch.equal(ours[name], theirs[name]) for name in names)


def batch_for(eye: str, seed: int = 1) -> Batch:
    side = 4 * SIDE if eye == "mobilenet_v2" else SIDE
    return batch_of([sample(seed, [4, 2], side=side)], [sample(seed + 1, [5], num_images=2, side=side)])


def train(model: nn.Module, rules: dict[Any, Any], batches: list[Batch], decay: float = 0.1) -> None:
    """Steps as the loop makes them."""
    stage = stages.apply(model, "test", rules, lr=1e-2, weight_decay=decay)
    optimiser = optim.build_optimiser(stage, (0.9, 0.999), 1e-8)
    objective = NextToken()
    for batch in batches:
        model.train()
        loss = objective(model, batch)  # pyrefly: ignore
        loss.total.backward()
        parameters = [value for group in stage.groups for value in group.parameters.values()]
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad /= loss.weight
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)


# Frozen -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eye", ["dinov2", "mobilenet_v2", "siglip"])
@pytest.mark.parametrize("trained", ["connector", "language", "vision"])
def test_frozen_parts_are_bit_equal_after_training_buffers_included(eye: str, trained: str) -> None:
    model = vlm(eye, "llama", num_separators=1)
    before = bits(model)
    train(model, {trained: "train"}, [batch_for(eye, seed) for seed in range(3)])
    after = bits(model)
    for part in ("connector", "language", "vision"):
        assert same(before, after, f"{part}.") == (part != trained)
    assert same(before, after, "separators") == (trained != "connector" or not model.separators.numel())
    if (eye, trained) == ("mobilenet_v2", "vision"):
        assert not same(before, after, "vision.conv_stem.first_conv.normalization.running_mean")


def test_a_batch_norm_of_a_frozen_encoder_would_move_under_torchs_own_train() -> None:
    model = vlm("mobilenet_v2", "llama")
    stages.apply(model, "test", {"connector": "train"}, 1e-2, 0.0)
    before = bits(model.vision)
    nn.Module.train(model)
    model.hidden(batch_for("mobilenet_v2"))
    assert not same(before, bits(model.vision))


def test_separators_train_with_the_connector_and_only_where_they_are_used() -> None:
    model = vlm("siglip", "llama", num_separators=2)
    before = model.separators.detach().clone()
    train(model, {"connector": "train"}, [batch_for("siglip")], decay=0.0)
    assert torch.equal(model.separators.detach(), before)  # the batch has no slot for them


def test_train_leaves_frozen_parts_in_eval_and_eval_takes_all() -> None:
    model = vlm("siglip", "llama")
    for trained in ("connector", "language", "vision"):
        stages.apply(model, "test", {trained: "train"}, 1e-3, 0.0)  # pyrefly: ignore
        for mode in (model.train(), nn.Sequential(model).train()[0]):
            assert mode.training
            for part in ("connector", "language", "vision"):
                modules = list(model.get_submodule(part).modules())
                assert all(module.training == (part == trained) for module in modules)
    model.eval()
    assert not any(module.training for module in model.modules())


def test_a_part_that_trains_in_part_is_in_train_mode() -> None:
    model = vlm("siglip", "llama").requires_grad_(False)
    model.language.lm_head.weight.requires_grad_(True)
    model.train()
    assert model.language.training
    assert not model.vision.training
    assert not model.connector.training


@pytest.mark.parametrize("trains", [False, True])
def test_a_frozen_encoder_runs_without_a_graph(trains: bool) -> None:
    model = vlm("siglip", "llama")
    model.vision.requires_grad_(trains)
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda value: saved.append(value.numel()) or value, lambda value: value):
        features = model.encode_pixels(torch.randn(2, 3, SIDE, SIDE))
    assert features.requires_grad == trains
    assert bool(saved) == trains
    with torch.no_grad():
        assert not model.encode_pixels(torch.randn(2, 3, SIDE, SIDE)).requires_grad


def test_gradient_reaches_a_connector_through_a_frozen_decoder() -> None:
    model = vlm("siglip", "llama")
    stages.apply(model, "test", {"connector": "train"}, 1e-3, 0.0)
    NextToken()(model, batch_for("siglip")).total.backward()
    with_gradient = {name.split(".")[0] for name, value in model.named_parameters() if value.grad is not None and value.numel()}
    assert with_gradient == {"connector"}
    assert all(value.grad is not None and value.grad.any() for value in model.connector.parameters())


@pytest.mark.parametrize("eye", ["clip", "dinov2_registers", "mobilenet_v2", "siglip"])
def test_every_weight_that_is_used_gets_a_gradient(eye: str) -> None:
    model = vlm(eye, "qwen3")
    NextToken()(model, batch_for(eye)).total.backward()
    without = {name for name, value in model.named_parameters() if value.grad is None and value.numel()}
    # Poolers, and what stands after the layer that is taken, take no part.
    assert all(
        name.startswith(("vision.head.", "vision.post_layernorm", "vision.pooler", "vision.embeddings.mask_token"))
        for name in without
    )
    assert not any(name.startswith(("connector", "language")) for name in without)


# Gradient checkpointing -----------------------------------------------------------------------------------------------------------


def gradients(model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad(set_to_none=True)
    loss = NextToken()(model, batch)  # pyrefly: ignore
    loss.total.backward()
    return loss.total.detach(), {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("rules", [{"connector": "train"}, {"connector": "train", "language": "train", "vision": "train"}])
@pytest.mark.parametrize("kind", ["gemma3", "gpt2", "llama"])
def test_gradient_checkpointing_computes_layers_again_and_changes_nothing(kind: str, rules: dict[Any, Any]) -> None:
    model = vlm("siglip", kind)
    stages.apply(model, "test", rules, 1e-3, 0.0)
    batch = batch_for("siglip")
    loss, plain = gradients(model, batch)
    checkpoint_activations(model)
    model.train()
    inner = model.language.base_model
    norms = {"gpt2": lambda: inner.h[0].ln_1}.get(kind, lambda: inner.layers[0].input_layernorm)()
    calls: list[int] = []
    norms.register_forward_hook(lambda *_: calls.append(1))
    again, checkpointed = gradients(model, batch)
    assert len(calls) == 2  # once forward, once in the backward pass
    assert torch.equal(loss, again)
    assert plain.keys() == checkpointed.keys()
    for name, value in plain.items():
        torch.testing.assert_close(checkpointed[name], value, rtol=1e-5, atol=1e-7)
    if "language" not in rules:
        assert not any(name.startswith("language") for name in checkpointed)
    model.eval()
    with torch.no_grad():
        assert not any(module.training for module in model.modules())


def test_checkpointing_a_frozen_decoder_keeps_its_dropout_off() -> None:
    """OPT's layers drop out by their own mode, not by that of a child."""
    torch.manual_seed(3)
    model = vlm("siglip", "llama")
    sizes = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    opt = LanguageConfig(config={"model_type": "opt", "dropout": 0.5, **sizes}, tokenizer="here")
    model.language = build_decoder(opt, vocabulary=301)
    batch = batch_of([sample(1, [4])])
    losses = []
    for rules in ({"connector": "train"}, {"connector": "train"}, {"connector": "train", "language": "train"}):
        stages.apply(model, "test", rules, 1e-3, 0.0)
        losses.append(gradients(model, batch)[0].item())
        checkpoint_activations(model)
    assert losses[0] == losses[1]
    assert losses[2] != losses[0]


# LoRA -------------------------------------------------------------------------------------------------------------------------

# peft asks transformers 5.23 by a name that is going out of use.
BY_OLD_NAME = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
ADAPTED = r"language\..*\.(q_proj|v_proj|c_attn)"


def with_lora(model: SightlineForConditionalGeneration, kind: str) -> Any:
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=ADAPTED, modules_to_save=["connector"], fan_in_fan_out=kind == "gpt2"
    )
    return peft.get_peft_model(model, config)


@BY_OLD_NAME
@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3"])
def test_lora_trains_saves_loads_and_merges(kind: str, tmp_path: Path) -> None:
    model = vlm("siglip", kind)
    original = copy.deepcopy(model)
    batch = batch_for("siglip")
    with torch.no_grad():
        plain = original.hidden(batch).states_SD
    adapted = with_lora(model, kind)
    with torch.no_grad():
        assert torch.equal(adapted.eval().hidden(batch).states_SD, plain)  # LoRA begins at zero

    trainable = [value for value in adapted.parameters() if value.requires_grad]
    before = bits(adapted)
    optimiser = torch.optim.AdamW(trainable, lr=5e-2)
    for _ in range(2):
        adapted.train()
        NextToken()(adapted, batch).total.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    moved = {name for name, value in bits(adapted).items() if not torch.equal(value, before[name])}
    assert moved
    assert all("lora_" in name or "modules_to_save" in name for name in moved)
    adapted.eval()
    ids = torch.arange(5, 12)[None]
    with torch.no_grad():
        states, logits = adapted.hidden(batch).states_SD, adapted(input_ids=ids).logits
    assert not torch.allclose(states, plain, atol=1e-3)

    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)  # else older ones guess, and warn
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(original), tmp_path / "adapter").eval()
    with torch.no_grad():
        assert torch.equal(loaded.hidden(batch).states_SD, states)
        assert torch.equal(loaded(input_ids=ids).logits, logits)
        said = loaded.generate(input_ids=ids, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
        assert said.shape == (1, 11)

    merged = loaded.merge_and_unload()
    assert isinstance(merged, SightlineForConditionalGeneration)
    assert merged.state_dict().keys() == original.state_dict().keys()
    with torch.no_grad():
        torch.testing.assert_close(merged.hidden(batch).states_SD, states, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(merged(input_ids=ids).logits, logits, rtol=1e-4, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    again = SightlineForConditionalGeneration.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        assert torch.equal(again.hidden(batch).states_SD, merged.hidden(batch).states_SD)


@BY_OLD_NAME
def test_lora_with_checkpointing_gives_the_same_gradients() -> None:
    adapted = with_lora(vlm("siglip", "llama"), "llama")
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_B" in name:
                value.normal_()
    adapted.train()
    batch = batch_for("siglip")
    loss, plain = gradients(adapted, batch)
    checkpoint_activations(adapted.base_model.model)
    again, checkpointed = gradients(adapted, batch)
    assert torch.equal(loss, again)
    assert plain.keys() == checkpointed.keys()
    for name, value in plain.items():
        torch.testing.assert_close(checkpointed[name], value, rtol=1e-5, atol=1e-7)
