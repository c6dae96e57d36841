"""`data prepare --without-images`: names of images stay, files are not looked for, and nobody takes them for images."""

from pathlib import Path
from typing import Any

import pytest

from sightline.data.dataset import open_dataset
from sightline.data.prepare.name_only import name_only_key
from sightline.data.prepare.splitting import SplitRule
from sightline.data.readers import SourceOptions
from sightline.errors import DataError, UsageError
from tests.data.pictures import lines, picture, prepared, put, tree

WITHOUT = SourceOptions(without_images=True)


def named(folder: Path, rows: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    put(folder / "in/captions.jsonl", rows)
    return prepared("flickr8k", folder / "in", folder / "out", **{"source": WITHOUT, **options})


def test_names_stay_and_get_a_key_that_only_the_name_decides(tmp_path: Path) -> None:
    rows = [{"image": name, "captions": ["x"]} for name in ("images/a.jpg", "images/b.jpg")]
    summary = named(tmp_path, [*rows, {**rows[0], "id": "again"}])
    assert (summary["input"], summary["ok"], summary["images"], summary["image_places"]) == (3, 3, 0, 3)
    assert summary["options"]["without_images"] is True
    records = list(open_dataset(tmp_path / "out").records())
    assert [record.images for record in records] == [("images/a.jpg",), ("images/b.jpg",), ("images/a.jpg",)]
    first, second = name_only_key("images/a.jpg"), name_only_key("images/b.jpg")
    assert [record.image_info[0].sha256 for record in records] == [first, second, first]
    assert name_only_key("images/a.jpg") != name_only_key("a.jpg")
    assert not (tmp_path / "out/images").exists()


def test_files_that_happen_to_be_there_are_left_alone(tmp_path: Path) -> None:
    put(tmp_path / "in/images/a.jpg", picture(1, "JPEG"))
    summary = named(tmp_path, [{"image": "images/a.jpg", "captions": ["x"]}])
    assert summary["images"] == 0
    assert "images" not in {path.name for path in (tmp_path / "out").iterdir()}


def test_asking_for_pixels_says_what_to_do(tmp_path: Path) -> None:
    named(tmp_path, [{"image": "a.jpg", "captions": ["x"]}])
    dataset = open_dataset(tmp_path / "out")
    assert dataset.is_without_images
    with pytest.raises(DataError, match=r"prepared without its images: it has no file of 'a.jpg'\. .*data.features"):
        dataset.image_bytes(dataset.record(0))
    assert dataset.verify() == 0


def test_sentences_of_flickr8k_without_photos_come_too(tmp_path: Path) -> None:
    put(tmp_path / "in/captions_without_images.jsonl", [{"image": "far.jpg", "captions": ["y"]}])
    summary = named(tmp_path, [{"image": "images/a.jpg", "split": "val", "captions": ["x"]}])
    assert summary["splits"] == {"val": 1, "train": 1}


def test_splits_by_image_go_by_name(tmp_path: Path) -> None:
    rows = [{"id": f"{n}", "image": f"{n // 4}.jpg", "captions": ["x"]} for n in range(80)]
    named(tmp_path, rows, split=SplitRule({"val": 0.5}, "image", 0))
    of_picture: dict[str, set[str]] = {}
    for record in open_dataset(tmp_path / "out").records():
        of_picture.setdefault(record.images[0], set()).add(record.split)
    assert all(len(splits) == 1 for splits in of_picture.values())
    assert {split for splits in of_picture.values() for split in splits} == {"train", "val"}


def test_names_that_leave_the_folder_and_images_without_a_name_are_skipped(tmp_path: Path) -> None:
    summary = named(tmp_path, [{"image": name, "captions": ["x"]} for name in ("../a.jpg", "/etc/passwd", "ok.jpg")])
    assert summary["skipped"] == {"path_outside_root": 2}
    put(tmp_path / "csv/in.csv", "b64string_images,caption\nAAAA,text\n")
    with pytest.raises(Exception, match="image_without_name"):
        prepared("csv", tmp_path / "csv/in.csv", tmp_path / "csv/out", source=WITHOUT)


def test_boxes_in_pixels_need_a_size(tmp_path: Path) -> None:
    image = {"id": 9, "file_name": "9.jpg"}
    box = {"id": 1, "image_id": 9, "category_id": 3, "bbox": [10, 10, 30, 20], "iscrowd": 0}
    for name, sized in (("a", {"width": 100, "height": 50}), ("b", {})):
        content = {"images": [{**image, **sized}], "annotations": [box], "categories": [{"id": 3, "name": "car"}]}
        put(tmp_path / name / "instances_val2017.json", content)
        put(
            tmp_path / name / "captions_val2017.json",
            {"images": [{**image, **sized}], "annotations": [{"id": 2, "image_id": 9, "caption": "a car"}]},
        )
        prepared("coco", tmp_path / name, tmp_path / f"{name}-out", source=WITHOUT)
    (line,) = lines(tmp_path / "a-out/records.jsonl")
    assert line["boxes"][0]["xyxy"] == pytest.approx([0.1, 0.2, 0.4, 0.6])
    assert "boxes" not in lines(tmp_path / "b-out/records.jsonl")[0]


def test_a_folder_of_names_can_be_prepared_again(tmp_path: Path) -> None:
    named(tmp_path, [{"image": f"{n}.jpg", "captions": ["x"]} for n in range(3)])
    prepared("records", tmp_path / "out", tmp_path / "again", source=WITHOUT)
    first, second = tree(tmp_path / "out"), tree(tmp_path / "again")
    assert first["records.jsonl"] == second["records.jsonl"]


@pytest.mark.parametrize("other", ["--text-only", "--shards"])
def test_it_does_not_go_with_options_that_mean_the_opposite(tmp_path: Path, other: str) -> None:
    options: dict[str, Any] = {"shards": 10**6}
    if other == "--text-only":
        options = {"source": SourceOptions(without_images=True, text_only=True)}
    with pytest.raises(UsageError, match=f"--without-images and {other}"):
        named(tmp_path, [{"image": "a.jpg", "captions": ["x"]}], **options)
