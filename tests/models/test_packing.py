"""Packed rows equal separate rows, for every decoder type and attention kernel; nothing leaks from sample to sample."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from sightline.errors import ConfigError, RecordError
from sightline.models import language, loading
from sightline.models.text import TextModel
from sightline.models.vlm import SightlineForConditionalGeneration
from sightline.objectives.next_token import NextToken
from sightline.ops.masks import visible
from sightline.ops.text_only import text_only
from sightline.types import Batch, Head, Sample
from tests.builders import DECODERS, WINDOW, Exact, apart, batch_of, branch, decoder, sample, vlm

KERNELS = ["eager", "sdpa"]
EVERY = [(kind, kernel) for kind in DECODERS for kernel in KERNELS if (kind, kernel) != ("gemma2", "sdpa")]  # it has eager alone


def the_samples() -> list[Sample]:
    """Two captions of one image; two images; text alone; three questions on two images."""
    return [sample(1, [4, 2]), sample(2, [5], num_images=2), sample(3, [6], num_images=0), sample(4, [1, 3, 2], num_images=2)]


def packed(samples: Sequence[Sample]) -> Batch:
    """The samples in two rows of different fill, and a row of padding alone."""
    return batch_of(samples[:2], samples[2:], [])


def separate(samples: Sequence[Sample]) -> Batch:
    """Every branch in a row of its own: transformers' ordinary causal attention, no mask of ours."""
    batch = batch_of(*([part] for one in samples for part in apart(one)))
    assert batch.tokens.is_plain
    return batch


def distance(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference relative to the largest value."""
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-30)).item()


def outcome(model: SightlineForConditionalGeneration, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Hidden states, loss and gradients of a batch."""
    model.zero_grad(set_to_none=True)
    states = model.hidden(batch).states_SD.detach()
    loss = NextToken()(model, batch)
    loss.total.backward()
    assert loss.weight.item() == len(batch.supervision)
    gradients = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None and value.numel()}
    return states, loss.total.detach(), gradients


def assert_same(model: SightlineForConditionalGeneration, one: Batch, other: Batch, tolerance: float) -> None:
    assert torch.equal(one.supervision.target_S, other.supervision.target_S)
    states, loss, gradients = outcome(model, one)
    others, other_loss, other_gradients = outcome(model, other)
    assert distance(states, others) < tolerance
    assert distance(loss, other_loss) < tolerance
    assert gradients.keys() == other_gradients.keys()
    assert {name.split(".")[0] for name in gradients} >= {"vision", "connector", "language"}
    largest = max(value.abs().max().item() for value in other_gradients.values())
    for name, value in gradients.items():
        # A gradient that is zero but for rounding (a key's bias) has no scale of its own.
        gap = (value - other_gradients[name]).abs().max().item()
        assert gap <= tolerance * max(other_gradients[name].abs().max().item(), 0.1 * largest), name


@pytest.mark.parametrize(("kind", "kernel"), EVERY)
def test_packed_rows_with_shared_prefixes_equal_separate_rows_in_float64(kind: str, kernel: str) -> None:
    model = vlm("siglip", kind, attention=kernel).double()
    with Exact():  # measured at most 1e-14
        assert_same(model, packed(the_samples()), separate(the_samples()), tolerance=1e-10)


@pytest.mark.parametrize(("kind", "kernel"), EVERY)
def test_packed_rows_equal_separate_rows_in_fp32(kind: str, kernel: str) -> None:
    # Measured at most 1.1e-6 for hidden states; 1e-2 and more where a mask is wrong (see below).
    assert_same(vlm("siglip", kind, attention=kernel), packed(the_samples()), separate(the_samples()), tolerance=1e-5)


@pytest.mark.parametrize("kind", DECODERS)
def test_hidden_states_times_the_head_are_the_logits_of_transformers(kind: str) -> None:
    model = vlm("clip", kind).double()
    samples = the_samples()
    with Exact(), torch.no_grad():
        hidden = model.hidden(packed(samples))
        ours = logits(hidden.states_SD, hidden.head)
        done = 0
        for one in samples:
            for part in apart(one):
                ids = torch.from_numpy(part.branches[0].ids)[None].clone()
                ids[0, torch.from_numpy(part.image_slots)] = model.config.image_token_id
                pixels = None if part.images is None else model.normalise(torch.from_numpy(part.images))
                theirs = model(input_ids=ids, pixel_values=pixels).logits[0]
                for span in part.branches[0].spans:
                    wanted = theirs[span.start - 1 : span.end - 1]
                    assert distance(ours[done : done + len(wanted)], wanted) < 1e-10
                    done += len(wanted)
        assert done == len(ours)


def logits(states: Tensor, head: Head) -> Tensor:
    out = states @ head.weight_VD.T * head.scale
    if head.bias_V is not None:
        out = out + head.bias_V
    return torch.tanh(out / head.softcap) * head.softcap if head.softcap else out


@pytest.mark.parametrize("kind", ["gpt2", "scratch"])
def test_a_packed_row_may_be_longer_than_a_decoder_has_positions(kind: str) -> None:
    model = vlm("siglip", kind)
    short, long = (batch_of(the_samples()[:2], min_width=width) for width in (1, 300))
    assert long.tokens.ids_BT.shape[1] > language.max_sequence_length(model.language.config)
    assert torch.allclose(model.hidden(short).states_SD, model.hidden(long).states_SD, atol=1e-5)


# Leaks ------------------------------------------------------------------------------------------------------------------------


def altered(one: Sample) -> Sample:
    """The same layout with other words and other images."""
    parts = tuple(replace(part, ids=np.where(part.ids > 2, (part.ids + 17) % 290 + 3, part.ids)) for part in one.branches)
    return replace(one, branches=parts, images=None if one.images is None else 255 - one.images)


@pytest.mark.parametrize(("kind", "kernel"), EVERY)
def test_a_sample_never_moves_another_by_a_single_bit(kind: str, kernel: str) -> None:
    model = vlm("siglip", kind, attention=kernel)
    samples = the_samples()
    for changed in range(len(samples)):
        others = [altered(one) if number == changed else one for number, one in enumerate(samples)]
        before, after = batch_of(samples), batch_of(others)
        with torch.no_grad():
            old, new = model.hidden(before).states_SD, model.hidden(after).states_SD
        own = before.supervision.sample_S == changed
        assert torch.equal(old[~own], new[~own])
        assert ((old[own] - new[own]).abs().amax(1) > 1e-3).all()


@pytest.mark.parametrize(("kind", "kernel"), EVERY)
def test_a_branch_never_moves_another_branch(kind: str, kernel: str) -> None:
    model = vlm("siglip", kind, attention=kernel)
    one = sample(4, [4, 3, 4])
    changed = replace(one.branches[1], ids=altered(one).branches[1].ids)
    changed.ids[: one.prefix] = one.branches[1].ids[: one.prefix]
    other = replace(one, branches=(one.branches[0], changed, one.branches[2]))
    before = batch_of([one])
    with torch.no_grad():
        old, new = model.hidden(before).states_SD, model.hidden(batch_of([other])).states_SD
    own = before.supervision.branch_S == 1
    own[own.nonzero()[0]] = False  # the first token of a branch is predicted from the prefix, which has not changed
    assert torch.equal(old[~own], new[~own])
    assert ((old[own] - new[own]).abs().amax(1) > 1e-3).all()


@pytest.mark.parametrize("kind", DECODERS)
def test_the_plain_call_of_transformers_would_leak_so_these_tests_can_fail(kind: str) -> None:
    """Two samples in a row with positions that restart, fed as one would at first: a mask of ones, or the default cache."""
    part = decoder(kind)
    before = batch_of([sample(1, [6], num_images=0), sample(2, [6], num_images=0)])
    after = batch_of([sample(5, [6], num_images=0), sample(2, [6], num_images=0)])
    second = (before.tokens.sample_BT == 1)[0]

    def states(batch: Batch, **arguments: object) -> Tensor:
        with torch.no_grad():
            out = part.base_model(input_ids=batch.tokens.ids_BT, position_ids=batch.tokens.position_BT, **arguments)
        return out.last_hidden_state[0, second]

    ones = torch.ones_like(before.tokens.ids_BT)
    for arguments in ({"attention_mask": ones, "use_cache": False}, {"use_cache": True}):
        assert distance(states(before, **arguments), states(after, **arguments)) > 1e-2
    with torch.no_grad():
        ours = [TextModel(part).hidden(batch).states_SD[-6:] for batch in (before, after)]
    assert torch.equal(*ours)


def test_a_mask_of_the_wrong_window_or_without_branches_is_seen() -> None:
    """Breaks the batch on purpose: the float64 comparison must notice each."""
    model = vlm("siglip", "mistral").double()
    samples = the_samples()
    batch = packed(samples)
    tokens = batch.tokens
    with Exact(), torch.no_grad():
        truth = model.hidden(separate(samples)).states_SD
        merged = replace(batch, tokens=replace(tokens, branch_BT=torch.zeros_like(tokens.branch_BT)))
        assert distance(model.hidden(merged).states_SD, truth) > 1e-3
        one_sample = replace(batch, tokens=replace(tokens, sample_BT=tokens.sample_BT.clamp(max=0)))
        assert distance(model.hidden(one_sample).states_SD, truth) > 1e-3
        model.language.config.sliding_window = WINDOW + 1
        assert distance(model.hidden(batch).states_SD, truth) > 1e-3


# Other kinds of batches ---------------------------------------------------------------------------------------------------------


def test_a_batch_without_images_and_a_text_model_agree() -> None:
    samples = [sample(3, [6], num_images=0), sample(6, [2, 5], num_images=0)]
    model = vlm("siglip", "qwen3").double()
    batch = batch_of(samples, [])
    assert batch.visual is None
    with Exact(), torch.no_grad():
        ours = model.hidden(batch).states_SD
        assert torch.equal(ours, TextModel(model.language).hidden(batch).states_SD)
        assert distance(ours, model.hidden(separate(samples)).states_SD) < 1e-10


def test_a_text_model_refuses_images() -> None:
    with pytest.raises(RecordError, match="cannot take images"):
        TextModel(decoder("llama")).hidden(batch_of([sample(1, [2])]))


@pytest.mark.parametrize("rows", [1, 2])
def test_rows_of_padding_alone_have_no_weight_and_no_gradient(rows: int) -> None:
    model = vlm("siglip", "llama")
    batch = batch_of(*[[] for _ in range(rows)], min_width=5)
    loss = NextToken()(model, batch)
    assert loss.total.item() == loss.weight.item() == 0.0
    loss.total.backward()
    for name, value in model.named_parameters():
        assert value.grad is None or not value.grad.any(), name


def test_padding_in_plain_rows_changes_nothing() -> None:
    model = vlm("siglip", "gemma3").double()
    one = sample(2, [5])
    with Exact(), torch.no_grad():
        short, wide = (model.hidden(batch_of([one], min_width=width)).states_SD for width in (1, 40))
    assert distance(wide, short) < 1e-10


def test_stored_features_give_what_pixels_give() -> None:
    model = vlm("dinov2", "llama")
    one = sample(1, [4, 2])
    assert one.images is not None
    with torch.no_grad():
        features = model.encode_pixels(model.normalise(torch.from_numpy(one.images)))
        stored = replace(one, images=None, features=features.numpy())
        assert torch.equal(model.hidden(batch_of([one])).states_SD, model.hidden(batch_of([stored])).states_SD)


def test_learned_separators_stand_at_negative_sources_and_learn() -> None:
    model = vlm("siglip", "llama", num_separators=2)
    one = sample(1, [4])
    with_separators = replace(one, visual_index=np.array([0, -1, 1, -2]))
    batch = batch_of([sample(2, [3])], [with_separators])
    assert batch.visual is not None
    # Four slots of the first image, then the second's own tokens, 4 and 5, and the separators.
    assert batch.visual.visual_index_M.tolist() == [0, 1, 2, 3, 4, -1, 5, -2]
    loss = NextToken()(model, batch)
    loss.total.backward()
    assert model.separators.grad is not None
    assert (model.separators.grad.abs().amax(1) > 0).all()
    with torch.no_grad():
        before = model.hidden(batch).states_SD
        model.separators[1] += 1
        after = model.hidden(batch).states_SD
    second = batch.supervision.sample_S == 1
    assert torch.equal(before[~second], after[~second])
    assert not torch.equal(before[second], after[second])


# Without the image --------------------------------------------------------------------------------------------------------------


def masked_out(model: SightlineForConditionalGeneration, batch: Batch) -> Tensor:
    """The full-length pass in which no query sees a visual slot but that slot itself; hidden states of all slots."""
    assert batch.visual is not None
    is_visual = torch.zeros(batch.tokens.ids_BT.numel(), dtype=torch.bool)
    is_visual[batch.visual.slot_M] = True
    is_visual_BT = is_visual.view_as(batch.tokens.ids_BT)
    itself = torch.eye(is_visual_BT.shape[1], dtype=torch.bool)
    config = language.text_config(model.language)
    built = {}
    for name, window in ((language.FULL, None), (language.SLIDING, WINDOW)):
        seen = visible(batch.tokens, window) & (~is_visual_BT[:, None, :] | itself)
        built[name] = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, torch.finfo(torch.float64).min)[:, None]
    kinds = language.layer_kinds(config)
    alike = language.SLIDING if not kinds and config.to_dict().get("sliding_window") else language.FULL
    out = model.language.base_model(
        inputs_embeds=model.get_input_embeddings()(batch.tokens.ids_BT),
        attention_mask=built if language.SLIDING in kinds else built[alike],
        position_ids=batch.tokens.position_BT,
        use_cache=False,
    )
    return out.last_hidden_state.flatten(0, 1)


@pytest.mark.parametrize("kind", DECODERS)
def test_text_only_equals_the_full_pass_in_which_nothing_sees_the_image(kind: str) -> None:
    model = vlm("siglip", kind).double()
    batch = packed(the_samples())
    with Exact(), torch.no_grad():
        ours = model.hidden(text_only(batch)).states_SD
        theirs = masked_out(model, batch)[batch.supervision.slot_S]
        sighted = model.hidden(batch).states_SD
    assert distance(ours, theirs) < 1e-10
    sees = batch.supervision.sample_S != 2  # the third sample has no image
    assert ((ours - sighted).abs().amax(1)[sees] > 1e-3).all()
    assert distance(ours[~sees], sighted[~sees]) < 1e-10


def test_a_target_with_no_text_before_it_has_a_hidden_state_of_zeros() -> None:
    model = vlm("siglip", "llama")
    one = sample(1, [3], prompt=0)
    ids = one.branches[0].ids
    one = replace(one, branches=(branch([0, 0, 0, 0, *ids[-3:]], (4, 7), slots=range(4)),))
    batch = text_only(batch_of([one]))
    assert batch.supervision.slot_S.tolist() == [-1, 0, 1]
    with torch.no_grad():
        states = model.hidden(batch).states_SD
    assert not states[0].any()
    assert states[1:].any(1).all()


# Refusals -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DECODERS)
def test_the_decoders_of_this_suite_are_taken(kind: str) -> None:
    part = decoder(kind)
    part.train()
    language.check_decoder(part)
    language.check_packable(part)
    assert all(module.training for module in part.modules())


@pytest.mark.parametrize("kind", ["bloom", "falcon_mamba", "mamba", "mpt", "qwen3_next", "recurrent_gemma"])
def test_decoders_without_position_ids_or_with_recurrent_layers_are_refused_for_packing(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.pack=false"):
        language.check_layers(loading.config_from({"model_type": kind}, "here"))


def test_flash_attention_is_refused_for_packing_because_it_takes_no_mask() -> None:
    config = loading.config_from({"model_type": "llama"}, "here")
    config._attn_implementation = "flash_attention_2"
    with pytest.raises(ConfigError, match=r"runtime\.attention=sdpa"):
        language.attention_masks(config, batch_of([sample(1, [1]), sample(2, [1])]).tokens, torch.float32)
    assert language.attention_masks(config, batch_of([sample(1, [1])]).tokens, torch.float32) is None


def from_sizes(kind: str, **sizes: object) -> PreTrainedModel:
    torch.manual_seed(3)
    return language.build_decoder(language.LanguageConfig(config={"model_type": kind, **sizes}, tokenizer="here"), 40)


def test_a_decoder_that_counts_its_own_positions_is_found_by_trying() -> None:
    sizes = {
        "d_model": 16,
        "decoder_layers": 1,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 16,
        "init_std": 0.5,
        "dropout": 0.0,
    }
    part = from_sizes("bart", **sizes, is_decoder=True, max_position_embeddings=64).eval()
    language.check_decoder(part)
    one = sample(1, [3], num_images=0, vocabulary=40)
    with torch.no_grad():
        alone, second = (TextModel(part).hidden(batch_of(row)).states_SD[-3:] for row in ([one], [one, one]))
    assert distance(second, alone) > 1e-2  # what packing would do to it
    with pytest.raises(ConfigError, match=r"would mix packed samples.*data\.pack=false"):
        language.check_packable(part)


def test_a_decoder_that_takes_no_such_mask_is_refused_in_words() -> None:
    part = from_sizes("openai-gpt", n_embd=16, n_layer=1, n_head=2)
    with pytest.raises(ConfigError, match="does not run on packed rows"):
        language.check_packable(part)


def test_a_decoder_with_an_unknown_head_is_refused() -> None:
    part = from_sizes("roberta", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, is_decoder=True)
    with pytest.raises(ConfigError, match="known scale or soft cap"):
        language.check_decoder(part)


def test_a_decoder_that_looks_ahead_is_refused() -> None:
    part = decoder("llama")
    part.config.is_causal = False
    for layer in part.base_model.layers:
        layer.self_attn.is_causal = False
    with pytest.raises(ConfigError, match="not a causal decoder"):
        language.check_decoder(part)
