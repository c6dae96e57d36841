"""Runs of dual encoders from the command line: started, and compared by their log and their weights."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from sightline.training import checkpoint
from tests.processes import Commands


def written(file: Path, run: dict[str, Any]) -> Path:
    file.write_text(json.dumps(run))
    return file


def finished(commands: Commands, config: Path, out: Path, faults: str = "") -> Path:
    code, said = commands.run(["train", "--config", config, "--out", out], faults)
    assert code == 0, said
    return out


def lines(run: Path) -> list[dict[str, Any]]:
    clock = {"seconds", "wait_share"}
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in clock} for line in found]


def last_weights(run: Path) -> dict[str, torch.Tensor]:
    saved = checkpoint.newest(run)
    assert saved is not None
    files = sorted((saved.path / "model").glob("*.safetensors"))
    return {name: value for file in files for name, value in load_file(file).items()}


def assert_equal_weights(one: Path, two: Path) -> None:
    mine, theirs = last_weights(one), last_weights(two)
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
