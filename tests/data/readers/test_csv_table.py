"""CSV files written by Python's csv module and by hand; no quote makes a row vanish."""

import base64
import csv
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.data.readers import SourceOptions, csv_table
from sightline.data.readers.csv_table import CsvRows
from sightline.errors import DataError, RecordError
from tests.data.pictures import picture, prepared, put, read

PICTURE = base64.b64encode(picture(1)).decode()
HEADER = "b64string_images,caption\n"


def table(folder: Path, rows: str, header: str = HEADER) -> Path:
    return put(folder / "inputs.csv", header + rows)


def test_the_default_columns_are_an_image_in_base64_and_a_caption(tmp_path: Path) -> None:
    items, skips, _ = read("csv", table(tmp_path, f'{PICTURE},"A dog, running"\n{PICTURE},Une légende\n'))
    assert not skips
    assert [item.record.captions for item in items] == [("A dog, running",), ("Une légende",)]
    assert items[0].images == (picture(1),)
    assert [item.record.id for item in items] == ["row-0", "row-1"]
    assert items[1].where == "inputs.csv:3"


def test_columns_can_be_mapped_and_may_hold_paths_or_questions(tmp_path: Path) -> None:
    path = table(tmp_path, "a/1.png,Q?,yes,val,x1\n", "file,ask,reply,part,key\n")
    mapping = {"image": "file", "question": "ask", "answer": "reply", "split": "part", "id": "key"}
    items, _, _ = read("csv", path, mapping=mapping)
    record = items[0].record
    assert (record.id, record.split, record.answers, record.messages[0].text) == ("x1", "val", ("yes",), "Q?")


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no column 'b64string_images'; it has 'a', 'b'. Name the column: --map image=COLUMN"):
        read("csv", table(tmp_path, "1,2\n", "a,b\n"))
    with pytest.raises(DataError, match="named twice"):
        read("csv", table(tmp_path, "", "a,a\n"))


def test_fields_of_megabytes_are_read(tmp_path: Path) -> None:
    long = base64.b64encode(bytes(3_000_000)).decode()
    items, _, _ = read("csv", table(tmp_path, f"{long},x\n"))
    assert items[0].images == (bytes(3_000_000),)


@pytest.mark.parametrize(
    ("rows", "kept", "reasons"),
    [
        (f'{PICTURE},"never closed\n{PICTURE},two\n{PICTURE},three\n', ["two", "three"], ["unbalanced_quote"]),
        (f'{PICTURE},"closed later\n{PICTURE},two"\n{PICTURE},three\n', ['two"', "three"], ["unbalanced_quote"]),
        (f'{PICTURE},one\n{PICTURE},"half" more\n{PICTURE},three\n', ["one", "three"], ["unbalanced_quote"]),
        (f'{PICTURE},"open\n{PICTURE},"also open\n{PICTURE},three\n', ["three"], ["unbalanced_quote"] * 2),
        (f'{PICTURE},one\n{PICTURE},two\n"{PICTURE},open\n', ["one", "two"], ["unbalanced_quote"]),
        (f"{PICTURE},one\n{PICTURE}\n{PICTURE},a,b\n{PICTURE},four\n", ["one", "four"], ["bad_columns"] * 2),
        (f"{PICTURE},one\n!!!not base64,two\n,three\n", ["one"], ["bad_base64", "image_empty"]),
        (f'{PICTURE},"two\nlines, of text"\n{PICTURE},"a ""quoted"" word"\n', ["two\nlines, of text", 'a "quoted" word'], []),
    ],
)
def test_every_row_is_kept_or_skipped_with_its_reason(tmp_path: Path, rows: str, kept: list[str], reasons: list[str]) -> None:
    items, skips, _ = read("csv", table(tmp_path, rows))
    assert [item.record.captions[0] for item in items] == kept
    assert [skip.reason for skip in skips] == reasons


def test_pythons_reader_alone_would_lose_the_rows(tmp_path: Path) -> None:
    """The fault that this module exists for: three rows in, one row out, and no error."""
    text = f'{PICTURE},"never closed\n{PICTURE},two\n{PICTURE},three\n'
    assert len(list(csv.reader(io.StringIO(text)))) == 1


def test_an_unclosed_quote_in_a_long_file_does_not_eat_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_table, "MAX_ROW_LINES", 20)
    rows = f'{PICTURE},"open\n' + "plain text\n" * 100 + f"{PICTURE},last\n"
    items, skips, _ = read("csv", table(tmp_path, rows))
    assert [item.record.captions[0] for item in items] == ["last"]
    assert [skip.reason for skip in skips] == ["unbalanced_quote", *["bad_columns"] * 100]


@settings(deadline=None, max_examples=100)
@given(
    rows=st.lists(
        st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=8), min_size=3, max_size=3), max_size=6
    )
)
def test_what_the_csv_module_writes_is_read_back(tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]) -> None:
    """Rows with an image in their first column, and any text, line breaks and quotes in the others."""
    rows = [[PICTURE, *row[1:]] for row in rows]
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([["b64string_images", "caption", "other"], *rows])
    path = put(tmp_path_factory.mktemp("csv") / "t.csv", buffer.getvalue())
    found = [row for _, _, row in CsvRows(path, "b64string_images")]
    assert not any(isinstance(row, RecordError) for row in found)
    wanted = [{"b64string_images": row[0], "caption": row[1], **({"other": row[2]} if row[2] else {})} for row in rows]
    assert found == wanted


@settings(deadline=None, max_examples=100)
@given(data=st.binary(min_size=1, max_size=200))
def test_any_bytes_give_rows_or_our_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = put(tmp_path_factory.mktemp("csv") / "t.csv", HEADER.encode() + data)
    try:
        for _, _, row in CsvRows(path, "b64string_images"):
            assert isinstance(row, dict | RecordError)
    except DataError:
        assert b"\0" in path.read_bytes()[:4]


@pytest.mark.parametrize(("mark", "name"), [(",", "t.csv"), (";", "t.csv"), ("\t", "t.csv"), ("\t", "t.tsv"), ("\t", "t.txt")])
def test_commas_semicolons_and_tabs_separate(tmp_path: Path, mark: str, name: str) -> None:
    rows = [["image", "caption", "split"], ["a/1.png", '"one, two; three"', "val"], ["a/2.png", "plain", "train"]]
    items, skips, _ = read("csv", put(tmp_path / name, "\n".join(map(mark.join, rows))), mapping={"image": "image"})
    assert not skips
    assert [(item.record.captions, item.record.split) for item in items] == [(("one, two; three",), "val"), (("plain",), "train")]


def test_the_column_of_the_image_decides_between_separators(tmp_path: Path) -> None:
    table = put(tmp_path / "t.csv", "image;caption;notes, other\n1.png;red;x\n")
    items, _, tally = read("csv", table, mapping={"image": "image"})
    assert items[0].record.captions == ("red",)
    assert tally.ignored["notes, other"] == 1


def test_backslashes_in_paths_are_slashes_and_cannot_lead_outside(tmp_path: Path) -> None:
    put(tmp_path / "in/photos/1.png", picture(1))
    put(tmp_path / "secret.png", picture(2))
    names = [r"photos\1.png", r"..\secret.png", r"C:\secret.png", r"\\host\secret.png"]
    put(tmp_path / "in/t.csv", "image,caption\n" + "".join(f"{name},text {n}\n" for n, name in enumerate(names)))
    summary = prepared("csv", tmp_path / "in/t.csv", tmp_path / "out", source=SourceOptions(mapping={"image": "image"}))
    assert (summary["ok"], summary["skipped"]) == (1, {"path_outside_root": 3})
