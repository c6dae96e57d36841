"""Drops what the pixels of a PNG do not need where it is damaged: texts, profiles, times.

A PNG is a sequence of chunks, each with a name and a checksum over name and content. Only chunks with the names below are dropped:
transparency and the frames of an animation decide about pixels, and any other name may be a damaged one.
"""

import zlib
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_TEXT = 1 << 20  # bytes of all texts together; Pillow refuses a longer compressed one
_NOT_OF_PIXELS = frozenset(
    {b"iCCP", b"gAMA", b"cHRM", b"sRGB", b"cICP", b"mDCV", b"cLLI", b"sBIT", b"bKGD", b"hIST", b"sPLT", b"pHYs", b"tIME"}
)
_TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt"})  # may hold an orientation, as EXIF or XMP


def drop_damaged_chunks(data: bytes) -> bytes | None:
    """Returns a PNG file without damaged and oversized chunks that its pixels do not need; None where there are none to drop.

    Kept are whole chunks with EXIF, and whole texts up to `MAX_TEXT` bytes, since both may turn the image.
    """
    kept, left = [SIGNATURE], MAX_TEXT
    for kind, content, chunk in _chunks(data):
        if kind == b"eXIf" or kind in _TEXTS:
            size = _text_size(kind, content, left)
            if zlib.crc32(kind + content) == int.from_bytes(chunk[-4:], "big") and size is not None:
                left -= size
                kept.append(chunk)
        elif kind not in _NOT_OF_PIXELS:
            kept.append(chunk)
    mended = b"".join(kept)
    return mended if len(mended) < len(data) else None


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Yields name, content, and all bytes of each chunk; the last one is what remains where its length is damaged."""
    view, at = memoryview(data), len(SIGNATURE)
    while at < len(data):
        size = int.from_bytes(view[at : at + 4], "big")
        chunk = bytes(view[at : at + 12 + size])
        at += 12 + size
        if len(chunk) < 12 + size:
            yield b"IEND", b"", chunk
        else:
            yield chunk[4:8], chunk[8:-4], chunk


def _text_size(kind: bytes, content: bytes, limit: int) -> int | None:
    """Returns the number of bytes of a chunk with its text unpacked; None where that is more than a limit, or it cannot be."""
    packed = b""
    if kind == b"zTXt":
        packed = content.partition(b"\0")[2][1:]
    elif kind == b"iTXt" and (rest := content.partition(b"\0")[2])[:1] == b"\1":
        packed = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    size = len(content)
    if packed:
        try:
            size += len(zlib.decompressobj().decompress(packed, limit + 1))
        except zlib.error:
            return None
    return size if size <= limit else None
