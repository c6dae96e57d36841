"""The commands of docs/features.md, run as they stand on files as the page names them."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from sightline.cli import main
from sightline.data.features.store import FeatureStore
from tests.builders import decoder_folder, encoder_folder
from tests.data.pictures import picture, put

PAGE = Path(__file__).parents[2] / "docs/features.md"


def commands() -> list[list[str]]:
    """Of the page, without the name of the program."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    return [shlex.split(line)[1:] for block in blocks for line in block.splitlines()]


def draw(here: Path) -> None:
    """Six photos with captions, a table of their features, and two runs of two steps."""
    rows = []
    for number in range(6):
        put(here / f"data/flickr8k/images/{number}.jpg", picture(number, "JPEG"))
        captions = [f"A dog number {number}.", "A cat."]
        rows.append({"image": f"images/{number}.jpg", "split": "val" if number > 3 else "train", "captions": captions})
    put(here / "data/flickr8k/captions.jsonl", rows)
    values = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    np.savez(here / "data/table.npz", names=[f"{number}.jpg" for number in range(6)], features=values)
    for name, eye, folder in (
        ("run", {"path": str(encoder_folder("siglip"))}, "sets/flickr8k"),
        ("table", {"external": "sets/table"}, "sets/captions"),
    ):
        run = {
            "model": {"vision": eye, "language": {"path": str(decoder_folder("llama"))}},
            "data": {"path": folder, "max_tokens": 64},
            "train": {"steps": 2, "batch_size": 1, "evaluate_samples": 2, "generate_samples": 0},
            "stages": [{"name": "align", "parts": {"connector": "train"}}],
            "runtime": {"device": "cpu", "threads": 1},
        }
        put(here / f"{name}.yaml", run)  # JSON is YAML


def test_the_commands_of_the_page_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    draw(tmp_path)
    monkeypatch.chdir(tmp_path)
    prepare = ["data", "prepare", "data/flickr8k", "--format", "flickr8k", "--out", "sets/flickr8k"]
    for arguments in [prepare, *commands()]:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0, (arguments, capfd.readouterr().err)
    assert len(FeatureStore("sets/features")) == 6
    assert FeatureStore("sets/table").kind == "external"
    for run in ("stored", "table"):
        lines = [json.loads(line) for line in (tmp_path / f"runs/{run}/metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if "loss" in line] == [1, 2]
    assert len(list(tmp_path.glob("runs/stored/eval/*/*/scores.json"))) == 1
