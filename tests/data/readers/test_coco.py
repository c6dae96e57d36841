"""COCO's annotation files, Karpathy's split file, and jsonl with objects; boxes against hand-computed fractions."""

from pathlib import Path

import pytest

from sightline.data.readers import ImageInRoot
from sightline.errors import DataError
from sightline.types import Box
from tests.data.pictures import put, read

IMAGES = [
    {"id": 9, "file_name": "000000000009.jpg", "width": 200, "height": 100, "license": 4, "coco_url": "http://x"},
    {"id": 25, "file_name": "000000000025.jpg", "width": 50, "height": 50, "license": 1},
]
CAPTIONS = {
    "info": {},
    "licenses": [{"id": 4, "name": "Attribution License", "url": "u"}],
    "images": IMAGES,
    "annotations": [
        {"id": 1, "image_id": 25, "caption": "A giraffe. "},
        {"id": 2, "image_id": 9, "caption": "Food."},
        {"id": 3, "image_id": 25, "caption": "Two giraffes.\n"},
    ],
}
INSTANCES = {
    "images": IMAGES,
    "categories": [{"id": 1, "name": "person", "supercategory": "p"}, {"id": 3, "name": "car", "supercategory": "v"}],
    "annotations": [
        {"id": 1, "image_id": 9, "category_id": 3, "bbox": [20, 10, 100, 50], "iscrowd": 0, "area": 1, "segmentation": [[1]]},
        {"id": 2, "image_id": 9, "category_id": 1, "bbox": [150, 0, 80, 100], "iscrowd": 1, "area": 1, "segmentation": {}},
        {"id": 3, "image_id": 9, "category_id": 1, "bbox": [10, 10, 0, 5], "iscrowd": 0},
    ],
}


def coco_folder(folder: Path) -> Path:
    put(folder / "annotations/captions_val2017.json", CAPTIONS)
    put(folder / "annotations/instances_val2017.json", INSTANCES)
    put(folder / "annotations/person_keypoints_val2017.json", {})
    for image in IMAGES:
        put(folder / "val2017" / str(image["file_name"]), b"image")
    return folder


def test_captions_and_boxes_of_an_image_meet_in_one_record(tmp_path: Path) -> None:
    items, skips, tally = read("coco", coco_folder(tmp_path))
    assert not skips
    first, second = (item.record for item in items)
    assert (first.id, first.split, first.captions) == ("9", "val", ("Food.",))
    assert second.captions == ("A giraffe.", "Two giraffes.")
    assert first.boxes == (Box("car", (0.1, 0.1, 0.6, 0.6)), Box("person", (0.75, 0.0, 1.0, 1.0)))  # cut at the right border
    assert first.meta == {"crowd": [1], "license": "Attribution License"}
    assert tally.notes == {"bad_box": 1}
    assert tally.ignored == {
        "images.coco_url": 1,
        "annotations.area": 2,
        "annotations.segmentation": 2,
        "categories.supercategory": 2,
        "info": 1,
        "licenses.url": 1,
    }
    assert items[0].sizes == ((200, 100),)


def test_images_are_found_in_the_folder_of_the_set(tmp_path: Path) -> None:
    items, _, _ = read("coco", coco_folder(tmp_path) / "annotations/captions_val2017.json")
    ref = items[0].images[0]
    assert isinstance(ref, ImageInRoot)
    assert ref.root.fetch(ref.name) == tmp_path / "val2017/000000000009.jpg"


def test_instances_alone_have_the_names_of_their_objects_as_text(tmp_path: Path) -> None:
    put(tmp_path / "instances_train2017.json", INSTANCES)
    items, _, _ = read("coco", tmp_path / "instances_train2017.json")
    assert items[0].record.captions == ("car, person",)
    assert items[0].record.meta["caption_from"] == "labels"
    assert items[0].record.split == "train"


def test_annotations_that_fit_nothing_are_skipped_and_counted(tmp_path: Path) -> None:
    annotations = [
        {"id": 1, "image_id": 77, "caption": "of no image"},
        {"id": 2, "image_id": 9, "caption": 5},
        {"id": 3, "caption": "of nothing"},
        {"id": 4, "image_id": 9, "category_id": 99, "bbox": [0, 0, 1, 1]},
    ]
    images = [*IMAGES, {"id": 25, "file_name": "other.jpg"}, {"id": 30, "file_name": None}]
    put(tmp_path / "x.json", {"images": images, "annotations": annotations})
    items, skips, _ = read("coco", tmp_path / "x.json")
    assert sorted(skip.reason for skip in skips) == [
        "bad_caption",
        "bad_id",
        "bad_image",
        "duplicate_id",
        "unknown_category",
        "unknown_image",
    ]
    assert [item.record.id for item in items] == ["25"]


def test_ids_that_are_no_ids_are_skipped_or_counted(tmp_path: Path) -> None:
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 9, "height": 7, "license": [1]}, {"id": 2, "file_name": "2.jpg"}],
        "annotations": [
            {"image_id": 1, "caption": "c"},
            {"image_id": 2, "caption": "c"},
            {"image_id": 2, "category_id": {"x": 1}, "bbox": [0, 0, 1, 1]},
        ],
        "categories": [{"id": [], "name": "person"}, "car"],
        "licenses": [{"name": "none"}],
    }
    put(tmp_path / "x.json", content)
    items, skips, tally = read("coco", tmp_path / "x.json")
    assert [item.record.id for item in items] == ["1"]
    assert [(skip.id, skip.reason) for skip in skips] == [("2", "unknown_category")]
    assert tally.ignored == {"categories": 2, "licenses": 1}


@pytest.mark.parametrize("order", [("images", "annotations"), ("annotations", "images")])
def test_the_order_of_the_lists_does_not_matter(tmp_path: Path, order: tuple[str, str]) -> None:
    put(tmp_path / "x.json", {name: CAPTIONS[name] for name in order})
    items, _, _ = read("coco", tmp_path / "x.json")
    assert [item.record.captions for item in items] == [("Food.",), ("A giraffe.", "Two giraffes.")]


def test_karpathys_file_gives_the_splits_that_are_published(tmp_path: Path) -> None:
    def image(cocoid: int, split: str) -> dict:
        sentences = [{"raw": f"Caption of {cocoid}. ", "tokens": ["caption"], "imgid": 1, "sentid": 2}]
        name = f"COCO_val2014_{cocoid:012d}.jpg"
        return {
            "filepath": "val2014",
            "filename": name,
            "imgid": 1,
            "cocoid": cocoid,
            "split": split,
            "sentids": [2],
            "sentences": sentences,
        }

    rows = [image(1, "test"), image(2, "restval"), image(3, "val"), image(4, "train")]
    put(tmp_path / "dataset_coco.json", {"images": rows, "dataset": "coco"})
    items, skips, tally = read("coco", tmp_path)
    assert not skips
    assert tally.ignored == {"dataset": 1, "sentences.tokens": 4}
    assert [item.record.split for item in items] == ["test", "train", "val", "train"]
    assert items[1].record.meta == {"karpathy_split": "restval"}
    assert items[0].record.captions == ("Caption of 1.",)
    ref = items[0].images[0]
    assert isinstance(ref, ImageInRoot)
    assert ref.name == "val2014/COCO_val2014_000000000001.jpg"


def test_jsonl_with_objects_is_read(tmp_path: Path) -> None:
    objects = [{"category": "dog", "bbox_xywh_frac": [0.25, 0.5, 0.25, 0.75], "crowd": 1}]
    rows = [
        {"image": "images/1.jpg", "coco_id": 790, "captions": ["a", "b"], "objects": objects, "license": "CC", "flickr_url": "u"},
        {"image": "images/2.jpg", "coco_id": 791, "captions": ["c"], "objects": None},
        {"image": "images/3.jpg", "coco_id": 792, "captions": ["c"], "objects": [{"category": "dog"}]},
    ]
    put(tmp_path / "captions.jsonl", rows)
    items, skips, tally = read("coco", tmp_path)
    assert items[0].record.boxes == (Box("dog", (0.25, 0.5, 0.5, 1.0)),)
    assert items[0].record.meta == {"crowd": [0], "license": "CC"}
    assert items[0].record.id == "790"
    assert items[1].record.boxes == ()
    assert [skip.reason for skip in skips] == ["bad_boxes"]
    assert tally.ignored == {"flickr_url": 1}


def test_files_of_another_form_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="captions_"):
        read("coco", tmp_path)
    with pytest.raises(DataError, match="'images' or 'annotations' is missing"):
        read("coco", put(tmp_path / "a.json", {"images": []}))
    with pytest.raises(DataError, match="an object"):
        read("coco", put(tmp_path / "b.json", []))
    with pytest.raises(DataError, match="stands twice"):
        read("coco", put(tmp_path / "c.json", '{"images": [], "annotations": [], "images": []}'))
