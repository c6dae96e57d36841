"""`align` against AlignVLM's formula written out, and what the paper leaves to be got wrong: W2, live words, added tokens, gain."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

from sightline.assembly.config.schema import RunConfig
from sightline.assembly.model.build import build_from_config, fit_vocabulary
from sightline.data.samples.processing import Processing
from sightline.errors import ConfigError
from sightline.models.connectors import Connector, ConnectorShape
from sightline.models.connectors.align import Align, AlignConfig
from sightline.models.connectors.cost import connector_cost
from sightline.models.vlm import SightlineForConditionalGeneration
from sightline.objectives.next_token import NextToken
from tests.builders import SIDE, batch_of, decoder, decoder_folder, encoder_folder, load_tokenizer, sample, vlm
from tests.models.connectors.places import (
    SHAPE,
    WIDTH_OUT,
    WORDS,
    affine,
    assert_equal,
    embeddings,
    features,
    layer_norm,
    made,
    weights,
)

PORT = AlignConfig(bias=True, inner_affine=False, outer_norm="none", head="random")
"""The SmolVLM port: W1 has a bias, LN1 has no affine, there is no LN2, W2 begins at random."""


def align_of(connector: Connector) -> Align:
    assert isinstance(connector.project, Align)
    return connector.project


def mixture(config: AlignConfig, w: dict[str, Tensor], seen: Tensor) -> Tensor:
    """`softmax(LN2(W2 LN1(W1 f)))`."""
    states = affine(seen, w["w1.weight"], w.get("w1.bias"))
    one, zero = torch.ones(WIDTH_OUT, dtype=torch.float64), torch.zeros(WIDTH_OUT, dtype=torch.float64)
    states = layer_norm(states, w.get("inner.weight", one), w.get("inner.bias", zero), config.eps)
    scores = affine(states, w["w2.weight"])
    if config.outer_norm != "none":
        gain = w.get("gain", torch.ones((), dtype=torch.float64))
        scores = layer_norm(scores, gain, w.get("shift", torch.zeros((), dtype=torch.float64)), config.eps)
    mass = scores.exp()
    return mass / mass.sum(-1, keepdim=True)


# Formula ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compute", ["fused", "plain"])
@pytest.mark.parametrize(
    "config",
    [AlignConfig(), AlignConfig(outer_norm="unit"), AlignConfig(outer_norm="per_word", bias=True, eps=0.01), PORT],
    ids=["scalar", "unit", "per word", "port"],
)
def test_visual_tokens_are_the_papers_formula(config: AlignConfig, compute: str) -> None:
    config = config.model_copy(update={"compute": compute})
    connector = made(config)
    expected = mixture(config, weights(connector.project), features()) @ embeddings()
    assert_equal(connector(features(), embeddings), expected)


def test_every_visual_token_lies_among_the_words() -> None:
    connector = made(AlignConfig())
    out, words = connector(features(), embeddings), embeddings()
    assert (out <= words.max(0).values).all()
    assert (out >= words.min(0).values).all()


def test_parameters_and_operations_by_hand() -> None:
    assert connector_cost(AlignConfig(), SHAPE).parameters == 6 * 10 + 2 * 10 + 10 * WORDS + 1
    assert connector_cost(AlignConfig(outer_norm="per_word"), SHAPE).parameters == 6 * 10 + 2 * 10 + 12 * WORDS
    assert connector_cost(AlignConfig(outer_norm="unit"), SHAPE).parameters == 6 * 10 + 2 * 10 + 10 * WORDS
    cost = connector_cost(AlignConfig(), SHAPE)
    assert cost.flops == 2 * 32 * (6 * 10 + WORDS * 10 + WORDS * 10)
    assert cost.tokens == 32


def test_the_port_has_the_parameters_of_the_ports_weights() -> None:
    # SmolVLM2-500M: 1024 patches of 768, shuffled by 4 to 64 tokens of 12288; W1 to 960 with bias, W2 to 49,280 words.
    cost = connector_cost(PORT.model_copy(update={"shuffle": 4}), ConnectorShape(32, 32, 768, 960, 49_280))
    assert cost.parameters == (12_288 * 960 + 960) + 960 * 49_280
    assert cost.tokens == 64


def test_a_gain_of_one_makes_all_visual_tokens_nearly_the_mean_word() -> None:
    shape = ConnectorShape(2, 4, 6, 32, 2000)
    spread = []
    for gain in (1.0, 2.7):
        torch.manual_seed(1)
        connector = Connector(AlignConfig(initial_gain=gain), shape).double()
        found = align_of(connector).distribution(features(shape), top=1)
        spread.append(float(found.entropy_N.exp().mean()) / shape.num_words)
    assert spread[0] == pytest.approx(math.exp(-0.5), rel=0.05)
    assert spread[1] < 0.1


@pytest.mark.parametrize(("norm", "expected"), [("scalar", 2.7), ("per_word", 2.7), ("unit", 1.0), ("none", None)])
def test_the_gain_begins_as_said_learns_and_is_logged(norm: str, expected: float | None) -> None:
    connector = Connector(AlignConfig.model_validate({"outer_norm": norm}), SHAPE)
    values = connector.log_values()
    assert values == ({} if expected is None else {"gain": pytest.approx(expected)})
    learns = "gain" in dict(connector.project.named_parameters())
    assert learns == (norm in ("scalar", "per_word"))
    if learns:
        out = connector(features().float(), lambda: embeddings().float())
        out.square().sum().backward()
        gain = connector.project.get_parameter("gain")
        assert gain.grad is not None
        assert gain.grad.abs().sum() > 0


# W2 and the head --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gemma2", "gpt2", "llama", "llama_untied", "qwen2", "qwen3"])
def test_w2_begins_as_a_copy_of_the_head_of_a_tied_or_untied_decoder_and_is_its_own(kind: str) -> None:
    part = decoder(kind)
    head = part.get_output_embeddings().weight
    num_words, width = head.shape[0] - 7, head.shape[1]  # the last rows stand for added tokens
    connector = Connector(AlignConfig(), ConnectorShape(2, 2, 6, width, num_words))
    connector.initialise_from_head(head)
    w2 = align_of(connector).w2.weight
    assert torch.equal(w2, head[:num_words])
    assert w2.data_ptr() != head.data_ptr()
    before = head.detach().clone()
    with torch.no_grad():
        w2.add_(1)
    assert torch.equal(head, before)
    is_tied = part.get_input_embeddings().weight is head
    assert is_tied == (kind not in ("llama_untied", "qwen3"))


def test_w2_at_random_is_not_touched_by_the_head() -> None:
    connector = Connector(PORT, SHAPE)
    before = weights(connector.project)["w2.weight"].clone()
    connector.initialise_from_head(torch.ones(WORDS, WIDTH_OUT))
    assert torch.equal(weights(connector.project)["w2.weight"], before)


@pytest.mark.parametrize("size", [(WORDS - 1, WIDTH_OUT), (WORDS, WIDTH_OUT + 1)])
def test_a_head_of_another_shape_is_refused(size: tuple[int, int]) -> None:
    connector = Connector(AlignConfig(), SHAPE)
    with pytest.raises(ConfigError, match=r"W2 is \[23, 10\](.|\n)*head=random"):
        connector.initialise_from_head(torch.zeros(*size))


@pytest.mark.parametrize("kind", ["llama", "llama_untied"])
def test_a_new_model_of_a_recipe_has_the_head_in_w2(kind: str) -> None:
    config = RunConfig.model_validate(
        {
            "recipe": "test",
            "model": {
                "vision": {"path": str(encoder_folder("siglip"))},
                "connector": {"kind": "align", "shuffle": 2},
                "language": {"path": str(decoder_folder(kind))},
            },
            "data": {"path": "none", "max_tokens": 64},
            "train": {"steps": 1},
            "stages": [{"name": "align", "parts": {"connector": "train"}}],
        },
        strict=False,
    )
    model = build_from_config(config, Processing(prompt="", template="plain", max_tokens=64), None).model
    assert isinstance(model, SightlineForConditionalGeneration)
    mixer = align_of(model.connector)
    head = model.get_output_embeddings()
    assert isinstance(head, torch.nn.Linear)
    num_words = model.config.num_words
    assert num_words == len(load_tokenizer("chatml" if kind == "llama" else "sentencepiece"))
    assert head.out_features > num_words  # <image> was added, and is no word that images are made of
    assert torch.equal(mixer.w2.weight, head.weight[:num_words])
    assert torch.equal(head.weight[:num_words], decoder(kind).get_output_embeddings().weight[:num_words])


# Words ------------------------------------------------------------------------------------------------------------------------


def align_model(kind: str = "llama", **fields: Any) -> SightlineForConditionalGeneration:
    model = vlm("siglip", kind, AlignConfig(shuffle=2, **fields))
    head = model.get_output_embeddings()
    assert isinstance(head, torch.nn.Linear)
    model.connector.initialise_from_head(head.weight)
    return model


def words_gradient(model: SightlineForConditionalGeneration) -> Tensor:
    """Gradient of the input embeddings through the visual tokens alone."""
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, torch.nn.Embedding)
    embedding.weight.grad = None
    model.get_image_features(torch.randn(2, 3, SIDE, SIDE)).pooler_output.square().sum().backward()
    return torch.zeros_like(embedding.weight) if embedding.weight.grad is None else embedding.weight.grad


@pytest.mark.parametrize("kind", ["llama", "llama_untied"])
def test_gradient_flows_to_live_words_and_to_no_added_token(kind: str) -> None:
    model = align_model(kind)
    num_words = model.config.num_words
    found = words_gradient(model)
    assert (found[:num_words] != 0).any(1).all()
    assert not found[num_words:].any()


def test_words_that_are_not_live_get_none_and_mix_the_same() -> None:
    live = align_model()
    held = align_model(live=False)
    held.load_state_dict(live.state_dict())
    assert not words_gradient(held).any()
    pixels = torch.randn(1, 3, SIDE, SIDE)
    with torch.no_grad():
        assert torch.equal(live.get_image_features(pixels).pooler_output, held.get_image_features(pixels).pooler_output)


@pytest.mark.parametrize("kind", ["gemma", "llama"])
def test_words_are_what_the_decoder_embeds_not_rows_of_a_table(kind: str) -> None:
    # Gemma multiplies its embeddings by the root of its width.
    model = align_model(kind)
    ids = torch.arange(model.config.num_words)
    assert torch.equal(model.words(), model.get_input_embeddings()(ids))


def test_a_step_of_the_decoder_moves_the_words_that_are_mixed_and_not_w2() -> None:
    model = align_model("llama")
    w2 = align_of(model.connector).w2.weight
    before, pixels = w2.detach().clone(), torch.randn(1, 3, SIDE, SIDE)
    with torch.no_grad():
        first = model.get_image_features(pixels).pooler_output
        model.get_input_embeddings().weight.mul_(1.5)  # pyrefly: ignore
        second = model.get_image_features(pixels).pooler_output
    torch.testing.assert_close(second, 1.5 * first)
    assert torch.equal(w2, before)  # though input embeddings and head are one in this decoder


@pytest.mark.parametrize("norm", ["scalar", "per_word", "none"])
def test_added_tokens_are_outside_of_mean_variance_and_simplex(norm: str) -> None:
    model = align_model("llama", outer_norm=norm)
    pixels, num_words = torch.randn(1, 3, SIDE, SIDE), model.config.num_words
    assert align_of(model.connector).w2.out_features == num_words
    with torch.no_grad():
        before = model.get_image_features(pixels).pooler_output
        fit_vocabulary(model.language, num_words + 9)
        weight = model.get_input_embeddings().weight
        assert isinstance(weight, Tensor)
        weight[num_words:] = 1e3
        assert torch.equal(model.get_image_features(pixels).pooler_output, before)


def test_the_objective_trains_w1_w2_gain_and_live_words() -> None:
    model = align_model("llama_untied").train()
    NextToken()(model, batch_of([sample(1, [4])])).total.backward()
    grads = {name: value.grad for name, value in model.connector.named_parameters()}
    assert all(value is not None and bool(value.any()) for value in grads.values())
    assert set(grads) == {"project.w1.weight", "project.inner.weight", "project.inner.bias", "project.w2.weight", "project.gain"}


@pytest.mark.parametrize("compute", ["fused", "plain"])
def test_bf16_autocast_gives_nearly_the_value_of_fp32(compute: str) -> None:
    model = align_model("llama", compute=compute)
    pixels = torch.randn(1, 3, SIDE, SIDE)
    with torch.no_grad():
        exact = model.get_image_features(pixels).pooler_output
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = model.get_image_features(pixels).pooler_output
    assert (rough.float() - exact).norm() < 0.05 * exact.norm()


# Fewer words ------------------------------------------------------------------------------------------------------------------


def test_restriction_to_all_words_changes_nothing_and_to_one_makes_every_token_that_word() -> None:
    connector = made(AlignConfig())
    free = connector(features(), embeddings)
    mixer = connector.vocabulary_mixer
    mixer.restrict_vocabulary(range(WORDS))
    assert torch.equal(connector(features(), embeddings), free)
    mixer.restrict_vocabulary([7])
    assert_equal(connector(features(), embeddings), embeddings()[7].expand_as(free))
    mixer.restrict_vocabulary(None)
    assert torch.equal(connector(features(), embeddings), free)


def test_a_restricted_mixture_is_the_free_one_without_the_others_divided_by_its_mass() -> None:
    config = AlignConfig()
    connector = made(config)
    kept = [2, 3, 11, 20]
    p = mixture(config, weights(connector.project), features())
    expected = p[..., kept] / p[..., kept].sum(-1, keepdim=True) @ embeddings()[kept]
    connector.vocabulary_mixer.restrict_vocabulary(kept)
    assert_equal(connector(features(), embeddings), expected)
    assert connector.vocabulary_mixer.distribution(features(), 23, 0.0).above_N.eq(4).all()


def test_training_uses_all_words_and_no_file_remembers_the_restriction(tmp_path: Path) -> None:
    model = align_model()
    pixels = torch.randn(1, 3, SIDE, SIDE)
    with torch.no_grad():
        free = model.get_image_features(pixels).pooler_output
        model.connector.vocabulary_mixer.restrict_vocabulary([1, 2])
        assert not torch.equal(model.get_image_features(pixels).pooler_output, free)
        model.save_pretrained(tmp_path)
        again = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
        assert torch.equal(again.get_image_features(pixels).pooler_output, free)
        model.connector.train()
        assert torch.equal(model.get_image_features(pixels).pooler_output, free)


@pytest.mark.parametrize(
    ("ids", "words"),
    [([], "at least one vocabulary entry"), ([3, WORDS], "token id 23 is outside"), ([-1], "token id -1 is outside")],
)
def test_words_that_do_not_exist_are_refused(ids: list[int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        made(AlignConfig()).vocabulary_mixer.restrict_vocabulary(ids)


def test_a_copied_connector_is_apart() -> None:
    connector = made(AlignConfig())
    other = copy.deepcopy(connector)
    other.vocabulary_mixer.restrict_vocabulary([1])
    assert not torch.equal(other(features(), embeddings), connector(features(), embeddings))
