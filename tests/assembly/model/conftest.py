"""Fixtures of the tests of models."""

from pathlib import Path

import pytest

from tests.assembly.model.helpers import SIZES
from tests.data.pictures import picture, prepared, put


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images of several sizes with two captions each."""
    root = tmp_path_factory.mktemp("captions")
    rows = []
    for number in range(8):
        put(root / f"in/{number}.png", picture(number, size=SIZES[number % len(SIZES)]))
        captions = [f"A dog {number} runs.", "Two children play."]
        rows.append({"id": f"r{number}", "images": [f"{number}.png"], "captions": captions, "split": "val"})
    put(root / "in/records.jsonl", rows)
    prepared("records", root / "in", root / "set")
    return root / "set"
