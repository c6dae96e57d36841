"""LLaVA's json in the shapes that are published: pre-training, instructions, several images, text alone."""

from pathlib import Path

import pytest

from sightline.data.readers import ImageInRoot, Item
from sightline.errors import DataError, UsageError
from sightline.types import Message, Part
from tests.data.pictures import put, read

IMAGE = Part()


def row(text: str = "<image>\nDescribe.", **fields: object) -> dict:
    turns = [{"from": "human", "value": text}, {"from": "gpt", "value": "A dog."}]
    return {"id": "GCC_train_002582585", "image": "GCC_train_002582585.jpg", "conversations": turns, **fields}


def names(item: Item) -> list[str]:
    return [ref.name for ref in item.images if isinstance(ref, ImageInRoot)]


def test_a_pretraining_row_becomes_a_conversation_about_its_image(tmp_path: Path) -> None:
    put(tmp_path / "chat.json", [row()])
    items, skips, tally = read("llava", tmp_path)
    assert not skips
    assert not tally.ignored
    assert items[0].record.id == "GCC_train_002582585"
    assert items[0].record.split == "train"
    assert items[0].where == "chat.json[0]"
    assert items[0].record.messages == (
        Message("user", (IMAGE, Part("Describe."))),
        Message("assistant", (Part("A dog."),)),
    )
    assert names(items[0]) == ["GCC_train_002582585.jpg"]


def test_several_images_many_turns_and_text_alone_are_read(tmp_path: Path) -> None:
    many = row("Compare <image> with <image>.", image=["a/1.png", "b/2.png"])
    many["conversations"] += [{"from": "human", "value": "And\n<image>"}, {"from": "gpt", "value": "Same."}]
    many["image"].append("c.png")
    text = {"id": 7, "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
    put(tmp_path / "x.jsonl", [many, text])
    items, skips, _ = read("llava", tmp_path / "x.jsonl")
    assert not skips
    assert names(items[0]) == ["a/1.png", "b/2.png", "c.png"]
    assert [message.num_images for message in items[0].record.messages] == [2, 0, 1, 0]
    assert items[0].record.messages[2].content == (Part("And"), IMAGE)
    assert items[1].images == ()
    assert items[1].record.id == "7"
    assert items[1].where == "x.jsonl:2"


def test_rows_that_cannot_be_used_are_skipped_and_the_others_read(tmp_path: Path) -> None:
    rows = [
        row(id="a"),
        "text",
        row(id=True),
        row(conversations="text"),
        row(image=5),
        row(video="v.mp4"),
        row(image=""),
        row(id="z"),
    ]
    put(tmp_path / "chat.json", rows)
    items, skips, _ = read("llava", tmp_path)
    assert [item.record.id for item in items] == ["a", "z"]
    assert [skip.reason for skip in skips] == [
        "not_an_object",
        "bad_id",
        "bad_conversations",
        "bad_image",
        "video",
        "image_empty",
    ]
    assert [skip.where for skip in skips] == [f"chat.json[{index}]" for index in range(1, 7)]


def test_unusual_fields_are_counted_by_name(tmp_path: Path) -> None:
    put(tmp_path / "chat.json", [row(model="x"), row(model="y", source=1)])
    assert read("llava", tmp_path)[2].ignored == {"model": 2, "source": 1}


def test_ids_and_keys_can_be_mapped(tmp_path: Path) -> None:
    put(tmp_path / "chat.json", [row(photo="p.jpg", image=None), row()])
    items, _, _ = read("llava", tmp_path, mapping={"id": "", "image": "photo"})
    assert [item.record.id for item in items] == ["row-0", "row-1"]
    assert names(items[0]) == ["p.jpg"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[{"id": "a", "id": "b"}]', "stands twice"),
        ('[{"id": NaN}]', "NaN"),
        ('[{"id": "a"}, {"id": "b"', "torn"),
        ('{"id": "a"}\n{"id": "b"}', "jsonl"),
        ("3", "a list of rows"),
        ("[] []", "follows the end"),
    ],
)
def test_a_file_that_is_damaged_as_a_whole_is_refused_by_name_and_place(tmp_path: Path, text: str, says: str) -> None:
    put(tmp_path / "chat.json", text)
    with pytest.raises(DataError, match=says) as caught:
        read("llava", tmp_path)
    assert "chat.json" in str(caught.value)


def test_a_folder_without_or_with_two_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no chat\.json"):
        read("llava", tmp_path)
    put(tmp_path / "a.json", [])
    put(tmp_path / "b.json", [])
    with pytest.raises(DataError, match=r"a\.json, b\.json"):
        read("llava", tmp_path)


def test_images_are_looked_for_beside_the_file_then_in_images_or_only_where_told(tmp_path: Path) -> None:
    put(tmp_path / "chat.json", [row(image="1.png"), row(image="images/2.png")])
    put(tmp_path / "images/1.png", b"one")
    put(tmp_path / "images/2.png", b"two")
    put(tmp_path / "elsewhere/1.png", b"three")
    items, _, _ = read("llava", tmp_path)
    found = [ref.root.fetch(ref.name) for item in items for ref in item.images if isinstance(ref, ImageInRoot)]
    assert found == [tmp_path / "images/1.png", tmp_path / "images/2.png"]
    items, _, _ = read("llava", tmp_path, images=tmp_path / "elsewhere")
    ref = items[0].images[0]
    assert isinstance(ref, ImageInRoot)
    assert ref.root.fetch(ref.name) == tmp_path / "elsewhere/1.png"
    with pytest.raises(UsageError, match="--images"):
        read("llava", tmp_path, images=tmp_path / "nowhere")
