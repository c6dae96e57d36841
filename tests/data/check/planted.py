"""Dataset folders with faults, copies and leaks planted in them, so that every count is known."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from sightline.data.scenes import make_scene, render
from tests.data.pictures import prepared, put


def scene(index: int, size: int = 96) -> Image.Image:
    """One of many images that do not look alike."""
    return render(make_scene(seed=5, level=3, index=index), size)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def jpeg(image: Image.Image, quality: int = 60) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def record(name: str, image: str | None, split: str = "train", captions: Sequence[str] = (), **more: Any) -> dict[str, Any]:
    """A line of records.jsonl; its caption is its own unless others are given."""
    texts = {} if "messages" in more else {"captions": list(captions) or [f"caption of {name}"]}
    return {"id": name, "split": split, **({"images": [image]} if image else {}), **texts, **more}


def question(name: str, image: str, asked: str, answers: Sequence[str], split: str = "train") -> dict[str, Any]:
    """A record with a question."""
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": asked}]}
    messages = [user, {"role": "assistant", "content": answers[0]}]
    return record(name, image, split, messages=messages, answers=list(answers))


def folder(path: Path, rows: list[dict[str, Any]], pictures: dict[str, bytes], **options: Any) -> Path:
    """A dataset folder made of records and image files by `data prepare`."""
    source = path.with_name(path.name + "-source")
    for name, data in pictures.items():
        put(source / name, data)
    put(source / "records.jsonl", rows)
    prepared("records", source, path, **options)
    return path


def stored(path: Path, record_index: int) -> Path:
    """The file of a record's first image."""
    from sightline.data.dataset import Dataset

    return path / Dataset(path).record(record_index).images[0]
