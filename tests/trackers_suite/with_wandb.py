"""What W&B has stored of a short training, offline."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from wandb.proto import wandb_internal_pb2

from tests.trackers_suite.helpers import followed, numbers

BLOCK, HEADER = 32768, 7  # the file is a LevelDB log: blocks of records with checksum (4 bytes), length (2) and type (1)


def records_of(file: Path) -> Iterator[bytes]:
    """Yields the records of an offline run."""
    data, at, parts = file.read_bytes(), HEADER, b""
    assert data[:4] == b":W&B"
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:  # the rest of a block is too short for a header
            at += BLOCK - at % BLOCK
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        if kind == 0:
            at += BLOCK - at % BLOCK
            continue
        parts += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def lines_of(file: Path) -> list[dict[str, Any]]:
    """Reads the history of an offline run: a dictionary for each step."""
    out = []
    for data in records_of(file):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.HasField("history"):
            items = record.history.item
            out.append({item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items})
    return out


def test_wandb_has_losses_rates_norms_and_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    found = followed(tmp_path, "wandb")
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    history = lines_of(file)
    for name, values in numbers(found).items():
        assert {line["_step"]: line[name] for line in history if name in line} == pytest.approx(values, rel=1e-12), name
    for step, texts in found.texts.items():
        (line,) = [line for line in history if line["_step"] == step and "generated.count" in line]
        assert {key.removeprefix("generated/"): value for key, value in line.items() if key.startswith("generated/")} == texts
        assert line["generated.captions"] == [f"{text} (true: {found.truths[record]})" for record, text in texts.items()]
        for name in line["generated.filenames"]:
            with Image.open(file.parent / "files" / name) as image:
                assert image.size == (64, 64)
