"""Rows of any content: every row of a source is an item or a skip, whatever stands in its fields."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.data.readers import Item
from sightline.data.readers.coco import KEYS as COCO
from sightline.data.readers.flickr8k import KEYS as FLICKR8K
from sightline.data.readers.llava import KEYS as LLAVA
from sightline.data.readers.rows import Keys, all_keys
from sightline.data.readers.tables import PRESETS
from sightline.data.records import RECORD_FIELDS
from sightline.errors import SkipLimitError
from tests.data.pictures import prepared, put, read

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.sampled_from([10**29, -1, 0, 2**63])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.sampled_from(
        ["<image>", "human", "gpt", "user", "a.png", "/etc/passwd", "train", "\ud800", " ", "data:image/png;base64,AAAA"]
    )
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["from", "value", "role", "content", "type", "text", "label", "xyxy"]), inner, max_size=3)
        | st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt"]), "value": inner})
        | st.fixed_dictionaries({"user": inner, "assistant": inner})
        | st.fixed_dictionaries({"category": st.text(max_size=3), "bbox_xywh_frac": st.lists(inner, min_size=4, max_size=4)})
        | st.fixed_dictionaries({"text": st.text(max_size=3), "box_xyxy_frac": st.lists(inner, min_size=4, max_size=4)})
        | st.fixed_dictionaries({"bytes": inner, "path": inner})
    ),
    max_leaves=8,
)


def names(keys: Keys) -> list[str]:
    return sorted({key for value in keys.values() for key in all_keys(value) if key})


FORMATS = {
    "llava": ("chat.jsonl", [*names(LLAVA), "video"]),
    "coco": ("captions.jsonl", names(COCO)),
    "flickr8k": ("captions.jsonl", names(FLICKR8K)),
    "records": ("records.jsonl", sorted(RECORD_FIELDS)),
    "sroie": ("receipts.jsonl", names(PRESETS["sroie"].keys)),
    "nlvr": ("nlvr.jsonl", names(PRESETS["nlvr"].keys)),
    "scienceqa": ("problems.jsonl", names(PRESETS["scienceqa"].keys)),
    "textcaps": ("x.jsonl", [*names(PRESETS["textcaps"].keys), "caption_str", "reference_strs"]),
    "refcocog": ("x.jsonl", names(PRESETS["refcocog"].keys)),
}


@pytest.mark.parametrize("name", FORMATS)
@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_every_row_is_an_item_or_a_skip(tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject) -> None:
    file, keys = FORMATS[name]
    rows: list[dict[str, Any]] = data.draw(st.lists(st.dictionaries(st.sampled_from(keys), VALUES, max_size=6), max_size=8))
    folder = tmp_path_factory.mktemp("any")
    rows.append({"id": "end", "captions": ["whole"]})
    path = put(folder / "in" / file, [*rows])
    items, skips, tally = read(name, path)
    assert len(items) + len(skips) + tally.notes["rows_merged"] == len(rows)
    if items:  # all the way: what a source lets pass must be written, or skipped
        with contextlib.suppress(SkipLimitError):  # nothing of it can be kept
            summary = prepared(name, path, folder / "out")
            assert summary["input"] == len(items) + len(skips) == summary["ok"] + sum(summary["skipped"].values())


@settings(deadline=None, max_examples=40)
@given(
    images=st.lists(st.dictionaries(st.sampled_from(["id", "file_name", "width", "height", "license"]), LEAVES), max_size=4),
    annotations=st.lists(
        st.dictionaries(st.sampled_from(["id", "image_id", "caption", "bbox", "category_id", "iscrowd"]), VALUES), max_size=5
    ),
    categories=VALUES,
)
def test_any_coco_annotations_give_items_and_skips(
    tmp_path_factory: pytest.TempPathFactory, images: list, annotations: list, categories: object
) -> None:
    path: Path = tmp_path_factory.mktemp("coco") / "x.json"
    put(path, json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    items, skips, _ = read("coco", path)
    assert all(isinstance(item, Item) and item.record.id for item in items)
    assert all(skip.reason and skip.where for skip in skips)
