"""Controls: the same evaluation with the image taken away or exchanged.

`blind` shows a uniform image of the encoder's mean colour, of the same size, in place of each image. `shuffled` gives every
record the images of another record; a record that no other can exchange with is left out and counted as `not_exchangeable`. A model
that looks scores lower on both; one that does not, does not.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from sightline.data.dataset import Dataset
from sightline.data.features.store import FeatureStore, RowFormat
from sightline.data.images.pixels import VisualInputs
from sightline.data.images.preparation import ImagePreparation
from sightline.data.images.tilings import TilingConfig
from sightline.errors import UsageError
from sightline.runtime.keyed import derangement, keyed_generator
from sightline.types import Record

Control = Literal["blind", "shuffled"]
NOT_EXCHANGEABLE = "not_exchangeable"  # reason under which records without a partner are counted


class BlindPixelLoader:
    """A uniform image of the encoder's mean colour in place of every image, at the image's own size.

    Args:
        preparation, tiling: as those of the model.
    """

    def __init__(self, preparation: ImagePreparation, tiling: TilingConfig) -> None:
        self.preparation, self.tiling = preparation, tiling
        self.colour = tuple(round(mean / preparation.rescale) for mean in preparation.mean)

    def load(self, dataset: Dataset, record: Record) -> VisualInputs:
        """Prepared pixels of the uniform images; no file is opened."""
        sizes = [(info.width, info.height) for info in record.image_info]
        images = [Image.new("RGB", size, self.colour) for size in sizes]
        return VisualInputs(np.concatenate([self.tiling.crops(image, self.preparation) for image in images]))


class BlindFeatureLoader:
    """The encoder's outputs for those uniform images, for a model that reads stored features.

    Args:
        blind: makes the uniform images.
        encode: from prepared crops to features, float32.
        row_format: of the store; the outputs are rounded as it would round them.
    """

    def __init__(
        self,
        blind: BlindPixelLoader,
        encode: Callable[[UInt8[np.ndarray, "N h w 3"]], Float[np.ndarray, "N P E"]],
        row_format: RowFormat,
    ) -> None:
        self.blind, self.encode, self.row_format = blind, encode, row_format
        self._known: dict[bytes, np.ndarray] = {}

    def load(self, dataset: Dataset, record: Record) -> VisualInputs:
        """Features of the uniform images; equal crops are encoded once."""
        pixels = self.blind.load(dataset, record).pixels
        assert pixels is not None
        return VisualInputs(features=np.stack([self._of(crop) for crop in pixels]))

    def _of(self, crop: np.ndarray) -> np.ndarray:
        key = crop.tobytes()
        if key not in self._known:
            self._known[key] = self.row_format.rounded(self.encode(crop[None]))[0]
        return self._known[key]


class MeanFeatureLoader:
    """The mean row of an external table in place of every image's: where no encoder is, no uniform image can be shown.

    Args:
        store: the table.
    """

    def __init__(self, store: FeatureStore) -> None:
        self.mean = store.row_format.rounded(store.mean()[None])

    def load(self, dataset: Dataset, record: Record) -> VisualInputs:
        """The mean row for each image."""
        return VisualInputs(features=np.repeat(self.mean, len(record.images), axis=0))


def exchange_images(records: list[Record], seed: int = 0) -> list[Record]:
    """Gives records with images those of another record with as many, never their own nor equal ones.

    Returns:
        The records in their order, without those that cannot take part: one with a number of images that no other has, and where
        more than half of the records with as many have the same images, as few as possible of these. Records without images stay as
        they are.

    Raises:
        UsageError: there are images, and no two records can exchange theirs.
    """
    out = {index: record for index, record in enumerate(records) if not record.images}
    by_count: dict[int, list[int]] = {}
    for index, record in enumerate(records):
        if record.images:
            by_count.setdefault(len(record.images), []).append(index)
    for members in by_count.values():
        members = _exchangeable(members, [records[index].image_keys for index in members], seed)
        keys = [records[index].image_keys for index in members]
        partner = derangement(len(keys), lambda a, b, keys=keys: keys[a] == keys[b], keyed_generator("shuffled", seed, len(keys)))
        assert partner is not None  # no key stands more often than all others together
        for place, index in enumerate(members):
            other = records[members[partner[place]]]
            out[index] = replace(records[index], images=other.images, image_info=other.image_info)
    if by_count and not any(record.images for record in out.values()):
        raise UsageError(
            f"no two of {sum(map(len, by_count.values()))} records can exchange their images: no other has as many that differ.",
            "Evaluate more records.",
        )
    return [out[index] for index in sorted(out)]


def _exchangeable(members: list[int], keys: list[tuple[str, ...]], seed: int) -> list[int]:
    """Members without as many of the most frequent key as it has more than all others together."""
    key, count = Counter(keys).most_common(1)[0]
    surplus = 2 * count - len(keys)
    if surplus <= 0:
        return members
    alike = [member for member, own in zip(members, keys, strict=True) if own == key]
    left_out = set(keyed_generator("left out", seed, len(keys)).permutation(alike)[:surplus].tolist())
    return [member for member in members if member not in left_out]
