"""Dual encoders evaluated from the command line: retrieval, composition, controls."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPModel

from sightline.cli import main
from sightline.data.dataset import open_dataset
from sightline.data.scenes.language import NEGATIVE_KINDS
from sightline.metrics.retrieval import recall_at
from tests.assembly.train.helpers import prepared_scenes
from tests.data.pictures import picture, prepared, put
from tests.duals import dual_folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_scenes(tmp_path_factory.mktemp("scenes") / "set", 30)


def evaluated(capsys: pytest.CaptureFixture[str], model: Path, scenes: Path, *options: str) -> dict[str, Any]:
    words = ["eval", model, "--data", scenes, "--split", "train", "--device", "cpu", "--resamples", "20", "--json", *options]
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in words])
    said = capsys.readouterr()
    assert not caught.value.code, said.err
    return json.loads(said.out)


def similarities(scenes: Path) -> tuple[np.ndarray, list[int]]:
    """Cosines of all images and their first five captions as transformers computes them, and the image of each caption."""
    dataset = open_dataset(scenes)
    records = [record for record in dataset.records("train") if record.captions and record.images]
    model, tokenizer = CLIPModel.from_pretrained(dual_folder("clip")).eval(), AutoTokenizer.from_pretrained(dual_folder("clip"))
    images = [Image.open(scenes / record.images[0]).convert("RGB").resize((32, 32), Image.Resampling.BICUBIC) for record in records]
    pixels = torch.from_numpy(np.stack([np.array(image) for image in images])).float() / 255
    texts, owners = [], []
    for number, record in enumerate(records):
        texts += [text for text in record.captions[:5]]
        owners += [number] * len(record.captions[:5])
    rows = []
    with torch.no_grad():
        image = model.get_image_features(((pixels - 0.5) / 0.5).permute(0, 3, 1, 2)).pooler_output
        for text in texts:
            ids = [*tokenizer(text, truncation=True, max_length=23)["input_ids"], tokenizer.eos_token_id]
            rows.append(model.get_text_features(torch.tensor([ids])).pooler_output[0])
    text = torch.stack(rows)
    cosine = torch.nn.functional.normalize(image, dim=-1) @ torch.nn.functional.normalize(text, dim=-1).T
    return cosine.numpy(), owners


def test_retrieval_of_a_stock_clip_is_that_of_its_cosines(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluated(capsys, dual_folder("clip"), scenes, "--task", "retrieval", "--out", str(tmp_path / "out"))
    cosine, owners = similarities(scenes)
    positives = np.array(owners)[None] == np.arange(len(cosine))[:, None]
    for k in (1, 5, 10):
        assert found["scores"][f"t2i_r{k}"]["value"] == pytest.approx(recall_at(cosine.T, positives.T, k).mean(), abs=1e-3)
        assert found["scores"][f"i2t_r{k}"]["value"] == pytest.approx(recall_at(cosine, positives, k).mean(), abs=1e-3)
    assert found["headline"] == "rsum"
    values = {name: score["value"] for name, score in found["scores"].items()}
    assert values["rsum"] == pytest.approx(100 * sum(values[f"{way}_r{k}"] for way in ("t2i", "i2t") for k in (1, 5, 10)))
    blind = evaluated(
        capsys, dual_folder("clip"), scenes, "--task", "retrieval", "--control", "blind", "--out", str(tmp_path / "b")
    )
    count = len(cosine)
    assert blind["scores"]["t2i_r1"]["value"] == pytest.approx(1 / count)  # every image has one vector: exactly chance


def test_composition_asks_for_the_similarity_of_captions_and_negatives(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluated(capsys, dual_folder("siglip"), scenes, "--task", "composition", "--out", str(tmp_path / "out"))
    kinds = [name for name in found["scores"] if name in NEGATIVE_KINDS]
    assert kinds
    assert 0 <= found["scores"]["accuracy"]["value"] <= 1
    line = json.loads((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()[0])
    record = next(item for item in open_dataset(scenes).records("train") if item.id == line["id"])
    assert len(line["scores"]) == len(record.captions) + len(record.negatives)
    with pytest.raises(SystemExit):
        main(["eval", str(dual_folder("siglip")), "--task", "composition", "--data", str(scenes), "--likelihood", "gain"])
    assert "has no likelihoods" in capsys.readouterr().err


def test_a_dual_encoder_writes_no_captions(scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["eval", str(dual_folder("clip")), "--task", "caption", "--data", str(scenes), "--split", "train", "--device", "cpu"])
    assert caught.value.code
    assert "compares images with texts and writes none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--shots", "2"], "Leave out --shots"),
        (["--control", "text"], "Leave out the control text"),
        (["--baseline", "neighbours"], "which the baseline neighbours cannot"),
        (["--baseline", "neighbours", "--alpha", "1"], "Leave out --likelihood, --alpha"),
    ],
)
def test_options_that_do_not_go_with_retrieval_are_refused(
    scenes: Path, capsys: pytest.CaptureFixture[str], options: list[str], says: str
) -> None:
    words = ["eval", str(dual_folder("clip")), "--task", "retrieval", "--data", str(scenes), "--split", "train", "--device", "cpu"]
    with pytest.raises(SystemExit) as caught:
        main([*words, *options])
    assert caught.value.code == 2
    assert says in capsys.readouterr().err


def test_vectors_of_another_program_are_ranked(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [record for record in open_dataset(scenes).records("train") if record.captions and record.images]
    counts = [len(record.captions[:5]) for record in records]
    image = np.random.default_rng(0).normal(size=(len(records), 9)).astype(np.float32)
    np.savez(tmp_path / "right.npz", image=image, text=np.repeat(image, counts, axis=0))
    found = evaluated(capsys, tmp_path / "right.npz", scenes, "--task", "retrieval", "--out", str(tmp_path / "out"))
    assert found["scores"]["rsum"]["value"] == pytest.approx(600)
    (tmp_path / "flat").mkdir()
    for name, rows in (("image", len(records)), ("text", sum(counts))):
        np.save(tmp_path / "flat" / f"{name}.npy", np.ones((rows, 2)))
    found = evaluated(capsys, tmp_path / "flat", scenes, "--task", "retrieval", "--out", str(tmp_path / "flat_out"))
    assert found["scores"]["t2i_r5"]["value"] == pytest.approx(5 / len(records))
    asked = ["eval", str(tmp_path / "flat"), "--task", "retrieval", "--data", str(scenes)]
    with pytest.raises(SystemExit):
        main([*asked, "--split", "val"])
    assert "in the order of its records" in capsys.readouterr().err
    for options, named in (
        (["--likelihood", "gain", "--shots", "2"], "--likelihood, --shots would change nothing"),
        (["--noise", "0.5"], "--noise would"),
        (["--images", "3"], "--images would"),
        (["--control", "blind", "--limit", "2"], "--limit, --control would"),
    ):
        with pytest.raises(SystemExit):
            main([*asked, *options])
        assert named in capsys.readouterr().err


def test_classes_are_named_from_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"id": f"{number}", "images": [f"{number}.png"], "captions": ["red", "blue"][number % 2 : number % 2 + 1]}
        for number in range(6)
    ]
    for row in rows:
        put(tmp_path / "source" / row["images"][0], picture(int(row["id"])))
    put(tmp_path / "source" / "records.jsonl", rows)
    prepared("records", tmp_path / "source", tmp_path / "set")
    found = evaluated(capsys, dual_folder("clip"), tmp_path / "set", "--task", "classify", "--out", str(tmp_path / "out"))
    line = json.loads((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()[0])
    assert len(line["scores"]) == 2
    assert 0 <= found["scores"]["accuracy"]["value"] <= 1 == found["scores"]["top5"]["value"]
