"""Published tables: json as their authors lay it out, parquet as `datasets` and pyarrow write it."""

import contextlib
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.data.dataset import open_dataset
from sightline.data.readers import ImageInRoot, Item
from sightline.data.readers.tables import split_of_file
from sightline.errors import DataError
from sightline.types import Message, Part
from tests.data.pictures import picture, prepared, put, read


def image(seed: int) -> dict[str, Any]:
    return {"bytes": picture(seed), "path": None}


def write_parquet(path: Path, rows: list[dict[str, Any]], **features: Any) -> Path:
    """With the `datasets` library, which most sets of the Hub are written by."""
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.disable_progress_bars()
    table = datasets.Dataset.from_list(rows)
    for name, feature in features.items():
        table = table.cast_column(name, feature)
    table.to_parquet(path)
    return path


def answers(item: Item) -> tuple[str, ...]:
    return item.record.answers


# The Cauldron ---------------------------------------------------------------------------------------------------------------


def test_the_cauldron_is_read_with_all_images_of_a_row(tmp_path: Path) -> None:
    rows = [
        {"images": [image(1), image(2)], "texts": [{"user": "Q1", "assistant": "A1", "source": "ai2d"}] * 2},
        {"images": [image(3)], "texts": [{"user": "Q2", "assistant": "A2", "source": "localized_narratives"}]},
    ]
    write_parquet(tmp_path / "ai2d/train-00000-of-00001.parquet", rows[:1], images=datasets.List(datasets.Image()))
    write_parquet(tmp_path / "localized_narratives/train-00000-of-00001.parquet", rows[1:], images=datasets.List(datasets.Image()))
    items, skips, _ = read("cauldron", tmp_path)
    assert not skips
    assert [item.images for item in items] == [(picture(1), picture(2)), (picture(3),)]
    assert items[0].record.messages[0] == Message("user", (Part(), Part(), Part("Q1")))
    assert [message.num_images for message in items[0].record.messages] == [2, 0, 0, 0]
    assert [item.record.id for item in items] == ["row-0", "row-1"]
    assert items[0].where == "train-00000-of-00001.parquet[0]"
    summary = prepared("cauldron", tmp_path, tmp_path / "out")
    assert (summary["ok"], summary["images"]) == (2, 3)


def test_one_subset_is_a_folder_of_its_own(tmp_path: Path) -> None:
    rows = [{"images": [image(1)], "texts": [{"user": "Q", "assistant": "A", "source": "x"}]}]
    write_parquet(tmp_path / "vqav2/train-00000-of-00002.parquet", rows)
    write_parquet(tmp_path / "vqav2/train-00001-of-00002.parquet", rows)
    items, _, _ = read("cauldron", tmp_path / "vqav2")
    assert [item.record.id for item in items] == ["row-0", "row-1"]


# Questions ------------------------------------------------------------------------------------------------------------------


def test_textvqa_json_implies_the_names_of_its_images(tmp_path: Path) -> None:
    row = {
        "question": "what is the brand of this camera?",
        "image_id": "003a8ae2ef43b901",
        "image_classes": ["Cassette deck"],
        "image_width": 1024,
        "answers": ["nous les gosses", "dakota", *["dakota digital"] * 8],
        "question_tokens": ["what"],
        "question_id": 34602,
        "set_name": "val",
    }
    put(tmp_path / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "dataset_name": "textvqa", "data": [row]})
    put(tmp_path / "train_images/003a8ae2ef43b901.jpg", picture(1))
    items, skips, tally = read("textvqa", tmp_path)
    assert not skips
    record = items[0].record
    assert (record.id, record.split, record.messages[1].text, len(record.answers)) == ("34602", "val", "dakota digital", 10)
    of_rows = {"image_classes": 1, "image_width": 1, "question_tokens": 1}
    assert tally.ignored == {"dataset_name": 1, "dataset_type": 1, **of_rows}
    assert prepared("textvqa", tmp_path, tmp_path / "out")["images"] == 1


def test_textvqa_parquet_brings_its_images(tmp_path: Path) -> None:
    row = {"image_id": "a", "question_id": 5, "question": "Q", "image": image(1), "answers": ["x", "y", "y"], "set_name": "train"}
    write_parquet(tmp_path / "data/train-00000-of-00001.parquet", [row], image=datasets.Image())
    items, _, _ = read("textvqa", tmp_path)
    assert items[0].images == (picture(1),)
    assert items[0].record.messages[1].text == "y"


def test_docvqa_json_and_parquet(tmp_path: Path) -> None:
    row = {
        "questionId": 337,
        "question": "what is the date?",
        "question_types": ["handwritten"],
        "image": "documents/xnbl0037_1.png",
        "docId": 279,
        "ucsf_document_id": "xnbl0037",
        "ucsf_document_page_no": "1",
        "answers": ["1/8/93", "January 8"],
        "data_split": "val",
    }
    put(tmp_path / "val_v1.0.json", {"dataset_name": "docvqa", "dataset_split": "val", "data": [row]})
    put(tmp_path / "documents/xnbl0037_1.png", picture(1))
    items, skips, tally = read("docvqa", tmp_path)
    assert not skips
    assert (items[0].record.id, items[0].record.split, answers(items[0])) == ("337", "val", ("1/8/93", "January 8"))
    assert "docId" in tally.ignored
    ref = items[0].images[0]
    assert isinstance(ref, ImageInRoot)
    assert ref.root.fetch(ref.name) == tmp_path / "documents/xnbl0037_1.png"
    hub = {"questionId": "337", "question": "Q", "image": image(1), "answers": ["1/8/93"], "data_split": "val"}
    write_parquet(tmp_path / "hub/DocVQA/validation-00000-of-00006.parquet", [hub], image=datasets.Image())
    items, _, _ = read("docvqa", tmp_path / "hub")
    assert (items[0].record.id, items[0].record.split) == ("337", "val")


def test_chartqa_json_parquet_and_jsonl(tmp_path: Path) -> None:
    put(tmp_path / "a/val/val_human.json", [{"imgname": "7.png", "query": "How many?", "label": "14"}])
    put(tmp_path / "a/test/test_human.json", [{"imgname": "8.png", "query": "How many?", "label": "15"}])
    put(tmp_path / "a/val/png/7.png", picture(1))
    items, skips, _ = read("chartqa", tmp_path / "a")
    assert not skips
    assert [item.record.split for item in items] == ["test", "val"]
    assert items[1].record.messages[1].text == "14"
    ref = items[1].images[0]
    assert isinstance(ref, ImageInRoot)
    assert ref.root.fetch(ref.name) == tmp_path / "a/val/png/7.png"
    row = {"image": image(1), "query": "Q", "label": ["14"], "human_or_machine": 0}
    write_parquet(tmp_path / "b/data/val-00000-of-00001.parquet", [row], image=datasets.Image())
    assert answers(read("chartqa", tmp_path / "b")[0][0]) == ("14",)
    put(tmp_path / "c/qa.jsonl", [{"image": "images/1.png", "question": "Q", "answer": "14", "source": "human"}])
    assert answers(read("chartqa", tmp_path / "c")[0][0]) == ("14",)


def test_scienceqa_problems_are_an_object_of_rows(tmp_path: Path) -> None:
    problem = {
        "question": "Which of these states is farthest north?",
        "choices": ["West Virginia", "Louisiana", "Arizona"],
        "answer": 0,
        "hint": "",
        "image": "image.png",
        "task": "closed choice",
        "lecture": "Maps",
        "split": "train",
    }
    put(tmp_path / "problems.json", {"1": problem, "2": {**problem, "image": None, "split": "val", "hint": "Look."}, "3": []})
    put(tmp_path / "images/train/1/image.png", picture(1))
    items, skips, _ = read("scienceqa", tmp_path)
    assert [skip.reason for skip in skips] == ["not_an_object"]
    first, second = (item.record for item in items)
    assert (first.id, first.split, first.answers, first.meta["answer_index"]) == ("1", "train", ("A",), 0)
    assert first.messages[0].text.endswith("A. West Virginia\nB. Louisiana\nC. Arizona")
    assert (second.messages[0].num_images, second.split) == (0, "val")
    assert second.messages[0].text.startswith("Look.\nWhich")
    ref = items[0].images[0]
    assert isinstance(ref, ImageInRoot)
    assert ref.root.fetch(ref.name) == tmp_path / "images/train/1/image.png"
    row = {"image": image(1), "question": "Q", "choices": ["a", "b"], "answer": 1, "hint": "", "task": "t"}
    write_parquet(tmp_path / "hub/data/test-00000-of-00001.parquet", [row], image=datasets.Image())
    hub = read("scienceqa", tmp_path / "hub")[0][0]
    assert (hub.record.id, hub.record.split, hub.record.answers, hub.images) == ("row-0", "test", ("B",), (picture(1),))


def test_refcocog_boxes_become_fractions_of_the_image_that_is_found(tmp_path: Path) -> None:
    """The image is 9 x 7; the published box is [x, y, width, height] in pixels."""
    row = {
        "question_id": "0",
        "image": image(1),
        "question": "Please carefully observe the area circled in the image and come up with a caption for the area.",
        "answer": ["a plant in the corner", "the bush"],
        "segmentation": [1.0, 2.0],
        "bbox": [0.9, 0.7, 1.8, 3.5],
        "iscrowd": 0,
        "file_name": "COCO_train2014_000000380440.jpg",
    }
    write_parquet(tmp_path / "data/val-00000-of-00001.parquet", [row], image=datasets.Image())
    summary = prepared("refcocog", tmp_path, tmp_path / "out")
    assert summary["ignored"]["segmentation"] == 1
    record = open_dataset(tmp_path / "out").record(0)
    assert record.captions == ("a plant in the corner", "the bush")
    assert record.boxes[0].label == "a plant in the corner"
    assert record.boxes[0].xyxy == pytest.approx((0.1, 0.1, 0.3, 0.6))


def test_textcaps_rows_of_an_image_are_one_record(tmp_path: Path) -> None:
    def row(image_id: str, caption: str, references: list[str]) -> dict[str, Any]:
        return {
            "image_id": image_id,
            "image_path": f"train/{image_id}.jpg",
            "caption_id": 1,
            "caption_str": caption,
            "reference_strs": references,
            "set_name": "train",
        }

    rows = [row("b", "one", ["one", "two"]), row("a", "three", ["three"]), row("b", "two", ["one", "two"]), row("b", "late", [])]
    put(tmp_path / "TextCaps_0.1_train.json", {"dataset_name": "textcaps", "data": rows})
    items, skips, tally = read("textcaps", tmp_path)
    assert not skips
    assert [(item.record.id, item.record.captions) for item in items] == [("b", ("one", "two", "late")), ("a", ("three",))]
    assert tally.notes == {"rows_merged": 2}
    assert items[0].record.split == "train"
    ref = items[0].images[0]
    assert isinstance(ref, ImageInRoot)
    assert ref.name == "b.jpg"


def test_the_small_sets_of_jsonl(tmp_path: Path) -> None:
    put(tmp_path / "n/nlvr.jsonl", [{"image": "images/1.png", "sentence": "There is a box", "label": False, "identifier": "1-0"}])
    item = read("nlvr", tmp_path / "n")[0][0]
    assert item.record.messages[0].text == "There is a box\nTrue or false?"
    assert item.record.answers == ("false",)
    put(tmp_path / "e/qa.jsonl", [{"image": "images/0.png", "question": "what is the blue shape?", "answer": "rectangle"}])
    assert answers(read("easy_vqa", tmp_path / "e")[0][0]) == ("rectangle",)
    fields = {"company": "ABC", "total": "31.00", "date": ""}
    text = [{"text": "ABC", "box_xyxy_frac": [0.1, 0.2, 0.5, 0.3]}]
    put(tmp_path / "s/receipts.jsonl", [{"image": "images/5.jpg", "fields": fields, "lines": text}])
    record = read("sroie", tmp_path / "s")[0][0].record
    assert [message.text for message in record.messages] == ["What is the company?", "ABC", "What is the total?", "31.00"]
    assert record.boxes[0].label == "ABC"


# Parquet in general ---------------------------------------------------------------------------------------------------------


def test_parquet_columns_are_mapped_and_the_rest_counted(tmp_path: Path) -> None:
    rows = [{"photo": picture(1), "description": " a dog ", "width": 4, "key": "k1"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    mapping = {"image": "photo", "caption": "description", "id": "key"}
    items, _, tally = read("parquet", tmp_path / "x.parquet", mapping=mapping)
    assert (items[0].record.id, items[0].record.captions, items[0].images) == ("k1", ("a dog",), (picture(1),))
    assert tally.ignored == {"width": 1}
    with pytest.raises(DataError, match=r"no column 'image' or 'images'; it has 'photo', .*--map image=COLUMN, or --map image="):
        read("parquet", tmp_path / "x.parquet")


def test_a_table_is_not_taken_for_text_because_its_images_have_another_name(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"img": picture(1), "caption": "a"}]), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="--map image=COLUMN"):
        read("parquet", tmp_path)
    with pytest.raises(DataError, match=r"no column 'imag', which --map image=imag names; it has 'img', 'caption'"):
        read("parquet", tmp_path, mapping={"image": "imag"})
    assert read("parquet", tmp_path, mapping={"image": ""})[0][0].images == ()
    assert read("parquet", tmp_path, text_only=True)[0][0].record.captions == ("a",)
    with pytest.raises(DataError, match="--map caption=COLUMN"):
        read("parquet", tmp_path, mapping={"image": "img", "caption": ""})


def test_rows_without_image_or_text_are_told_apart(tmp_path: Path) -> None:
    rows = [
        {"image": picture(1), "caption": "a"},
        {"image": b"", "caption": "b"},
        {"image": picture(1), "caption": None},
        {"image": None, "caption": "text"},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    items, skips, _ = read("parquet", tmp_path)
    assert [item.record.captions for item in items] == [("a",), ("text",)]
    assert [skip.reason for skip in skips] == ["image_empty", "no_text"]


def test_half_a_parquet_file_is_refused_at_every_length(tmp_path: Path) -> None:
    rows = [{"image": picture(index), "caption": f"c{index}"} for index in range(40)]
    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    data = path.read_bytes()
    for share in (0.0, 0.1, 0.5, 0.9, 0.999):
        path.write_bytes(data[: max(1, int(share * len(data)))])
        with pytest.raises(DataError, match=r"x\.parquet: damaged at row 0"):
            read("parquet", path)


def test_a_flipped_bit_in_a_page_with_a_checksum_is_found_with_its_row(tmp_path: Path) -> None:
    rows = [{"image": picture(index), "caption": f"c{index}"} for index in range(64)]
    path = tmp_path / "x.parquet"
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, path, write_page_checksum=True, row_group_size=16, compression="none", use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[data.index(picture(40)) + 30] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="damaged at row 32") as caught:
        read("parquet", path)
    assert "x.parquet" in str(caught.value)


@settings(deadline=None, max_examples=60)
@given(at=st.floats(0, 1), value=st.integers(0, 255))
def test_any_damaged_parquet_gives_items_or_our_error(tmp_path_factory: pytest.TempPathFactory, at: float, value: int) -> None:
    path = tmp_path_factory.mktemp("parquet") / "x.parquet"
    table = pyarrow.Table.from_pylist([{"image": picture(index), "caption": f"c{index}"} for index in range(3)])
    pyarrow.parquet.write_table(table, path, write_page_checksum=True)
    data = bytearray(path.read_bytes())
    data[int(at * (len(data) - 1))] = value
    path.write_bytes(data)
    with contextlib.suppress(DataError):
        read("parquet", path)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00005.parquet", "train"),
        ("data/validation-00000-of-00001.parquet", "validation"),
        ("TextVQA_0.5.1_val.json", "val"),
        ("test/qa.jsonl", "test"),
        ("a/Train/b/x.json", "train"),
        ("training.json", ""),
        ("contest.json", ""),
        ("latest/x.json", ""),
    ],
)
def test_the_split_is_said_by_the_file_or_a_folder_under_the_source(tmp_path: Path, name: str, split: str) -> None:
    assert split_of_file(tmp_path / "test" / name, tmp_path / "test") == split


def test_folders_without_the_files_are_refused_with_the_patterns(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"problems\.json"):
        read("scienceqa", tmp_path)
    put(tmp_path / "problems.json", [1])
    with pytest.raises(DataError, match="the object has no list 'data'"):
        read("textvqa", put(tmp_path / "x.json", json.dumps({"rows": []})))


def test_the_schema_of_trl_is_read_from_parquet_and_jsonl(tmp_path: Path) -> None:
    """`images` and `messages`, the places of images in the turns or not stated at all."""
    placed = [
        {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A dog."}]},
    ]
    write_parquet(tmp_path / "a/data/train-00000-of-00001.parquet", [{"images": [image(1)], "messages": placed}])
    put(tmp_path / "b/images/1.png", picture(1))
    plain = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A dog."}]
    put(tmp_path / "b/train.jsonl", [{"images": ["images/1.png"], "messages": plain}])
    turns = (Message("user", (Part(), Part("What is it?"))), Message("assistant", (Part("A dog."),)))
    for folder in ("a", "b"):
        items, skips, _ = read("trl", tmp_path / folder)
        assert not skips
        assert [item.record.messages for item in items] == [turns]
        assert len(items[0].images) == 1
