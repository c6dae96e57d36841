"""Draws a scene: light background, flat shapes with smooth edges, a sign in a 5 x 7 dot alphabet, light noise.

Edges are smoothed by 4 x 4 samples a pixel. Everything is whole-number arithmetic (a polygon test, a blend by sixteenths, noise
from raw random bytes), so an image is the same to the last bit on every platform and with every version of Pillow, which only
wraps the result.
"""

import numpy as np
from PIL import Image

from sightline.data.scenes.outlines import UNIT, edges
from sightline.data.scenes.world import SIGN_CELLS, SIGN_FRAME, Background, Scene, Sign, Stream
from sightline.errors import UsageError

SAMPLES = 4  # along each side of a pixel
MIN_SIZE, MAX_SIZE = 32, 1024  # below, shapes cannot be distinguished; above, the polygon test would leave 64 bits
MIN_SIZE_WITH_SIGN = 64  # below, the dots of a letter are smaller than a pixel
BOARD, INK = (252, 252, 252), (40, 40, 40)

# Seven rows of five dots, one hexadecimal pair a row, the leftmost dot the highest bit.
_DOTS = {
    "0": "0E 11 13 15 19 11 0E",
    "1": "04 0C 04 04 04 04 0E",
    "2": "0E 11 01 06 08 10 1F",
    "3": "0E 11 01 06 01 11 0E",
    "4": "02 06 0A 12 1F 02 02",
    "5": "1F 10 1E 01 01 11 0E",
    "6": "06 08 10 1E 11 11 0E",
    "7": "1F 01 02 04 08 08 08",
    "8": "0E 11 11 0E 11 11 0E",
    "9": "0E 11 11 0F 01 02 0C",
    "A": "0E 11 11 1F 11 11 11",
    "B": "1E 11 11 1E 11 11 1E",
    "C": "0E 11 10 10 10 11 0E",
    "D": "1E 11 11 11 11 11 1E",
    "E": "1F 10 10 1E 10 10 1F",
    "F": "1F 10 10 1E 10 10 10",
    "G": "0E 11 10 17 11 11 0E",
    "H": "11 11 11 1F 11 11 11",
    "I": "0E 04 04 04 04 04 0E",
    "J": "07 02 02 02 02 12 0C",
    "K": "11 12 14 18 14 12 11",
    "L": "10 10 10 10 10 10 1F",
    "M": "11 1B 15 15 11 11 11",
    "N": "11 19 15 13 11 11 11",
    "O": "0E 11 11 11 11 11 0E",
    "P": "1E 11 11 1E 10 10 10",
    "Q": "0E 11 11 11 15 12 0D",
    "R": "1E 11 11 1E 14 12 11",
    "S": "0F 10 10 0E 01 01 1E",
    "T": "1F 04 04 04 04 04 04",
    "U": "11 11 11 11 11 11 0E",
    "V": "11 11 11 11 11 0A 04",
    "W": "11 11 11 15 15 1B 11",
    "X": "11 11 0A 04 0A 11 11",
    "Y": "11 11 0A 04 04 04 04",
    "Z": "1F 01 02 04 08 10 1F",
}


def render(scene: Scene, size: int = 64, noise: bool = True) -> Image.Image:
    """Draws a scene as an RGB image of `size` x `size` pixels.

    Args:
        noise: False leaves out the grain, for tests and figures.

    Raises:
        UsageError: `size` is out of range (from 64 on for scenes with a sign).
    """
    check_size(size, has_sign=scene.sign is not None)
    pixels = _background(scene.background, size)
    for thing in scene.things:
        _paint(pixels, edges(thing.shape, thing.angle, thing.radius, thing.x, thing.y), thing.rgb)
    if scene.sign is not None:
        _paint_sign(pixels, scene.sign)
    if noise:
        _add_grain(pixels, scene)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def check_size(size: int, has_sign: bool) -> None:
    """Refuses sizes at which a scene cannot be drawn or read.

    Raises:
        UsageError: `size` is out of range.
    """
    smallest = MIN_SIZE_WITH_SIGN if has_sign else MIN_SIZE
    if not smallest <= size <= MAX_SIZE:
        reason = " Letters cannot be read in smaller images." if has_sign else ""
        raise UsageError(f"Image size is {size}.", f"Choose {smallest} to {MAX_SIZE}.{reason}")


def _background(background: Background, size: int) -> np.ndarray:
    """Returns int32 [size, size, 3]: the tint, brightened by up to half of `across` and `down` at the borders."""
    steps = 2 * np.arange(size, dtype=np.int32) + 1 - size
    light = (background.across * steps[None, :] + background.down * steps[:, None]) // (2 * size)
    return light[:, :, None] + np.array(background.rgb, dtype=np.int32)


def _paint(pixels: np.ndarray, outline: np.ndarray, rgb: tuple[int, int, int]) -> None:
    """Fills a polygon, given as its edges, in place."""
    size = pixels.shape[0]
    left, top = (outline.min(0)[:2] * size // UNIT).tolist()
    right, bottom = (-(-outline.max(0)[:2] * size // UNIT)).tolist()
    cover = _cover(outline, size, (left, top, right, bottom))
    _blend(pixels[top:bottom, left:right], cover, rgb)


def _blend(window: np.ndarray, cover: np.ndarray, rgb: tuple[int, int, int]) -> None:
    """Lays a color over a window, `cover` sixteenths of it at each pixel."""
    full = SAMPLES * SAMPLES
    share = cover[:, :, None]
    window[:] = (window * (full - share) + np.array(rgb, dtype=np.int32) * share + full // 2) // full


def _cover(outline: np.ndarray, size: int, window: tuple[int, int, int, int]) -> np.ndarray:
    """Returns how many of the 16 samples of each pixel of a window lie inside a polygon.

    A row of samples crosses the edges at exact places; from each crossing on, inside and outside change. In units in which
    samples lie on odd multiples of 65536 and corners on multiples of 8 x size, numbers stay below 2^60 up to size 1024.
    """
    left, top, right, bottom = window
    rows, columns = (bottom - top) * SAMPLES, (right - left) * SAMPLES
    ends = outline * (2 * SAMPLES * size)
    upward = ends[:, 1] > ends[:, 3]
    ends[upward] = ends[upward][:, [2, 3, 0, 1]]
    x1, y1, x2, y2 = ends.T[:, :, None]
    y = (2 * np.arange(top * SAMPLES, bottom * SAMPLES, dtype=np.int64) + 1) * UNIT
    edge, row = np.nonzero((y1 <= y) & (y < y2))
    x1, y1, x2, y2 = x1[edge, 0], y1[edge, 0], x2[edge, 0], y2[edge, 0]
    height = y2 - y1
    crossing = x1 * height + (y[row] - y1) * (x2 - x1)  # of the sample row, times height
    first = (crossing - UNIT * height) // (2 * UNIT * height) + 1 - left * SAMPLES
    flat = row * (columns + 1) + first.clip(0, columns)
    turns = np.bincount(flat, minlength=rows * (columns + 1)).reshape(rows, columns + 1)
    return _gathered(np.cumsum(turns[:, :columns].astype(np.uint8), axis=1, dtype=np.uint8) & 1)  # a wrap keeps the parity


def _gathered(samples: np.ndarray) -> np.ndarray:
    """Sums 4 x 4 samples of 0 or 1 to a pixel: int32."""
    rows = samples[0::4] + samples[1::4] + samples[2::4] + samples[3::4]
    return (rows[:, 0::4] + rows[:, 1::4] + rows[:, 2::4] + rows[:, 3::4]).astype(np.int32)


def _paint_sign(pixels: np.ndarray, sign: Sign) -> None:
    """Draws board, border and letters; a cell is 1/64 of the side: sizes that 64 divides show them without blur."""
    size = pixels.shape[0]
    width, height = sign.cells
    ink = np.zeros((height, width), dtype=bool)
    ink[0], ink[-1], ink[:, 0], ink[:, -1] = True, True, True, True
    ink[SIGN_FRAME:-SIGN_FRAME, SIGN_FRAME:-SIGN_FRAME] = letters(sign.text)
    left, top = sign.left * size // SIGN_CELLS, sign.top * size // SIGN_CELLS
    right, bottom = -(-(sign.left + width) * size // SIGN_CELLS), -(-(sign.top + height) * size // SIGN_CELLS)
    column, row = _cells(left, right, size) - sign.left, _cells(top, bottom, size) - sign.top
    on_board = ((row >= 0) & (row < height))[:, None] & ((column >= 0) & (column < width))
    inked = ink[row.clip(0, height - 1)][:, column.clip(0, width - 1)] & on_board
    window = pixels[top:bottom, left:right]
    for samples, rgb in ((on_board, BOARD), (inked, INK)):
        _blend(window, _gathered(samples.view(np.uint8)), rgb)


def _cells(first: int, last: int, size: int) -> np.ndarray:
    """Returns the sign cell in which each sample from pixel `first` to before pixel `last` lies."""
    return (2 * np.arange(first * SAMPLES, last * SAMPLES) + 1) * SIGN_CELLS // (2 * SAMPLES * size)


def letters(text: str) -> np.ndarray:
    """Returns a text of capitals and digits as dots: bool [7, 6 * length - 1]."""
    rows = [[int(pair, 16) for pair in _DOTS[letter].split()] for letter in text]
    dots = [[[bool(bits >> (4 - column) & 1) for column in range(5)] + [False] for bits in letter] for letter in rows]
    return np.concatenate([np.array(letter) for letter in dots], axis=1)[:, :-1]


def _add_grain(pixels: np.ndarray, scene: Scene) -> None:
    """Adds -7 to 7 to every value, with a triangular distribution: a standard deviation of 3 of 255."""
    raw = scene.draws(Stream.NOISE).bytes(pixels.size).astype(np.int32).reshape(pixels.shape)
    pixels += (raw & 7) - (raw >> 5)
