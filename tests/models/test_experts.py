"""A mixture-of-experts decoder of transformers trains with its load-balancing loss, against transformers' own arithmetic."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from sightline.errors import ConfigError
from sightline.models.gradient_checkpointing import checkpoint_activations
from sightline.models.language import LanguageConfig, build_decoder, check_decoder, check_packable
from sightline.models.text import TextModel
from sightline.objectives import CALConfig
from sightline.objectives.next_token import NextToken
from sightline.training import loop, stages
from sightline.training.checkpoint import Progress
from sightline.training.lora import LoraRule
from sightline.training.stages import PartConfig
from sightline.types import Batch, Sample
from tests.builders import EXPERTS, Exact, apart, batch_of, experts, sample, vlm
from tests.training.helpers import job


def texts() -> list[Sample]:
    return [sample(1, [4], num_images=0), sample(2, [7], num_images=0), sample(3, [2], num_images=0)]


def unpacked(samples: Sequence[Sample]) -> Batch:
    return batch_of(*([one] for one in samples))


def theirs(decoder: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Loss and auxiliary loss of transformers' own forward pass on rows of one sample each."""
    flat = torch.full((batch.tokens.ids_BT.numel(),), -100)
    flat[batch.supervision.slot_S + 1] = batch.supervision.target_S
    mask = (batch.tokens.sample_BT >= 0).long()
    out = decoder(input_ids=batch.tokens.ids_BT, attention_mask=mask, labels=flat.view_as(mask), output_router_logits=True)
    config = decoder.config.to_dict()
    number = config.get("num_local_experts", config.get("num_experts"))
    balance = load_balancing_loss_func(out.router_logits, number, config["num_experts_per_tok"], mask)
    assert isinstance(balance, Tensor)
    assert torch.equal(balance, out.aux_loss)
    return out.loss, balance


@pytest.mark.parametrize("kind", EXPERTS)
def test_loss_and_gradients_are_those_of_transformers(kind: str) -> None:
    decoder, batch = experts(kind).double().train(), unpacked(texts())
    assert (batch.tokens.sample_BT < 0).any()  # some rows are padded
    with Exact():
        loss = NextToken()(TextModel(decoder), batch)
        (loss.total / loss.weight).backward()
        mine = {name: value.grad for name, value in decoder.named_parameters()}
        decoder.zero_grad(set_to_none=True)
        whole, balance = theirs(decoder, batch)
        whole.backward()
    coefficient = EXPERTS[kind]["router_aux_loss_coef"]
    torch.testing.assert_close(loss.total / loss.weight, whole, rtol=1e-8, atol=0)  # transformers sums the balance in float32
    total, weight = loss.parts["decoder_balance"]
    torch.testing.assert_close((total / weight).double(), coefficient * balance.detach().double())
    assert balance > 1
    for name, value in decoder.named_parameters():
        assert value.grad is not None
        torch.testing.assert_close(mine[name], value.grad, rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize("kind", EXPERTS)
def test_packed_rows_have_the_loss_of_rows_of_one_sample_each(kind: str) -> None:
    decoder = experts(kind).double()
    check_decoder(decoder)
    check_packable(decoder)
    model, samples = TextModel(decoder).train(), texts()
    with Exact():
        values = [
            model.hidden(batch).auxiliary["decoder_balance"].item()
            for batch in (unpacked(samples), batch_of(samples), batch_of(samples[:2], samples[2:], [], min_width=40))
        ]
    assert values == pytest.approx([values[0]] * 3, rel=1e-6)
    assert model.hidden(batch_of([], min_width=4)).auxiliary["decoder_balance"].item() == 0  # a row of padding alone


@pytest.mark.parametrize("checkpointing", [False, True])
def test_it_is_logged_and_moves_the_routers(checkpointing: bool) -> None:
    """Also through layers that are computed again in the backward pass."""
    samples, moved, lines = texts(), [], []
    for coefficient in (None, 0.0, 0.5):
        model = TextModel(experts("mixtral", router_aux_loss_coef=coefficient))
        if checkpointing:
            checkpoint_activations(model.language)
        given = job(model, [[unpacked(samples[:2]), unpacked(samples[2:])]], NextToken(), {"language": 0.1})
        loop.fit(given, Progress())
        lines.append(given.log[0])
        moved.append({name: value.detach() for name, value in model.named_parameters()})
    assert [line.get("decoder_balance", 0.0) > 0 for line in lines] == [True, False, True]
    assert lines[2]["decoder_balance"] == pytest.approx(25 * lines[0]["decoder_balance"])
    assert lines[2]["loss"] - lines[1]["loss"] == pytest.approx(lines[2]["decoder_balance"], rel=1e-4)
    (router,) = [name for name in moved[0] if "layers.0" in name and "gate.weight" in name]
    gaps = [(moved[1][router] - moved[other][router]).abs().max().item() for other in (0, 2)]
    assert gaps[1] > 10 * gaps[0] > 0


def test_a_frozen_decoder_has_none_and_one_with_adapters_has() -> None:
    model = vlm("siglip", "llama")
    model.language = experts("qwen3_moe")
    batch = batch_of([sample(1, [3])])
    stages.apply(model, "test", {"connector": "train"}, 1e-3, 0.0)
    assert model.hidden(batch).auxiliary == {}
    stages.apply(model, "test", {"language": PartConfig(lr=1e-3, lora=LoraRule(r=2, targets=("q_proj",)))}, 1e-3, 0.0)
    assert set(model.hidden(batch).auxiliary) == {"decoder_balance"}
    assert "decoder_balance" in CALConfig(stored=False).build()(model, batch).parts
    with torch.no_grad():
        assert model.hidden(batch).auxiliary == {}
    assert model.eval().hidden(batch).auxiliary == {}


def test_a_coefficient_for_a_decoder_without_experts_is_refused() -> None:
    plain = LanguageConfig(config={"model_type": "llama", "num_hidden_layers": 1}, tokenizer="here", router_aux_loss_coef=0.1)
    with pytest.raises(ConfigError, match=r"router_aux_loss_coef=0\.1: a llama decoder has no load-balancing loss"):
        build_decoder(plain)


def test_the_coefficient_is_saved_with_the_decoder(tmp_path: Path) -> None:
    experts("mixtral", router_aux_loss_coef=0.5).save_pretrained(tmp_path)
    again = build_decoder(LanguageConfig(path=str(tmp_path)))
    assert again.config.router_aux_loss_coef == 0.5
    assert build_decoder(LanguageConfig(path=str(tmp_path), router_aux_loss_coef=0.25)).config.router_aux_loss_coef == 0.25


def test_shared_prefixes_count_once() -> None:
    """Two answers to one text: what stands before both is one token of the row, whatever the number of answers."""
    model = TextModel(experts("mixtral").double()).train()
    one = sample(1, [3, 2], num_images=0)
    with Exact():
        shared = model.hidden(batch_of([one])).auxiliary["decoder_balance"]
        twice = model.hidden(batch_of(*([part] for part in apart(one)))).auxiliary["decoder_balance"]
    assert shared.item() != pytest.approx(twice.item(), rel=1e-9)
