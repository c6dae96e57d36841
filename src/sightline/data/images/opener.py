"""Opens image files safely: returns an RGB image, or raises a RecordError with the reason to skip the record.

All of Sightline opens images here. The header is checked before anything is decoded; a truncated image is refused, never
decoded with grey areas. Bit flips that leave a valid file are invisible here: only the sha256 that `data prepare` stores
finds them. ICC profiles are not applied, as the processors of the encoders do not apply them either. Pillow warns about oddities
that do not touch the pixels (torn EXIF, too many tags); those warnings are left to the caller's filters. Texts, colour profiles and
other parts of a PNG that its pixels do not need are dropped where they are damaged or too large.
"""

import errno
import io
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageFile, TiffImagePlugin
from PIL import WebPImagePlugin as _  # noqa: F401 Pillow would import all of its 40 plugins to find this one
from pydantic import Field

from sightline.config import Config
from sightline.data.images.png_chunks import drop_damaged_chunks
from sightline.errors import RecordError, UsageError
from sightline.runtime.inputs import open_input

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
FREE_PIXELS = 1_000_000  # below this the ratio of pixels to bytes is not checked: a small image is no decompression bomb
PILLOW_MAX_PIXELS = 89_478_485  # above this Pillow itself warns of a decompression bomb

_ORIENTATION = ExifTags.Base.Orientation
_TURNS = MappingProxyType(
    {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
)
_MAGIC = (
    (b"\xff\xd8", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II\x2a\x00", "TIFF"),
    (b"MM\x00\x2a", "TIFF"),
    (b"II\x2b\x00", "TIFF"),
    (b"MM\x00\x2b", "TIFF"),
)
_OTHER_FORMATS = (  # formats that are recognised for the error message only
    (b"<svg", "SVG"),
    (b"<html", "HTML, perhaps an error page"),
    (b"<!doctype", "HTML, perhaps an error page"),
    (b"%pdf", "PDF"),
    (b"%!ps", "EPS"),
    (b"8bps", "PSD"),
    (b"jp2", "JPEG 2000"),
    (b"ftypavi", "AVIF"),
    (b"ftyphei", "HEIC"),
    (b"\x1f\x8b", "gzip"),
    (b"pk\x03\x04", "ZIP"),
    (b"version https://git-lfs", "a Git LFS pointer"),
)


class ImageLimits(Config):
    """Limits on an image file, checked on its header before it is decoded."""

    max_bytes: int = Field(20_000_000, ge=1)
    """Size of the file."""
    max_pixels: int = Field(51_000_000, ge=1, le=PILLOW_MAX_PIXELS)
    """Width times height; by default as many as photos of 50 megapixels have, which take 4 bytes each while they are decoded."""
    max_aspect: float = Field(200.0, ge=1)
    """Longer side over shorter side."""
    max_pixels_per_byte: float = Field(2000.0, gt=0)
    """Pixels per byte of the file; checked above one million pixels."""
    min_side: int = Field(1, ge=1)
    """Shorter side."""


DEFAULT_LIMITS = ImageLimits()


class ImageHeader(NamedTuple):
    """Content of an image file's header; `width` and `height` as stored, before EXIF rotation."""

    format: str
    mode: str
    width: int
    height: int


def open_image(source: bytes | Path, limits: ImageLimits = DEFAULT_LIMITS, draft_side: int | None = None) -> Image.Image:
    """Opens a JPEG, PNG, WebP, GIF, BMP or TIFF file as an RGB image, as it is meant to be seen. Thread safe.

    The EXIF orientation is applied, once; the result carries no metadata by which it could be applied again. Of animations
    and files with several pages the first frame is taken. The content decides the format, not the name. Modes become RGB so:

    | stored as | becomes |
    |---|---|
    | RGB, YCbCr, P, 1, L | the same colours; grey in three equal channels |
    | 16 bits a channel, in colour or with alpha | its high byte |
    | 16-bit grey (I;16 in every byte order) | v * 255 / 65535, rounded; v * 255 / 4095 for 12-bit TIFF |
    | I (32-bit integers), F (floats) | white is the smallest of 1 (F alone), 255, 65535 that no value exceeds |
    | I, F with values below 0 or above 65535 | the range from minimum to maximum; NaN or infinity is refused |
    | RGBA, LA, PA, or a transparent colour | laid over white |
    | CMYK | Pillow's plain conversion, R = (255 - C) * (255 - K) / 255 |
    | LAB | the colours of CIELAB (D50) in sRGB |

    Args:
        source: content of a file, or its path.
        limits: checked on the header, before anything is decoded.
        draft_side: lets a JPEG be decoded at 1/2, 1/4 or 1/8 of its size, as long as its shorter side stays at least this
            long. Measured 4.7 times quicker from 12 megapixels to 224 pixels, no gain below 0.5; pixels differ slightly.

    Raises:
        RecordError: with one of the reasons `image_missing`, `image_unreadable`, `image_not_a_file`, `image_empty`,
            `image_too_large` (bytes), `image_format` (none of the six), `image_too_small`, `image_too_many_pixels`,
            `image_aspect`, `image_bomb` (pixels per byte), `image_broken`, `image_memory`,
            `image_mode`, `image_not_finite`.
        UsageError: other code set Pillow to load truncated files.
    """
    return open_with_orientation(source, limits, draft_side)[0]


def open_with_orientation(
    source: bytes | Path, limits: ImageLimits = DEFAULT_LIMITS, draft_side: int | None = None
) -> tuple[Image.Image, int]:
    """Opens an image as `open_image` does; also returns the EXIF orientation (1 to 8) that was applied."""
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise UsageError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set: truncated images would be decoded with grey areas.",
            "Remove the line that sets it.",
        )
    data = read_image_file(source, limits) if isinstance(source, Path) else source
    kind = _recognise(data, limits)
    try:
        return _decoded(data, kind, limits, draft_side)
    except RecordError as error:
        mended = _mended(data, kind, error)
        if mended is None:
            raise
    return _decoded(mended, kind, limits, draft_side)


def _mended(data: bytes, kind: str, error: RecordError) -> bytes | None:
    """Returns a broken file without those damaged parts that its pixels do not need; None where there are none."""
    return drop_damaged_chunks(data) if kind == "PNG" and error.reason == "image_broken" else None


def _decoded(data: bytes, kind: str, limits: ImageLimits, draft_side: int | None) -> tuple[Image.Image, int]:
    """Returns an image and the orientation that was applied, or raises a RecordError."""
    try:
        image = _open_header(data, kind, limits)
        if type(image).verify is not ImageFile.ImageFile.verify:  # PNG has checksums to compare, the others do nothing there
            image.verify()
            image = _open_header(data, kind, limits)  # after verify() Pillow wants the file opened anew
        if draft_side is not None:
            image.draft("RGB", (draft_side, draft_side))
        turned = image.tag_v2.get(_ORIENTATION) if isinstance(image, TiffImagePlugin.TiffImageFile) else None
        image.load()  # Pillow rotates a TIFF itself and removes the tag
        orientation = _orientation(image)
        clean = _to_rgb(image, data)
        if orientation in _TURNS:
            clean = clean.transpose(_TURNS[orientation])
        return clean, turned if turned in _TURNS else orientation
    except RecordError:
        raise
    except MemoryError:
        raise RecordError("image_memory", f"{kind}: not enough memory to decode it") from None
    except Exception as error:  # decoding damaged bytes raises anything
        raise RecordError("image_broken", f"{kind}: {_error_text(error)}") from error


def as_rgb(image: "Image.Image | np.ndarray") -> Image.Image:
    """Returns an opened image or an array as an RGB image, by the rules of `open_image`.

    Args:
        image: an image of any mode; or an array `[h, w]`, `[h, w, 1|3|4]` or `[1|3, h, w]`: bytes, or other numbers (as mode I or
            F of `open_image`).

    Raises:
        RecordError: `image_broken`, `image_mode`, `image_not_finite`.
    """
    if isinstance(image, np.ndarray):
        return _image_of(image)
    try:
        image.load()
        orientation = _orientation(image)
        clean = _to_rgb(image, bytes(24) + b"\x08")  # the file's bytes are gone: 8 bits a channel, as nearly all files have
    except RecordError:
        raise
    except Exception as error:  # an image may be decoded only now; as in open_image
        raise RecordError("image_broken", _error_text(error)) from error
    return clean.transpose(_TURNS[orientation]) if orientation in _TURNS else clean


def _image_of(values: np.ndarray) -> Image.Image:
    if values.ndim == 3 and values.shape[0] in (1, 3) and values.shape[2] not in (1, 3, 4):
        values = values.transpose(1, 2, 0)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if not (values.ndim == 2 or (values.ndim == 3 and values.shape[2] in (3, 4))) or 0 in values.shape:
        raise RecordError("image_mode", f"an array of shape {list(values.shape)} is no image; give [height, width, 3]")
    if values.dtype == bool:
        values = values.astype(np.uint8) * 255
    if values.dtype != np.uint8:
        values = _to_bytes(values)
    return as_rgb(Image.fromarray(np.ascontiguousarray(values)))


def inspect_image(source: bytes | Path, limits: ImageLimits = DEFAULT_LIMITS) -> ImageHeader:
    """Reads and checks the header without decoding.

    Raises:
        RecordError: the reasons of `open_image` that a header can give.
    """
    data = read_image_file(source, limits) if isinstance(source, Path) else source
    kind = _recognise(data, limits)
    try:
        return _header(data, kind, limits)
    except RecordError as error:
        mended = _mended(data, kind, error)
        if mended is None:
            raise
    return _header(mended, kind, limits)


def _header(data: bytes, kind: str, limits: ImageLimits) -> ImageHeader:
    try:
        image = _open_header(data, kind, limits)
        width, height = image.size
        if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(_ORIENTATION) in (5, 6, 7, 8):
            width, height = height, width  # Pillow states the turned size of a TIFF
        return ImageHeader(kind, image.mode, width, height)
    except RecordError:
        raise
    except Exception as error:  # as in open_image
        raise RecordError("image_broken", f"{kind}: {_error_text(error)}") from error


def read_image_file(path: Path, limits: ImageLimits = DEFAULT_LIMITS) -> bytes:
    """Reads a regular file of at most `limits.max_bytes` bytes; a pipe or device does not block it.

    Raises:
        RecordError: reasons `image_missing`, `image_not_a_file`, `image_unreadable`, `image_too_large`.
    """
    try:
        with open_input(path) as file:
            data = file.read(limits.max_bytes + 1)
    except IsADirectoryError:
        raise RecordError("image_not_a_file", f"{path} is a folder") from None
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RecordError("image_missing", f"{path}: {_error_text(error)}") from None
    except OSError as error:
        if error.errno == errno.EINVAL and "\0" in str(path):
            raise RecordError("image_missing", f"{path!r}: no file can have such a name") from None
        if error.errno == errno.EINVAL:
            raise RecordError("image_not_a_file", f"{path}: {error.strerror}") from None
        raise RecordError("image_unreadable", f"{path}: {error.strerror or error}") from None
    if len(data) > limits.max_bytes:
        raise RecordError("image_too_large", f"{path} has more than {limits.max_bytes} bytes")
    return data


# Before decoding ------------------------------------------------------------------------------------------------------------


def _recognise(data: bytes, limits: ImageLimits) -> str:
    if not data:
        raise RecordError("image_empty", "the file has no content")
    if len(data) > limits.max_bytes:
        raise RecordError("image_too_large", f"{len(data)} bytes; at most {limits.max_bytes} are allowed")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    for magic, kind in _MAGIC:
        if data.startswith(magic):
            return kind
    start = data[:64].lower()
    looks = next((f"; it looks like {name}" for mark, name in _OTHER_FORMATS if mark in start), "")
    raise RecordError("image_format", f"not one of {', '.join(FORMATS)}{looks}")


def _open_header(data: bytes, kind: str, limits: ImageLimits) -> ImageFile.ImageFile:
    try:
        image = Image.open(io.BytesIO(data), formats=(kind,))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RecordError("image_too_many_pixels", f"{kind}: {_error_text(error)}") from None
    width, height = image.size
    claim = f"{kind} of {width} x {height} pixels in {len(data)} bytes"
    short, long, pixels = min(width, height), max(width, height), width * height
    if short < limits.min_side:
        raise RecordError("image_too_small", f"{claim}; the shorter side must have at least {limits.min_side}")
    if pixels > limits.max_pixels:
        raise RecordError("image_too_many_pixels", f"{claim}; at most {limits.max_pixels} pixels are allowed")
    if long > limits.max_aspect * short:
        raise RecordError("image_aspect", f"{claim}; the sides may differ by a factor of {limits.max_aspect:g}")
    if pixels > FREE_PIXELS and pixels > limits.max_pixels_per_byte * len(data):
        raise RecordError("image_bomb", f"{claim}; at most {limits.max_pixels_per_byte:g} pixels per byte are allowed")
    return image


def _error_text(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text[:200] if text else type(error).__name__


# After decoding -------------------------------------------------------------------------------------------------------------


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation, 1 to 8."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
        return int(found) if found in _TURNS else 1
    except Exception:  # damaged EXIF raises anything; the pixels are intact and are not rotated
        return 1


def _to_rgb(image: Image.Image, data: bytes) -> Image.Image:
    """Converts to RGB by the table of `open_image`; the result has no metadata and no reference to the file."""
    out: Image.Image = image
    if image.mode.startswith("I;16"):
        out = _scaled_grey(image)
    elif image.mode in ("I", "F"):
        out = Image.fromarray(_to_bytes(np.asarray(image)))
    elif image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        exact = ImageCms.Flags.NOOPTIMIZE  # without it littlecms interpolates: up to 15 levels off near black
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB", flags=exact)
        assert converted is not None  # None is returned only when it works in place
        out = converted
    elif image.format == "PNG" and image.mode in ("L", "RGB"):
        _rescale_transparent_colour(image, bit_depth=data[24])
    try:
        if out.has_transparency_data:
            layered = out.convert("RGBA")
            out = Image.new("RGB", layered.size, "white")
            out.paste(layered, mask=layered)
        elif out.mode == "RGB":
            out = out._new(out.im)  # the same pixels without the file; a copy would add 3 % to the time of decoding
        else:
            out = out.convert("RGB")
    except ValueError as error:
        raise RecordError("image_mode", f"mode {out.mode} cannot be converted to RGB: {error}") from error
    out.info = {}
    return out


def _scaled_grey(image: Image.Image) -> Image.Image:
    white = 65535
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(ExifTags.Base.BitsPerSample) == (12,):
        white = 4095
    values = np.asarray(image).astype(np.uint32)
    grey = Image.fromarray(((values * 255 + white // 2) // white).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def _to_bytes(values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise RecordError("image_not_finite", "pixels that are NaN or infinite")
    low, high = float(values.min()), float(values.max())
    levels = (1.0, 255.0, 65535.0) if values.dtype.kind == "f" else (255.0, 65535.0)
    white = next((level for level in levels if low >= 0 and high <= level), None)
    if white is None:
        floor, span = low, (high - low) or 1.0
    else:
        floor, span = 0.0, white
    return np.rint((values.astype(np.float64) - floor) * (255 / span)).astype(np.uint8)


def _rescale_transparent_colour(image: Image.Image, bit_depth: int) -> None:
    """Scales the transparent colour to 8 bits as Pillow scales the pixels (2- and 4-bit grey, 16-bit colours)."""
    colour = image.info.get("transparency")
    if image.mode == "L" and isinstance(colour, int) and bit_depth < 8:
        image.info["transparency"] = colour * 255 // (2**bit_depth - 1)
    elif image.mode == "RGB" and isinstance(colour, tuple) and bit_depth == 16:
        image.info["transparency"] = tuple(value >> 8 for value in colour)
