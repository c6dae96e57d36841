"""The rule for characters and words that are no text, through every kind of source."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from sightline.data.dataset import open_dataset
from sightline.data.prepare.texts import clean_text, is_null_word
from sightline.data.readers import SourceOptions
from tests.data.pictures import lines, picture, prepared, put


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("a dog", "a dog"),
        ("a\0 dog\x07\x9f", "a dog"),
        ("a\u200bdog\ufeff\u2060", "adog"),
        ("a\u200d dog\u200c", "a dog"),
        ("two\nlines\tand\r\nmore\x0b\x85", "two\nlines\tand\r\nmore\x0b\x85"),
        ("👩‍👧 می‌خواهم", "👩‍👧 می‌خواهم"),  # joiners that scripts and emoji need
        ("\u200b\u200d", ""),
        ("\0", ""),
        ("\u2063 \ufe0f", ""),
        ("  ", "  "),
    ],
)
def test_what_is_removed_and_what_stays(text: str, cleaned: str) -> None:
    assert clean_text(text) == cleaned


def test_words_for_a_missing_caption() -> None:
    assert all(map(is_null_word, ("nan", "NaN", " None ", "null", "N/A", "<NA>", "undefined")))
    assert not any(map(is_null_word, ("nan bread", "nobody", "none of them", "")))


BAD = ["nan", "None", "\0", "\u200b", "a\0b", "fine"]


@pytest.mark.parametrize("kind", ["csv", "flickr8k", "parquet", "records", "imagefolder"])
def test_every_source_obeys_the_rule(tmp_path: Path, kind: str) -> None:
    rows = [{"id": str(n), "image": f"{n}.png", "caption": text} for n, text in enumerate(BAD)]
    folder = tmp_path / "in"
    for number in range(len(BAD)):
        put(folder / f"{number}.png", picture(number))
    if kind == "csv":
        put(folder / "x.csv", "id,image,caption\n" + "".join(f"{row['id']},{row['image']},{row['caption']}\n" for row in rows))
    elif kind == "flickr8k":
        put(folder / "Flickr8k.token.txt", "".join(f"{row['image']}#0\t{row['caption']}\n" for row in rows))
    elif kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "x.parquet")
    elif kind == "records":
        put(folder / "records.jsonl", [{"id": row["id"], "images": [row["image"]], "captions": [row["caption"]]} for row in rows])
    else:
        for row in rows:
            put(folder / f"{row['id']}.txt", row["caption"])
    source = SourceOptions(mapping={"image": "image"} if kind == "csv" else {})
    summary = prepared(kind, folder, tmp_path / "out", source=source)
    assert [record.captions for record in open_dataset(tmp_path / "out").records()] == [("ab",), ("fine",)]
    assert sorted(skip["reason"] for skip in lines(tmp_path / "out/skipped.jsonl")) == ["empty_caption"] * 2 + ["null_caption"] * 2
    assert summary["notes"] == {"text_cleaned": 3}


def test_one_of_several_captions_is_dropped_alone_and_turns_are_cleaned(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "what\0 is it?"}, {"role": "assistant", "content": "none"}]
    rows = [
        {"id": 1, "captions": ["a", "nan", "\u200b", "b"]},
        {"id": 2, "messages": turns},
        {"id": 3, "messages": [turns[0], {"role": "assistant", "content": "\u200b"}]},
    ]
    put(tmp_path / "in/records.jsonl", rows)
    summary = prepared("records", tmp_path / "in", tmp_path / "out")
    first, second = open_dataset(tmp_path / "out").records()
    assert first.captions == ("a", "b")
    assert [message.text for message in second.messages] == ["what is it?", "none"]  # an answer may be "none"
    assert summary["skipped"] == {"empty_answer": 1}
    assert summary["notes"] == {"empty_caption": 1, "null_caption": 1, "text_cleaned": 4}


def test_class_labels_are_names(tmp_path: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "tags": datasets.Sequence(datasets.ClassLabel(names=["big", "small"])),
        }
    )
    rows = [{"image": {"bytes": picture(n), "path": None}, "label": label, "tags": [1, 0]} for n, label in enumerate((1, 0, -1))]
    made = datasets.Dataset.from_list(rows, features=features)
    made.save_to_disk(tmp_path / "saved")
    (tmp_path / "files").mkdir()
    made.to_parquet(tmp_path / "files/train.parquet")
    for field, expected in (("label", [("dog",), ("cat",)]), ("tags", [("small", "big")] * 3)):
        key = "caption" if field == "label" else "captions"
        source = SourceOptions(mapping={key: field})
        for kind, folder in (("hf", "saved"), ("hf", "files"), ("parquet", "files")):
            out = tmp_path / f"{field}-{kind}-{folder}"
            summary = prepared(kind, tmp_path / folder, out, source=source)
            assert [record.captions for record in open_dataset(out).records()] == expected
            assert summary["skipped"] == ({"no_text": 1} if field == "label" else {})
            assert not summary["ignored_names"]


def test_a_label_without_a_class_is_skipped(tmp_path: Path) -> None:
    features = {"image": {"dtype": "binary", "_type": "Value"}, "label": {"names": ["cat"], "_type": "ClassLabel"}}
    table = pyarrow.Table.from_pylist([{"image": picture(1), "label": 0}, {"image": picture(2), "label": 5}])
    (tmp_path / "in").mkdir()
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), tmp_path / "in/x.parquet")
    summary = prepared("parquet", tmp_path / "in", tmp_path / "out", source=SourceOptions(mapping={"caption": "label"}))
    assert (summary["ok"], summary["skipped"]) == (1, {"bad_label": 1})
