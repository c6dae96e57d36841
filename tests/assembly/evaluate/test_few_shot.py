"""Few-shot evaluation from the command line to the ids that the model is fed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.assembly.evaluate.answers import ModelAnswers
from sightline.assembly.evaluate.few_shot import draw_all, origin_of
from sightline.assembly.model.build import read_model
from sightline.assembly.model.bundle import ModelBundle
from sightline.cli import main
from sightline.data.dataset import Dataset, open_dataset
from sightline.data.images.opener import open_image
from sightline.data.images.pixels import PixelLoader
from sightline.data.samples.prompts import encode_prompt, make_prompt
from sightline.evaluation.tasks import TASKS
from sightline.generation.decode import DecodingConfig
from sightline.types import Record
from tests.composites import reference, stock_folder
from tests.data.pictures import picture, prepared, put

SIZES = [(40, 30), (20, 50), (64, 64), (90, 25), (33, 32), (30, 30)]
TEXTS = ["A brown dog runs.", "Two children play.", "A red ball.", "A woman in a white coat.", "The beach.", "Three people wait."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four records to draw from and two to ask about."""
    root = tmp_path_factory.mktemp("few")
    for number, size in enumerate(SIZES):
        put(root / f"in/{number}.png", picture(number, size=size))
    rows: list[dict[str, Any]] = [
        {
            "id": str(number),
            "images": [f"{number}.png"],
            "captions": [text, "Something else."],
            "split": "val" if number > 3 else "train",
        }
        for number, text in enumerate(TEXTS)
    ]
    put(root / "in/records.jsonl", rows)
    prepared("records", root / "in", root / "set")
    return root / "set"


@pytest.fixture(scope="module")
def bundle() -> ModelBundle:
    return read_model(stock_folder("idefics3"))


def captioned(record: Record) -> bool:
    return bool(record.captions)


def asked(dataset: Dataset) -> list[Record]:
    return list(dataset.records("val"))


def test_prompts_are_those_of_the_models_own_processor(bundle: ModelBundle, folder: Path) -> None:
    """Two examples with images, then the question: ids and pixels of Idefics3's processor for the same conversation."""
    dataset, conversation_encoder = open_dataset(folder), bundle.conversation_encoder("What is it?")
    assert bundle.processing.preparation is not None
    pictures = PixelLoader(bundle.processing.preparation, bundle.processing.tiling)
    shots = draw_all(asked(dataset), dataset, dataset, "train", 2, 0, captioned, pictures)
    for record in asked(dataset):
        examples = shots.of[record.id]
        prompt = make_prompt(dataset, record, conversation_encoder, pictures, bundle.tokens_per_crop, examples)
        shown = [*(example.record for example in examples), record]
        said = "".join(
            f"User:<image>What is it?<end_of_utterance>\nAssistant: {example.record.captions[0]}<end_of_utterance>\n"
            for example in examples
        )
        text = f"<|im_start|>{said}User:<image>What is it?<end_of_utterance>\nAssistant:"
        images = [open_image(dataset.image_bytes(one)) for one in shown]
        wanted = reference("idefics3", text, images)
        assert prompt.row.ids.tolist() == wanted["input_ids"][0].tolist()
        counts = [bundle.processing.tiling.layout(*image.size, bundle.token_grid).num_crops for image in images]
        assert prompt.num_crops == sum(counts)
        alone = [pixels for one in shown if (pixels := pictures.load(dataset, one).pixels) is not None]
        np.testing.assert_array_equal(prompt.pixels, np.concatenate(alone))
        assert prompt.visual_index.tolist() == list(range(prompt.num_crops * bundle.tokens_per_crop))


def test_a_prompt_that_the_decoder_cannot_place_is_a_counted_skip(bundle: ModelBundle, folder: Path) -> None:
    dataset = open_dataset(folder)
    record = asked(dataset)[0]
    length = len(encode_prompt(record, bundle.conversation_encoder("What?"))[0].ids)
    decoding = DecodingConfig(max_new_tokens=4096 - length + 1)
    assert bundle.processing.preparation is not None
    pictures = PixelLoader(bundle.processing.preparation, bundle.processing.tiling)
    answers = ModelAnswers(bundle, dataset, pictures, decoding, bundle.conversation_encoder("What?"), False)
    queries = TASKS["caption"]().queries(record, "What?")
    (answer,) = answers.answer(queries, 0)
    assert (answer.id, answer.skipped) == (record.id, "too_long")
    assert answers.width(queries) == 0


def exit_code(call: list[str]) -> int:
    """Runs a command; stdout and stderr are the test's."""
    with pytest.raises(SystemExit) as ended:
        main(call)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_command_says_and_stores_what_stood_before_each_question(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "eval"
    call = ["eval", str(stock_folder("idefics3")), "--task", "caption", "--data", str(folder), "--out", str(out), "--json"]
    call += ["--max-new-tokens", "3", "--batch-size", "2", "--device", "cpu", "--resamples", "10"]
    assert exit_code([*call, "--shots", "2", "--shots-from", f"{folder}:train"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["shots"] == {"count": 2, "data": str(folder), "split": "train", "seed": 0, "examples": "shots.json"}
    stored = json.loads((out / "shots.json").read_text())
    assert set(stored) == {"4", "5"}
    assert all(len(set(ids)) == 2 and set(ids) <= {"0", "1", "2", "3"} for ids in stored.values())
    settings = json.loads((out / "scores.json").read_text())["settings"]
    assert settings["shots"]["count"] == 2
    before = (out / "predictions.jsonl").read_bytes()
    assert exit_code([*call, "--shots", "2"]) == 0  # the same split of the same data: nothing is asked again
    assert (out / "predictions.jsonl").read_bytes() == before
    capsys.readouterr()
    assert exit_code([*call, "--shots", "5"]) == 2
    assert "has 4 records that can be examples" in " ".join(capsys.readouterr().err.split())


def test_examples_come_from_a_split_of_the_same_data_or_from_other_data(folder: Path, tmp_path: Path) -> None:
    assert origin_of("train", str(folder)) == (str(folder), "train")
    assert origin_of(f"{folder}:val", "other") == (str(folder), "val")
    assert origin_of(str(folder), "other") == (str(folder), "train")
    assert origin_of("C:val", "other") == ("other", "C:val")
