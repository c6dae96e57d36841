"""Data sets and models to evaluate, for tests."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.data.check.planted import folder, png, record, scene

COUNT = 11


def data(path: Path, first: int = 0, more: Sequence[dict[str, Any]] = ()) -> Path:
    """Records with an image each; `first` says which scenes they show, `more` are further records."""
    rows = [record(f"r{n}", f"{n}.png", "val", [f"a dog {n}", f"the dog runs {n}"]) for n in range(COUNT)]
    rows += [record("words", None, "val", ["no image"]), record("t", "0.png"), *more]
    return folder(path, rows, {f"{n}.png": png(scene(first + n, 64)) for n in range(COUNT)})


def two_pictures(name: str) -> dict[str, Any]:
    look = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Look."}]
    messages = [{"role": "user", "content": look}, {"role": "assistant", "content": "a dog"}]
    return {"id": name, "images": ["0.png", "1.png"], "messages": messages, "split": "val"}
