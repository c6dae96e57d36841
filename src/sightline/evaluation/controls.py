"""Controls: the same evaluation with the image taken away, blurred or exchanged.

| control | what the model sees |
|---|---|
| `blind` | a uniform image of the encoder's mean colour, of the same size |
| `grey` | a uniform image of middle grey, the same for every encoder |
| `shuffled` | the images of another record |
| `text` | no image and no image tokens |
| `blur:SIGMA` | the image after a Gaussian blur |

A model that looks scores lower without its image; one that does not, does not. A record that no other can exchange its images with
is left out of `shuffled` and counted as `not_exchangeable`.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageFilter
from pydantic import AfterValidator

from sightline.config import suggestion
from sightline.data.dataset import Dataset
from sightline.data.features.store import FeatureStore, RowFormat
from sightline.data.images.pixels import VisualInputLoader, VisualInputs
from sightline.data.images.preparation import ImagePreparation
from sightline.data.images.reader import read_image
from sightline.data.images.tilings import TilingConfig
from sightline.errors import UsageError
from sightline.evaluation.tasks import Query
from sightline.runtime.keyed import derangement, keyed_generator
from sightline.types import Message, Record

BLIND, GREY, SHUFFLED, TEXT, BLUR = "blind", "grey", "shuffled", "text", "blur:"
WITHOUT_IMAGE = (SHUFFLED, BLIND, GREY, TEXT)
"""Controls that show nothing of the record's image, in the order in which a verdict prefers them.

An exchanged image comes first, because it alone looks like the images that a model was trained on."""
BLURRED_SIDE = 336  # pixels of the image that SIGMA refers to
BLURS = tuple(f"{BLUR}{sigma}" for sigma in (2, 4, 8, 16, 32))
MAX_SIGMA = 1000
NOT_EXCHANGEABLE = "not_exchangeable"  # reason under which records without a partner are counted
_GREY_COLOUR = (128, 128, 128)
_REMEMBERED = 16  # crops: uniform images have few that differ


def canonical_control(text: str) -> str:
    """Returns the name of a control as results are stored under: `blur:08.0` becomes `blur:8`.

    Raises:
        ValueError: there is no such control, or the sigma of a blur does not lie between 0 and 1,000.
    """
    if text in WITHOUT_IMAGE:
        return text
    if not text.startswith(BLUR):
        raise ValueError(f"unknown value {json.dumps(text)}{suggestion(text, [*WITHOUT_IMAGE, f'{BLUR}SIGMA'])}")
    try:
        sigma = float(text.removeprefix(BLUR))
    except ValueError:
        raise ValueError(f"control {text!r}: SIGMA is a number of pixels, as in {BLUR}8") from None
    if not 0 < sigma <= MAX_SIGMA:
        raise ValueError(f"control {text!r}: SIGMA lies above 0 and is at most {MAX_SIGMA} pixels")
    return f"{BLUR}{sigma:g}"


def checked_control(text: str) -> str:
    """Returns `canonical_control(text)` of a control that a user named.

    Raises:
        UsageError: there is no such control.
    """
    try:
        return canonical_control(text)
    except ValueError as error:
        raise UsageError(f"control: {error}.") from None


Control = Annotated[str, AfterValidator(canonical_control)]
"""`blind`, `grey`, `shuffled`, `text` or `blur:SIGMA`, with SIGMA in pixels of an image whose shorter side has 336."""


def sigma_of(control: str) -> float | None:
    """Returns the sigma of a blur; None for another control."""
    return float(control.removeprefix(BLUR)) if control.startswith(BLUR) else None


def changes_pixels(control: str | None) -> bool:
    """Tells whether a control replaces or changes the record's own images; others change which images a query has."""
    return control is not None and control not in (SHUFFLED, TEXT)


def pixel_loader_of(control: str, preparation: ImagePreparation, tiling: TilingConfig) -> VisualInputLoader:
    """Returns what a model sees under a control that changes pixels.

    Args:
        control: `blind`, `grey` or a blur.
        preparation, tiling: as those of the model.
    """
    sigma = sigma_of(control)
    if sigma is not None:
        return BlurredPixelLoader(preparation, tiling, sigma)
    return BlindPixelLoader(preparation, tiling, _GREY_COLOUR if control == GREY else None)


class BlindPixelLoader:
    """A uniform image in place of every image, at the image's own size.

    Args:
        preparation, tiling: as those of the model.
        colour: red, green and blue; the encoder's mean colour by default.
    """

    def __init__(self, preparation: ImagePreparation, tiling: TilingConfig, colour: tuple[int, ...] | None = None) -> None:
        self.preparation, self.tiling = preparation, tiling
        self.colour = tuple(round(mean / preparation.rescale) for mean in preparation.mean) if colour is None else colour

    def load(self, dataset: Dataset, record: Record) -> VisualInputs:
        """Prepared pixels of the uniform images; no file is opened."""
        sizes = [(info.width, info.height) for info in record.image_info]
        images = [Image.new("RGB", size, self.colour) for size in sizes]
        tiling = self.tiling.for_record(record)
        return VisualInputs(np.concatenate([tiling.crops(image, self.preparation) for image in images]))


class BlurredPixelLoader:
    """Every image after a Gaussian blur, before it is tiled and prepared.

    Args:
        preparation, tiling: as those of the model.
        sigma: standard deviation of the blur in pixels of an image whose shorter side has 336.
    """

    def __init__(self, preparation: ImagePreparation, tiling: TilingConfig, sigma: float) -> None:
        self.preparation, self.tiling, self.sigma = preparation, tiling, sigma

    def load(self, dataset: Dataset, record: Record) -> VisualInputs:
        """Returns prepared pixels of the blurred images.

        Raises:
            RecordError: an image cannot be opened.
        """
        draft = self.tiling.draft_side(self.preparation)
        images = (read_image(dataset, record, k, draft_side=draft) for k in range(len(record.images)))
        tiling = self.tiling.for_record(record)
        return VisualInputs(np.concatenate([tiling.crops(blurred(image, self.sigma), self.preparation) for image in images]))


def blurred(image: Image.Image, sigma: float) -> Image.Image:
    """Returns an image after a Gaussian blur of `sigma` pixels of a 336-pixel image, scaled to the image's shorter side.

    Pillow approximates the Gaussian by three box blurs; at the borders the outermost pixels are repeated.
    """
    return image.filter(ImageFilter.GaussianBlur(sigma * min(image.size) / BLURRED_SIDE))


class ControlFeatureLoader:
    """The encoder's outputs for the images of a control, for a model that reads stored features.

    Args:
        pixels: makes the images.
        encode: from prepared crops to features, float32.
        row_format: of the store; the outputs are rounded as it would round them.
    """

    def __init__(
        self,
        pixels: VisualInputLoader,
        encode: Callable[[UInt8[np.ndarray, "N h w 3"]], Float[np.ndarray, "N P E"]],
        row_format: RowFormat,
    ) -> None:
        self.pixels, self.encode, self.row_format = pixels, encode, row_format
        self._known: dict[bytes, np.ndarray] = {}

    def load(self, dataset: Dataset, record: Record) -> VisualInputs:
        """Features of the images; equal crops are encoded once as far as they are remembered."""
        pixels = self.pixels.load(dataset, record).pixels
        assert pixels is not None
        return VisualInputs(features=np.stack([self._of(crop) for crop in pixels]))

    def _of(self, crop: np.ndarray) -> np.ndarray:
        key = crop.tobytes()
        known = self._known.get(key)
        if known is None:
            known = self.row_format.rounded(self.encode(crop[None]))[0]
            if len(self._known) < _REMEMBERED:
                self._known[key] = known
        return known


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


def without_images(queries: Sequence[Query]) -> list[Query]:
    """Returns the queries with neither images nor places for them."""

    def bare(message: Message) -> Message:
        return Message(message.role, tuple(part for part in message.content if not part.is_image))

    return [
        replace(query, record=replace(query.record, images=(), image_info=()), messages=tuple(map(bare, query.messages)))
        for query in queries
    ]


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
