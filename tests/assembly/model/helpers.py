"""Records and inputs for tests of stock models."""

from typing import Any

import numpy as np
from PIL import Image

from sightline.assembly.model.bundle import ModelBundle
from sightline.data.samples.encoding import join_visual_indices
from sightline.data.samples.prompts import Prompt
from sightline.types import ImageInfo, Message, Part, Record
from tests.composites import reference

SIZES = [(40, 30), (32, 32), (20, 90), (100, 35), (7, 8), (64, 65)]


def noise(number: int) -> Image.Image:
    width, height = SIZES[number % len(SIZES)]
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8))


def question(*pictures: int, text: str = "What colour is the dog?") -> Record:
    infos = tuple(ImageInfo(str(number), *noise(number).size) for number in pictures)
    message = Message("user", (*[Part() for _ in pictures], Part(text)))
    return Record("-".join(map(str, pictures)), tuple(map(str, pictures)), infos, (message,))


def prompt(bundle: ModelBundle, record: Record) -> Prompt:
    conversation_encoder = bundle.conversation_encoder()
    layouts = conversation_encoder.layouts(record)
    row = conversation_encoder.encode_prompt(record.messages, layouts)
    if not record.images:
        return Prompt(row, join_visual_indices([], 0))
    preparation, tiling = bundle.processing.preparation, bundle.processing.tiling
    assert preparation is not None
    pixels = np.concatenate([tiling.crops(noise(int(name)), preparation) for name in record.images])
    return Prompt(row, join_visual_indices(layouts, bundle.tokens_per_crop), pixels)


def inputs(kind: str, bundle: ModelBundle, record: Record) -> dict[str, Any]:
    """The same through transformers: its template, its processor."""
    conversation = [
        {"type": "image"} if part.is_image else {"type": "text", "text": part.text} for part in record.messages[0].content
    ]
    text = bundle.tokenizer.apply_chat_template(
        [{"role": "user", "content": conversation}], add_generation_prompt=True, tokenize=False
    )
    assert isinstance(text, str)
    if bundle.tokenizer.bos_token and text.startswith(bundle.tokenizer.bos_token) and kind.startswith("llava"):
        text = text.removeprefix(bundle.tokenizer.bos_token)  # their tokenizer puts it there
    return reference(kind, text, [noise(int(name)) for name in record.images])


RECORDS = [question(0), question(1, 2), question(3, 4, 5), question(2, text="Café — naïve?")]
