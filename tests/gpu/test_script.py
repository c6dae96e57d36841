"""The script that measures on a GPU: its limits, and what a part leaves that fails or runs out of time."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmarks import gpu


def test_the_limits_of_all_parts_add_up_to_less_than_five_minutes() -> None:
    script = Path(gpu.__file__).with_suffix(".sh").read_text("utf-8")
    limits = {name: int(seconds) for name, seconds in re.findall(r"^part (\w+) (\d+)$", script, re.MULTILINE)}
    (summary,) = re.findall(r"timeout (\d+) .* summary", script)
    assert tuple(limits) == gpu.PARTS
    assert sum(limits.values()) + int(summary) <= 300


def test_a_part_that_fails_leaves_what_it_has_found_and_the_summary_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def train(*given: object) -> Iterator[dict[str, Any]]:
        yield {"dense": {"mfu": 0.25}}
        assert json.loads((tmp_path / "train.json").read_text())["complete"] is False
        raise MemoryError

    monkeypatch.setattr(gpu, "train", train)
    with pytest.raises(MemoryError):
        gpu.write("train", tmp_path / "train.json", dry=True)
    found = gpu.summary(tmp_path, tmp_path / "gpu.md")
    assert found["train"]["dense"] == {"mfu": 0.25}
    assert found["incomplete"] == list(gpu.PARTS)
    assert "| MFU, dense mask, not compiled | 0.25 |" in (tmp_path / "gpu.md").read_text()
