"""One image and one prompt in, text out: what `generate` and `chat` use."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.assembly.evaluate.opened import OpenedModel, open_model
from sightline.assembly.model.bundle import ModelBundle
from sightline.assembly.model.processor import image_of
from sightline.data.images.opener import DEFAULT_LIMITS, ImageLimits, open_image
from sightline.data.images.pixels import VisualInputs
from sightline.data.samples.prompts import Prompt, prompt_of
from sightline.errors import RecordError, UsageError
from sightline.generation.decode import DecodingConfig, generate
from sightline.runtime.device import process_settings_restored
from sightline.types import ImageInfo, Message, Part, Record


@dataclass(frozen=True)
class Answer:
    """A generated text, its tokens (end token included) and how long it took."""

    text: str
    num_tokens: int
    seconds: float

    def __str__(self) -> str:
        return self.text

    def to_json(self) -> dict[str, Any]:
        return {"text": self.text, "tokens": self.num_tokens, "seconds": round(self.seconds, 3)}


@dataclass
class ChatModel:
    """A model that talks about images.

    Attributes:
        model: the opened model.
    """

    model: OpenedModel

    @classmethod
    @process_settings_restored()
    def open(
        cls, model: str, checkpoint: str = "last", device: str = "auto", threads: int | None = None, fallback: bool = False
    ) -> "ChatModel":
        """Loads a run's checkpoint or a model folder; see `open_model`."""
        return cls(open_model(model, checkpoint, device=device, threads=threads, fallback=fallback))

    @property
    def bundle(self) -> ModelBundle:
        return self.model.bundle

    def opening(self, num_images: int, text: str | None) -> Message:
        """Returns the first turn: the images, then the text; without a text the prompt that the model was trained with."""
        said = self.bundle.processing.prompt if text is None else text
        parts = tuple(Part() for _ in range(num_images))
        return Message("user", (*parts, Part(said)) if said else parts)

    @process_settings_restored()
    def answer(
        self,
        messages: tuple[Message, ...],
        images: Sequence[Any],
        decoding: DecodingConfig,
        stream: Callable[[str], None] | None = None,
        limits: ImageLimits = DEFAULT_LIMITS,
    ) -> Answer:
        """Answers a conversation whose last turn is the user's.

        Args:
            messages: turns; image parts in the order of `images`.
            images: files, PIL images or arrays.
            decoding: how text is drawn.
            stream: gets pieces of text as they come.
            limits: of image files.

        Raises:
            UsageError: an image or a text cannot be used.
        """
        begin = time.perf_counter()
        self.model.runtime.apply()
        prompt = self._prompt(messages, images, limits)
        streamer = _streamer(self.bundle, stream) if stream is not None and decoding.num_beams == 1 else None
        with self.model.autocast():
            said = generate(self.bundle.model, self.bundle.tokenizer, [prompt], decoding, streamer=streamer)[0]
        return Answer(said.text, said.num_tokens, time.perf_counter() - begin)

    def _prompt(self, messages: tuple[Message, ...], images: Sequence[Any], limits: ImageLimits) -> Prompt:
        if images and not self.bundle.model.takes_images:
            raise UsageError("this model is a decoder alone; it takes no images.", "Leave --image out.")
        preparation, tiling = self.bundle.processing.preparation, self.bundle.processing.tiling
        if images and preparation is None:
            raise UsageError("this model was trained on an external table of features; it has no encoder.", "Leave --image out.")
        conversation_encoder = self.bundle.conversation_encoder()
        try:
            opened = [
                open_image(Path(image), limits) if isinstance(image, str | os.PathLike) else image_of(image) for image in images
            ]
            infos = tuple(ImageInfo("", image.width, image.height) for image in opened)
            record = Record("-", tuple(f"image {number}" for number in range(len(images))), infos, messages)
            layouts = conversation_encoder.layouts(record)
            row = conversation_encoder.encode_prompt(messages, layouts)
        except RecordError as error:
            raise UsageError(f"{error.message} ({error.reason}).") from error
        limit = self.bundle.processing.max_tokens
        if len(row.ids) >= limit:
            raise UsageError(f"the prompt takes {len(row.ids)} tokens, the model was trained with at most {limit}.", "Shorten it.")
        crops = [] if preparation is None else [VisualInputs(tiling.crops(image, preparation)) for image in opened]
        return prompt_of(row, layouts, crops, self.bundle.tokens_per_crop)


def _streamer(bundle: ModelBundle, stream: Callable[[str], None]) -> Any:
    from transformers import TextStreamer

    class Pieces(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            stream(text)

    tokenizer: Any = bundle.tokenizer
    return Pieces(tokenizer, skip_prompt=True, skip_special_tokens=True)
