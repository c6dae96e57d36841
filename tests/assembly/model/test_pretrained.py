"""Stock models of transformers are asked as they are: same ids, same pixels, same words as with their own processors."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sightline.assembly.evaluate.answers import ModelAnswers
from sightline.assembly.evaluate.chat import ChatModel
from sightline.assembly.model.build import read_model
from sightline.assembly.model.bundle import ModelBundle
from sightline.cli import main
from sightline.data.dataset import open_dataset
from sightline.data.images.pixels import PixelLoader
from sightline.data.records import prompt_messages
from sightline.data.samples.prompts import Prompt
from sightline.errors import ConfigError, SightlineError
from sightline.evaluation.controls import BlindPixelLoader
from sightline.evaluation.tasks import Query
from sightline.generation.decode import DecodingConfig, generate
from sightline.models.stock import StockModel
from sightline.types import Record
from tests.assembly.model.helpers import RECORDS, inputs, noise, prompt, question
from tests.builders import Exact, batch_of
from tests.composites import STOCK, stock, stock_folder

GREEDY = DecodingConfig(max_new_tokens=8)


@pytest.fixture(scope="module", params=STOCK)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def bundle(kind: str) -> ModelBundle:
    return read_model(stock_folder(kind))


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.id)
def test_ids_and_pixels_are_those_of_the_models_own_processor(kind: str, bundle: ModelBundle, record: Record) -> None:
    ours, theirs = prompt(bundle, record), inputs(kind, bundle, record)
    assert ours.row.ids.tolist() == theirs["input_ids"][0].tolist()
    assert isinstance(bundle.model, StockModel)
    pixels = bundle.model.normalise(torch.from_numpy(ours.pixels))
    reference_pixels = theirs["pixel_values"].flatten(0, -4)
    if kind == "llava_next":  # images of fewer tiles are filled up
        counts = [layout.num_crops for layout in bundle.conversation_encoder().layouts(record)]
        reference_pixels = torch.cat([rows[:count] for rows, count in zip(theirs["pixel_values"], counts, strict=True)])
    # two orders of float32 roundings: measured 4.8e-7
    torch.testing.assert_close(pixels, reference_pixels, rtol=0, atol=1e-6)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.id)
def test_the_words_are_those_of_transformers_own_generate(kind: str, bundle: ModelBundle, record: Record) -> None:
    theirs = inputs(kind, bundle, record)
    model = stock(kind)
    settings = bundle.inner.generation_config
    said = model.generate(**theirs, max_new_tokens=8, do_sample=False, generation_config=settings)
    new = said[0, theirs["input_ids"].shape[1] :]
    expected = bundle.tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
    assert generate(bundle.model, bundle.tokenizer, [prompt(bundle, record)], GREEDY)[0].text == expected


def test_a_batch_of_images_of_any_size_says_what_each_row_says_alone(bundle: ModelBundle) -> None:
    """Left padding, several images, none at all: rows do not see each other."""
    records = [*RECORDS, question(text="No image here.")]
    alone = [generate(bundle.model, bundle.tokenizer, [prompt(bundle, record)], GREEDY)[0] for record in records]
    together = generate(bundle.model, bundle.tokenizer, [prompt(bundle, record) for record in records], GREEDY, width=400)
    assert together == alone
    assert len({text.text for text in alone}) > 1


def test_beams_keep_the_crops_of_their_row(bundle: ModelBundle) -> None:
    decoding = DecodingConfig(max_new_tokens=6, num_beams=3)
    records = [question(3, 4), question(1)]
    alone = [generate(bundle.model, bundle.tokenizer, [prompt(bundle, record)], decoding)[0] for record in records]
    assert generate(bundle.model, bundle.tokenizer, [prompt(bundle, record) for record in records], decoding) == alone


def test_hidden_states_of_packed_rows_are_those_of_the_stock_forward_in_float64(kind: str) -> None:
    """Two samples in one row, one with two images, against `forward` of the model itself on each."""
    bundle = read_model(stock_folder(kind))
    bundle.model.double()
    records, conversation_encoder = [question(0), question(1, 3)], bundle.conversation_encoder()
    samples, logits = [], []
    with Exact(), torch.no_grad():
        for record in records:
            ours, theirs = prompt(bundle, record), inputs(kind, bundle, record)
            samples.append(sample_of(bundle, ours))
            theirs = {name: value.double() if value.is_floating_point() else value for name, value in theirs.items()}
            logits.append(stock(kind).double()(**theirs, use_cache=False).logits[0, -3:])
        batch = batch_of(samples)
        hidden = bundle.model.hidden(batch)
        ours_SV = hidden.states_SD @ hidden.head.weight_VD.T
    assert conversation_encoder.image_id == bundle.inner.config.image_token_id
    for number, expected in enumerate(logits):
        found = ours_SV[batch.supervision.sample_S == number][-3:]
        # pixels are normalised in float32 by two routes: measured 6e-7 of the largest logit
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def sample_of(bundle: ModelBundle, ours: Prompt) -> Any:
    """A sample whose last three tokens are supervised, each predicted from the token before; one more token than the prompt."""
    from sightline.types import EncodedConversation, Sample, Span

    ids = np.concatenate([ours.row.ids, [5]])
    spans = (Span(len(ids) - 3, len(ids), 0),)
    return Sample(
        branches=(EncodedConversation(ids, spans, ours.row.slots),),
        prefix=0,
        visual_index=ours.visual_index,
        images=ours.pixels,
        tokens_per_crop=bundle.tokens_per_crop,
    )


# Commands -------------------------------------------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--json"])
    out, err = capsys.readouterr()
    assert stopped.value.code == 0, err
    return json.loads(out)


def test_eval_and_its_controls_run_on_a_stock_folder(
    kind: str, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["eval", str(stock_folder(kind)), "--task", "caption", "--data", str(dataset), "--max-new-tokens", "6"]
    texts = {}
    for control in (None, "blind", "shuffled"):
        out = tmp_path / str(control)
        more = [] if control is None else ["--control", control]
        result = run(capsys, *asked, *more, "--out", str(out), "--batch-size", "3")
        assert result["control"] == control
        assert result["scores"]["cider_d"]["n"] == 8
        assert not result["skipped"]
        texts[control] = [json.loads(line)["text"] for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert texts[None] != texts["blind"]
    assert texts[None] != texts["shuffled"]


def test_generate_answers_from_a_stock_folder(
    kind: str, bundle: ModelBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise(2).save(tmp_path / "a.png")
    noise(3).save(tmp_path / "b.png")
    asked = ["--image", str(tmp_path / "a.png"), "--image", str(tmp_path / "b.png"), "--prompt", "What is it?"]
    said = run(capsys, "generate", str(stock_folder(kind)), *asked, "--max-new-tokens", "8")
    expected = generate(bundle.model, bundle.tokenizer, [prompt(bundle, question(2, 3, text="What is it?"))], GREEDY)[0]
    assert (said["text"], said["tokens"]) == (expected.text, expected.num_tokens)
    with_default = run(capsys, "generate", str(stock_folder(kind)), "--image", str(tmp_path / "a.png"), "--max-new-tokens", "8")
    asked_default = question(2, text="Provide a one-sentence caption for the provided image.")
    assert with_default["text"] == generate(bundle.model, bundle.tokenizer, [prompt(bundle, asked_default)], GREEDY)[0].text


def test_answers_skip_a_record_whose_image_is_gone(bundle: ModelBundle, dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset, tmp_path / "set")
    opened = open_dataset(tmp_path / "set")
    records = list(opened.records("val"))
    (tmp_path / "set" / records[1].images[0]).unlink()
    assert bundle.processing.preparation is not None
    pictures = PixelLoader(bundle.processing.preparation, bundle.processing.tiling)
    answers = ModelAnswers(bundle, opened, pictures, GREEDY, bundle.conversation_encoder(), bf16=False)
    queries = [Query(record.id, record, prompt_messages(record, "Describe the image.")) for record in records]
    assert [given.skipped for given in answers.answer(queries[:3], answers.width(queries))] == ["", "image_missing", ""]
    blind = BlindPixelLoader(bundle.processing.preparation, bundle.processing.tiling)
    unseen = ModelAnswers(bundle, opened, blind, GREEDY, bundle.conversation_encoder(), bf16=False).answer(queries[:3], 0)
    assert not any(given.skipped for given in unseen)


# Faults ---------------------------------------------------------------------------------------------------------------------------


def changed(kind: str, target: Path, file: str, **values: Any) -> Path:
    shutil.copytree(stock_folder(kind), target)
    content = json.loads((target / file).read_text())
    (target / file).write_text(json.dumps({**content, **values}))
    return target


@pytest.mark.parametrize(
    ("kind", "file", "values", "fault"),
    [
        ("llava", "config.json", {"image_token_index": 5}, "the model's image token is 5"),
        ("llava_next", "config.json", {"image_grid_pinpoints": [[32, 64]]}, "'image_grid_pinpoints' of config.json and of the"),
        ("idefics3", "config.json", {"model_type": "qwen2_vl"}, "holds a qwen2_vl model; Sightline does not know"),
        ("idefics3", "config.json", {"model_type": "llama"}, "holds a llama model"),
        ("idefics3", "preprocessor_config.json", {"image_processor_type": "Qwen2VLImageProcessor"}, "Qwen2VLImageProcessor"),
    ],
)
def test_a_folder_at_odds_with_itself_is_refused(kind: str, file: str, values: dict[str, Any], fault: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=fault):
        read_model(changed(kind, tmp_path / "model", file, **values))


@pytest.mark.parametrize("gone", ["model.safetensors", "tokenizer.json", "preprocessor_config.json", "config.json"])
def test_a_folder_without_one_of_its_files_is_refused(gone: str, tmp_path: Path) -> None:
    shutil.copytree(stock_folder("smolvlm"), tmp_path / "model")
    (tmp_path / "model" / gone).unlink()
    with pytest.raises(SightlineError):
        read_model(tmp_path / "model")


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read a model configuration"):
        ChatModel.open(str(tmp_path))
