"""The image gate against damage, bombs, odd modes, and turned images."""

import contextlib
import io
import os
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageFile, ImageOps

from sightline.config import Tree, validate_tree
from sightline.data.images.opener import ImageLimits, inspect_image, open_image
from sightline.errors import ConfigError, RecordError, UsageError
from tests.data.broken_images import (
    FATAL,
    HARMLESS,
    READABLE,
    SIZE,
    bombs,
    chunk,
    damaged_files,
    encode,
    odd_modes,
    photo,
    png,
    tiff,
)

# As in a program that uses the module: pytest replaces the filters that it sets at import.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


def reason_of(source: bytes | Path, limits: ImageLimits | None = None) -> str:
    with pytest.raises(RecordError) as caught:
        open_image(source, limits or ImageLimits())
    return caught.value.reason


# Whole images -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", READABLE)
def test_a_whole_file_opens_as_pillow_shows_it(kind: str) -> None:
    data = encode(photo(*SIZE), kind)
    image = open_image(data)
    assert image.mode == "RGB"
    assert image.size == SIZE
    assert np.array_equal(np.asarray(image), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"])
def test_compressed_tiffs_open(compression: str | None) -> None:
    data = encode(photo(*SIZE), "TIFF", compression=compression)
    difference = np.asarray(open_image(data)).astype(int) - np.asarray(photo(*SIZE))
    assert np.abs(difference).mean() < (12 if compression == "jpeg" else 1e-9)


def test_the_content_decides_and_not_the_name(tmp_path: Path) -> None:
    path = tmp_path / "really a png.jpg"
    path.write_bytes(encode(photo(5, 4), "PNG"))
    assert np.array_equal(np.asarray(open_image(path)), np.asarray(photo(5, 4)))
    assert inspect_image(path)[:2] == ("PNG", "RGB")


@pytest.mark.parametrize("name", odd_modes())
def test_every_mode_becomes_the_documented_colours(name: str) -> None:
    odd = odd_modes()[name]
    pixels = np.asarray(open_image(odd.data)).astype(int)
    assert pixels.shape == odd.expected.shape
    assert np.abs(pixels - odd.expected).max() <= odd.tolerance


def test_plain_pillow_clips_what_the_gate_scales() -> None:
    data = encode(Image.fromarray(np.full((4, 4), 40_000, np.uint16)), "PNG")
    assert np.asarray(open_image(data)).max() == round(40_000 / 257)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_no_numbers_are_refused(bad: float) -> None:
    values = np.ones((4, 4), np.float32)
    values[1, 2] = bad
    assert reason_of(encode(Image.fromarray(values), "TIFF")) == "image_not_finite"


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_of_several_frames_the_first_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "green", "blue")]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    pixels = np.asarray(open_image(data)).astype(int)
    assert np.abs(pixels - (255, 0, 0)).max() <= 3


# Turned images ------------------------------------------------------------------------------------------------------------


def turned(kind: str, orientation: int, **options: object) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return encode(corners(), kind, exif=exif, **options)


def corners() -> Image.Image:
    """An image of which no turn or mirror image is equal to another."""
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :16], pixels[:8, 16:], pixels[8:, :16] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    return Image.fromarray(pixels)


# What a viewer must see, in numpy terms (EXIF 2.32, tag 274).
SHOWN = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a[::-1].transpose(1, 0, 2),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a.transpose(1, 0, 2)[::-1],
}


@pytest.mark.parametrize("orientation", SHOWN)
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 100, "subsampling": 0}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"save_all": True, "append_images": [Image.new("RGB", (32, 16))]}),
    ],
    ids=["jpeg", "png", "webp", "tiff", "tiff_lzw", "tiff_pages"],
)
def test_the_exif_turn_is_applied_exactly_once(kind: str, options: dict[str, object], orientation: int) -> None:
    data = turned(kind, orientation, **options)
    image = open_image(data)
    expected = SHOWN[orientation](np.asarray(corners()))
    assert image.size == expected.shape[1::-1]
    assert np.abs(np.asarray(image).astype(int) - expected).max() <= 4
    assert np.array_equal(np.asarray(ImageOps.exif_transpose(image)), np.asarray(image)), "nobody can turn it again"
    assert inspect_image(data)[2:] == (32, 16), "the header tells the stored size"


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_unknown_turn_is_no_turn(orientation: int) -> None:
    assert np.array_equal(np.asarray(open_image(turned("PNG", orientation))), np.asarray(corners()))


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0no header at all",
        b"Exif\0\0MM\0\x2a\xff\xff\xff\xff",
        b"Exif\0\0II\x2a\0\x08\0\0\0\xff\xff" + b"\x12\1" * 30,
    ],
)
def test_torn_exif_does_not_cost_the_image(exif: bytes) -> None:
    data = encode(corners(), "PNG", exif=exif)
    assert np.array_equal(np.asarray(open_image(data)), np.asarray(corners()))


# Damage ---------------------------------------------------------------------------------------------------------------------


def outcome_of(data: bytes) -> Image.Image | str:
    """The image, or the reason to skip it."""
    try:
        return open_image(data)
    except RecordError as error:
        return error.reason if error.message else "without a message"


def test_96_damaged_files_are_refused_by_reason_or_open_as_images() -> None:
    files = list(damaged_files())
    assert len(files) == 96
    for file in files:
        where = f"{file.kind} {file.operator}"
        outcome = outcome_of(file.data)
        if isinstance(outcome, str):
            assert outcome in ("image_broken", "image_format", "image_empty"), where
            assert file.operator not in HARMLESS or file.kind not in READABLE, where
            continue
        assert file.operator not in FATAL, where
        assert file.kind in READABLE, where
        assert outcome.mode == "RGB", where
        assert min(outcome.size) > 0, where
        if file.operator in HARMLESS:
            assert np.array_equal(np.asarray(outcome), np.asarray(open_image(file.original))), where


@pytest.mark.parametrize(
    ("data", "reason", "hint"),
    [
        (b"", "image_empty", "no content"),
        (b"\xff\xd8", "image_broken", "JPEG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image_format", "SVG"),
        (b"<!DOCTYPE html><p>Not found", "image_format", "HTML"),
        (b"%PDF-1.7\n", "image_format", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "image_format", "EPS"),
        (b"8BPS\0\1" + bytes(40), "image_format", "PSD"),
        (b"version https://git-lfs.github.com/spec/v1\n", "image_format", "Git LFS"),
        (b"P6 4 4 255 " + bytes(48), "image_format", "not one of"),
        (encode(photo(9, 9), "AVIF"), "image_format", "AVIF"),
        (encode(photo(9, 9), "JPEG2000"), "image_format", "JPEG 2000"),
        (encode(photo(9, 9), "ICO"), "image_format", "not one of"),
        (encode(photo(9, 9), "PPM"), "image_format", "not one of"),
        (png(0, 5, 8, 2, b""), "image_broken", "PNG"),
        (tiff(0, 5, 8, b""), "image_broken", "TIFF"),
    ],
    ids=lambda value: None if isinstance(value, str) else "data",
)
def test_what_is_no_image_is_named(data: bytes, reason: str, hint: str) -> None:
    with pytest.raises(RecordError, match=hint) as caught:
        open_image(data)
    assert caught.value.reason == reason


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(READABLE),
    cuts=st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=12), st.integers(0, 40)), min_size=1, max_size=6),
)
def test_no_damage_escapes_as_anything_but_a_record_error(kind: str, cuts: list[tuple[float, bytes, int]]) -> None:
    data = bytearray(encode(photo(24, 16), kind))
    for share, put, dropped in cuts:
        place = int(share * len(data))
        data[place : place + dropped] = put
    outcome = outcome_of(bytes(data))
    assert isinstance(outcome, Image.Image) or outcome.startswith("image_")
    with contextlib.suppress(RecordError):
        inspect_image(bytes(data))


def test_torn_images_are_refused_even_if_other_code_allows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(UsageError, match="LOAD_TRUNCATED_IMAGES"):
        open_image(encode(photo(9, 9), "JPEG"))


def test_a_checksum_that_only_verify_reads_is_checked() -> None:
    data = bytearray(encode(photo(*SIZE), "PNG"))
    place = data.index(b"IDAT") - 4
    length = int.from_bytes(data[place : place + 4], "big")
    data[place + 8 + length] ^= 1  # the CRC of the first IDAT chunk
    assert reason_of(bytes(data)) == "image_broken"


def with_chunk(data: bytes, name: bytes, content: bytes, at_end: bool, is_torn: bool = False) -> bytes:
    """A PNG with one more chunk, after its header or before its end; a torn one has another checksum."""
    more = bytearray(chunk(name, content))
    more[-1] ^= is_torn
    place = len(data) - 12 if at_end else 33
    return data[:place] + bytes(more) + data[place:]


_TEXT_2_MB = b"a" * 2_000_000
DROPPED = {
    "text of 2 MB": (b"tEXt", b"k\0" + _TEXT_2_MB, False),
    "compressed text of 2 MB": (b"zTXt", b"k\0\0" + zlib.compress(_TEXT_2_MB), False),
    "compressed international text of 2 MB": (b"iTXt", b"k\0\1\0\0\0" + zlib.compress(_TEXT_2_MB), False),
    "text that cannot be unpacked": (b"zTXt", b"k\0\0" + b"x" * 50, False),
    "profile that cannot be unpacked": (b"iCCP", b"p\0\0" + b"x" * 50, False),
    "profile of nothing": (b"iCCP", b"", False),
    "gamma of nothing": (b"gAMA", b"", False),
    "resolution of nothing": (b"pHYs", b"", False),
    "torn text": (b"tEXt", b"k\0v", True),
    "torn compressed text": (b"zTXt", b"k\0\0" + zlib.compress(b"v"), True),
    "torn international text": (b"iTXt", b"k\0\0\0\0\0v", True),
    "torn profile": (b"iCCP", b"p\0\0" + zlib.compress(b"v"), True),
    "torn EXIF": (b"eXIf", b"II*\0\x08\0\0\0\0\0\0\0\0\0", True),
    "torn gamma": (b"gAMA", (45455).to_bytes(4, "big"), True),
    "torn time": (b"tIME", b"\x07\xe8\1\1\1\1\1", True),
    "torn background": (b"bKGD", bytes(6), True),
}


@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize("name", DROPPED)
def test_a_png_is_read_without_what_its_pixels_do_not_need(name: str, at_end: bool) -> None:
    picture = photo(*SIZE)
    kind, content, is_torn = DROPPED[name]
    data = with_chunk(encode(picture, "PNG"), kind, content, at_end, is_torn)
    assert np.array_equal(np.asarray(open_image(data)), np.asarray(picture))
    assert inspect_image(data)[1:] == ("RGB", *SIZE)
    broken = bytearray(data)
    place = broken.index(b"IDAT")
    broken[place + 40] ^= 1
    assert reason_of(bytes(broken)) == "image_broken"
    assert reason_of(data[: len(data) // 2]) == "image_broken"


@pytest.mark.parametrize("name", [b"tRNS", b"iDAT", b"IDAT", b"abCd", b"PLTE"])
def test_a_torn_part_of_a_png_that_its_pixels_may_need_is_not_dropped(name: bytes) -> None:
    data = with_chunk(encode(photo(*SIZE), "PNG"), name, bytes(6), False, is_torn=True)
    with pytest.raises(RecordError) as caught:
        open_image(data)
    assert caught.value.reason == "image_broken"
    assert "0x" not in caught.value.message


def test_a_png_with_a_torn_text_is_still_turned_by_its_whole_ones() -> None:
    """ImageMagick writes EXIF as a text."""
    raw = turned("PNG", 6)
    place = raw.index(b"eXIf") - 4
    size = int.from_bytes(raw[place : place + 4], "big")
    exif = b"Exif\0\0" + raw[place + 8 : place + 8 + size]
    text = f"\nexif\n{len(exif):8d}\n{exif.hex()}\n".encode()
    without = raw[:place] + raw[place + 12 + size :]
    whole = with_chunk(without, b"tEXt", b"Raw profile type exif\0" + text, False)
    shown = SHOWN[6](np.asarray(corners()))
    assert np.array_equal(np.asarray(open_image(whole)), shown)
    assert np.array_equal(np.asarray(open_image(with_chunk(whole, b"tEXt", b"k\0v", True, True))), shown)


# Limits ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", bombs())
def test_bombs_are_refused_by_their_header(name: str) -> None:
    data, reason = bombs()[name]
    assert len(data) < 4096
    assert reason_of(data) == reason
    with pytest.raises(RecordError):
        inspect_image(data)


def test_bombs_are_refused_before_memory_is_taken() -> None:
    code = """
import resource, sys
from sightline.data.images.opener import open_image
from sightline.errors import RecordError
from tests.data.broken_images import bombs
files = bombs()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for data, reason in files.values():
    try:
        open_image(data)
    except RecordError as error:
        assert error.reason == reason
    else:
        raise AssertionError(reason)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    root = Path(__file__).parents[3]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert int(result.stdout) < 20_000, "kB; the smallest of them would take 75 MB once decoded"


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"max_bytes": 500}, "image_too_large"),
        ({"max_pixels": 96 * 61}, "image_too_many_pixels"),
        ({"max_aspect": 1.5}, "image_aspect"),
        ({"min_side": 62}, "image_too_small"),
    ],
)
def test_each_limit_can_be_set(limits: dict[str, float], reason: str) -> None:
    data = encode(photo(*SIZE), "PNG")
    assert reason_of(data, validate_tree(ImageLimits, Tree(dict(limits)))) == reason


def test_a_image_exactly_at_the_limits_passes() -> None:
    data = encode(photo(*SIZE), "PNG")
    limits = ImageLimits(max_bytes=len(data), max_pixels=97 * 61, max_aspect=97 / 61, min_side=61)
    assert open_image(data, limits).size == SIZE


def test_small_flat_images_are_no_bombs() -> None:
    flat = encode(Image.new("RGB", (1000, 1000), "white"), "WEBP", lossless=True)
    assert len(flat) * 2000 < 1000 * 1000
    assert open_image(flat).size == (1000, 1000)


def test_a_limit_that_pillow_would_not_grant_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_pixels"):
        validate_tree(ImageLimits, Tree({"max_pixels": 10**9}))


# Files ----------------------------------------------------------------------------------------------------------------------


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("nowhere")
    assert reason_of(tmp_path) == "image_not_a_file"
    assert reason_of(tmp_path / "pipe") == "image_not_a_file"
    assert reason_of(Path("/dev/zero")) == "image_not_a_file"
    for name in ("none.jpg", "link", "pipe/inside", "with\0null"):
        assert reason_of(tmp_path / name) == "image_missing"
    assert reason_of(tmp_path / ("x" * 300)) == "image_unreadable"


def test_a_file_beyond_the_limit_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "sparse.jpg"
    with path.open("wb") as file:
        file.truncate(10**12)
    assert reason_of(path) == "image_too_large"


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert reason_of(tmp_path / "a.jpg") == "image_unreadable"


# Threads, draft -------------------------------------------------------------------------------------------------------------


def test_many_threads_get_the_same_pixels_and_refusals() -> None:
    files = [encode(photo(60 + i, 50, i), kind) for i, kind in enumerate(READABLE * 4)]
    broken = [data[: len(data) // 2] for data in files]
    alone = [np.asarray(open_image(data)).tobytes() for data in files]

    def check(index: int) -> bool:
        data = files[index % len(files)]
        return np.asarray(open_image(data)).tobytes() == alone[index % len(files)] and reason_of(broken[index % len(files)]) != ""

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(check, range(200)))


def test_a_draft_is_smaller_but_never_below_the_side_asked_for() -> None:
    data = encode(photo(800, 620), "JPEG", quality=95)
    assert open_image(data, draft_side=300).size == (400, 310)
    assert open_image(data, draft_side=311).size == (800, 620)
    assert open_image(data, draft_side=10).size == (100, 78)
    whole = np.asarray(open_image(data).resize((400, 310), Image.Resampling.BOX)).astype(int)
    difference = np.abs(np.asarray(open_image(data, draft_side=300)) - whole)
    assert difference.mean() < 5, "measured 3.1; a shift by one pixel gives 13"
    assert open_image(encode(photo(800, 620), "PNG"), draft_side=10).size == (800, 620), "only JPEG can"
