"""`boxes`: the whole image, then each of its boxes as an image of its own (ComAlign with `encode: crops`)."""

import hashlib
from functools import lru_cache
from typing import Literal, Self

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from pydantic import Field, PrivateAttr

from sightline.data.images.boxes import boxes_of, region_of
from sightline.data.images.preparation import ImagePreparation
from sightline.data.images.tilings.base import Layout, TilingConfig, read_only
from sightline.types import IMAGE, BoxChoice, Record, RegionChoice


class BoxTilingConfig(TilingConfig):
    """One crop of the whole image and one of each box; padding is black. For `model.dual.alignment`, which sets it."""

    kind: Literal["boxes"] = "boxes"
    boxes: BoxChoice = "cells"
    """As `model.dual.alignment.boxes`."""
    entities: int = Field(default=10, ge=0, le=64)
    """Boxes of an image."""
    relations: int = Field(default=10, ge=0, le=64)
    """Pairs of boxes."""
    region: RegionChoice = "crop"
    """As `model.dual.alignment.region`."""
    _of_record: np.ndarray | None = PrivateAttr(default=None)

    def for_record(self, record: Record) -> Self:
        copy = self.model_copy()
        copy._of_record = boxes_of(record, self.boxes, self.entities, self.relations)
        return copy

    def image_key(self, sha256: str, record: Record) -> str:
        if self.boxes == "cells":
            return sha256
        boxes = boxes_of(record, self.boxes, self.entities, self.relations)
        return hashlib.sha256(bytes.fromhex(sha256) + np.round(boxes, 6).astype("<f4").tobytes()).hexdigest()

    def layout(self, width: int, height: int, grid: tuple[int, int]) -> Layout:
        return _layout(grid[0] * grid[1], 1 + self.entities + self.relations)

    def crops(self, image: Image.Image, preparation: ImagePreparation) -> UInt8[np.ndarray, "N h w 3"]:
        found = self._of_record
        assert found is not None, "for_record comes first"
        whole = preparation.prepare(image)
        rows = [whole]
        for box in found:
            has_area = box[2] > box[0] and box[3] > box[1]
            rows.append(preparation.prepare(region_of(image, box.tolist(), self.region)) if has_area else np.zeros_like(whole))
        return np.stack(rows)


@lru_cache(maxsize=16)
def _layout(count: int, crops: int) -> Layout:
    return Layout(IMAGE, (count * crops,), read_only(np.arange(count * crops)), crops)
