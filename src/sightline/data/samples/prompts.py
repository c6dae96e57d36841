"""What `generate` is fed for a record: the row up to the answer, and what fills its visual slots."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from sightline.data.dataset import Dataset
from sightline.data.images.pixels import VisualInputLoader, VisualInputs
from sightline.data.images.tilings import Layout
from sightline.data.samples.encoding import ConversationEncoder, EncodedConversation, join_visual_indices
from sightline.errors import RecordError
from sightline.types import Message, Record


@dataclass(frozen=True)
class Prompt:
    """A row to continue.

    Attributes:
        row: ids with image tokens at the visual slots.
        visual_index: visual-token index of each slot, over this prompt's crops.
        pixels: prepared crops, or None.
        features: stored features instead of pixels, or None.
    """

    row: EncodedConversation
    visual_index: Int[np.ndarray, " M"]
    pixels: np.ndarray | None = None
    features: np.ndarray | None = None

    @property
    def num_crops(self) -> int:
        stack = self.pixels if self.pixels is not None else self.features
        return 0 if stack is None else len(stack)


@dataclass(frozen=True)
class FewShotExample:
    """A record that stands before a question with its pictures and its answer: its conversation, or its first caption.

    Attributes:
        dataset: that it is of.
        pictures: fills its visual slots.
    """

    dataset: Dataset
    record: Record
    pictures: VisualInputLoader | None


def conversation_of(
    record: Record, messages: Sequence[Message], builder: ConversationEncoder, examples: Sequence[FewShotExample] = ()
) -> tuple[list[Message], list[Layout]]:
    """The turns of the examples, then a record's own, and the layouts of all their images, which need not be opened for it.

    Raises:
        RecordError: an image cannot be used.
    """
    turns = [turn for example in examples for turn in builder.conversations(example.record)[0]]
    layouts = [layout for example in examples for layout in builder.layouts(example.record)]
    return [*turns, *messages], [*layouts, *builder.layouts(record)]


def visual_inputs_of(
    dataset: Dataset,
    record: Record,
    builder: ConversationEncoder,
    pictures: VisualInputLoader | None,
    examples: Sequence[FewShotExample] = (),
) -> list[VisualInputs]:
    """What fills the visual slots of the examples and of a record, for each of them that has images.

    Raises:
        RecordError: an image cannot be used, or the model takes none.
    """
    filled = []
    for shown in (*examples, FewShotExample(dataset, record, pictures)):
        if not builder.layouts(shown.record):
            continue
        if shown.pictures is None:
            raise RecordError("image_in_text_model", "the record has images, the model takes text only")
        filled.append(shown.pictures.load(shown.dataset, shown.record))
    return filled


def prompt_row(
    record: Record,
    builder: ConversationEncoder,
    examples: Sequence[FewShotExample] = (),
    messages: Sequence[Message] | None = None,
) -> tuple[EncodedConversation, list[Layout]]:
    """The row of a record's prompt after its examples, and the layouts of all their images, which need not be opened for it.

    Args:
        record: whose images are shown.
        builder: makes rows.
        examples: what stands before.
        messages: the question; by default the record's own, or the builder's prompt.

    Raises:
        RecordError: a text or an image cannot be used.
    """
    question = builder.prompt_messages(record) if messages is None else messages
    turns, layouts = conversation_of(record, question, builder, examples)
    return builder.prompt_row(turns, layouts), layouts


def make_prompt(
    dataset: Dataset,
    record: Record,
    builder: ConversationEncoder,
    pictures: VisualInputLoader | None,
    tokens_per_crop: int,
    examples: Sequence[FewShotExample] = (),
    messages: Sequence[Message] | None = None,
) -> Prompt:
    """The prompt of a record, after examples if there are any; `messages` as in `prompt_row`.

    Raises:
        RecordError: its text or an image cannot be used.
    """
    row, layouts = prompt_row(record, builder, examples, messages)
    return filled_prompt(row, layouts, visual_inputs_of(dataset, record, builder, pictures, examples), tokens_per_crop)


def filled_prompt(
    row: EncodedConversation, layouts: Sequence[Layout], filled: Sequence[VisualInputs], tokens_per_crop: int
) -> Prompt:
    """A row with what fills its visual slots.

    Args:
        row: up to the answer.
        layouts: of its images in order.
        filled: the crops of these images in order, of one or of several images each.
        tokens_per_crop: of the model.
    """
    inputs = VisualInputs.joined(filled)
    return Prompt(row, join_visual_indices(layouts, tokens_per_crop), inputs.pixels, inputs.features)
