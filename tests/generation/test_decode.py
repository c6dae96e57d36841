"""Batched generation says what each prompt alone would be answered, whatever stands beside it and however wide the rows are."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from sightline.assembly.model.build import ModelBundle, Processing, build_from_config
from sightline.data.samples.encoding import join_visual_indices
from sightline.data.samples.prompts import Prompt
from sightline.errors import ConfigError, RecordError
from sightline.generation.decode import DecodingConfig, GeneratedText, generate
from sightline.models.text import TextModel
from sightline.types import Message, Part
from tests.assembly.helpers import run_config
from tests.builders import decoder, load_tokenizer, pictures

NEW = 8
GREEDY = DecodingConfig(max_new_tokens=NEW)


@pytest.fixture(scope="module")
def bundle() -> Iterator[ModelBundle]:
    assembled = build_from_config(run_config(), Processing(max_tokens=120), None)
    assembled.model.eval()
    return assembled


def prompt(bundle: ModelBundle, seed: int, num_images: int, words: int) -> Prompt:
    """A question of a number of words about images of noise."""
    conversation_encoder, tiling, preparation = (
        bundle.conversation_encoder(),
        bundle.processing.tiling,
        bundle.processing.preparation,
    )
    assert preparation is not None
    text = " ".join(np.random.default_rng(seed).choice(["dog", "field", "What", "red", "ball"], words))
    grid = conversation_encoder.rules.grid
    layouts = [tiling.layout(32, 32, grid) for _ in range(num_images)]
    row = conversation_encoder.encode_prompt((Message("user", (*(Part() for _ in range(num_images)), Part(text))),), layouts)
    pixels = pictures(seed, num_images) if num_images else None
    return Prompt(row, join_visual_indices(layouts, bundle.tokens_per_crop), pixels)


def prompts(bundle: ModelBundle) -> list[Prompt]:
    return [prompt(bundle, seed, seed % 3, 1 + seed % 5) for seed in range(12)]


def said(bundle: ModelBundle, asked: list[Prompt], width: int = 0, decoding: DecodingConfig = GREEDY) -> list[GeneratedText]:
    return generate(bundle.model, bundle.tokenizer, asked, decoding, width)


def test_texts_are_the_same_in_batches_of_any_size_and_width(bundle: ModelBundle) -> None:
    asked = prompts(bundle)
    alone = [said(bundle, [one])[0] for one in asked]
    assert len({text.text for text in alone}) > 6
    longest = max(len(one.row.ids) for one in asked)
    for size, width in ((5, 0), (12, 0), (12, longest + 9), (1, longest)):
        found = [text for at in range(0, 12, size) for text in said(bundle, asked[at : at + size], width)]
        assert found == alone
    assert said(bundle, asked[::-1]) == alone[::-1]


def test_every_answer_is_about_its_own_images(bundle: ModelBundle) -> None:
    one, other = prompt(bundle, 1, 1, 2), prompt(bundle, 1, 1, 2)
    other = replace(other, pixels=pictures(99, 1))
    apart = [said(bundle, [shown])[0].text for shown in (one, other)]
    assert apart[0] != apart[1]
    assert [text.text for text in said(bundle, [one, other, one])] == [apart[0], apart[1], apart[0]]


def test_stored_features_say_what_pixels_say(bundle: ModelBundle) -> None:
    asked = [one for one in prompts(bundle) if one.num_crops]
    model = bundle.model
    stored = []
    for one in asked:
        assert one.pixels is not None
        with torch.no_grad():
            features = model.encode_pixels(model.normalise(torch.from_numpy(one.pixels))).numpy()  # pyrefly: ignore
        stored.append(replace(one, pixels=None, features=features))
    assert said(bundle, stored) == said(bundle, asked)


def test_a_text_ends_at_an_end_token_which_is_counted_and_not_said(bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[list[int]] = []
    decode = bundle.tokenizer.decode

    def remembered(ids: list[int], **options: Any) -> Any:
        told.append(ids)
        return decode(ids, **options)

    monkeypatch.setattr(bundle.tokenizer, "decode", remembered)
    asked = prompt(bundle, 4, 1, 3)
    (free,) = said(bundle, [asked])
    ids = told[0]
    assert free.num_tokens == len(ids) == NEW
    config = bundle.inner.generation_config
    assert config is not None
    ends = config.eos_token_id
    assert isinstance(ends, list)
    place = next(place for place in range(NEW - 1, 0, -1) if ids[place] not in ids[:place])
    monkeypatch.setattr(config, "eos_token_id", [*ends, ids[place]])
    (cut, *_) = said(bundle, [asked, prompt(bundle, 5, 0, 2)])
    assert told[1] == ids[:place]
    assert cut.num_tokens == place + 1
    assert cut.text == decode(ids[:place], skip_special_tokens=True).strip()


def test_image_tokens_are_never_said(bundle: ModelBundle) -> None:
    config = bundle.inner.generation_config
    assert config is not None
    assert config.suppress_tokens == [bundle.tokenizer.convert_tokens_to_ids("<image>")]


def test_settings_that_a_downloaded_decoder_brings_do_not_apply(bundle: ModelBundle) -> None:
    asked = prompts(bundle)
    plain = said(bundle, asked)
    kept = bundle.inner.generation_config
    assert kept is not None
    first = bundle.tokenizer(plain[0].text.split()[0], add_special_tokens=False)["input_ids"]
    leaked = {
        "no_repeat_ngram_size": 1,
        "min_new_tokens": NEW,
        "bad_words_ids": [first],
        "max_length": 20,
        "repetition_penalty": 3.0,
    }
    bundle.inner.generation_config = GenerationConfig(**kept.to_diff_dict() | leaked)
    try:
        assert said(bundle, asked) == plain
        assert bundle.inner.generation_config.no_repeat_ngram_size == 1, "the model's own settings stay"
    finally:
        bundle.inner.generation_config = kept
    assert kept.max_length is None


def test_a_repetition_penalty_counts_the_prompt_as_in_transformers(bundle: ModelBundle) -> None:
    decoding = DecodingConfig(max_new_tokens=NEW, repetition_penalty=30.0)
    model: Any = bundle.model
    changed = 0
    for seed in range(8):
        asked = prompt(bundle, seed, 1, 12)
        assert asked.pixels is not None
        with torch.no_grad():
            ids = {"input_ids": torch.from_numpy(asked.row.ids)[None]}
            pixels = {"pixel_values": model.normalise(torch.from_numpy(asked.pixels))}
            theirs = model.generate(**ids, **pixels, **decoding.arguments())[0, len(asked.row.ids) :]
        (ours,) = said(bundle, [asked], decoding=decoding)
        assert ours.text == str(bundle.tokenizer.decode(theirs, skip_special_tokens=True)).strip()
        changed += ours.text != said(bundle, [asked])[0].text
    assert changed


def test_samples_are_drawn_by_the_seed(bundle: ModelBundle) -> None:
    drawn = DecodingConfig(max_new_tokens=NEW, do_sample=True, temperature=3.0, top_p=0.9)
    texts = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        texts.append(said(bundle, [prompt(bundle, 3, 1, 3)], decoding=drawn)[0].text)
    assert texts[0] == texts[1] != texts[2]


def test_settings_are_those_that_transformers_takes() -> None:
    plain = {"max_new_tokens": 64, "num_beams": 1, "do_sample": False, "repetition_penalty": 1.0}
    assert DecodingConfig().arguments() == plain
    drawn = DecodingConfig(do_sample=True, temperature=0.5, top_p=0.9).arguments()
    assert drawn == plain | {"do_sample": True, "temperature": 0.5, "top_p": 0.9, "top_k": 0}


def test_a_text_model_answers_texts_and_refuses_images(bundle: ModelBundle) -> None:
    tokenizer = load_tokenizer("chatml")
    ids = np.array(tokenizer("<|im_start|>user\nWhat runs?<|im_end|>\n")["input_ids"])
    row = replace(prompt(bundle, 1, 0, 1).row, ids=ids)
    text = Prompt(row, join_visual_indices([], 0))
    model = decoder("llama")
    alone_model = TextModel(model)
    (answer,) = generate(alone_model, tokenizer, [text], GREEDY)
    with torch.no_grad():
        alone = model.generate(input_ids=torch.from_numpy(ids)[None], max_new_tokens=NEW, do_sample=False)[0, len(ids) :]  # pyrefly: ignore
    assert answer.text == str(tokenizer.decode(alone, skip_special_tokens=True)).strip()
    with pytest.raises(RecordError, match="text-only model; it cannot take images"):
        generate(alone_model, tokenizer, [replace(prompt(bundle, 1, 1, 1))], GREEDY)


@pytest.mark.parametrize(
    "wrong", [{"max_new_tokens": 0}, {"num_beams": 0}, {"temperature": 0.0}, {"top_p": 1.5}, {"repetition_penalty": 0.0}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises((ConfigError, ValueError)):
        DecodingConfig.model_validate(wrong)
