"""Which boxes of an image and which phrases of a caption ComAlign compares.

The first `entities` of both stand for things, the following `relations` for pairs of things.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from sightline.data.images.boxes import boxes_of
from sightline.data.images.preparation import ImagePreparation
from sightline.runtime.keyed import keyed_generator
from sightline.types import BoxChoice, PhraseChoice, Record


@dataclass(frozen=True)
class ComponentRules:
    """How the components of a record are chosen.

    Attributes:
        entities, relations: number of boxes and of pairs, and largest number of phrases of each.
        boxes, phrases: where they come from; see `AlignmentConfig`.
        template: text around each phrase.
        view: the preparation whose view of the image boxes refer to; None for the image itself.
    """

    entities: int
    relations: int
    boxes: BoxChoice
    phrases: PhraseChoice
    template: str = "{}"
    view: ImagePreparation | None = None

    @property
    def count(self) -> int:
        """Boxes of an image, and phrases of a text, padding included."""
        return self.entities + self.relations

    def boxes_of(self, record: Record) -> Float[np.ndarray, "K 4"]:
        """Returns the boxes of a record's first image, `[entities + relations, 4]`, padded with zeros."""
        return boxes_of(record, self.boxes, self.entities, self.relations, self.view)

    def phrases_of(self, record: Record, text: str) -> tuple[str, ...]:
        """Returns the phrases of a caption or negative, `entities + relations` of them; empty ones are padding."""
        components = record.components_of(text)
        entities = [item.text for item in components.entities][: self.entities]
        relations = [item.text for item in components.relations][: self.relations]
        if self.phrases == "random":
            entities, relations = _random_spans(text, entities, "entities"), _random_spans(text, relations, "relations")
        padded = _padded(entities, self.entities) + _padded(relations, self.relations)
        return tuple(self.template.format(phrase) if phrase else "" for phrase in padded)


def phrase_table(rows: Sequence[Sequence[str]]) -> tuple[list[str], Int[np.ndarray, "C J"]]:
    """Returns the distinct phrases of several texts, and for each text the index of its phrases; -1 for padding."""
    found = list(dict.fromkeys(phrase for row in rows for phrase in row if phrase))
    number = {phrase: index for index, phrase in enumerate(found)} | {"": -1}
    width = len(rows[0]) if rows else 0
    return found, np.array([[number[phrase] for phrase in row] for row in rows], dtype=np.int64).reshape(len(rows), width)


def _padded(phrases: Sequence[str], count: int) -> list[str]:
    return [*phrases, *[""] * (count - len(phrases))]


def _random_spans(text: str, phrases: Sequence[str], kind: str) -> list[str]:
    """Returns for each phrase a random span of the text of as many words."""
    words = text.split()
    generator = keyed_generator("spans", kind, text)
    spans = []
    for phrase in phrases:
        count = min(len(phrase.split()), len(words))
        first = int(generator.integers(0, len(words) - count + 1))
        spans.append(" ".join(words[first : first + count]))
    return spans
