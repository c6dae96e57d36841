"""Boxes of images that EXIF turns: where a coloured region is in the image as shown, there is its box."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sightline.data.dataset import open_dataset
from sightline.data.images.opener import open_image
from tests.data.pictures import prepared, put

WIDTH, HEIGHT = 80, 40
REGION = (8, 4, 24, 12)  # left, top, width, height in stored pixels


def turned(orientation: int, kind: str = "JPEG") -> bytes:
    """A white image with a black region, and EXIF that asks for a turn."""
    pixels = np.full((HEIGHT, WIDTH, 3), 255, dtype=np.uint8)
    left, top, width, height = REGION
    pixels[top : top + height, left : left + width] = 0
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, exif=exif, **({"quality": 95, "subsampling": 0} if kind == "JPEG" else {}))
    return buffer.getvalue()


def seen(data: bytes) -> tuple[tuple[int, int], list[float]]:
    """Size of the image as shown, and where its region is, in fractions."""
    dark = np.asarray(open_image(data).convert("L")) < 128
    rows, columns = np.flatnonzero(dark.any(1)), np.flatnonzero(dark.any(0))
    height, width = dark.shape
    return (width, height), [columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height]


def coco(folder: Path, data: bytes, size: tuple[int, int] | None, bbox: list[float], kind: str = "jpg") -> Path:
    image: dict[str, Any] = {"id": 1, "file_name": f"1.{kind}"}
    image |= {"width": size[0], "height": size[1]} if size else {}
    annotations = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": bbox}]
    content = {"images": [image], "annotations": annotations, "categories": [{"id": 1, "name": "region"}]}
    put(folder / f"1.{kind}", data)
    return put(folder / "instances_x.json", content)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_in_stored_pixels_turn_with_the_image(tmp_path: Path, orientation: int, kind: str) -> None:
    data = turned(orientation, kind)
    summary = prepared("coco", coco(tmp_path / "in", data, (WIDTH, HEIGHT), list(REGION)), tmp_path / "out")
    record = open_dataset(tmp_path / "out").record(0)
    size, where = seen(data)
    assert (record.image_info[0].width, record.image_info[0].height) == size
    assert record.boxes[0].xyxy == pytest.approx(where, abs=1e-6)
    assert summary["notes"] == ({"boxes_turned": 1} if orientation > 1 else {})
    prepared("records", tmp_path / "out", tmp_path / "again")
    assert open_dataset(tmp_path / "again").record(0).boxes == record.boxes  # our own boxes are of the image as shown


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("scale", [1, 2])
def test_boxes_whose_size_is_that_of_the_turned_image_stay(tmp_path: Path, orientation: int, scale: int) -> None:
    data = turned(orientation)
    (width, height), where = seen(data)
    left, top, right, bottom = where[0] * width, where[1] * height, where[2] * width, where[3] * height
    bbox = [value * scale for value in (left, top, right - left, bottom - top)]
    summary = prepared("coco", coco(tmp_path / "in", data, (width * scale, height * scale), bbox), tmp_path / "out")
    assert open_dataset(tmp_path / "out").record(0).boxes[0].xyxy == pytest.approx(where, abs=1e-6)
    assert summary["notes"] == ({"size_differs": 1} if scale > 1 else {})


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_boxes_of_other_formats_turn_too(tmp_path: Path, orientation: int) -> None:
    """Fractions of sroie's lines, and refcocog's pixels, whose rows state no size."""
    data = turned(orientation)
    left, top, width, height = REGION
    fractions = [left / WIDTH, top / HEIGHT, (left + width) / WIDTH, (top + height) / HEIGHT]
    put(tmp_path / "in/1.jpg", data)
    line = {"text": "x", "box_xyxy_frac": fractions}
    put(tmp_path / "in/receipts.jsonl", [{"image": "1.jpg", "fields": {"total": "1"}, "lines": [line]}])
    put(tmp_path / "ref/1.jpg", data)
    put(tmp_path / "ref/x.jsonl", [{"question_id": "1", "image": "1.jpg", "answer": ["the bush"], "bbox": list(REGION)}])
    for name, kind in (("in", "sroie"), ("ref", "refcocog")):
        prepared(kind, tmp_path / name, tmp_path / f"{name}-out")
        assert open_dataset(tmp_path / f"{name}-out").record(0).boxes[0].xyxy == pytest.approx(seen(data)[1], abs=1e-6), kind
    assert json.loads((tmp_path / "ref-out/dataset.json").read_text())["notes"] == ({} if orientation == 1 else {"boxes_turned": 1})
