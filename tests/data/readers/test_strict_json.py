"""Strict JSON: what Python's own parser lets pass is refused, and a stream gives what a whole parse gives."""

import contextlib
import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.data.readers import strict_json
from sightline.data.readers.strict_json import JsonStream, json_lines, parse_json
from sightline.errors import DataError, RecordError
from tests.data.pictures import put

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**18), 10**18) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("json")


def array_of(path: Path, text: str | bytes) -> list:
    """The elements of a streamed array."""
    with stream_of(path, text) as stream:
        elements = [stream.value() for _ in stream.array()]
        stream.end()
    return elements


def stream_of(path: Path, text: str | bytes) -> JsonStream:
    return JsonStream(put(path, text))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": NaN}', "NaN"),
        ('{"a": -Infinity}', "-Infinity"),
        ('{"a": 1e999}', "1e999"),
        ('{"a": 1, "a": 2}', "'a' stands twice"),
        ('{"a": {"b": 1, "b": 1}}', "'b' stands twice"),
        ('{"a": 1} 2', "Extra data at column 10"),
        ('{"a": tru}', "column 7"),
        ("[" * 100_000, "nested too deep"),
        ("9" * 5000, "digits"),
        ("9" * 31, "digits"),
        ("", "column 1"),
    ],
)
def test_text_that_is_not_strict_json_is_refused_with_what_is_wrong(text: str, says: str) -> None:
    with pytest.raises(RecordError, match="bad_json|" + says.replace("(", r"\(")) as caught:
        parse_json(text)
    assert caught.value.reason == "bad_json"
    assert says in caught.value.message


@settings(deadline=None, max_examples=50)
@given(rows=st.lists(VALUES, max_size=8), indent=st.sampled_from([None, 0, 3]), chunk=st.integers(1, 40))
def test_a_streamed_array_equals_the_array_read_at_once(folder: Path, rows: list, indent: int | None, chunk: int) -> None:
    before, strict_json._CHUNK = strict_json._CHUNK, chunk
    try:
        text = json.dumps(rows, indent=indent, ensure_ascii=False).encode("utf-8", "surrogatepass")
        assert array_of(folder / "a.json", text) == rows
    except DataError:
        assert any("\ud800" <= character <= "\udfff" for character in json.dumps(rows, ensure_ascii=False))
    finally:
        strict_json._CHUNK = before


@settings(deadline=None, max_examples=50)
@given(content=st.dictionaries(st.text(), VALUES, max_size=6), chunk=st.integers(1, 40))
def test_streamed_members_equal_the_object_read_at_once(folder: Path, content: dict, chunk: int) -> None:
    before, strict_json._CHUNK = strict_json._CHUNK, chunk
    try:
        with stream_of(folder / "o.json", json.dumps(content)) as stream:
            assert {key: stream.value() for key in stream.members()} == content
            stream.end()
    finally:
        strict_json._CHUNK = before


@settings(deadline=None, max_examples=100)
@given(rows=st.lists(VALUES, max_size=4), cut=st.floats(0, 1), flip=st.integers(0, 255), at=st.floats(0, 1))
def test_damaged_documents_raise_our_error_or_none(folder: Path, rows: list, cut: float, flip: int, at: float) -> None:
    data = bytearray(json.dumps([1, *rows, {"k": 1}]).encode())
    data[int(at * (len(data) - 1))] = flip
    data = data[: max(1, int(cut * len(data)))]
    with contextlib.suppress(DataError):
        array_of(folder / "d.json", bytes(data))


def test_an_error_names_line_column_and_position(tmp_path: Path) -> None:
    text = '[\n {"a": 1},\n {"b": 2,}\n]'
    with pytest.raises(json.JSONDecodeError) as reference:
        json.loads(text)
    with pytest.raises(DataError) as caught:
        array_of(tmp_path / "x.json", text)
    where = reference.value
    assert f"x.json:3: {where.msg} at line {where.lineno} column {where.colno} (position {where.pos})" in str(caught.value)


def test_a_torn_document_is_called_torn(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="torn"):
        array_of(tmp_path / "x.json", '[{"a": 1}, {"a": "half')


def test_positions_stay_right_when_the_file_is_read_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict_json, "_CHUNK", 7)
    text = "[" + ",\n".join(f'{{"row": {index}}}' for index in range(50)) + ', {"row": nul}]'
    with pytest.raises(json.JSONDecodeError) as reference:
        json.loads(text)
    with pytest.raises(DataError) as caught:
        array_of(tmp_path / "x.json", text)
    where = reference.value
    assert f"line {where.lineno} column {where.colno} (position {where.pos})" in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_a_file_that_is_not_utf8_is_refused_with_the_remedy(tmp_path: Path, encoding: str) -> None:
    path = put(tmp_path / "x.json", '[{"a": 1}]'.encode(encoding))
    with pytest.raises(DataError, match="iconv"):
        JsonStream(path)
    with pytest.raises(DataError, match="iconv"):
        list(json_lines(path))


def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path: Path) -> None:
    path = put(tmp_path / "x.jsonl", b'\xef\xbb\xbf{"a": 1}\n{"a": 2}')
    assert [row for _, row in json_lines(path)] == [{"a": 1}, {"a": 2}]
    assert array_of(tmp_path / "x.json", b"\xef\xbb\xbf[3]") == [3]


def test_a_bad_line_costs_itself_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict_json, "MAX_LINE", 100)
    text = b'{"a": 1}\nno json\n\n[1]\n{"a": "\xff"}\n{"a": "' + b"x" * 500 + b'"}\n{"a": NaN}\n{"a": 2}\n{"a": 3'
    found = list(json_lines(put(tmp_path / "x.jsonl", text)))
    reasons = {number: row.reason if isinstance(row, RecordError) else row for number, row in found}
    assert reasons == {
        1: {"a": 1},
        2: "bad_json",
        4: "not_an_object",
        5: "bad_utf8",
        6: "line_too_long",
        7: "bad_json",
        8: {"a": 2},
        9: "bad_json",
    }


def test_a_document_larger_than_the_buffer_is_never_held_whole(tmp_path: Path) -> None:
    with stream_of(tmp_path / "x.json", json.dumps([{"text": "x" * 1000}] * 20_000)) as stream:
        for _ in stream.array():
            stream.value()
            assert len(stream._buffer) <= 2 * strict_json._CHUNK + 2000


def test_a_key_that_stands_twice_among_fifty_thousand_is_found_at_once(folder: Path) -> None:
    """Measured 0.02 s; it was over 100 s when each key was counted through all others."""
    text = "{" + ", ".join(f'"key {number}": 0' for number in range(50_000)) + ', "key 49999": 1}'
    begin = time.monotonic()
    with pytest.raises(RecordError, match="'key 49999' stands twice"):
        parse_json(text)
    with pytest.raises(DataError, match="'key 49999' stands twice"):
        array_of(folder / "many.json", f"[{text}]")
    assert time.monotonic() - begin < 5
