"""Prompts: the token ids up to the answer, and the visual inputs of their images."""

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
    """Input of `generate` for one record.

    Attributes:
        row: the encoded conversation up to the answer, with image tokens at the visual slots.
        visual_index: for each visual slot the index of its visual token among all visual tokens of the prompt.
        pixels: prepared crops, `[N, h, w, 3]`, or None.
        features: stored features instead of pixels, `[N, P, E]`, or None.
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
    """A few-shot example: a record whose conversation, or first caption, precedes the question.

    Attributes:
        dataset: the data set of the record.
        record: the example.
        visual_inputs: loads its pixels or features.
    """

    dataset: Dataset
    record: Record
    visual_inputs: VisualInputLoader | None


def conversation_of(
    record: Record, messages: Sequence[Message], conversation_encoder: ConversationEncoder, examples: Sequence[FewShotExample] = ()
) -> tuple[list[Message], list[Layout]]:
    """Returns the turns of the examples followed by `messages`, and the layouts of all images; opens no image.

    Raises:
        RecordError: an image cannot be used.
    """
    turns = [turn for example in examples for turn in conversation_encoder.conversations(example.record)[0]]
    layouts = [layout for example in examples for layout in conversation_encoder.layouts(example.record)]
    return [*turns, *messages], [*layouts, *conversation_encoder.layouts(record)]


def visual_inputs_of(
    dataset: Dataset,
    record: Record,
    conversation_encoder: ConversationEncoder,
    loader: VisualInputLoader | None,
    examples: Sequence[FewShotExample] = (),
) -> list[VisualInputs]:
    """Loads the visual inputs of the examples and of a record, one entry for each of them that has images.

    Raises:
        RecordError: an image cannot be used, or the model takes none.
    """
    inputs = []
    for shown in (*examples, FewShotExample(dataset, record, loader)):
        if not conversation_encoder.layouts(shown.record):
            continue
        if shown.visual_inputs is None:
            raise RecordError("image_in_text_model", "the record has images, the model takes text only")
        inputs.append(shown.visual_inputs.load(shown.dataset, shown.record))
    return inputs


def encode_prompt(
    record: Record,
    conversation_encoder: ConversationEncoder,
    examples: Sequence[FewShotExample] = (),
    messages: Sequence[Message] | None = None,
) -> tuple[EncodedConversation, list[Layout]]:
    """Encodes a record's prompt after its few-shot examples; returns it with the layouts of all images. Opens no image.

    Args:
        record: the record that is asked about.
        conversation_encoder: encodes conversations.
        examples: few-shot examples, in order.
        messages: the question; by default the record's own, or the prompt of `conversation_encoder`.

    Raises:
        RecordError: a text or an image cannot be used.
    """
    question = conversation_encoder.prompt_messages(record) if messages is None else messages
    turns, layouts = conversation_of(record, question, conversation_encoder, examples)
    return conversation_encoder.encode_prompt(turns, layouts), layouts


def make_prompt(
    dataset: Dataset,
    record: Record,
    conversation_encoder: ConversationEncoder,
    loader: VisualInputLoader | None,
    tokens_per_crop: int,
    examples: Sequence[FewShotExample] = (),
    messages: Sequence[Message] | None = None,
) -> Prompt:
    """Encodes a record's prompt and loads the visual inputs of its images and of its examples.

    Args:
        dataset: the data set of the record.
        record, conversation_encoder, examples, messages: as in `encode_prompt`.
        loader: loads the record's pixels or features; None for a decoder alone.
        tokens_per_crop: visual tokens of a crop.

    Raises:
        RecordError: its text or an image cannot be used.
    """
    row, layouts = encode_prompt(record, conversation_encoder, examples, messages)
    return prompt_of(row, layouts, visual_inputs_of(dataset, record, conversation_encoder, loader, examples), tokens_per_crop)


def prompt_of(
    row: EncodedConversation, layouts: Sequence[Layout], visual_inputs: Sequence[VisualInputs], tokens_per_crop: int
) -> Prompt:
    """Joins an encoded conversation and the visual inputs of its images into a prompt.

    Args:
        row: the encoded conversation up to the answer.
        layouts: layout of each image, in order.
        visual_inputs: crops of the images, in order; an entry may hold those of several images.
        tokens_per_crop: visual tokens of a crop.
    """
    inputs = VisualInputs.joined(visual_inputs)
    return Prompt(row, join_visual_indices(layouts, tokens_per_crop), inputs.pixels, inputs.features)
