"""Flickr8k as published (token file with split files) and as jsonl."""

from pathlib import Path

import pytest

from sightline.data.readers import ImageInRoot
from sightline.errors import DataError
from tests.data.pictures import put, read

TOKENS = """1.jpg#0\tA dog runs .
1.jpg#1\tA brown dog .
2.jpg#0\tZwei Hunde und ein Ball 🐕 .
3.jpg#1\tsecond
3.jpg#0\tfirst
4.jpg#0\tOf no list .
"""


def published(folder: Path, tokens: str = TOKENS) -> Path:
    put(folder / "Flickr8k.token.txt", tokens)
    put(folder / "Flickr_8k.trainImages.txt", "1.jpg\n")
    put(folder / "Flickr_8k.devImages.txt", "2.jpg\n")
    put(folder / "Flickr_8k.testImages.txt", "3.jpg\n")
    return folder


def test_the_published_files_give_captions_and_splits(tmp_path: Path) -> None:
    put(tmp_path / "Flicker8k_Dataset/1.jpg", b"photo")
    items, skips, _ = read("flickr8k", published(tmp_path))
    assert not skips
    assert [(item.record.id, item.record.split) for item in items] == [("1", "train"), ("2", "val"), ("3", "test"), ("4", "other")]
    assert items[0].record.captions == ("A dog runs .", "A brown dog .")
    assert items[1].record.captions == ("Zwei Hunde und ein Ball 🐕 .",)
    assert items[2].record.captions == ("first", "second")
    assert items[2].where == "Flickr8k.token.txt:4"
    ref = items[0].images[0]
    assert isinstance(ref, ImageInRoot)
    assert ref.root.fetch(ref.name) == tmp_path / "Flicker8k_Dataset/1.jpg"


def test_the_text_archive_beside_the_photo_archive_is_found(tmp_path: Path) -> None:
    published(tmp_path / "Flickr8k_text")
    put(tmp_path / "Flicker8k_Dataset/1.jpg", b"photo")
    items, _, _ = read("flickr8k", tmp_path)
    ref = items[0].images[0]
    assert isinstance(ref, ImageInRoot)
    assert ref.root.fetch(ref.name).samefile(tmp_path / "Flicker8k_Dataset/1.jpg")


def test_lines_of_another_form_are_skipped_with_their_number(tmp_path: Path) -> None:
    items, skips, _ = read("flickr8k", published(tmp_path, TOKENS + "no tab\n\n5.jpg\tno number\n"))
    assert len(items) == 4
    assert [(skip.where, skip.reason) for skip in skips] == [
        ("Flickr8k.token.txt:7", "bad_line"),
        ("Flickr8k.token.txt:9", "bad_line"),
    ]


def test_a_photo_in_two_splits_is_refused(tmp_path: Path) -> None:
    published(tmp_path)
    put(tmp_path / "Flickr_8k.testImages.txt", "3.jpg\n1.jpg\n")
    with pytest.raises(DataError, match=r"testImages\.txt:2: 1\.jpg is in split 'train' already"):
        read("flickr8k", tmp_path)


def test_jsonl_rows_are_called_after_their_photo(tmp_path: Path) -> None:
    put(tmp_path / "captions.jsonl", [{"image": "images/12_ab.jpg", "split": "dev", "captions": ["a", "b"]}])
    put(tmp_path / "captions_without_images.jsonl", [{"image": "9.jpg", "captions": ["c"]}])
    items, _, tally = read("flickr8k", tmp_path)
    assert [(item.record.id, item.record.split, item.record.captions) for item in items] == [("12_ab", "val", ("a", "b"))]
    assert tally.ignored == {"captions_without_images.jsonl": 1}
    items, _, tally = read("flickr8k", tmp_path, text_only=True)
    assert [item.record.id for item in items] == ["12_ab", "9"]
    assert not tally.ignored
    assert [item.record.id for item in read("flickr8k", tmp_path, mapping={"id": ""})[0]] == ["row-0"]


def test_a_folder_with_neither_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Flickr8k\.token\.txt"):
        read("flickr8k", tmp_path)


# Flickr30k ------------------------------------------------------------------------------------------------------------------


def test_flickr30k_as_published_and_as_kaggle_has_it_is_the_same(tmp_path: Path) -> None:
    put(
        tmp_path / "a/results_20130124.token",
        "1.jpg#0\tTwo men, one hat .\n1.jpg#1\tA | pipe\n2.jpg#4\tA dog runs across the grass .\n",
    )
    rows = ["image_name| comment_number| comment", "1.jpg| 0| Two men, one hat .", "1.jpg| 1| A | pipe"]
    put(tmp_path / "b/results.csv", "\n".join([*rows, "2.jpg| 4   A dog runs across the grass .", ""]))
    put(tmp_path / "b/flickr30k_images/1.jpg", b"photo")
    published, skipped, _ = read("flickr30k", tmp_path / "a")
    kaggle, skips, tally = read("flickr30k", tmp_path / "b")
    assert not skipped + skips
    assert [item.record for item in published] == [item.record for item in kaggle]
    assert [item.record.captions for item in kaggle] == [("Two men, one hat .", "A | pipe"), ("A dog runs across the grass .",)]
    assert tally.notes == {"separator_repaired": 1}
    ref = kaggle[0].images[0]
    assert isinstance(ref, ImageInRoot)
    assert ref.root.fetch(ref.name) == tmp_path / "b/flickr30k_images/1.jpg"
    assert [item.record for item in read("flickr30k", tmp_path / "b/results.csv")[0]] == [item.record for item in kaggle]


def test_flickr30k_of_another_form_is_refused_or_skipped_by_line(tmp_path: Path) -> None:
    put(tmp_path / "results.csv", "image_name| comment_number| comment\n1.jpg| 0| good\nno pipe at all\n")
    items, skips, _ = read("flickr30k", tmp_path)
    assert (len(items), [(skip.where, skip.reason) for skip in skips]) == (1, [("results.csv:3", "bad_line")])
    put(tmp_path / "results.csv", "image,caption\n")
    with pytest.raises(DataError, match="the header is not image_name"):
        read("flickr30k", tmp_path)
    with pytest.raises(DataError, match="neither results_20130124"):
        read("flickr30k", put(tmp_path / "none/x", "").parent)
