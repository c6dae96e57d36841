"""Generation through transformers: with a cache, in batches, with beams and samples, and with any number of images in a row."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from sightline.models.vlm import SightlineForConditionalGeneration
from tests.builders import DECODERS, SIDE, WINDOW, Exact, vlm
from tests.models.helpers import PER_IMAGE, close, left_padded, prompt

NEW = WINDOW + 2  # sliding layers lose sight of the first new tokens on the way


def generate(model: SightlineForConditionalGeneration, ids: Tensor, pixels: Tensor | None, **options: Any) -> Tensor:
    """New tokens alone; rows do not end early and no image token is said."""
    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "eos_token_id": None} | options
    out = model.generate(input_ids=ids, pixel_values=pixels, suppress_tokens=[model.config.image_token_id], **options)
    assert isinstance(out, Tensor)
    return out[:, ids.shape[1] :]


def recomputed(model: SightlineForConditionalGeneration, ids: Tensor, pixels: Tensor | None, steps: int) -> Tensor:
    """Greedy decoding of one row by whole forward passes."""
    with torch.no_grad():
        row = ids
        for _ in range(steps):
            logits = model(input_ids=row, pixel_values=pixels, use_cache=False).logits[:, -1].float()
            logits[:, model.config.image_token_id] = -torch.inf
            row = torch.cat([row, logits.argmax(-1, keepdim=True)], dim=1)
    return row[:, ids.shape[1] :]


def batch(model: SightlineForConditionalGeneration) -> tuple[list[tuple[Tensor, Tensor | None]], dict[str, Any]]:
    """Rows with two, no and one image, and all of them together, padded on the left."""
    rows = [prompt(model, 1, 2), prompt(model, 2, 0, words=9), prompt(model, 3, 1)]
    ids, mask, _ = left_padded([row for row, _ in rows])
    pixels = torch.cat([images for _, images in rows if images is not None])
    return rows, {"ids": ids, "pixels": pixels, "attention_mask": mask}


@pytest.mark.parametrize("kind", DECODERS)
def test_greedy_text_is_that_of_whole_passes_for_every_row_of_a_batch(kind: str) -> None:
    model = vlm("siglip", kind)
    rows, together = batch(model)
    said = generate(model, **together)
    without_cache = generate(model, **together, use_cache=False)
    assert torch.equal(said, without_cache)
    for number, (row, images) in enumerate(rows):
        truth = recomputed(model, row, images, NEW)[0]
        assert torch.equal(generate(model, row, images)[0], truth)
        assert torch.equal(said[number], truth)
    assert len({tuple(row.tolist()) for row in said}) == 3


@pytest.mark.parametrize("kind", ["gemma3", "gpt2", "llama", "mistral"])
def test_beams_with_several_images_per_row_find_what_each_row_alone_finds(kind: str) -> None:
    model = vlm("siglip", kind)
    rows, together = batch(model)
    options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 6}
    said = generate(model, **together, **options)
    assert said.shape == (6, 6)
    assert torch.equal(said, generate(model, **together, **options, use_cache=False))
    for number, (row, images) in enumerate(rows):
        assert torch.equal(said[2 * number : 2 * number + 2], generate(model, row, images, **options))
    greedy = generate(model, **together, max_new_tokens=6)
    assert not torch.equal(said[::2], greedy)  # a search that never differs would prove nothing


@pytest.mark.parametrize("kind", ["gemma2", "llama"])
def test_samples_with_a_cache_are_those_without(kind: str) -> None:
    model = vlm("siglip", kind)
    _, together = batch(model)
    drawn = []
    for use_cache in (True, False):
        torch.manual_seed(4)
        options = {"do_sample": True, "num_return_sequences": 3, "top_k": 0, "temperature": 2.0}
        drawn.append(generate(model, **together, **options, use_cache=use_cache))
    assert drawn[0].shape == (9, NEW)
    assert torch.equal(*drawn)
    assert len({tuple(row) for row in drawn[0].tolist()}) == 9


def test_embeddings_give_the_text_that_ids_give() -> None:
    model = vlm("siglip", "qwen2")
    ids, pixels = prompt(model, 1, 2)
    assert pixels is not None
    with torch.no_grad():
        merged = model.get_input_embeddings()(ids)
        merged[ids == model.config.image_token_id] = model.get_image_features(pixels).pooler_output.flatten(0, 1)
    out = model.generate(
        inputs_embeds=merged,
        max_new_tokens=NEW,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
        suppress_tokens=[model.config.image_token_id],
    )
    assert torch.equal(out, generate(model, ids, pixels))


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}])
def test_images_are_encoded_once(options: dict[str, Any]) -> None:
    model = vlm("siglip", "llama")
    calls = []
    model.vision.register_forward_hook(lambda *_: calls.append(1))
    _, together = batch(model)
    generate(model, **together, **options, max_new_tokens=4)
    assert calls == [1]
    generate(model, **together, **options, max_new_tokens=4, use_cache=False)
    assert calls == [1] * 5


# Which images a beam sees -------------------------------------------------------------------------------------------------------


def expanded(
    model: SightlineForConditionalGeneration, ids: Tensor, pixels: Tensor, sources: Tensor | None, times: int
) -> tuple[Tensor, Tensor]:
    """Visual tokens that fill the slots of each row, before and after the rows are repeated for beams."""

    def filled(ids: Tensor, pixels: Tensor, sources: Tensor | None) -> Tensor:
        table = model.visual_tokens(model.encode_pixels(pixels))
        wanted = torch.arange(len(pixels) * PER_IMAGE) if sources is None else sources
        assert len(wanted) == int((ids == model.config.image_token_id).sum())
        return table[wanted]

    with torch.no_grad():
        before = filled(ids, pixels, sources)
        new_ids, rest = model._expand_inputs_for_generation(times, False, ids, pixel_values=pixels, visual_sources=sources)
        assert new_ids is not None
        after = filled(new_ids, rest["pixel_values"], rest["visual_sources"])
    per_row = (ids == model.config.image_token_id).sum(1).tolist()
    repeated = [part for part in before.split(per_row) for _ in range(times)]
    return torch.cat(repeated), after


def rows_of_slots(model: SightlineForConditionalGeneration, *counts: int) -> Tensor:
    width = max(counts) + 1
    ids = torch.full((len(counts), width), 5)
    for number, count in enumerate(counts):
        ids[number, :count] = model.config.image_token_id
    return ids


@pytest.mark.parametrize("times", [2, 3])
@pytest.mark.parametrize(
    ("counts", "sources"),
    [
        ((8, 4, 0, 4), None),
        ((8, 4, 0, 4), list(range(16))),
        ((9, 4, 0, 5), [0, 1, 2, 3, -1, 4, 5, 6, 7, 8, 9, 10, 11, -2, 12, 13, 14, 15]),  # separators among the patches
        ((8, 8), [12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),  # any image in any row, in any order
        ((8, 4, 4), [0, 1, 2, 3, 12, 13, 14, 15, 0, 1, 2, 3, 8, 9, 10, 11]),  # a row skips images; two share one
        ((2, 2), [-1, -2, 4, 6]),
    ],
)
def test_beams_see_the_images_of_their_row(counts: tuple[int, ...], sources: list[int] | None, times: int) -> None:
    model = vlm("siglip", "llama", num_separators=2)
    pixels = torch.randn(4, 3, SIDE, SIDE)
    given = None if sources is None else torch.tensor(sources)
    wanted, found = expanded(model, rows_of_slots(model, *counts), pixels, given, times)
    assert torch.allclose(found, wanted, atol=1e-6)


def test_beams_over_separators_find_what_rows_alone_find() -> None:
    model = vlm("siglip", "llama", num_separators=1)
    images = torch.randn(3, 3, SIDE, SIDE)
    first, second = rows_of_slots(model, 9), rows_of_slots(model, 5)
    sources = [torch.tensor([0, 1, 2, 3, -1, 4, 5, 6, 7]), torch.tensor([-1, 0, 1, 2, 3])]
    options = {"num_beams": 2, "max_new_tokens": 5}
    alone = [
        generate(model, first, images[:2], visual_sources=sources[0], **options),
        generate(model, second, images[2:], visual_sources=sources[1], **options),
    ]
    ids, mask, _ = left_padded([first, second])
    both = torch.cat([sources[0], torch.where(sources[1] >= 0, sources[1] + 8, sources[1])])
    said = generate(model, ids, images, attention_mask=mask, visual_sources=both, **options)
    assert torch.equal(said, torch.cat(alone))


def test_beams_with_a_wrong_number_of_places_are_refused_in_words() -> None:
    model = vlm("siglip", "llama")
    ids, pixels = prompt(model, 1, 2)
    assert pixels is not None
    with pytest.raises(ValueError, match="8 image tokens in input_ids, but 4 visual tokens"):
        generate(model, ids, pixels[:1], num_beams=2)


# The cache, by both of its names, and assisted generation ------------------------------------------------------------------------

NAMES = ["past_key_values", "cache"]  # before transformers 5.24, and since


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", DECODERS)
def test_forward_goes_on_from_a_cache_given_by_either_name(kind: str, name: str) -> None:
    model = vlm("siglip", kind).double()
    ids, pixels = prompt(model, 1, 2)
    with Exact(), torch.no_grad():
        whole = model(input_ids=ids, pixel_values=pixels).logits
        cache = DynamicCache(config=model.language.config)
        first = model(input_ids=ids[:, :-3], pixel_values=pixels, **{name: cache})
        rest = model(input_ids=ids[:, -3:], **{name: cache})
    assert cache.get_seq_length() == ids.shape[1]
    assert close(torch.cat([first.logits, rest.logits], dim=1), whole)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("name", NAMES)
def test_generate_goes_on_from_a_cache_given_by_either_name(name: str) -> None:
    model = vlm("siglip", "llama")
    ids, pixels = prompt(model, 1, 2)
    whole = generate(model, ids, pixels)
    cache = DynamicCache(config=model.language.config)
    begun = generate(model, ids, pixels, max_new_tokens=5, **{name: cache})
    assert torch.equal(begun, whole[:, :5])
    assert cache.get_seq_length() == ids.shape[1] + 4  # the last token has not been read yet
    assert torch.equal(generate(model, torch.cat([ids, begun], 1), None, max_new_tokens=NEW - 5, **{name: cache}), whole[:, 5:])


def test_a_cache_given_by_both_names_is_refused() -> None:
    model = vlm("siglip", "llama")
    ids, pixels = prompt(model, 1, 1)
    caches = {name: DynamicCache(config=model.language.config) for name in NAMES}
    with pytest.raises(ValueError, match="either as cache or as past_key_values"):
        model(input_ids=ids, pixel_values=pixels, **caches)
    with pytest.raises(ValueError, match="either as cache or as past_key_values"):
        generate(model, ids, pixels, **caches)


@pytest.mark.parametrize("options", ["twin", "other", {"prompt_lookup_num_tokens": 3}], ids=str)
def test_assisted_generation_says_what_the_model_says_alone(options: Any) -> None:
    model = vlm("siglip", "llama")
    ids, pixels = prompt(model, 1, 2)
    alone = generate(model, ids, pixels)
    if isinstance(options, str):
        assistant = vlm("siglip", "llama")
        if options == "other":
            with torch.no_grad():
                assistant.language.get_output_embeddings().weight.copy_(model.language.get_output_embeddings().weight.flip(0))
        options = {"assistant_model": assistant}
    calls = []
    model.language.register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(generate(model, ids, pixels, **options), alone)
    assert 0 < len(calls) <= NEW
