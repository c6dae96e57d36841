"""The processor of a model folder for transformers: chats, texts and images become the inputs of the model.

Ids and pixels equal those that training and evaluation use: both are made by `ConversationEncoder`, the tiling and the image
preparation.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from transformers import AutoTokenizer, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.image_utils import load_image

from sightline.data.images.opener import as_rgb, open_image
from sightline.data.images.tilings import Layout
from sightline.data.samples.encoding import ConversationEncoder, TextRules, join_visual_indices, pad_id_of
from sightline.data.samples.processing import PROCESSING, Processing, read_processing
from sightline.data.samples.templates import Template
from sightline.errors import ConfigError, RecordError, UsageError
from sightline.models.connectors import Connector, connector_from
from sightline.models.vision import normalise
from sightline.models.vlm import SightlineConfig
from sightline.runtime.storage import write_json
from sightline.types import IMAGE

PROCESSOR = "processor_config.json"
IMAGE_PROCESSOR = "preprocessor_config.json"
INPUTS = ("input_ids", "attention_mask", "pixel_values", "visual_sources")


class SightlineImageProcessor:
    """Tiles, prepares and normalises images.

    Args:
        processing: with the tiling and the image preparation.
        grid: rows and columns of visual tokens of a crop.
    """

    model_input_names = ("pixel_values",)

    def __init__(self, processing: Processing, grid: tuple[int, int]) -> None:
        if processing.preparation is None:
            raise ConfigError("this model was trained on an external table of features and has no encoder; it takes no images.")
        self.preparation, self.tiling, self.grid = processing.preparation, processing.tiling, grid

    def __call__(self, images: Any, return_tensors: str | None = None) -> BatchFeature:
        """Returns `pixel_values`, `[crops, 3, height, width]`, of one image or a list of them."""
        return BatchFeature({"pixel_values": self.pixel_values(self.images(images))}, tensor_type=return_tensors)

    def images(self, images: Any) -> list[Image.Image]:
        """Opens images, in order: Pillow's, arrays, tensors, paths, addresses or base64 texts; nested lists become one.

        Raises:
            UsageError: one cannot be used; the message says which and why.
        """
        found = []
        for number, image in enumerate(_flat(images), start=1):
            try:
                found.append(image_of(image))
            except RecordError as error:
                raise UsageError(f"image {number}: {error.message} ({error.reason}).", "Give another image.") from error
        return found

    def layouts(self, images: Sequence[Image.Image]) -> list[Layout]:
        """Returns what each image takes in the row."""
        return [self.tiling.layout(image.width, image.height, self.grid) for image in images]

    def pixel_values(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Returns the crops of all images, normalised for the encoder, float32 `[crops, 3, height, width]`."""
        crops = np.concatenate([self.tiling.crops(image, self.preparation) for image in images])
        rules = self.preparation
        return normalise(torch.from_numpy(crops), rules.rescale, rules.mean, rules.std).contiguous().numpy()

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of `preprocessor_config.json`."""
        return self.preparation.to_processor()

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> list[str]:
        """Writes `preprocessor_config.json`."""
        file = Path(save_directory) / IMAGE_PROCESSOR
        write_json(file, self.to_dict())
        return [str(file)]


class HasProcessing(Protocol):
    """What a processor is made of: a `ModelBundle` or a `Blueprint`."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    @property
    def processing(self) -> Processing: ...

    @property
    def token_grid(self) -> tuple[int, int]: ...


class SightlineProcessor(ProcessorMixin):
    """Turns chats, texts and images into the inputs of a vision-language model of Sightline's.

    Args:
        tokenizer: that of the model.
        processing: content of `sightline.json`: tiling, image preparation, chat template, prompt.
        token_grid: rows and columns of visual tokens of a crop.
        chat_template: another one than that of the model.

    Attributes:
        image_token, image_token_id: stand for one image in a text, and for one visual token in `input_ids`.
        image_processor: prepares images.
    """

    def __init__(
        self,
        tokenizer: Any = None,
        processing: dict[str, Any] | None = None,
        token_grid: Sequence[int] = (1, 1),
        chat_template: str | None = None,
    ) -> None:
        settings = Processing.model_validate(processing or {}, strict=False)
        self.processing = settings.model_dump(mode="json")
        self.token_grid = list(token_grid)
        self.image_processor = SightlineImageProcessor(settings, (self.token_grid[0], self.token_grid[1]))
        if isinstance(chat_template, str) and chat_template != tokenizer.chat_template:
            tokenizer.chat_template, settings = chat_template, settings.model_copy(update={"template": "auto"})
        self.image_token, self.image_token_id = IMAGE, int(tokenizer.convert_tokens_to_ids(IMAGE))
        super().__init__(tokenizer, chat_template=Template(tokenizer, settings.template).processor_source)

    @classmethod
    def of(cls, model: HasProcessing) -> "SightlineProcessor":
        """Returns the processor of a model that takes images."""
        return cls(model.tokenizer, model.processing.model_dump(mode="json"), model.token_grid)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> "SightlineProcessor":
        """Reads the processor of a model folder; for a folder of an earlier version makes it from `sightline.json`."""
        folder = Path(pretrained_model_name_or_path)
        if (folder / PROCESSING).is_file() and not (folder / PROCESSOR).is_file():
            config = SightlineConfig.from_pretrained(folder)
            with torch.device("meta"):
                connector = Connector(connector_from(config.connector), config.connector_shape())
            tokenizer, processing = AutoTokenizer.from_pretrained(folder), read_processing(folder)
            return cls(tokenizer, processing.model_dump(mode="json"), connector.token_grid)
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @property
    def image_token_ids(self) -> list[int]:
        return [self.image_token_id]

    @property
    def model_input_names(self) -> list[str]:
        return list(INPUTS)

    def __call__(self, images: Any = None, text: str | Sequence[str] | None = None, **options: Any) -> BatchFeature:
        """Returns the inputs of the model.

        Args:
            images: one or several images for all texts, in the order of their `<image>` markers, or a list for each text:
                Pillow's, arrays, tensors, paths, addresses or base64 texts.
            text: one text or several, as a chat template has rendered them.
            options: as everywhere in transformers: `return_tensors`, `padding`, `padding_side` ("left" by default, which suits
                generation), `truncation` with `max_length`, `pad_to_multiple_of`, `return_attention_mask`,
                `return_mm_token_type_ids` (1 at visual tokens, 0 at text); also within `text_kwargs`, `images_kwargs` and
                `common_kwargs`. The chat template writes all special tokens: none is added.

        Returns:
            `input_ids`, `attention_mask`, `pixel_values` `[crops, 3, height, width]`, and `visual_sources`, the visual token of
            each slot, where a tiling does not take them in the order of the crops.

        Raises:
            UsageError: an image cannot be used, images and markers differ in number, or visual tokens would be cut.
            TypeError: an option is unknown.
        """
        for group in ("text_kwargs", "images_kwargs", "common_kwargs"):
            options |= options.pop(group, None) or {}
        if any(options.pop(other, None) for other in ("videos", "audio")):
            raise UsageError("this model takes text and images, neither videos nor sound.")
        return self._inputs(images, text, **options)

    def _inputs(
        self,
        images: Any,
        text: str | Sequence[str] | None,
        padding: bool | str = False,
        padding_side: str = "left",
        truncation: bool = False,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | None = None,
        return_attention_mask: bool = True,
        return_mm_token_type_ids: bool = False,
        add_special_tokens: bool = False,
    ) -> BatchFeature:
        if add_special_tokens:
            raise UsageError("add_special_tokens: the chat template writes all special tokens.", "Leave it out.")
        if images is None and text is None:
            raise UsageError("neither text nor images are given.", "Give text, images or both.")
        images = [] if images is None else self.image_processor.images(images)
        layouts = self.image_processor.layouts(images)
        data: dict[str, Any] = {}
        if text is not None:
            rows = self._rows([text] if isinstance(text, str) else list(text), layouts, max_length if truncation else None)
            length = _padded_length(rows, padding, max_length, pad_to_multiple_of)

            def padded(values: list[np.ndarray], filling: int) -> list[list[int]]:
                return [_padded(row.astype(np.int64), filling, length, padding_side) for row in values]

            data["input_ids"] = padded(rows, pad_id_of(self.tokenizer))
            if return_attention_mask:
                data["attention_mask"] = padded([np.ones_like(row) for row in rows], 0)
            if return_mm_token_type_ids:
                data["mm_token_type_ids"] = padded([row == self.image_token_id for row in rows], 0)
        if images:
            data["pixel_values"] = self.image_processor.pixel_values(images)
            per_crop = self.token_grid[0] * self.token_grid[1]
            sources = join_visual_indices(layouts, per_crop)
            if not np.array_equal(sources, np.arange(per_crop * len(data["pixel_values"]))):
                data["visual_sources"] = sources
        return BatchFeature(data, tensor_type=return_tensors)

    def _rows(self, texts: list[str], layouts: list[Layout], limit: int | None) -> list[np.ndarray]:
        """Returns token ids of each text; the images are shared out by the markers."""
        places = [text.count(IMAGE) for text in texts]
        if sum(places) != len(layouts):
            raise UsageError(
                f"{len(layouts)} images are given, but the text has {sum(places)} times {IMAGE!r}.",
                f"Write {IMAGE} where each image stands, or use apply_chat_template.",
            )
        encoder = self._encoder()
        rows, first = [], 0
        for text, count in zip(texts, places, strict=True):
            try:
                ids = encoder.encode_rendered(text, layouts[first : first + count]).ids
            except RecordError as error:
                raise UsageError(f"{error.message} ({error.reason}).") from error
            first += count
            if limit is not None and (ids[limit:] == self.image_token_id).any():
                raise UsageError(
                    f"a text takes {len(ids)} tokens; cut at {limit} it would lose visual tokens.", "Raise max_length."
                )
            rows.append(ids[:limit])
        return rows

    def _encoder(self) -> ConversationEncoder:
        # Made at each call (about a millisecond): it cannot be pickled, which a processor must be.
        return ConversationEncoder(self.tokenizer, Template(self.tokenizer), TextRules())

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of `processor_config.json`."""
        return {"processor_class": type(self).__name__, "token_grid": self.token_grid, "processing": self.processing}

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Writes all files of a model folder but configuration and weights, so that Sightline opens it too."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        written = [*self.image_processor.save_pretrained(folder), str(folder / PROCESSING)]
        write_json(folder / PROCESSING, self.processing)
        return [*(super().save_pretrained(save_directory, push_to_hub, **kwargs) or []), *written]


def _flat(images: Any) -> list[Any]:
    """Returns images of nested lists in order; None where a text has none."""
    if isinstance(images, list | tuple):
        return [image for part in images for image in _flat(part)]
    if isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 4:
        return list(images)
    return [] if images is None else [images]


def image_of(image: Any) -> Image.Image:
    """Opens an image of any form that a processor takes: PIL, array, tensor, bytes, path, address, or a cell of a data set.

    Raises:
        RecordError: the reasons of `open_image`.
    """
    if isinstance(image, Mapping):  # as data sets store images
        image = image["bytes"] if image.get("bytes") is not None else image["path"]
    if isinstance(image, Image.Image | np.ndarray):
        return as_rgb(image)
    if isinstance(image, torch.Tensor):
        return as_rgb(image.detach().cpu().numpy())
    if isinstance(image, bytes):
        return open_image(image)
    if isinstance(image, os.PathLike) or (isinstance(image, str) and not image.startswith(("http://", "https://", "data:"))):
        return _opened_path(os.fspath(image))
    if isinstance(image, str):
        return as_rgb(load_image(image))
    raise RecordError("image_format", f"a {type(image).__name__} is no image")


def _opened_path(path: str) -> Image.Image:
    if len(path) < 4096 and (Path(path).exists() or path.startswith("file://")):
        return open_image(Path(path.removeprefix("file://")))
    try:
        return as_rgb(load_image(path))  # base64, which transformers takes in place of a path
    except ValueError as error:
        raise RecordError("image_missing", f"{path[:200]} is no file") from error


def _padded_length(rows: list[np.ndarray], padding: bool | str, max_length: int | None, multiple: int | None) -> int:
    """Returns length that rows are filled up to; 0 without padding."""
    if padding in (False, "do_not_pad"):
        return 0
    if padding == "max_length" and max_length is None:
        raise UsageError('padding="max_length" needs a length.', "Give max_length.")
    length = max_length if padding == "max_length" and max_length is not None else max(map(len, rows))
    return length if multiple is None else -(-length // multiple) * multiple


def _padded(row: np.ndarray, value: int, length: int, side: str) -> list[int]:
    filling = [value] * (length - len(row))
    return [*filling, *row.tolist()] if side == "left" else [*row.tolist(), *filling]
