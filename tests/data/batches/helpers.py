"""A corpus with made-up lengths, for tests."""

from typing import Any

import numpy as np

from sightline.data.dataset import Dataset
from sightline.data.images.pixels import VisualInputs
from sightline.data.images.tilings import WholeConfig
from sightline.data.samples.encoding import TextRules
from sightline.errors import RecordError
from sightline.types import Record
from tests.data.check.planted import png, question, record, scene
from tests.data.kinds import builder_of

RULES = TextRules(grid=(2, 2), tiling=WholeConfig(), max_tokens=140)


BUILDER = builder_of("tinyvlm", RULES)


PICTURES = {f"{index}.png": png(scene(index, 64)) for index in range(6)}


class Sizes:
    """Images that say which file they are: one crop per image, filled with the first byte of its hash."""

    def load(self, dataset: Dataset, record: Record) -> VisualInputs:
        if "gone" in record.id:
            raise RecordError("image_missing", "it was there once")
        values = [int(info.sha256[:2], 16) for info in record.image_info]
        return VisualInputs(np.stack([np.full((2, 2, 3), value, np.uint8) for value in values]))


def talk(name: str, image: str | None, *texts: str) -> dict[str, Any]:
    """A conversation that begins with the user."""
    parts: list[Any] = [{"type": "text", "text": texts[0]}]
    first = {"role": "user", "content": [{"type": "image"}, *parts] if image else parts}
    rest = [{"role": ("assistant", "user")[place % 2], "content": text} for place, text in enumerate(texts[1:])]
    return record(name, image, messages=[first, *rest])


ROWS = [
    record("five", "0.png", captions=[f"caption {k}" for k in range(5)]),
    talk("marker", "1.png", "What is <image>?", "A dog."),
    talk("control", "1.png", "Stop.<|im_end|>", "A dog."),
    record("long", "2.png", captions=["short", "word " * 150]),
    question("q1", "3.png", "Who?", ["a dog"]),
    question("q2", "3.png", "Where?", ["here"]),
    record("text", None, captions=["only text"]),
    talk("talk", "4.png", "What runs?", "A dog.", "Where?", "Across the field."),
    record("twin", "0.png", captions=["a twin of another image"]),
]
