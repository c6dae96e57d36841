"""A feature store of known numbers, written by a process that may be killed: `python -m tests.data.feature_jobs OUT`."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sightline.data.features.store import FeatureDtype, RowFormat
from sightline.data.features.writer import ImageSelection, MissingImage, StoreOrigin, write_store

PATCHES, WIDTH = 3, 5


def digests(count: int, seed: int = 0) -> np.ndarray:
    """Different hashes, the first two with the same first 8 bytes."""
    found = np.random.default_rng(seed).integers(0, 256, (count, 32), dtype=np.uint8)
    found[1, :8] = found[0, :8]
    return found


def wanted(count: int = 30, seed: int = 0) -> ImageSelection:
    """Images of one to three crops."""
    crops = np.random.default_rng(seed + 1).integers(1, 4, count)
    places = np.arange(count)
    source = {"fingerprint": "f", "name": "made", "splits": ["train"]}
    return ImageSelection(digests(count, seed), crops, places * 0, places, places * 0, (source,))


def numbers(of: ImageSelection, seed: int = 0) -> np.ndarray:
    """The features of all crops."""
    return np.random.default_rng(seed + 2).normal(size=(int(of.crops.sum()), PATCHES, WIDTH)).astype(np.float32)


class Made:
    """Gives known features in short stretches; images in `lost` fail."""

    def __init__(self, of: ImageSelection, lost: tuple[int, ...] = ()) -> None:
        self.of, self.lost, self.all = of, lost, numbers(of)
        self.asked: list[int] = []

    def features(self, first: int, end: int) -> Iterator[tuple[np.ndarray, list[MissingImage]]]:
        self.asked += range(first, end)
        for picture in range(first, end):
            begin = int(self.of.crops[:picture].sum())
            failed = [MissingImage(picture, "image_broken", f"image {picture}")] if picture in self.lost else []
            yield self.all[begin : begin + int(self.of.crops[picture])], failed


def note() -> StoreOrigin:
    return StoreOrigin("encoder", {"weights": "w", "layer": "last"}, (1, PATCHES))


def row_format(dtype: FeatureDtype) -> RowFormat:
    return RowFormat(dtype, PATCHES, WIDTH)


def write(
    out: Path, dtype: FeatureDtype = "fp16", of: ImageSelection | None = None, lost: tuple[int, ...] = (), max_skipped: float = 0.5
) -> Made:
    """Writes a store of shards of about ten crops; returns what supplied it."""
    of = wanted() if of is None else of
    supply = Made(of, lost)
    write_store(out, row_format(dtype), note(), of, supply, max_skipped, shard_bytes=row_format(dtype).row_bytes * 10)
    return supply


if __name__ == "__main__":
    write(Path(sys.argv[1]), lost=(4,))
