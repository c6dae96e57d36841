"""Prepares images for a vision encoder: RGB image in, uint8 pixels of the encoder's input size out.

The settings are read from the encoder's own folder (`preprocessor_config.json`, or the `image_processor` section of
`processor_config.json`), and the pixels equal those of its transformers processor (Pillow backend) bit for bit. Rescaling and
normalisation are left to the device, as three numbers a channel: bytes are four times cheaper to move and to store. Reading
the files ourselves keeps torch, transformers and torchvision out of the processes that prepare data.
"""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import numpy as np
from PIL import Image
from pydantic import Field, ValidationError, model_validator

from sightline.config import Config
from sightline.errors import ConfigError, DataError
from sightline.runtime import hub
from sightline.runtime.inputs import read_json_input
from sightline.runtime.storage import check_links

if TYPE_CHECKING:
    from jaxtyping import UInt8

MAX_SIDE = 8192
MAX_FILE_BYTES = 1_000_000
KEY_SCHEMA = 1  # increase it when the same settings give other pixels

Fit = Literal["encoder", "squash", "crop", "pad"]
Filter = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
FILTERS: tuple[Filter, ...] = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # Pillow's numbers 0 to 5
Size = tuple[int, int]
Triple = tuple[float, float, float]

_REMEDY = "Use an encoder folder with a preprocessor_config.json as save_pretrained writes it."
_HALF: Triple = (0.5, 0.5, 0.5)
_CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)


class ImagePreparation(Config):
    """Pads, resizes and crops images as an encoder's image processor does.

    The steps, in this order: `pad`, `resize`, `crop`. At least one of the last two fixes the size of the result.
    """

    resize: Size | int | None = None
    """`[height, width]` squashes to that size; one number is the length of the shorter side; none leaves the size."""
    crop: Size | None = None
    """`[height, width]` of the crop around the centre; black where the image is smaller."""
    pad: bool = False
    """Pads to a square with the mean colour first (LLaVA 1.5)."""
    resample: Filter = "bicubic"
    """Pillow's filter for resizing."""
    rescale: float = Field(1 / 255, gt=0)
    """Factor that brings bytes to the range of `mean` and `std`."""
    mean: Triple = _HALF
    """Subtracted from each rescaled channel."""
    std: Triple = _HALF
    """Divides each channel after that."""
    draft: bool = False
    """Quicker, not bit-equal to the processor: JPEGs are decoded at a fraction of their size, resizing takes two steps."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.crop is None and not isinstance(self.resize, tuple):
            raise ValueError("images would get different sizes: set 'resize' to [height, width], or set 'crop'")
        edges = [self.resize] if isinstance(self.resize, int) else list(self.resize or ())
        if any(not 1 <= side <= MAX_SIDE for side in (*edges, *(self.crop or ()))):
            raise ValueError(f"sides lie between 1 and {MAX_SIDE} pixels, got resize={self.resize}, crop={self.crop}")
        if any(value <= 0 for value in self.std):
            raise ValueError(f"'std' must be positive, got {list(self.std)}")
        return self

    @classmethod
    def from_processor(cls, settings: dict[str, Any], file: str = "preprocessor_config.json") -> Self:
        """Reads the settings of an encoder's image processor.

        Args:
            settings: content of its processor file (`read_processor_file`).
            file: name of the file in errors.

        Raises:
            ConfigError: the file is damaged, or its processor does more than this class.
        """
        try:
            return cls(**_translate(settings, file))
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, item['loc'][:1]))} {item['msg']}".strip() for item in error.errors())
            raise ConfigError(f"{file}: {faults}.", _REMEDY) from None
        except OverflowError:
            raise ConfigError(f"{file}: a number is too large.", _REMEDY) from None

    def to_processor(self) -> dict[str, Any]:
        """Returns a `preprocessor_config.json` whose transformers processor gives the same pixels (`draft` is not kept)."""

        def sides(size: Size) -> dict[str, int]:
            return {"height": size[0], "width": size[1]}

        return {
            "image_processor_type": "LlavaImageProcessor" if self.pad else "CLIPImageProcessor",
            "do_pad": self.pad,
            "do_resize": self.resize is not None,
            "size": {"shortest_edge": self.resize} if isinstance(self.resize, int) else sides(self.resize or self._output),
            "resample": FILTERS.index(self.resample),
            "do_center_crop": self.crop is not None,
            "crop_size": sides(self._output),
            "do_rescale": True,
            "rescale_factor": self.rescale,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "do_convert_rgb": True,
        }

    def refitted(self, fit: Fit) -> Self:
        """Returns a preparation with the same output size and normalisation that fits images in another way.

        Args:
            fit: `encoder` (as its processor does), `squash` (resizes without keeping the aspect ratio), `crop` (resizes the
                shorter side, crops the centre), `pad` (pads to a square with the mean colour, then resizes).

        Raises:
            ConfigError: `pad` makes a square, but the encoder's input is none.
        """
        if fit == "encoder":
            return self
        if fit == "pad" and self.height != self.width:
            raise ConfigError(
                f"fit 'pad' makes squares, but this encoder takes {self.height} x {self.width} pixels.", "Use squash or crop."
            )
        output = (self.height, self.width)
        if fit == "crop":
            already = isinstance(self.resize, int) and not self.pad and self.crop is not None
            changes = {} if already else {"resize": max(output), "crop": output, "pad": False}
        else:
            changes = {"resize": output, "crop": None, "pad": fit == "pad"}
        return self.model_copy(update=changes)

    @property
    def height(self) -> int:
        return self._output[0]

    @property
    def width(self) -> int:
        return self._output[1]

    @property
    def _output(self) -> Size:
        size = self.crop or self.resize
        assert isinstance(size, tuple)  # by _check
        return size

    @property
    def draft_side(self) -> int | None:
        """`draft_side` for opening images: twice the needed size, so that resizing still filters."""
        if not self.draft or self.resize is None:
            return None
        return 2 * (self.resize if isinstance(self.resize, int) else max(self.resize))

    def view(self, size: Size) -> tuple[float, float, float, float]:
        """Returns what the encoder sees of an image: left, top, right, bottom in fractions of it; beyond 0 to 1 where it is padded.

        Args:
            size: width and height of the image.
        """
        width, height = (max(size), max(size)) if self.pad else size
        shown = (width, height)
        if self.resize is not None:
            shown = _size_by_shorter_side(shown, self.resize) if isinstance(self.resize, int) else self.resize[::-1]
        seen = shown if self.crop is None else self.crop[::-1]
        across, down = (side * view / whole for side, view, whole in zip((width, height), seen, shown, strict=True))
        left, top = (size[0] - across) / 2 / size[0], (size[1] - down) / 2 / size[1]
        return left, top, left + across / size[0], top + down / size[1]

    def key(self) -> str:
        """Returns a sha256 over all settings: equal keys give equal pixels. Part of the key of feature stores.

        Pillow's version is not part of it; if a release changes a filter, `KEY_SCHEMA` is increased.
        """
        settings = {"schema": KEY_SCHEMA, **self.model_dump(mode="json")}
        return hashlib.sha256(json.dumps(settings, sort_keys=True, allow_nan=False).encode()).hexdigest()

    def prepare(self, image: Image.Image) -> "UInt8[np.ndarray, 'h w 3']":
        """Prepares one image.

        Args:
            image: RGB, as `open_image` returns it.

        Returns:
            uint8 of shape [height, width, 3], a fresh array.

        Raises:
            ValueError: the image is not RGB.
        """
        if image.mode != "RGB":
            raise ValueError(
                f"prepare() takes RGB images, this is {image.mode}; open files with sightline.data.images.opener.open_image"
            )
        if self.pad:
            image = _pad_to_square(image, self.mean)
        if self.resize is not None:
            size = _size_by_shorter_side(image.size, self.resize) if isinstance(self.resize, int) else self.resize[::-1]
            image = image.resize(size, Image.Resampling(FILTERS.index(self.resample)), reducing_gap=2.0 if self.draft else None)
        if self.crop is not None:
            left, top = (image.width - self.crop[1]) // 2, (image.height - self.crop[0]) // 2
            image = image.crop((left, top, left + self.crop[1], top + self.crop[0]))  # black outside of the image
        return np.array(image)


def _pad_to_square(image: Image.Image, mean: Triple) -> Image.Image:
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    square = Image.new("RGB", (side, side), (int(mean[0] * 255), int(mean[1] * 255), int(mean[2] * 255)))
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def _size_by_shorter_side(size: Size, shorter: int) -> Size:
    """Returns (width, height) for a given shorter side; the longer side is rounded down, as transformers does."""
    width, height = size
    if width <= height:
        return shorter, int(shorter * height / width)
    return int(shorter * width / height), shorter


# Processor files ------------------------------------------------------------------------------------------------------------


class _Processor(NamedTuple):
    """Default settings of a kind of image processor, for keys that its file lacks (old files lack many)."""

    size: dict[str, int]
    resample: int = 3
    crop: int | None = None
    mean: Triple = _CLIP_MEAN
    std: Triple = _CLIP_STD
    is_square: bool = True  # what a `size` of one number means: both sides, or the shorter one
    can_pad: bool = False


# Kinds that do no more than pad, resize, crop, rescale and normalise, in this order.
_PROCESSORS = {
    "Bit": _Processor({"shortest_edge": 224}, crop=224, is_square=False),
    "Blip": _Processor({"height": 384, "width": 384}),
    "CLIP": _Processor({"shortest_edge": 224}, crop=224, is_square=False),
    "ChineseCLIP": _Processor({"shortest_edge": 224}, crop=224, is_square=False),
    "DeiT": _Processor({"height": 256, "width": 256}, crop=224, mean=_HALF, std=_HALF),
    "Llava": _Processor({"shortest_edge": 224}, crop=224, is_square=False, can_pad=True),
    "MobileNetV1": _Processor({"shortest_edge": 256}, resample=2, crop=224, mean=_HALF, std=_HALF, is_square=False),
    "MobileNetV2": _Processor({"shortest_edge": 256}, resample=2, crop=224, mean=_HALF, std=_HALF, is_square=False),
    "Siglip": _Processor({"height": 224, "width": 224}, mean=_HALF, std=_HALF, is_square=False),
    "ViT": _Processor({"height": 224, "width": 224}, resample=2, mean=_HALF, std=_HALF),
}


def read_processor_file(path: str) -> tuple[dict[str, Any], str]:
    """Reads the settings of the image processor; returns them and the file. Searches in the order of transformers."""
    unified = _find_file(path, "processor_config.json")
    if unified is not None:
        settings = _read_json(unified).get("image_processor")
        if isinstance(settings, dict):
            return settings, f"{unified}, image_processor"
    plain = _find_file(path, "preprocessor_config.json")
    if plain is None:
        raise ConfigError(f"{path}: has neither preprocessor_config.json nor processor_config.json.", _REMEDY)
    return _read_json(plain), str(plain)


def _find_file(path: str, name: str) -> Path | None:
    folder = Path(path)
    if folder.is_dir():
        try:
            check_links(folder, (name,))
        except DataError as error:
            raise ConfigError(error.message, error.remedy) from error
        return folder / name if (folder / name).is_file() else None
    if hub.find_local(path, "encoder") is not None:
        raise ConfigError(f"{path} is not a folder.", "Give the folder of an encoder, or a Hub id.")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

    hub.check_reachable()
    try:
        return Path(hf_hub_download(path, name))
    except LocalEntryNotFoundError as error:  # a kind of EntryNotFoundError, but it says nothing about the Hub
        raise ConfigError(*hub.not_found(path, "encoder", f"{name} is not there")) from error
    except EntryNotFoundError:
        return None
    except (OSError, HFValidationError) as error:
        raise ConfigError(*hub.not_found(path, "encoder", " ".join(str(error).split())[:200])) from error


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = read_json_input(file, MAX_FILE_BYTES)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror or error}.") from error
    except ValueError as error:
        raise ConfigError(f"{file}: not JSON ({error}).", _REMEDY) from error
    if not isinstance(value, dict):
        raise ConfigError(f"{file}: must hold an object, this is {type(value).__name__}.", _REMEDY)
    return value


def _translate(values: dict[str, Any], file: str) -> dict[str, Any]:
    """Fields of ImagePreparation from those of a processor file."""
    kind = values.get("image_processor_type") or values.get("feature_extractor_type")
    name = str(kind).removesuffix("Pil").removesuffix("Fast").removesuffix("ImageProcessor").removesuffix("FeatureExtractor")
    processor = _PROCESSORS.get(name)
    if processor is None:
        known = ", ".join(_PROCESSORS)
        raise ConfigError(f"{file}: image processor {kind!r} is not supported; supported are {known}.", _REMEDY)
    checked = _ProcessorValues(values, file)
    resample = checked.number("resample", processor.resample)
    if resample not in range(len(FILTERS)):
        raise ConfigError(f"{file}: 'resample' is Pillow's number of a filter, 0 to {len(FILTERS) - 1}, got {resample}.")
    pads = checked.flag("do_pad", False)
    if pads and not processor.can_pad:
        raise ConfigError(f"{file}: 'do_pad' is not supported for {kind}.", _REMEDY)
    crop = checked.size("crop_size", processor.crop, True) if checked.flag("do_center_crop", processor.crop is not None) else None
    rescales, normalises = checked.flag("do_rescale", True), checked.flag("do_normalize", True)
    return {
        "resize": checked.size("size", processor.size, processor.is_square) if checked.flag("do_resize", True) else None,
        "crop": (crop, crop) if isinstance(crop, int) else crop,
        "pad": pads,
        "resample": FILTERS[int(resample)],
        "rescale": checked.number("rescale_factor", 1 / 255) if rescales else 1.0,
        "mean": checked.triple("image_mean", processor.mean) if normalises else (0.0, 0.0, 0.0),
        "std": checked.triple("image_std", processor.std) if normalises else (1.0, 1.0, 1.0),
    }


class _ProcessorValues(NamedTuple):
    """Checked values of a processor file; a null or missing value means the default of the kind, as in transformers."""

    values: dict[str, Any]
    file: str

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            raise ConfigError(f"{self.file}: {key!r} must be true or false, got {value!r}.")
        return default if value is None else value

    def number(self, key: str, default: float) -> float:
        value = self.values.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ConfigError(f"{self.file}: {key!r} must be a number, got {value!r}.")
        return float(default if value is None else value)

    def triple(self, key: str, default: Triple) -> Triple:
        value = self.values.get(key)
        values = default if value is None else value if isinstance(value, list | tuple) else [value] * 3
        if len(values) != 3 or any(isinstance(item, bool) or not isinstance(item, int | float) for item in values):
            raise ConfigError(f"{self.file}: {key!r} must be a number, or three, got {value!r}.")
        return float(values[0]), float(values[1]), float(values[2])

    def size(self, key: str, default: object, is_square: bool) -> Size | int:
        value = self.values.get(key)
        match default if value is None else value:
            case {"height": int(height), "width": int(width)} | [int(height), int(width)]:
                return height, width
            case {"shortest_edge": int(edge), **others} if not any(others.values()):
                return edge
            case int(edge) if not isinstance(edge, bool):
                return (edge, edge) if is_square else edge
        raise ConfigError(
            f"{self.file}: {key!r} must be height and width, or 'shortest_edge' alone, got {value!r}.",
            "A batch needs images of one size.",
        )
