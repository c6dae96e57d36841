"""The scratch models as transformers models: folders, generation, packing, and equality with Mixtral on shared weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    ViTConfig,
    ViTModel,
)

from sightline.errors import ConfigError
from sightline.models.gradient_checkpointing import checkpoint_activations
from sightline.models.language import LanguageConfig, build_decoder, check_decoder, check_packable
from sightline.models.scratch.shell import ScratchForCausalLM, ScratchViTModel
from sightline.models.text import TextModel
from sightline.models.vision import VisionConfig, build_encoder, probe_shape
from sightline.objectives.next_token import NextToken
from tests.builders import Exact, apart, batch_of, sample
from tests.models.helpers import close, left_padded
from tests.models.scratch.helpers import LLAMA_LIKE, MOE, VARIANTS, scratch_decoder

VIT = {"model_type": "sightline_vit", "image_size": 32, "patch_size": 8, "hidden_size": 24, "intermediate_size": 32}
VIT |= {"num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.3}


def vit(**changes: Any) -> PreTrainedModel:
    torch.manual_seed(3)
    return build_encoder(VisionConfig(config=VIT | changes)).eval()


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# Sizes ------------------------------------------------------------------------------------------------------


def test_default_sizes_are_those_of_the_published_models() -> None:
    """Parameter counts of seemore.py and seeMoE.py with 66 characters (METHODS: 9,866,752, 1,728,322 and 9,120,706)."""
    with torch.device("meta"):
        assert size(AutoModel.from_config(AutoConfig.for_model("sightline_vit"))) == 9_866_752
        dense = AutoConfig.for_model("sightline_decoder", vocab_size=66)
        assert size(AutoModelForCausalLM.from_config(dense)) == 1_728_322
        sparse = AutoConfig.for_model("sightline_decoder", vocab_size=66, num_experts=8, router_noise=True)
        assert size(AutoModelForCausalLM.from_config(sparse)) == 9_120_706


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"hidden_size": 30}, r"hidden_size=30 is not a multiple of num_attention_heads=4"),
        ({"positions": "none"}, r"positions='none' must be one of learned, rotary"),
        ({"num_experts": 2, "num_experts_per_tok": 3}, r"num_experts_per_tok=3 is more than num_experts=2"),
        ({"number_experts": 2}, r"has no key 'number_experts'.*Did you mean 'num_experts'"),
    ],
)
def test_a_wrong_size_is_refused_by_name(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        scratch_decoder(**changes)


# Against transformers ---------------------------------------------------------------------------------------


def test_with_shared_weights_it_computes_what_mixtral_computes() -> None:
    """Rotary positions, RMSNorm, gated experts, no biases and no noise are a Mixtral with as many key heads as query heads."""
    ours = scratch_decoder(**{**MOE, **LLAMA_LIKE, "router_noise": False, "shared_expert_size": 0, "tie_word_embeddings": False})
    config = MixtralConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_local_experts=4,
        num_experts_per_tok=2,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        router_aux_loss_coef=0.01,
        attn_implementation="eager",
    )
    theirs = MixtralForCausalLM(config).eval()
    theirs.set_experts_implementation("eager")
    theirs.load_state_dict(mixtral_names(ours.state_dict()))
    ours, theirs = ours.double(), theirs.double()
    ours.config.router_z_loss_coef = 0.0
    ids = torch.randint(3, 300, (3, 11), generator=torch.Generator().manual_seed(1))
    with Exact():
        mine, other = (model(input_ids=ids, labels=ids, output_router_logits=True) for model in (ours, theirs))
    # Mixtral's routers compute their softmax in fp32.
    torch.testing.assert_close(mine.logits, other.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mine.aux_loss.double(), other.aux_loss.double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(mine.loss, other.loss, rtol=1e-6, atol=0)
    said = [model.float().generate(input_ids=ids, max_new_tokens=6, do_sample=False, pad_token_id=0) for model in (ours, theirs)]
    assert torch.equal(*said)


def mixtral_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {
        "model.network.embedding.": "model.embed_tokens.",
        "model.network.": "model.",
        "attention_norm": "input_layernorm",
        "mlp_norm": "post_attention_layernorm",
        "attention.": "self_attn.",
        "mlp.router.score.": "mlp.gate.",
    }
    out = {}
    for name, value in weights.items():
        for old, new in names.items():
            name = name.replace(old, new)
        out[name] = value
    for layer in range(2):
        prefix = f"model.layers.{layer}.mlp.experts."
        gate, up = out.pop(f"{prefix}gate_proj"), out.pop(f"{prefix}up_proj")
        out[f"{prefix}gate_up_proj"] = torch.cat([gate, up], 1)
    return out


def test_the_encoder_computes_what_a_vit_of_transformers_computes() -> None:
    ours = vit(hidden_act="gelu").double()
    sizes = {key: value for key, value in VIT.items() if key != "model_type"}
    config = ViTConfig(**sizes, qkv_bias=False, layer_norm_eps=1e-5, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    theirs = ViTModel(config, add_pooling_layer=False).eval().double()
    state, wanted = ours.state_dict(), set(theirs.state_dict())
    names = {
        "network.patches": "embeddings.patch_embeddings.projection",
        "network.class_token": "embeddings.cls_token",
        "network.positions": "embeddings.position_embeddings",
        "network.norm": "layernorm",
        "network.layers": "layers",
        "attention_norm": "layernorm_before",
        "mlp_norm": "layernorm_after",
        ".up_proj": ".mlp.fc1",
        ".down_proj": ".mlp.fc2",
    }
    renamed = {}
    for name, value in state.items():
        for old, new in names.items():
            name = name.replace(old, new)
        renamed[name] = value
    if set(renamed) != wanted:
        pytest.fail(f"transformers renamed weights of its ViT: {sorted(set(renamed) ^ wanted)}")
    theirs.load_state_dict(renamed)
    pixels = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    mine, other = (model(pixels, output_hidden_states=True) for model in (ours, theirs))
    torch.testing.assert_close(mine.last_hidden_state, other.last_hidden_state)
    torch.testing.assert_close(mine.hidden_states[1], other.hidden_states[1])


# As models of transformers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", VARIANTS)
def test_folders_open_with_the_auto_classes(kind: str, tmp_path: Path) -> None:
    model = scratch_decoder(**VARIANTS[kind])
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is ScratchForCausalLM
    ids = torch.arange(3, 12)[None]
    assert torch.equal(model(input_ids=ids).logits, again.eval()(input_ids=ids).logits)
    assert size(build_decoder(LanguageConfig(path=str(tmp_path)))) == size(model)
    encoder = vit()
    encoder.save_pretrained(tmp_path / "vit")
    found = AutoModel.from_pretrained(tmp_path / "vit").eval()
    assert type(found) is ScratchViTModel
    pixels = torch.randn(1, 3, 32, 32)
    assert torch.equal(found(pixels).last_hidden_state, encoder(pixels).last_hidden_state)


@pytest.mark.parametrize("kind", VARIANTS)
def test_generation_is_recomputation_and_the_argmax_under_teacher_forcing(kind: str) -> None:
    model = scratch_decoder(**VARIANTS[kind]).double()
    rows = [torch.randint(3, 300, (1, width), generator=torch.Generator().manual_seed(width)) for width in (4, 7, 5)]
    ids, mask, _ = left_padded(rows)
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    with Exact():
        said = model.generate(input_ids=ids, attention_mask=mask, **options)
        assert torch.equal(said, model.generate(input_ids=ids, attention_mask=mask, **options, use_cache=False))
        for number, row in enumerate(rows):
            alone = model.generate(input_ids=row, **options)
            assert torch.equal(alone[0, row.shape[1] :], said[number, ids.shape[1] :])
            best = model(input_ids=alone).logits.argmax(-1)
            start = row.shape[1]
            assert torch.equal(best[0, start - 1 : -1], alone[0, start:])  # for every prefix
        beams = [
            model.generate(input_ids=ids, attention_mask=mask, **options, num_beams=3, use_cache=cached) for cached in (True, False)
        ]
        assert torch.equal(*beams)
        assert torch.equal(beams[0][1, 7:], model.generate(input_ids=rows[1], **options, num_beams=3)[0, 7:])
        torch.manual_seed(2)
        drawn = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=8,
            pad_token_id=0,
            do_sample=True,
            top_k=20,
            top_p=0.9,
            temperature=2.0,
            repetition_penalty=1.2,
        )
    assert not torch.equal(drawn, said)


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", VARIANTS)
def test_packed_rows_equal_separate_rows(kind: str, kernel: str) -> None:
    """Also the gradients of the router losses, which count each token of the batch once."""
    model = scratch_decoder(**VARIANTS[kind]).double()
    model.set_attn_implementation(kernel)
    check_decoder(model)
    check_packable(model)
    for router in (part for part in model.modules() if type(part).__name__ == "Router"):
        router.noise = None  # it is drawn anew for each layout of the rows
    samples = [sample(number, [length], num_images=0) for number, length in enumerate((4, 7, 2, 5))]
    module = TextModel(model).train()
    outcomes = []
    with Exact():
        for batch in (batch_of(samples[:2], samples[2:], []), batch_of(*([part] for one in samples for part in apart(one)))):
            module.zero_grad(set_to_none=True)
            loss = NextToken()(module, batch)
            loss.total.backward()
            gradients = {name: value.grad for name, value in module.named_parameters() if value.grad is not None}
            outcomes.append((loss, gradients))
    (packed, ours), (separate, theirs) = outcomes
    assert close(packed.total, separate.total, 1e-6 if kind != "dense" else 1e-10)  # the router losses are summed in fp32
    assert set(packed.parts) == set(separate.parts)
    assert ("decoder_router_z" in packed.parts) is (kind != "dense")
    largest = max(float(value.abs().max()) for value in theirs.values())
    for name, value in ours.items():
        assert float((value - theirs[name]).abs().max()) < 1e-6 * largest, name


def test_gradient_checkpointing_changes_no_gradient_and_keeps_the_noise() -> None:
    gradients = []
    for checkpointed in (False, True):
        model = scratch_decoder(**MOE, dropout=0.1).train()
        if checkpointed:
            checkpoint_activations(model)
        torch.manual_seed(1)
        loss = NextToken()(TextModel(model), batch_of([sample(1, [6], num_images=0)]))
        loss.total.backward()
        gradients.append([value.grad for value in model.parameters() if value.grad is not None])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


# The published faults ---------------------------------------------------------------------------------------


def test_each_published_fault_is_its_own_key() -> None:
    ids = torch.arange(3, 12)[None]
    right = scratch_decoder()
    scaled = scratch_decoder(attention_scale="model")
    scaled.load_state_dict(right.state_dict())
    assert right.model.network.layers[0].attention.scale == 8**-0.5
    assert scaled.model.network.layers[0].attention.scale == 32**-0.5
    assert not torch.allclose(right(input_ids=ids).logits, scaled(input_ids=ids).logits)
    skipped = scratch_decoder(skip_norm_in_generation=True)
    skipped.load_state_dict(right.state_dict())
    assert torch.equal(right(input_ids=ids, use_cache=False).logits, skipped(input_ids=ids, use_cache=False).logits)
    states = right(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[-1]
    assert torch.equal(skipped(input_ids=ids, use_cache=True).logits, right.lm_head(states))
    noisy = scratch_decoder(**MOE, noise_in_evaluation=True)
    check_decoder(noisy)  # it is causal all the same
    assert not torch.equal(noisy(input_ids=ids).logits, noisy(input_ids=ids).logits)
    assert vit(attention_scale="model").network.layers[0].attention.scale == 24**-0.5


@pytest.mark.parametrize(
    ("changes", "tokens", "prefix"), [({}, 17, 1), ({"output_tokens": "class"}, 1, 0), ({"patches_only": True}, 16, 0)]
)
def test_what_reaches_the_connector(changes: dict[str, Any], tokens: int, prefix: int) -> None:
    encoder = vit(**changes)
    out = encoder(torch.randn(2, 3, 32, 32)).last_hidden_state
    assert out.shape == (2, tokens, 24)
    shape = probe_shape(encoder, (32, 32), "last")
    assert (shape.rows, shape.columns) == ((1, 1) if tokens == 1 else (4, 4))
    assert shape.prefix == prefix
