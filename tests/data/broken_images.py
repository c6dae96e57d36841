"""Image files for tests, made on the spot: whole ones, damaged ones, bombs, and odd modes with the colours they must show."""

import functools
import io
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms

READABLE = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
FORMATS = (*READABLE, "JPEG2000", "AVIF")  # the last two are refused whole, too
SIZE = (97, 61)


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """An RGB image with edges, slopes and noise, so that no codec shrinks it to nothing."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 120 * np.sin(x / 9 + y / 17), 127 + 120 * np.cos(x / 23 - y / 7), (3 * x + 5 * y) % 256]
    noise = np.random.default_rng(seed).normal(0, 12, (height, width, 3))
    return Image.fromarray((np.stack(waves, -1) + noise).clip(0, 255).astype(np.uint8))


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    """The image as a file of that format."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


# Damage ---------------------------------------------------------------------------------------------------------------------


def _flip_bits(data: bytes) -> bytes:
    out = bytearray(data)
    for place in np.random.default_rng(1).integers(len(data) // 4, len(data), 20):
        out[place] ^= 1 << (int(place) % 8)
    return bytes(out)


def _without_middle(data: bytes) -> bytes:
    return data[: len(data) // 3] + data[len(data) // 3 + len(data) // 10 :]


FATAL: dict[str, Callable[[bytes], bytes]] = {  # no image is left: must be refused
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "head_zeroed": lambda data: bytes(16) + data[16:],
    "header_only": lambda data: data[:40],
    "html": lambda data: b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>\n" * 20,
    "magic_only": lambda data: data[:8],
    "minus_20_bytes": lambda data: data[:-20],
    "wrong_type": lambda data: b"PK\x03\x04" + bytes(range(256)) * 8,
}
SILENT: dict[str, Callable[[bytes], bytes]] = {  # may leave a valid file with other pixels: refused, or an image of some kind
    "bit_flips": _flip_bits,
    "middle_cut_out": _without_middle,
    "tail_zeroed": lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
}
HARMLESS: dict[str, Callable[[bytes], bytes]] = {"garbage_behind": lambda data: data + b"x" * 4096}
OPERATORS = FATAL | SILENT | HARMLESS


@dataclass(frozen=True)
class Damaged:
    """One damaged file; `original` is the same without damage."""

    kind: str
    operator: str
    data: bytes
    original: bytes


def damaged_files() -> Iterator[Damaged]:
    """12 kinds of damage to 8 formats."""
    picture = photo(*SIZE)
    for kind in FORMATS:
        original = encode(picture, kind)
        for operator, damage in OPERATORS.items():
            yield Damaged(kind, operator, damage(original), original)


# Bombs ----------------------------------------------------------------------------------------------------------------------


def png(width: int, height: int, depth: int, colour_type: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG from its parts; `rows` are filtered scan lines, `extra` are chunks before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(rows, 9))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + body + chunk(b"IEND", b"")


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@functools.cache
def bombs() -> dict[str, tuple[bytes, str]]:
    """Small files that claim to be large: content and the reason to refuse it with."""
    huge_gif = bytearray(encode(photo(8, 8), "GIF"))
    huge_gif[6:10] = struct.pack("<HH", 65535, 65535)
    huge_jpeg = bytearray(encode(photo(8, 8), "JPEG"))
    frame = huge_jpeg.index(b"\xff\xc0")
    huge_jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65500, 65500)
    huge_bmp = bytearray(encode(photo(8, 8), "BMP"))
    huge_bmp[18:26] = struct.pack("<ii", 30000, 30000)
    frames = {"save_all": True, "append_images": [photo(8, 8, 1)]}
    huge_webp = bytearray(encode(photo(8, 8), "WEBP", **frames))
    huge_webp[24:30] = (9999).to_bytes(3, "little") * 2
    blank = bytes(6000 // 8 + 1) * 4000  # no filter, black
    return {
        "png_header": (png(20000, 20000, 8, 2, b""), "image_too_many_pixels"),
        "png_header_max": (png(2**31 - 1, 2**31 - 1, 8, 2, b""), "image_too_many_pixels"),
        "png_one_bit": (png(6000, 4000, 1, 0, blank), "image_bomb"),
        "png_long": (png(100_000, 2, 8, 0, bytes(200_002)), "image_aspect"),
        "gif_screen": (bytes(huge_gif), "image_too_many_pixels"),
        "jpeg_frame": (bytes(huge_jpeg), "image_too_many_pixels"),
        "bmp_header": (bytes(huge_bmp), "image_too_many_pixels"),
        "webp_canvas": (bytes(huge_webp), "image_too_many_pixels"),
        "webp_flat": (encode(Image.new("RGB", (2048, 1024)), "WEBP", lossless=True, method=0), "image_bomb"),
    }


# Modes ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Odd:
    """A file in an unusual mode, the RGB pixels it must show, and how far a level may be off (lossy codecs, rounding)."""

    data: bytes
    expected: np.ndarray
    tolerance: int = 0


def _grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(np.asarray(values, np.uint8)[..., None], 3, -1)


def _over_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255.0
    return np.rint(rgb * share + 255 * (1 - share)).astype(np.uint8)


def _rows(values: np.ndarray) -> bytes:
    return b"".join(b"\0" + row.tobytes() for row in values)


def tiff(width: int, height: int, bits: int, strip: bytes) -> bytes:
    """An uncompressed little-endian grey TIFF of one strip, for depths that Pillow cannot write."""
    tags = [(256, 3, width), (257, 3, height), (258, 3, bits), (259, 3, 1), (262, 3, 1), (277, 3, 1), (278, 3, height)]
    tags += [(273, 4, 8), (279, 4, len(strip))]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in sorted(tags))
    return b"II\x2a\x00" + struct.pack("<I", 8 + len(strip)) + strip + struct.pack("<H", len(tags)) + entries + bytes(4)


@functools.cache
def odd_modes() -> dict[str, Odd]:
    """Every mode rule of `open_image`."""
    rng = np.random.default_rng(3)
    rgb = np.asarray(photo(24, 16))
    grey16 = rng.integers(0, 65536, (16, 24)).astype(np.uint16)
    grey16[0, :2] = 0, 65535
    scaled16 = _grey(np.rint(grey16 / 257.0))
    alpha = rng.integers(0, 256, (16, 24)).astype(np.uint8)
    rgba = Image.fromarray(np.dstack([rgb, alpha]))
    grey = rgb[..., 0]
    over = _over_white(rgb, alpha)
    signed = grey16.astype(np.int32) * 3 - 70_000
    stretched = np.rint((signed - signed.min()) * 255.0 / (signed.max() - signed.min()))
    palette = Image.fromarray(rgb).quantize(16)
    shown = np.asarray(palette.convert("RGB"))
    indices = np.asarray(palette)
    hole = np.where((indices == 3)[..., None], 255, shown).astype(np.uint8)
    cmyk = rng.integers(0, 256, (16, 24, 4)).astype(np.uint8)
    from_cmyk = np.rint((255 - cmyk[..., :3].astype(int)) * (255 - cmyk[..., 3:].astype(int)) / 255.0)
    lab_image = ImageCms.profileToProfile(
        Image.fromarray(rgb), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    lab = np.asarray(lab_image).astype(np.float64)
    twelve = rng.integers(0, 4096, (16, 24))
    packed = (twelve.reshape(16, 12, 2)[..., 0] << 12 | twelve.reshape(16, 12, 2)[..., 1]).astype(">u4")
    strip12 = packed.reshape(-1).view(np.uint8).reshape(-1, 4)[:, 1:].tobytes()
    colour16 = rng.integers(0, 65536, (16, 24, 3)).astype(">u2")
    colour16[2, 3] = 65535, 300, 0
    two_bits = np.array([[0, 1, 2, 3]] * 4)
    key = struct.pack(">H", 1)
    return {
        "1": Odd(encode(Image.fromarray(grey > 99), "PNG"), _grey(np.where(grey > 99, 255, 0))),
        "L": Odd(encode(Image.fromarray(grey), "PNG"), _grey(grey)),
        "L_jpeg": Odd(encode(Image.fromarray(grey), "JPEG", quality=100), _grey(grey), 4),
        "LA": Odd(encode(Image.fromarray(np.dstack([grey, alpha]), "LA"), "PNG"), _over_white(_grey(grey), alpha), 1),
        "RGBA": Odd(encode(rgba, "PNG"), over, 1),
        "RGBA_webp": Odd(encode(rgba, "WEBP", lossless=True, exact=True), over, 1),
        "RGBA_tiff": Odd(encode(rgba, "TIFF"), over, 1),
        "P": Odd(encode(palette, "PNG"), shown),
        "P_gif": Odd(encode(palette, "GIF"), shown),
        "P_hole": Odd(encode(palette, "PNG", transparency=3), hole),
        "P_hole_gif": Odd(encode(palette, "GIF", transparency=3), hole),
        "P_alpha": Odd(
            encode(palette, "PNG", transparency=bytes(range(0, 256, 16))), _over_white(shown, (indices * 16).astype(np.uint8)), 1
        ),
        "RGB_hole": Odd(
            encode(Image.fromarray(rgb), "PNG", transparency=tuple(map(int, rgb[4, 5]))),
            np.where((rgb == rgb[4, 5]).all(-1)[..., None], 255, rgb).astype(np.uint8),
        ),
        "RGB16": Odd(png(24, 16, 16, 2, _rows(colour16)), (colour16 >> 8).astype(np.uint8)),
        "RGB16_hole": Odd(
            png(24, 16, 16, 2, _rows(colour16), chunk(b"tRNS", struct.pack(">HHH", 65535, 300, 0))),
            np.where((colour16 == colour16[2, 3]).all(-1)[..., None], 255, colour16 >> 8).astype(np.uint8),
        ),
        "L2_hole": Odd(png(4, 4, 2, 0, (b"\0" + bytes([0b00011011])) * 4, chunk(b"tRNS", key)), _grey([[0, 255, 170, 255]] * 4)),
        "L2": Odd(png(4, 4, 2, 0, (b"\0" + bytes([0b00011011])) * 4), _grey(two_bits * 85)),
        "I;16": Odd(encode(Image.fromarray(grey16), "PNG"), scaled16),
        "I;16_tiff": Odd(encode(Image.fromarray(grey16), "TIFF"), scaled16),
        "I;16B": Odd(encode(Image.fromarray(grey16.astype(">u2")), "TIFF"), scaled16),
        "I;16_hole": Odd(
            encode(Image.fromarray(grey16), "PNG", transparency=int(grey16[1, 1])),
            np.where((grey16 == grey16[1, 1])[..., None], 255, scaled16).astype(np.uint8),
        ),
        "I;12": Odd(tiff(24, 16, 12, strip12), _grey(np.rint(twelve * 255 / 4095.0))),
        "I_16_bits": Odd(encode(Image.fromarray(grey16.astype(np.int32)), "TIFF"), scaled16, 1),
        "I_8_bits": Odd(encode(Image.fromarray(grey.astype(np.int32)), "TIFF"), _grey(grey)),
        "I_signed": Odd(encode(Image.fromarray(signed), "TIFF"), _grey(stretched), 1),
        "F_fractions": Odd(encode(Image.fromarray(grey.astype(np.float32) / 255), "TIFF"), _grey(grey)),
        "F_8_bits": Odd(encode(Image.fromarray(grey.astype(np.float32)), "TIFF"), _grey(grey)),
        "F_16_bits": Odd(encode(Image.fromarray(grey16.astype(np.float32)), "TIFF"), scaled16, 1),
        "F_signed": Odd(encode(Image.fromarray(signed.astype(np.float32)), "TIFF"), _grey(stretched), 1),
        "F_constant": Odd(encode(Image.fromarray(np.full((16, 24), -3, np.float32)), "TIFF"), _grey(np.zeros((16, 24)))),
        "CMYK_tiff": Odd(encode(Image.fromarray(cmyk, "CMYK"), "TIFF"), from_cmyk.astype(np.uint8), 1),
        "CMYK_jpeg": Odd(encode(Image.new("CMYK", (24, 16), (10, 200, 30, 40)), "JPEG", quality=100), _plain((207, 46, 190)), 4),
        "YCbCr_tiff": Odd(encode(Image.fromarray(rgb).convert("YCbCr"), "TIFF", compression="tiff_lzw"), rgb, 3),
        "LAB": Odd(encode(lab_image, "TIFF"), srgb_from_lab(lab), 1),
    }


def _plain(colour: tuple[int, int, int]) -> np.ndarray:
    return np.broadcast_to(np.array(colour, np.uint8), (16, 24, 3))


def srgb_from_lab(lab: np.ndarray) -> np.ndarray:
    """CIELAB (D50, 8 bits as TIFF stores it: L * 255 / 100, a and b as signed bytes) to sRGB, by the formulas of CIE 15 and
    IEC 61966-2-1 with the Bradford-adapted matrix of the sRGB profile."""
    lightness, a, b = lab[..., 0] * 100 / 255, (lab[..., 1] + 128) % 256 - 128, (lab[..., 2] + 128) % 256 - 128
    fy = (lightness + 16) / 116
    f = np.stack([fy + a / 500, fy, fy - b / 200], -1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * (0.9642, 1.0, 0.8249)
    to_linear = np.array(
        [[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540], [0.0719453, -0.2289914, 1.4052427]]
    )
    linear = (xyz @ to_linear.T).clip(0, 1)
    return np.rint(255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)).astype(np.uint8)
