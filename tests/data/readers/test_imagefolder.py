"""Image folders as the `datasets` library documents them, compared with what it reads."""

from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from sightline.data.readers import ImageInRoot
from sightline.errors import DataError
from tests.data.pictures import picture, prepared, put, read


def with_metadata(folder: Path) -> Path:
    for split, numbers in (("train", (0, 1)), ("test", (2,))):
        for number in numbers:
            put(folder / split / f"{number}.png", picture(number))
        rows = [{"file_name": f"{number}.png", "text": f"caption {number}"} for number in numbers]
        put(folder / split / "metadata.jsonl", rows)
    return folder


def test_the_metadata_gives_the_captions_and_the_folders_the_splits(tmp_path: Path) -> None:
    items, skips, _ = read("imagefolder", with_metadata(tmp_path / "in"))
    assert not skips
    found = {(item.record.split, item.record.captions[0]) for item in items}
    reference = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "in"), cache_dir=str(tmp_path / "cache"))
    assert found == {(split, text) for split, rows in reference.items() for text in rows["text"]}
    assert prepared("imagefolder", tmp_path / "in", tmp_path / "out")["splits"] == {"test": 1, "train": 2}


def test_csv_and_parquet_metadata_are_read(tmp_path: Path) -> None:
    put(tmp_path / "a/metadata.csv", 'file_name,text,extra\nsub/1.png,"a, b",7\n')
    put(tmp_path / "a/sub/1.png", picture(1))
    items, _, tally = read("imagefolder", tmp_path / "a")
    assert (items[0].record.id, items[0].record.captions) == ("sub/1.png", ("a, b",))
    assert tally.ignored == {"extra": 1}
    rows = [{"file_name": "1.png", "caption": "c"}]
    (tmp_path / "b").mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "b/metadata.parquet")
    assert read("imagefolder", tmp_path / "b")[0][0].record.captions == ("c",)


def test_names_that_climb_out_of_the_folder_are_skipped(tmp_path: Path) -> None:
    put(tmp_path / "secret.png", picture(1))
    put(tmp_path / "in/metadata.jsonl", [{"file_name": "../secret.png", "text": "x"}, {"file_name": "a.png", "text": "y"}])
    put(tmp_path / "in/a.png", picture(2))
    assert prepared("imagefolder", tmp_path / "in", tmp_path / "out")["skipped"] == {"path_outside_root": 1}


def test_without_metadata_the_folder_names_what_is_shown(tmp_path: Path) -> None:
    for name in ("train/cat/1.png", "train/dog/1.png", "test/cat/2.jpg", "train/cat/notes.txt"):
        put(tmp_path / "in" / name, picture(hash(name) % 1000))
    items, _, _ = read("imagefolder", tmp_path / "in")
    found = [(item.record.id, item.record.split, item.record.captions[0]) for item in items]
    assert found == [
        ("test/cat/2.jpg", "test", "cat"),
        ("train/cat/1.png", "train", "cat"),
        ("train/dog/1.png", "train", "dog"),
    ]
    assert all(isinstance(item.images[0], ImageInRoot) for item in items)


def test_images_that_nothing_names_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "train/1.png", picture(1))
    with pytest.raises(DataError, match="no caption"):
        read("imagefolder", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images"):
        read("imagefolder", tmp_path / "empty")
