"""Small images, each of its own content, and helpers that read sources and prepared folders in tests."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sightline.data.prepare.run import PrepareOptions, prepare
from sightline.data.readers import FORMATS, Item, Skip, SourceOptions, Tally


def picture(seed: int, kind: str = "PNG", size: tuple[int, int] = (9, 7)) -> bytes:
    """An image file of `size` (width, height) that differs for every seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def put(path: Path, content: bytes | str | list | dict) -> Path:
    """Writes a file with its folders: bytes, text, or JSON; a list for *.jsonl is one value per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, list) and path.suffix == ".jsonl":
        content = "".join(json.dumps(row) + "\n" for row in content)
    elif isinstance(content, list | dict):
        content = json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(format_name: str, path: Path, **options: Any) -> tuple[list[Item], list[Skip], Tally]:
    """Everything that a source yields."""
    tally = Tally()
    entries = list(FORMATS[format_name].read(path, SourceOptions(**options), tally))
    items = [entry for entry in entries if isinstance(entry, Item)]
    return items, [entry for entry in entries if isinstance(entry, Skip)], tally


def prepared(format_name: str, path: Path, out: Path, **options: Any) -> dict[str, Any]:
    """`prepare` in this process, forgiving any share of skips unless told otherwise."""
    return prepare(path, format_name, PrepareOptions(out=out, **{"workers": 0, "max_skipped": 1.0, **options}))


def lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a folder with its content."""
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
