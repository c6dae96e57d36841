"""Changes files as a stranger or a broken disk might: at random bytes, and along the structure of their format.

`mutate` draws a mutation by the suffix of the file. A structural mutation leaves the file readable up to the place it is about:
checksums of PNG chunks and tar headers are computed again, zips are packed again, JSON stays JSON.
"""

import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

Mutation = Callable[[bytes, random.Random], bytes]

TEXTS = (
    "",
    "x" * 300,
    "x" * 5000,
    "\0",
    "\ud800",
    "a\udcffb.jpg",
    "../../etc/passwd",
    "/etc/passwd",
    "/dev/zero",
    "a\\b.jpg",
    "\ufeff",
    "\u2028",
    "9" * 5000,
    "-1",
    "1e999",
    "NaN",
    "NUL.jpg",
    "<image>" * 50,
    "{x}",
    "%s%n",
    "a/" * 3000,
    "🦆" * 100,
)
NUMBERS = (
    0,
    -1,
    1,
    2,
    2**31,
    2**32,
    2**63,
    2**64,
    2**70,
    -(2**63),
    10**25,
    10**400,
    1e308,
    -1e308,
    1e-320,
    0.5,
    float("nan"),
    float("inf"),
)
VALUES: tuple[Any, ...] = (None, True, False, *TEXTS, *NUMBERS, [], {}, [[]], {"": None}, [None], ["x"], [1, 2], {"a": {"b": 1}})
TOKENS = (
    b"\xff",
    b"\xed\xa0\x80",
    b"\0",
    b"\xef\xbb\xbf",
    b"\r",
    b"\n",
    b"\n\n",
    b'"',
    b"'",
    b"\\ud800",
    b"\\u0000",
    b",",
    b"\t",
    b":",
    b"#",
    b"{",
    b"}",
    b"[" * 3000,
    b'{"a":' * 3000,
    b"- " * 200,
    b"9" * 5000,
    b"-1",
    b"NaN",
    b"1e999",
    b"null",
    b"true",
    b"[]",
    b"{}",
    b"../" * 3,
    b"/dev/zero",
    b"x" * 5000,
    b"&a *a ",
    b"!!python/object:os.system ",
    b"<<: *a\n",
    b"%n",
    b"{{ 1 }}",
    b"{% for x in range(99999) %}{% endfor %}",
)
WORDS = tuple(
    struct.pack(code, value)
    for code in ("<I", ">I", "<Q", ">Q", "<H", ">H")
    for value in (0, 1, 2 ** (8 * struct.calcsize(code)) - 1)
) + tuple(struct.pack(code, value) for code in ("<I", ">I") for value in (1 << 31, 1 << 16, 1 << 28))


def mutate(name: str, data: bytes, draw: random.Random) -> bytes:
    """Returns a changed copy of a file: one to three mutations, half of them along the structure of its format.

    Args:
        name: name of the file, of which the suffix says the format.
        data: its content.
        draw: the random generator; equal states give equal results.
    """
    suffix = name.rpartition(".")[2].lower()
    structural, plain = STRUCTURAL.get(suffix, ()), PLAIN_TEXT if suffix in TEXT_SUFFIXES else PLAIN_BYTES
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        chosen = draw.choice(structural) if structural and draw.random() < 0.5 else draw.choice(plain)
        try:
            data = chosen(data, draw)
        except Exception:  # what an earlier mutation broke has no structure any more
            data = set_byte(data, draw)
    return data


# Bytes ----------------------------------------------------------------------------------------------------------------------


def flip_bit(data: bytes, draw: random.Random) -> bytes:
    """Flips one bit."""
    if not data:
        return b"\1"
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :]


def flip_early_bit(data: bytes, draw: random.Random) -> bytes:
    """Flips one bit among the first 256 bytes, where headers are."""
    return flip_bit(data[:256], draw) + data[256:]


def set_byte(data: bytes, draw: random.Random) -> bytes:
    """Sets one byte."""
    at = draw.randrange(len(data) + 1)
    return data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :]


def truncate(data: bytes, draw: random.Random) -> bytes:
    """Cuts the file."""
    return data[: draw.randrange(len(data) + 1)]


def remove_range(data: bytes, draw: random.Random) -> bytes:
    """Removes some bytes."""
    at = draw.randrange(len(data) + 1)
    return data[:at] + data[at + 1 + draw.randrange(64) :]


def repeat_range(data: bytes, draw: random.Random) -> bytes:
    """Repeats some bytes."""
    at = draw.randrange(len(data) + 1)
    return data[:at] + data[at : at + 1 + draw.randrange(256)] * draw.choice((2, 3, 50)) + data[at:]


def swap_ranges(data: bytes, draw: random.Random) -> bytes:
    """Exchanges two halves of a range."""
    at, size = draw.randrange(len(data) + 1), 1 + draw.randrange(128)
    return data[:at] + data[at + size : at + 2 * size] + data[at : at + size] + data[at + 2 * size :]


def insert_random(data: bytes, draw: random.Random) -> bytes:
    """Inserts random bytes."""
    at = draw.randrange(len(data) + 1)
    return data[:at] + draw.randbytes(draw.choice((1, 4, 64, 1000))) + data[at:]


def set_word(data: bytes, draw: random.Random) -> bytes:
    """Writes an extreme integer over some bytes."""
    at, word = draw.randrange(len(data) + 1), draw.choice(WORDS)
    return data[:at] + word + data[at + len(word) :]


def zero_range(data: bytes, draw: random.Random) -> bytes:
    """Writes zeros over some bytes, as a lost block of a disk."""
    at, size = draw.randrange(len(data) + 1), draw.choice((4, 64, 512))
    return data[:at] + bytes(min(size, len(data) - at)) + data[at + size :]


def append(data: bytes, draw: random.Random) -> bytes:
    """Appends bytes, or the file itself."""
    return data + draw.choice((b"\0", b"\n", b"x", data, draw.randbytes(100)))


def nothing(data: bytes, draw: random.Random) -> bytes:
    """Returns no bytes."""
    return b""


def insert_token(data: bytes, draw: random.Random) -> bytes:
    """Inserts a word that means something to some format."""
    at = draw.randrange(len(data) + 1)
    return data[:at] + draw.choice(TOKENS) + data[at + draw.choice((0, 0, 1, 4)) :]


def replace_word(data: bytes, draw: random.Random) -> bytes:
    """Replaces what stands between two delimiters."""
    marks = [at for at, byte in enumerate(data) if byte in b' ,:"\n\t']
    if len(marks) < 2:
        return insert_token(data, draw)
    at = draw.randrange(len(marks) - 1)
    return data[: marks[at] + 1] + draw.choice(TOKENS) + data[marks[at + 1] :]


def move_line(data: bytes, draw: random.Random) -> bytes:
    """Removes, repeats or exchanges lines."""
    lines = data.splitlines(keepends=True)
    if not lines:
        return data
    at, other = draw.randrange(len(lines)), draw.randrange(len(lines))
    kind = draw.randrange(3)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.insert(other, lines[at])
    else:
        lines[at], lines[other] = lines[other], lines[at]
    return b"".join(lines)


def to_utf16(data: bytes, draw: random.Random) -> bytes:
    """Encodes a text in another way."""
    return data.decode("utf-8").encode(draw.choice(("utf-16", "utf-16-le", "utf-32", "utf-7", "latin-1")), "ignore")


PLAIN_BYTES: tuple[Mutation, ...] = (
    flip_bit, flip_bit, flip_early_bit, flip_early_bit, set_byte, set_byte, truncate, remove_range, repeat_range, swap_ranges,
    insert_random, set_word, set_word, zero_range, append, nothing,
)  # fmt: skip
PLAIN_TEXT: tuple[Mutation, ...] = (
    *PLAIN_BYTES, insert_token, insert_token, insert_token, replace_word, replace_word, replace_word, move_line, move_line, to_utf16,
)  # fmt: skip


# JSON -----------------------------------------------------------------------------------------------------------------------


class Duplicated(dict):  # type: ignore[type-arg]
    """A mapping that is written with its first key twice."""


def _dump(value: Any) -> str:
    if isinstance(value, dict):
        pairs = [f"{json.dumps(key)}: {_dump(item)}" for key, item in value.items()]
        return "{" + ", ".join(pairs + (pairs[:1] if isinstance(value, Duplicated) else [])) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_dump, value)) + "]"
    return str(value) if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 2**64 else json.dumps(value)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Returns all containers with each of their keys."""
    found, stack = [], [value]
    while stack:
        node = stack.pop()
        entries = list(node.items()) if isinstance(node, dict) else list(enumerate(node)) if isinstance(node, list) else []
        found += [(node, key) for key, _ in entries]
        stack += [item for _, item in entries]
    return found


def change_json(value: Any, draw: random.Random) -> Any:
    """Changes one place of a JSON value."""
    places = _places(value)
    if not places or draw.random() < 0.02:
        return draw.choice(VALUES)
    node, key = draw.choice(places)
    kind = draw.randrange(9)
    if kind <= 2:
        node[key] = draw.choice(VALUES)
    elif kind == 3:
        del node[key]
    elif kind == 4:
        node[key] = draw.choice(([node[key]], {"x": node[key]}, str(node[key]), [node[key]] * 3))
    elif kind == 5:
        other, place = draw.choice(places)
        node[key] = json.loads(json.dumps(other[place]))
    elif kind == 6 and isinstance(node, dict):
        node[draw.choice(TEXTS)] = node.pop(key)
    elif kind == 7:
        node[key] = _deep(draw.choice((40, 900, 5000)), draw)
    elif isinstance(node[key], bool) or not isinstance(node[key], int | float | str):
        node[key] = draw.choice(VALUES)
    elif isinstance(node[key], str):
        at = draw.randrange(len(node[key]) + 1)
        node[key] = node[key][:at] + draw.choice(TEXTS) + node[key][at:]
    else:
        node[key] = draw.choice((node[key] + 1, -node[key], node[key] * 1000, float(node[key]), str(node[key])))
    return value


class _Raw(str):
    """Text that is written into JSON as it is."""


def _deep(depth: int, draw: random.Random) -> Any:
    return _Raw(draw.choice(("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth)))


def _dump_all(value: Any) -> bytes:
    marks: dict[str, str] = {}

    def marked(item: Any) -> Any:
        if isinstance(item, _Raw):
            mark = f"@raw{len(marks)}@"
            marks[f'"{mark}"'] = str(item)
            return mark
        if isinstance(item, dict):
            return type(item)({key: marked(inner) for key, inner in item.items()})
        return [marked(inner) for inner in item] if isinstance(item, list) else item

    text = _dump(marked(value))
    for mark, raw in marks.items():
        text = text.replace(mark, raw)
    return text.encode("utf-8", "surrogatepass")


def json_value(data: bytes, draw: random.Random) -> bytes:
    """Changes one value, key or level of a JSON document."""
    return _dump_all(change_json(json.loads(data), draw))


def json_duplicate(data: bytes, draw: random.Random) -> bytes:
    """Writes a key of a JSON object twice."""
    value = json.loads(data)
    return _dump_all(Duplicated(value) if isinstance(value, dict) else value)


def json_line(data: bytes, draw: random.Random) -> bytes:
    """Changes one line of a file of JSON lines."""
    lines = data.splitlines()
    at = draw.randrange(len(lines))
    lines[at] = (json_value if draw.random() < 0.95 else json_duplicate)(lines[at], draw)
    return b"\n".join(lines) + b"\n"


# Arrays ---------------------------------------------------------------------------------------------------------------------

SHAPES = (
    "()",
    "(0,)",
    "(1,)",
    "(-1,)",
    "(10**12,)",
    "(2**63,)",
    "(9223372036854775807, 2)",
    "(4, 0)",
    "(1000000000000,)",
    "(3, -1)",
    "(True,)",
    "(1.5,)",
    "[2]",
    "(2,",
    "'x'",
    "(99999999, 99999999, 99999999)",
    "(1,)*40",
)
DTYPES = (
    "'<f8'",
    "'|O'",
    "'<U0'",
    "'|S0'",
    "'<f2'",
    "'|V0'",
    "'<M8[ns]'",
    "'|b1'",
    "'<c16'",
    "[('a', '<u8')]",
    "[('a', '|O')]",
    "'x'",
    "7",
    "None",
    "('<f4', (1000000,))",
    "[]",
    "'<U99999999'",
    "'>f4'",
    "[('a', '<f4', (3,)), ('a', '<f4')]",
)


def npy_header(data: bytes, draw: random.Random) -> bytes:
    """Changes the header of a .npy file; its length stays right."""
    version = data[6]
    size_bytes = 2 if version == 1 else 4
    size = int.from_bytes(data[8 : 8 + size_bytes], "little")
    text, rest = data[8 + size_bytes : 8 + size_bytes + size].decode("latin-1"), data[8 + size_bytes + size :]
    kind = draw.randrange(7)
    if kind == 0:
        at = text.index("'shape':")
        text = text[:at] + f"'shape': {draw.choice(SHAPES)}, }}"
    elif kind == 1:
        start, end = text.index("'descr':") + 9, text.index(", 'fortran_order'")
        text = text[:start] + draw.choice(DTYPES) + text[end:]
    elif kind == 2:
        text = text.replace("'fortran_order': False", f"'fortran_order': {draw.choice(('True', '1', 'None', repr('x')))}")
    elif kind == 3:
        text = draw.choice(
            (
                "{}",
                "[]",
                "1",
                "None",
                "{'descr': '<f4'}",
                "{" * 200,
                "(" * 3000,
                "{[]: 1}",
                "-" * 3000 + "1",
                "'a'*9",
                "9" * 5000,
                "__import__('os')",
            )
        )
    elif kind == 4:
        version = draw.choice((0, 1, 2, 3, 4, 255))
    elif kind == 5:
        text = insert_token(text.encode("latin-1"), draw).decode("latin-1")
    else:
        text = text.rstrip() + " " * draw.choice((0, 9_000, 60_000))
    encoded = text.encode("latin-1")
    size_bytes = 2 if version == 1 else 4
    return (
        data[:6]
        + bytes([version, draw.choice((0, 0, 0, 1))])
        + (len(encoded) % 256**size_bytes).to_bytes(size_bytes, "little")
        + encoded
        + rest
    )


def npy_size(data: bytes, draw: random.Random) -> bytes:
    """Changes the length of the header of a .npy file."""
    return data[:8] + draw.choice(WORDS) + data[12:]


def safetensors_header(data: bytes, draw: random.Random) -> bytes:
    """Changes the JSON header of a safetensors file; its length stays right."""
    size = int.from_bytes(data[:8], "little")
    header = json_value(data[8 : 8 + size], draw)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


# Archives -------------------------------------------------------------------------------------------------------------------


def zip_member(data: bytes, draw: random.Random) -> bytes:
    """Changes, renames, repeats or removes a member of a zip, and packs all again with some compression."""
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        members = [(info.filename, old.read(info), info.compress_type) for info in old.infolist()]
    at = draw.randrange(len(members))
    name, content, packing = members[at]
    kind = draw.randrange(6)
    if kind == 0:
        name = draw.choice([text for text in TEXTS if text and len(text) < 1000 and "\ud800" not in text and "\udcff" not in text])
    elif kind == 1:
        members.append(members[at])
    elif kind == 2:
        packing = draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    elif kind == 3:
        content, packing = bytes(30_000_000), draw.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
    else:
        content = mutate(name, content, draw)
    members[at] = (name, content, packing)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as new:
        for name, content, packing in members:
            new.writestr(zipfile.ZipInfo(name), content, packing)
    return out.getvalue()


def zip_record(data: bytes, draw: random.Random) -> bytes:
    """Changes a byte within a header of a zip: of a member, of its directory, or of its end."""
    starts = [at for mark in (b"PK\3\4", b"PK\1\2", b"PK\5\6") for at in _all(data, mark)]
    at = draw.choice(starts) + draw.randrange(4, 46)
    return (
        data[:at] + draw.choice((bytes([draw.randrange(256)]), draw.choice(WORDS))) + data[at + 1 :]
        if draw.random() < 0.3
        else (data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :])
    )


def _all(data: bytes, mark: bytes) -> list[int]:
    found, at = [], data.find(mark)
    while at >= 0:
        found.append(at)
        at = data.find(mark, at + 1)
    return found


def tar_header(data: bytes, draw: random.Random) -> bytes:
    """Changes a field of a tar header and computes its checksum again."""
    headers = [at for at in range(0, len(data) - 511, 512) if data[at + 257 : at + 262] == b"ustar"]
    at = draw.choice(headers)
    header = bytearray(data[at : at + 512])
    start, size = draw.choice(((0, 100), (100, 8), (124, 12), (136, 12), (156, 1), (157, 100), (257, 8), (345, 155)))
    new = draw.choice((
        b"\xff" * size, b"\0" * size, b"7" * size, b"\x80" + b"\xff" * (size - 1), b"-1", b"9", b"\xed\xa0\x80.jpg", b"../x.jpg",
        b"x" * size, b"x", b"g", b"L", b"K", b"1", b"2", b"5", b"7", b"S", b"." + b"/" * (size - 1), draw.randbytes(size),
    ))[:size]  # fmt: skip
    header[start : start + len(new)] = new
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:at] + bytes(header) + data[at + 512 :]


def tar_pax(data: bytes, draw: random.Random) -> bytes:
    """Puts an extended header before a member of a tar."""
    headers = [at for at in range(0, len(data) - 511, 512) if data[at + 257 : at + 262] == b"ustar"]
    at = draw.choice(headers)
    key = draw.choice((b"size", b"path", b"linkpath", b"GNU.sparse.size", b"mtime", b""))
    value = draw.choice(
        (b"9" * 5000, b"-1", b"0", b"\xff\xfe.jpg", "²".encode(), b"\0", b"x" * 5000, b"../a.jpg", b"1e5", b"12", b"")
    )
    record = b" " + key + b"=" + value + b"\n"
    length = len(record) + 1
    while len(b"%d" % length) + len(record) != length:
        length += 1
    body = draw.choice((b"%d" % length, b"9" * 15, b"0", b"-1")) + record if draw.random() < 0.3 else b"%d" % length + record
    header = bytearray(data[at : at + 512])
    header[156:157] = draw.choice((b"x", b"x", b"g", b"L", b"K"))
    header[124:136] = b"%011o\0" % len(body)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:at] + bytes(header) + body + bytes(-len(body) % 512) + data[at:]


# Images ---------------------------------------------------------------------------------------------------------------------


def png_chunk(data: bytes, draw: random.Random) -> bytes:
    """Changes, repeats, removes or moves a chunk of a PNG and computes its checksum again."""
    chunks, at = [], 8
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    place = draw.randrange(len(chunks))
    name, body = chunks[place]
    kind = draw.randrange(5)
    if kind == 0:
        chunks[place] = name, mutate("x.bin", body, draw)
    elif kind == 1:
        chunks.insert(draw.randrange(len(chunks)), chunks[place])
    elif kind == 2:
        del chunks[place]
    elif kind == 3:
        extra = draw.choice(
            (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"gAMA", b"tRNS", b"PLTE", b"acTL", b"fcTL", b"fdAT", b"pHYs")
        )
        chunks.insert(
            1 + draw.randrange(len(chunks)),
            (extra, draw.choice((b"", b"\0", b"a\0\0" + zlib.compress(bytes(2_000_000)), draw.randbytes(60)))),
        )
    else:
        chunks[place] = draw.choice((b"IDAT", b"IHDR", b"IEND", b"PLTE", b"tRNS", b"abcd")), body
    return data[:8] + b"".join(
        len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big") for name, body in chunks
    )


STRUCTURAL: dict[str, tuple[Mutation, ...]] = {
    "json": (json_value, json_value, json_value, json_duplicate),
    "jsonl": (json_line,),
    "npy": (npy_header, npy_header, npy_size),
    "npz": (zip_member, zip_record),
    "zip": (zip_member, zip_record, zip_record),
    "tar": (tar_header, tar_pax),
    "png": (png_chunk,),
    "safetensors": (safetensors_header,),
}
TEXT_SUFFIXES = frozenset({"json", "jsonl", "csv", "tsv", "txt", "yaml", "jinja", "md", "py", "name"})
