"""A dataset folder exported as LLaVA, COCO or a data set of the Hub is the same data when it is read back."""

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sightline.data.dataset import open_dataset
from sightline.data.prepare.folder_export import export_folder, marked_text
from sightline.data.readers.turns import marked_parts
from sightline.errors import DataError, UsageError
from sightline.types import Message, Part, Record
from tests.data.pictures import picture, prepared, put
from tests.data.readers.hub_server import hub_server

BOXES = [{"label": "dog", "xyxy": [0.1, 0.2, 0.5, 0.75]}, {"label": "a cat", "xyxy": [0.0, 0.0, 1.0, 1.0]}]


def turn(role: str, *parts: str | None) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "image"} if text is None else {"type": "text", "text": text} for text in parts]}


def turned(orientation: int) -> bytes:
    """A JPEG of 9 x 7 stored pixels that EXIF turns."""
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.open(io.BytesIO(picture(8, "JPEG"))).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


ROWS = [
    {
        "id": "7",
        "images": ["0.png"],
        "captions": ["A dog, running", 'It says "stop".\nTwice.'],
        "boxes": BOXES,
        "meta": {"crowd": [1]},
    },
    {"id": "007", "images": ["1.png"], "captions": ["Une légende 🐕"], "split": "val", "meta": {"license": "CC BY 2.0"}},
    {"id": "turned", "images": ["6.jpg"], "captions": ["On its side"], "boxes": BOXES[:1]},
    {"id": "upside", "images": ["3.jpg"], "captions": ["Head over"], "boxes": BOXES[:1]},
    {"id": "two", "images": ["1.png", "2.png"], "messages": [turn("user", "Is", None, "like", None), turn("assistant", "Yes.")]},
    {
        "id": "first",
        "images": ["2.png"],
        "messages": [turn("system", "Be kind."), turn("user", None, "What?"), turn("assistant", "x")],
    },
    {"id": "text", "messages": [turn("user", "Hello\n"), turn("assistant", "Hello.")], "split": "val"},
    {"id": "asked", "images": ["0.png"], "messages": [turn("user", None, "?"), turn("assistant", "2")], "answers": ["2", "two"]},
    {"id": "mark", "messages": [turn("user", "the mark <image>"), turn("assistant", "x")]},
]


def source(folder: Path) -> Path:
    for number in range(3):
        put(folder / f"{number}.png", picture(number))
    for orientation in (3, 6):
        put(folder / f"{orientation}.jpg", turned(orientation))
    put(folder / "records.jsonl", ROWS)
    assert prepared("records", folder, folder / "set")["ok"] == len(ROWS)
    return folder / "set"


def told(record: Record, *without: str) -> Record:
    """A record without what is no property of the data: names of images, and fields that a format does not hold."""
    empty: dict[str, Any] = {"answers": (), "meta": {}, "boxes": ()}
    return replace(record, images=(), **{name: empty[name] for name in without})


@pytest.mark.parametrize("is_sharded", [False, True])
@pytest.mark.parametrize(
    ("name", "kept", "lost", "skipped", "dropped"),
    [
        (
            "llava",
            {"two", "first", "text", "asked"},
            ("answers",),
            {"captions": 4, "image_mark_in_text": 1},
            {"answers": 1},
        ),
        ("coco", {"7", "007", "turned"}, (), {"conversation": 5, "turned_image_with_boxes": 1}, {}),
        ("hf", {row["id"] for row in ROWS}, ("answers", "meta", "boxes"), {}, {"answers": 1, "meta": 2, "boxes": 3}),
    ],
)
def test_what_is_read_back_is_what_was_exported(
    tmp_path: Path,
    name: str,
    kept: set[str],
    lost: tuple[str, ...],
    skipped: dict[str, int],
    dropped: dict[str, int],
    is_sharded: bool,
) -> None:
    folder = source(tmp_path / "in")
    if is_sharded:
        prepared("records", folder, tmp_path / "sharded", shards=4000)
        folder = tmp_path / "sharded"
    found = export_folder(name, open_dataset(folder), tmp_path / "out")
    assert (found["records"], found["skipped"], found["dropped"]) == (len(kept), skipped, dropped)
    summary = prepared(name, tmp_path / "out", tmp_path / "again", group="none")
    assert summary["skipped"] == {}
    before = {record.id: told(record, *lost) for record in open_dataset(folder).records() if record.id in kept}
    after = {record.id: told(record) for record in open_dataset(tmp_path / "again").records()}
    assert after == before  # with the hashes of the images
    assert not list(tmp_path.glob("*.exporting"))


def test_one_split_alone_nothing_that_fits_and_a_folder_that_exists(tmp_path: Path) -> None:
    dataset = open_dataset(source(tmp_path / "in"))
    assert export_folder("hf", dataset, tmp_path / "val", "val")["records"] == 2
    assert [file.name for file in (tmp_path / "val/data").iterdir()] == ["val-00000-of-00001.parquet"]
    with pytest.raises(UsageError, match="exists already"):
        export_folder("hf", dataset, tmp_path / "val")
    put(tmp_path / "words/records.jsonl", [{"id": "t", "captions": ["No image"]}])
    prepared("records", tmp_path / "words", tmp_path / "words-set")
    for name, reason in (("coco", "no_image 1"), ("llava", "captions 1")):
        with pytest.raises(DataError, match=rf"no record fits this format \({reason}\)"):
            export_folder(name, open_dataset(tmp_path / "words-set"), tmp_path / "none")
    assert not list(tmp_path.glob("none*"))


@given(st.lists(st.one_of(st.none(), st.text(st.sampled_from("a \n<>🐕"), min_size=1)), min_size=1, max_size=6))
@settings(max_examples=300, deadline=None)
def test_marks_and_line_breaks_of_a_turn_survive(parts: list[str | None]) -> None:
    content = tuple(Part(text) for n, text in enumerate(parts) if text is None or n == 0 or parts[n - 1] is None)
    if any("<image>" in (part.text or "") for part in content):
        return
    assert marked_parts(marked_text(Message("user", content))) == content


def test_a_data_set_is_pushed_to_the_hub_and_read_from_it(tmp_path: Path) -> None:
    """In processes of their own, since the address of the Hub is read once."""
    folder, files = source(tmp_path / "in"), dict[str, bytes]()
    with hub_server(files) as address:
        home = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0"}
        home |= {"HF_TOKEN": "hf_test", "HF_HUB_DISABLE_XET": "1"}

        def call(*words: object) -> dict[str, Any]:
            command = [sys.executable, "-m", "sightline", "data", *map(str, words), "--json"]
            done = subprocess.run(command, env=os.environ | home, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout)

        sent = call("export", folder, "--format", "hf", "--out", tmp_path / "out", "--push", "me/set")
        assert sent["pushed"].endswith("/me/set")
        assert sorted(files) == ["README.md", "data/train-00000-of-00001.parquet", "data/val-00000-of-00001.parquet"]
        got = call("prepare", "me/set", "--format", "hf", "--group", "none", "--out", tmp_path / "again")
    assert (got["ok"], got["skipped"]) == (len(ROWS), {})
    lost = ("answers", "meta", "boxes")
    before = {record.id: told(record, *lost) for record in open_dataset(folder).records()}
    assert {record.id: told(record) for record in open_dataset(tmp_path / "again").records()} == before
