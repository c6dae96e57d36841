"""FlexAttention with a block mask equals the dense mask, for every kind of decoder that takes it."""

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from sightline.errors import ConfigError
from sightline.models import language
from sightline.models.flex_attention import FLEX, attend_in_blocks, attention_of, why_not_flex
from sightline.models.text import TextModel
from sightline.objectives.next_token import NextToken
from sightline.ops.masks import BLOCK, block_mask
from sightline.types import Batch
from tests.builders import DECODERS, Exact, batch_of, decoder, sample

# Without a compiler FlexAttention makes all scores, and says so.
pytestmark = [
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
    pytest.mark.usefixtures("unchecked"),
]
KINDS = [kind for kind in DECODERS if kind != "gpt2"]


def long_rows() -> Batch:
    """Rows of two blocks: groups that share a prefix across the border of a block, images, texts alone, and padding alone."""
    one = [sample(1, [40, 35, 20]), sample(2, [30, 50], num_images=2), sample(3, [55], num_images=0)]
    other = [sample(4, [90, 20, 10], num_images=2), sample(5, [45])]
    return batch_of(one, other, [])


def states(model: PreTrainedModel, batch: Batch, kernel: str | None) -> Tensor:
    embeddings = model.get_input_embeddings()(batch.tokens.ids_BT)
    with torch.no_grad(), attention_of(model, kernel):
        return language.decode(model, embeddings, batch.tokens)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_flex_attention_equals_the_dense_mask_in_float64(kind: str) -> None:
    model, batch = decoder(kind).double(), long_rows()
    assert batch.tokens.ids_BT.shape[1] > BLOCK
    assert why_not_flex(model) == ""
    before = model.config.get_text_config()._attn_implementation
    with Exact():
        ours, dense = states(model, batch, FLEX), states(model, batch, None)
    assert (ours - dense).abs().max() < 1e-10 * dense.abs().max()
    assert model.config.get_text_config()._attn_implementation == before


def test_flex_attention_uses_the_block_mask_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = decoder("llama"), long_rows()
    dense = states(model, batch, None)
    monkeypatch.setattr(language, "block_mask", lambda tokens, window: block_mask(tokens, 2))
    assert (states(model, batch, FLEX) - dense).abs().max() > 1e-2 * dense.abs().max()


@pytest.mark.parametrize("kind", ["llama", "gemma2", "scratch"])
def test_rows_of_one_sample_and_generation_are_those_of_the_other_kernel(kind: str) -> None:
    model = decoder(kind)
    batch = batch_of([sample(1, [9])], [sample(2, [5])])
    assert batch.tokens.is_plain
    assert torch.allclose(states(model, batch, FLEX), states(model, batch, None), atol=1e-5)
    prompt = {"input_ids": torch.tensor([[0, 0, 7, 8, 9], [3, 4, 5, 6, 7]])}
    prompt["attention_mask"] = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    answers = []
    for kernel in (None, FLEX):
        with attention_of(model, kernel):
            answers.append(model.generate(**prompt, max_new_tokens=4, do_sample=False, pad_token_id=0).tolist())
    assert answers[0] == answers[1]


def test_under_autocast_the_products_are_computed_in_its_dtype() -> None:
    model, batch = decoder("qwen3"), long_rows()
    exact = states(model, batch, None)
    with torch.autocast("cpu", torch.bfloat16):
        ours, dense = states(model, batch, FLEX), states(model, batch, None)
    assert ours.dtype == dense.dtype
    assert (ours - exact).norm() < 1.5 * (dense - exact).norm()


def test_what_flex_attention_cannot_do_is_said() -> None:
    assert "does not support it" in why_not_flex(decoder("gpt2"))
    model = decoder("scratch")
    model.config.dropout = 0.1
    assert "dropout" in why_not_flex(model)
    mask = block_mask(long_rows().tokens)
    one = torch.zeros(3, 1, mask.seq_lengths[0], 16)
    with pytest.raises(ConfigError, match="no dropout"):
        attend_in_blocks(model, one, one, one, mask, dropout=0.1)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["llama", "gemma3", "qwen3"])
def test_gradients_on_a_gpu_equal_those_of_the_dense_mask(kind: str) -> None:
    made = language.LanguageConfig(
        config={"model_type": DECODERS[kind][0].model_type, **DECODERS[kind][1], "vocab_size": 320, "head_dim": 32},
        tokenizer="here",
    )
    torch.manual_seed(0)
    model = TextModel(language.build_decoder(made)).cuda()
    batch = batch_of([sample(1, [90, 60, 20], num_images=0), sample(2, [70, 50], num_images=0)], []).to("cuda")
    found = []
    for kernel in (None, FLEX):
        model.zero_grad(set_to_none=True)
        with attention_of(model.language, kernel):
            NextToken()(model, batch).total.backward()
        found.append({name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None})
    largest = max(value.abs().max() for value in found[0].values())
    for name, value in found[1].items():
        assert (value - found[0][name]).abs().max() <= 1e-3 * largest, name
