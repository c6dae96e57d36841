"""What no record used is counted by reason and named: files, members, rows and fields, in every format."""

import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from sightline.data.dataset import open_dataset
from sightline.data.readers import SourceOptions
from sightline.errors import DataError
from tests.data.pictures import picture, prepared, put, read

TURNS = [{"from": "human", "value": "<image>Q"}, {"from": "gpt", "value": "A"}]


def ignored(summary: dict[str, Any]) -> dict[str, tuple[int, list[str]]]:
    """What was counted under a reason, with its names; fields, which have no names, are left out."""
    return {reason: (summary["ignored"][reason], names) for reason, names in summary["ignored_names"].items()}


def tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def captions(out: Path) -> dict[str, tuple[str, ...]]:
    return {record.id: record.captions for record in open_dataset(out).records()}


# Files ----------------------------------------------------------------------------------------------------------------------


def test_files_of_img2dataset_have_their_captions_beside_them(tmp_path: Path) -> None:
    """`files` output of img2dataset: the caption is the .txt, never the name of the shard."""
    for number in range(2):
        stem = tmp_path / f"in/0000{number}/0000{number}0000"
        put(stem.with_suffix(".jpg"), picture(number, "JPEG"))
        put(stem.with_suffix(".txt"), f"caption {number}")
        put(stem.with_suffix(".json"), {"caption": f"caption {number}", "url": "http://x", "status": "success"})
    put(tmp_path / "in/00000/000000007.jpg", picture(7, "JPEG"))
    put(tmp_path / "in/00000_stats.json", {"count": 1})
    summary = prepared("imagefolder", tmp_path / "in", tmp_path / "out")
    assert captions(tmp_path / "out") == {
        "00000/000000000.jpg": ("caption 0",),
        "00001/000010000.jpg": ("caption 1",),
    }
    assert summary["skipped"] == {"no_text": 1}
    assert summary["ignored"] == {"file_not_used": 1, "status": 2, "url": 2}
    assert ignored(summary) == {"file_not_used": (1, ["00000_stats.json"])}


def test_files_beside_an_image_may_have_capital_letters_and_dots_in_their_names(tmp_path: Path) -> None:
    put(tmp_path / "in/22.05.JPG", picture(1, "JPEG"))
    put(tmp_path / "in/22.05.TXT", "at 5")
    put(tmp_path / "in/22.06.jpeg", picture(2, "JPEG"))
    put(tmp_path / "in/22.06.Json", {"caption": "not read"})
    put(tmp_path / "in/22.06.JSON", {"caption": "at 6"})
    summary = prepared("imagefolder", tmp_path / "in", tmp_path / "out")
    assert captions(tmp_path / "out") == {"22.05.JPG": ("at 5",), "22.06.jpeg": ("at 6",)}
    assert ignored(summary) == {"file_not_used": (1, ["22.06.Json"])}


def test_folders_that_are_no_classes_give_no_captions(tmp_path: Path) -> None:
    for name in ("cat/1.png", "00000/1.png", "images/1.png", ".cache/1.png", "__MACOSX/._1.png", "7/1.png", "top.png"):
        put(tmp_path / "in" / name, picture(len(name) * 7 + ord(name[0])))
    put(tmp_path / "in/cat/notes.md", "x")
    summary = prepared("imagefolder", tmp_path / "in", tmp_path / "out")
    assert captions(tmp_path / "out") == {"cat/1.png": ("cat",), "7/1.png": ("7",)}
    assert summary["skipped"] == {"no_text": 3}
    assert ignored(summary) == {"file_not_used": (1, ["cat/notes.md"]), "hidden": (2, [".cache/", "__MACOSX/"])}
    put(tmp_path / "shards/00000/1.png", picture(1))
    with pytest.raises(DataError, match=r"00000/1\.png has no caption"):
        read("imagefolder", tmp_path / "shards")


def test_images_that_no_metadata_names_are_named(tmp_path: Path) -> None:
    put(tmp_path / "in/metadata.jsonl", [{"file_name": "sub/1.png", "text": "one"}])
    for number in range(30):
        put(tmp_path / f"in/sub/{number}.png", picture(number))
    put(tmp_path / "in/sub/1.txt", "beside")
    summary = prepared("imagefolder", tmp_path / "in", tmp_path / "out")
    found = ignored(summary)
    assert found["file_not_used"] == (1, ["sub/1.txt"])
    count, names = found["image_not_named"]
    assert (count, len(names), names[:2]) == (29, 20, ["sub/0.png", "sub/10.png"])


@pytest.mark.parametrize("kind", ["coco", "csv", "flickr8k", "llava", "records", "docvqa"])
def test_images_that_no_row_names_are_named_in_every_format(tmp_path: Path, kind: str) -> None:
    """Beside the file of rows, in the folder and in the archive that `--images` names."""
    turns = [{"from": "human", "value": "<image>Q"}, {"from": "gpt", "value": "A"}]
    image = {"id": 1, "file_name": "1.png", "width": 9, "height": 7}
    coco = {"images": [image], "annotations": [{"image_id": 1, "id": 1, "caption": "c"}]}
    file = {
        "coco": put(tmp_path / "in/captions_x.json", coco) if kind == "coco" else None,
        "csv": tmp_path / "in/t.csv",
        "flickr8k": tmp_path / "in/captions.jsonl",
        "llava": tmp_path / "in/chat.json",
        "records": tmp_path / "in/records.jsonl",
        "docvqa": tmp_path / "in/val_v1.0.json",
    }[kind]
    content: dict[str, Any] = {
        "coco": coco,
        "csv": "image,caption\n1.png,c\n",
        "flickr8k": [{"image": "1.png", "captions": ["c"]}],
        "llava": [{"id": 1, "image": "1.png", "conversations": turns}],
        "records": [{"id": 1, "images": ["1.png"], "captions": ["c"]}],
        "docvqa": {"data": [{"questionId": 1, "question": "Q", "image": "1.png", "answers": ["a"]}]},
    }
    assert file is not None
    put(file, content[kind])
    images = {"1.png": picture(1), "2.png": picture(2)}
    mapping = {"image": "image"} if kind == "csv" else {}
    for name, data in images.items():
        put(tmp_path / "in" / name, data)
        put(tmp_path / "elsewhere" / name, data)
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for name, data in images.items():
            archive.writestr(f"top/{name}", data)
        archive.writestr("top/readme.md", b"x")
    plain = prepared(kind, file, tmp_path / "beside", source=SourceOptions(mapping=mapping))
    assert ignored(plain) == {"image_not_named": (1, ["2.png"])}
    whole = prepared(kind, tmp_path / "in", tmp_path / "whole", source=SourceOptions(mapping=mapping))
    assert ignored(whole) == {"image_not_named": (1, ["2.png"])}
    source = SourceOptions(mapping=mapping, images=tmp_path / "elsewhere")
    assert ignored(prepared(kind, file, tmp_path / "folder", source=source)) == {"image_not_named": (1, ["2.png"])}
    source = SourceOptions(mapping=mapping, images=tmp_path / "images.zip")
    assert ignored(prepared(kind, file, tmp_path / "archive", source=source)) == {
        "image_not_named": (1, ["images.zip/top/2.png"]),
        "member_not_used": (1, ["images.zip/top/readme.md"]),
    }


def test_files_of_rows_that_were_not_chosen_are_named_and_images_left_out_on_purpose_are_not(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
    put(tmp_path / "in/chat.json", [{"id": 1, "conversations": turns}])
    put(tmp_path / "in/llava_instruct_150k.json", [{"id": 2, "conversations": turns}])
    put(tmp_path / "in/1.png", picture(1))
    summary = prepared("llava", tmp_path / "in", tmp_path / "out", source=SourceOptions(text_only=True))
    assert ignored(summary) == {"file_not_used": (1, ["llava_instruct_150k.json"])}


def test_a_sample_and_the_folder_that_is_written_are_not_taken_for_what_nothing_used(tmp_path: Path) -> None:
    put(tmp_path / "in/records.jsonl", [{"id": n, "images": [f"{n}.png"], "captions": ["c"]} for n in range(6)])
    for number in range(6):
        put(tmp_path / f"in/{number}.png", picture(number))
    summary = prepared("records", tmp_path / "in", tmp_path / "in/out", sample=2)
    assert (summary["ok"], summary["ignored"]) == (2, {})
    assert prepared("records", tmp_path / "in/out", tmp_path / "again")["ignored"] == {}


@pytest.mark.parametrize(
    ("kind", "name", "content", "images"),
    [
        (
            "coco",
            "captions_x.json",
            {"images": [{"id": 1, "file_name": "1.png"}], "annotations": [{"image_id": 1, "caption": "c"}]},
            "",
        ),
        ("csv", "t.csv", "b64string_images,caption\n1.png,c\n", ""),
        ("docvqa", "val_v1.0.json", {"data": [{"questionId": 1, "question": "Q", "image": "1.png", "answers": ["a"]}]}, "images"),
        ("flickr8k", "captions.jsonl", [{"image": "1.png", "captions": ["c"]}], ""),
        ("flickr8k", "Flickr8k.token.txt", "1.png#0\tc\n", "Images"),
        ("imagefolder", "metadata.jsonl", [{"file_name": "sub/1.png", "text": "c"}], "sub"),
        ("llava", "chat.json", [{"id": 1, "image": "1.png", "conversations": TURNS}], "images"),
        ("records", "records.jsonl", [{"id": 1, "images": ["sub/1.png"], "captions": ["c"]}], "sub"),
    ],
)
def test_files_beside_a_source_that_is_a_single_file_are_named(
    tmp_path: Path, kind: str, name: str, content: Any, images: str
) -> None:
    """Beside the source, where images of other names are the user's own business, and beside an image in use."""
    file = put(tmp_path / "in" / name, content)
    put(tmp_path / "in" / images / "1.png", picture(1))
    put(tmp_path / "in" / images / "1.txt", "a caption that is not read")
    put(tmp_path / "in/other.jsonl", "{}")
    put(tmp_path / "in/elsewhere/notes.md", "x")
    found = ignored(prepared(kind, file, tmp_path / "out"))
    if images:
        assert found == {"file_beside_source": (1, ["other.jsonl"]), "file_not_used": (1, ["1.txt"])}
    else:
        assert found == {"file_beside_source": (2, ["1.txt", "other.jsonl"])}


def test_tars_beside_a_tar_and_text_beside_a_table_of_urls_are_named(tmp_path: Path) -> None:
    path = tar(tmp_path / "in/0.tar", [("a.jpg", picture(1)), ("a.txt", b"one")])
    tar(tmp_path / "in/1.tar", [("b.jpg", picture(2)), ("b.txt", b"two")])
    assert ignored(prepared("webdataset", path, tmp_path / "out")) == {"file_beside_source": (1, ["1.tar"])}
    table = put(tmp_path / "urls/a.jsonl", [{"url": "http://x/1.png", "caption": "c"}])
    put(tmp_path / "urls/b.jsonl", [{"url": "http://x/2.png", "caption": "d"}])
    summary = prepared("urls", table, tmp_path / "text", source=SourceOptions(text_only=True))
    assert ignored(summary) == {"file_beside_source": (1, ["b.jsonl"])}


def test_a_source_that_is_a_link_is_used(tmp_path: Path) -> None:
    """As in the Hub's cache, where a snapshot is a folder of links."""
    blob = put(tmp_path / "blobs/1", {"file_name": "1.png", "text": "c"})
    (tmp_path / "in").mkdir()
    (tmp_path / "in/metadata.jsonl").symlink_to(blob)
    (tmp_path / "in/1.png").symlink_to(put(tmp_path / "in/real.png", picture(1)))
    assert ignored(prepared("imagefolder", tmp_path / "in", tmp_path / "out")) == {"image_not_named": (1, ["real.png"])}


def test_a_records_file_of_a_dataset_folder_stands_beside_files_of_its_own(tmp_path: Path) -> None:
    put(tmp_path / "in/records.jsonl", [{"id": 1, "images": ["1.png"], "captions": ["c"]}])
    put(tmp_path / "in/1.png", picture(1))
    prepared("records", tmp_path / "in", tmp_path / "set")
    assert prepared("records", tmp_path / "set/records.jsonl", tmp_path / "again")["ignored"] == {}


# Members --------------------------------------------------------------------------------------------------------------------


def test_names_with_dots_in_a_tar_stay_samples_of_their_own(tmp_path: Path) -> None:
    members = [
        (f"22.{n:02d}.{kind}", picture(n, "JPEG") if kind == "jpg" else f"at {n}".encode())
        for n in (5, 6)
        for kind in ("jpg", "txt")
    ]
    tar(tmp_path / "dots.tar", [*members, ("23.jpg", picture(23, "JPEG")), ("23.txt", b"plain")])
    prepared("webdataset", tmp_path / "dots.tar", tmp_path / "out")
    assert captions(tmp_path / "out") == {"22.05": ("at 5",), "22.06": ("at 6",), "23": ("plain",)}
    assert captions_of(tmp_path / "text.tar", [member for member in members if member[0].endswith("txt")], text_only=True) == [
        ("22.05", ("at 5",)),
        ("22.06", ("at 6",)),
    ]


def captions_of(path: Path, members: list[tuple[str, bytes]], **options: Any) -> list[tuple[str, tuple[str, ...]]]:
    items, skips, _ = read("webdataset", tar(path, members), **options)
    assert not skips
    return [(item.record.id, item.record.captions) for item in items]


def test_fields_of_a_sample_are_not_cut_apart(tmp_path: Path) -> None:
    members = [("a.0.jpg", picture(1)), ("a.1.jpg", picture(2)), ("a.txt", b"two images"), ("a.long.txt", b"more"), ("a.cls", b"1")]
    items, skips, tally = read("webdataset", tar(tmp_path / "x.tar", members))
    assert not skips
    assert [(item.record.id, item.record.captions, len(item.images)) for item in items] == [("a", ("two images",), 2)]
    assert tally.ignored_names == {".cls": ["x.tar/a.cls"], ".long.txt": ["x.tar/a.long.txt"]}


def test_a_name_that_stands_twice_begins_another_sample(tmp_path: Path) -> None:
    members = [("a.jpg", picture(1)), ("a.txt", b"one"), ("a.jpg", picture(2)), ("a.txt", b"two")]
    summary = prepared("webdataset", tar(tmp_path / "x.tar", members), tmp_path / "out")
    assert (summary["ok"], summary["skipped"]) == (1, {"duplicate_id": 1})


def test_links_and_hidden_members_are_named(tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", [("a.jpg", picture(1)), ("a.txt", b"one"), ("._a.jpg", b"x")])
    with tarfile.open(path, "a") as file:
        link = tarfile.TarInfo("b.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "a.jpg"
        file.addfile(link)
    summary = prepared("webdataset", path, tmp_path / "out")
    assert ignored(summary) == {"hidden": (1, ["x.tar/._a.jpg"]), "member_not_regular": (1, ["x.tar/b.jpg"])}


# Rows and fields ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["image", "images"])
@pytest.mark.parametrize("kind", ["llava", "parquet"])
def test_images_without_a_mark_stand_before_the_first_question(tmp_path: Path, field: str, kind: str) -> None:
    turns = [{"from": "system", "value": "S"}, {"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A dog."}]
    rows = [{"id": "1", field: ["1.png", "2.png"], "conversations": turns}]
    if kind == "llava":
        put(tmp_path / "in/chat.json", rows)
    else:
        import pyarrow
        import pyarrow.parquet

        (tmp_path / "in").mkdir()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "in/x.parquet")
    for number in (1, 2):
        put(tmp_path / f"in/{number}.png", picture(number))
    summary = prepared(kind, tmp_path / "in", tmp_path / "out")
    record = open_dataset(tmp_path / "out").record(0)
    assert [message.num_images for message in record.messages] == [0, 2, 0]
    assert [part.is_image for part in record.messages[1].content] == [True, True, False]
    assert (summary["notes"], summary["ignored"]) == ({"images_put_first": 1}, {})


def test_marks_in_messages_are_places_of_images_too(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Look: <image> What?"}, {"role": "assistant", "content": "That."}]
    path = tar(tmp_path / "x.tar", [("a.jpg", picture(1)), ("a.json", json.dumps({"messages": messages}).encode())])
    (item,), _, tally = read("webdataset", path)
    assert [part.text for part in item.record.messages[0].content] == ["Look: ", None, " What?"]
    assert not tally.notes


def test_images_without_mark_and_without_a_question_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "chat.json", [{"id": 1, "image": "1.png", "conversations": [{"from": "gpt", "value": "A"}]}])
    _, skips, _ = read("llava", tmp_path)
    assert [skip.reason for skip in skips] == ["images_without_place"]


def test_a_second_column_with_another_value_is_counted(tmp_path: Path) -> None:
    rows = [
        {"question": "Q", "answer": "one", "answers": ["two", "three"], "id": 1},
        {"question": "Q", "answer": "x", "answers": "x", "id": 2},
    ]
    put(tmp_path / "t.jsonl", rows)
    items, _, tally = read("urls", tmp_path / "t.jsonl", text_only=True)
    assert [item.record.answers for item in items] == [("one",), ("x",)]
    assert tally.ignored == {"answers": 1}


def test_what_stands_beside_the_rows_in_a_file_is_counted(tmp_path: Path) -> None:
    """Other lists, texts and numbers."""
    row = {"questionId": 1, "question": "Q", "image": "1.png", "answers": ["a"]}
    put(tmp_path / "val_v1.0.json", {"dataset_name": "docvqa", "data": [row], "more": [row]})
    assert read("docvqa", tmp_path)[2].ignored == {"dataset_name": 1, "more": 1}
    image = {"id": 1, "file_name": "1.png"}
    put(tmp_path / "captions_x.json", {"images": [image], "annotations": [{"image_id": 1, "id": 1, "keypoints": []}]})
    tally = read("coco", tmp_path / "captions_x.json")[2]
    assert tally.ignored_names == {"annotation_not_used": ["captions_x.json annotations[0]"]}


@pytest.mark.parametrize(
    ("kind", "name", "row", "fields"),
    [
        ("llava", "chat.json", {"conversations": [{**turn, "weight": 1} for turn in TURNS]}, {"conversations.weight": 2}),
        (
            "urls",
            "t.jsonl",
            {"question": "Q", "answers": [{"answer": "a", "answer_id": 1}, {"answer": "b", "answer_id": 2}]},
            {"answers.answer_id": 2},
        ),
        ("urls", "t.jsonl", {"texts": [{"user": "Q", "assistant": "A", "source": "s"}]}, {"texts.source": 1}),
        (
            "records",
            "records.jsonl",
            {"messages": [{"role": "user", "content": "Q", "name": "n"}, {"role": "assistant", "content": "A"}]},
            {"messages.name": 1},
        ),
        (
            "records",
            "records.jsonl",
            {"captions": ["c"], "boxes": [{"label": "a", "xyxy": [0, 0, 1, 1], "area": 1}]},
            {"boxes.area": 1},
        ),
        (
            "coco",
            "captions.jsonl",
            {"image": "1.png", "captions": ["c"], "objects": [{"category": "a", "bbox_xywh_frac": [0, 0, 1, 1], "area": 1}]},
            {"objects.area": 1},
        ),
    ],
)
def test_fields_of_turns_answers_and_boxes_are_counted(
    tmp_path: Path, kind: str, name: str, row: dict[str, Any], fields: dict[str, int]
) -> None:
    content: Any = [{"id": "1", **row} if kind != "coco" else row]
    items, skips, tally = read(kind, put(tmp_path / name, content), text_only=True)
    assert (len(items), skips) == (1, [])
    assert tally.ignored == fields


def test_photos_of_the_split_files_that_have_no_captions_are_named(tmp_path: Path) -> None:
    put(tmp_path / "Flickr8k.token.txt", "1.jpg#0\tA dog .\n")
    put(tmp_path / "Flickr_8k.trainImages.txt", "1.jpg\n2.jpg\n")
    assert read("flickr8k", tmp_path)[2].ignored_names == {"photo_without_captions": ["2.jpg"]}
