"""What `generate` is fed for a record: the row up to the answer, and what fills its visual slots."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from sightline.data.corpus import Pictures, join_sources
from sightline.data.dataset import Dataset
from sightline.data.samples import Row, RowBuilder
from sightline.errors import RecordError
from sightline.types import Record


@dataclass(frozen=True)
class Prompt:
    """A row to continue.

    Attributes:
        row: ids with image tokens at the visual slots.
        source: visual-token index of each slot, over this prompt's crops.
        pixels: prepared crops, or None.
        features: stored features instead of pixels, or None.
    """

    row: Row
    source: Int[np.ndarray, " M"]
    pixels: np.ndarray | None = None
    features: np.ndarray | None = None

    @property
    def num_crops(self) -> int:
        stack = self.pixels if self.pixels is not None else self.features
        return 0 if stack is None else len(stack)


def make_prompt(dataset: Dataset, record: Record, builder: RowBuilder, pictures: Pictures | None, tokens_per_crop: int) -> Prompt:
    """The prompt of a record.

    Raises:
        RecordError: its text or a picture cannot be used.
    """
    layouts = builder.layouts(record)
    row = builder.prompt_row(builder.prompt_messages(record), layouts)
    if not layouts:
        return Prompt(row, join_sources([], tokens_per_crop))
    if pictures is None:
        raise RecordError("image_in_text_model", "the record has images, the model takes text only")
    pixels, features = pictures.fill(dataset, record)
    return Prompt(row, join_sources(layouts, tokens_per_crop), pixels, features)
