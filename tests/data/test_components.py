"""Entities and relations of captions: their form, what prepare does with them, and that those of scenes are true."""

import re
from pathlib import Path
from typing import Any

import pytest

from sightline.data.dataset import open_dataset
from sightline.data.readers import SourceOptions
from sightline.data.records import record_from_json, record_to_json
from sightline.data.scenes import generate
from sightline.errors import RecordError
from sightline.types import Components, Entity, Relation
from tests.data.pictures import picture, prepared, put

CAPTION = "A brown dog runs behind a blue car."
BOXES = [
    {"label": "dog", "xyxy": [0.1, 0.5, 0.4, 0.9], "score": 0.9},
    {"label": "car", "xyxy": [0.3, 0.3, 0.9, 0.8], "score": 0.8},
]
ENTRY = {
    "text": CAPTION,
    "entities": [{"text": "brown dog", "box": 0}, {"text": "blue car"}],
    "relations": [{"subject": "brown dog", "relation": "runs behind", "object": "blue car", "boxes": [0, 1]}],
}


def row(**changes: Any) -> dict[str, Any]:
    return {"id": "1", "split": "train", "captions": [CAPTION], "boxes": BOXES, "components": [ENTRY], **changes}


def test_components_are_read_and_written() -> None:
    record = record_from_json(row())
    relation = Relation("brown dog", "runs behind", "blue car", (0, 1))
    assert record.components == (Components(CAPTION, (Entity("brown dog", 0), Entity("blue car")), (relation,)),)
    assert record_to_json(record)["components"] == [ENTRY]
    assert relation.text == "brown dog runs behind blue car"
    assert record.components_of(CAPTION).relations == (relation,)
    assert record.components_of("another") == Components("another")


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ("text", "an entry of 'components'"),
        (ENTRY | {"text": "A cat."}, "A cat"),
        (ENTRY | {"entities": [{"text": " "}]}, "empty phrase"),
        (ENTRY | {"entities": [{"text": "dog", "box": 2}]}, r"boxes \[0, 1, 2\]; the record has 2"),
        (ENTRY | {"entities": [{"text": "dog", "box": -1}]}, r"boxes \[-1"),
        (ENTRY | {"entities": [{"text": "dog", "box": True}]}, "an entity is"),
        (ENTRY | {"entities": [{"name": "dog"}]}, "an entity is"),
        (ENTRY | {"entities": "dog"}, "'entities' must be a list"),
        (ENTRY | {"relations": [{"subject": "dog", "relation": "on", "object": "car", "boxes": [0]}]}, "a relation is"),
        (ENTRY | {"relations": [{"subject": "dog", "relation": "on"}]}, "a relation is"),
    ],
)
def test_wrong_components_are_refused(entry: Any, named: str) -> None:
    with pytest.raises(RecordError, match=named):
        record_from_json(row(components=[entry]))
    with pytest.raises(RecordError, match="no caption or negative"):
        record_from_json(row(components=[ENTRY, ENTRY]))  # one entry for each text


@pytest.mark.parametrize("options", [{}, {"shards": 30_000}])
def test_prepare_keeps_components_cleans_them_and_drops_those_of_dropped_captions(tmp_path: Path, options: dict[str, Any]) -> None:
    put(tmp_path / "in/a.png", picture(1))
    extra = {"text": "nan", "entities": [{"text": "nan"}], "relations": []}
    unclean = {**ENTRY, "text": CAPTION + "\u200b", "entities": [{"text": "brown\u200b dog", "box": 0}, {"text": "blue car"}]}
    entry = {"text": "", "entities": [], "relations": []}
    source = row(images=["a.png"], captions=[CAPTION + "\u200b", "nan", ""], components=[unclean, extra, entry])
    put(tmp_path / "in/records.jsonl", [source])
    summary = prepared("records", tmp_path / "in", tmp_path / "out", **options)
    assert (summary["ok"], summary["ignored"]) == (1, {})
    record = open_dataset(tmp_path / "out").record(0)
    assert record_to_json(record)["components"] == [ENTRY]
    prepared("records", tmp_path / "out", tmp_path / "again")
    assert open_dataset(tmp_path / "again").record(0).components == record.components


def test_text_only_keeps_phrases_without_boxes(tmp_path: Path) -> None:
    put(tmp_path / "in/records.jsonl", [row()])
    prepared("records", tmp_path / "in", tmp_path / "out", source=SourceOptions(text_only=True))
    (components,) = open_dataset(tmp_path / "out").record(0).components
    assert [entity.box for entity in components.entities] == [None, None]
    assert components.relations == (Relation("brown dog", "runs behind", "blue car"),)


def test_grouping_joins_components(tmp_path: Path) -> None:
    put(tmp_path / "in/a.png", picture(1))
    others = [{"text": text, "entities": [{"text": text}], "relations": []} for text in ("dog", "car")]
    rows = [
        row(id=str(number), images=["a.png"], captions=[other["text"]], components=[other]) for number, other in enumerate(others)
    ]
    rows.append({**row(id="2", images=["a.png"], captions=["tree", "dog"]), "components": [others[0]]})
    rows.append({name: value for name, value in row(id="3", images=["a.png"], captions=["grass"]).items() if name != "components"})
    put(tmp_path / "in/records.jsonl", rows)
    prepared("records", tmp_path / "in", tmp_path / "out", group="image")
    (record,) = open_dataset(tmp_path / "out").records()
    assert record.captions == ("dog", "car", "tree", "dog", "grass")
    assert [item.text for item in record.components] == ["dog", "car"]


@pytest.mark.parametrize("level", [1, 2, 3])
def test_components_of_scenes_are_in_the_text_and_their_boxes_in_the_image(level: int) -> None:
    """Read back from words and boxes alone."""
    related = boxed = 0
    for record, _ in generate(60, 5, level):
        assert {item.text for item in record.components} == {*record.captions, *record.negatives}
        record_from_json(record_to_json(record))
        for components in record.components:
            is_true = components.text in record.captions
            for entity in components.entities:
                assert entity.text in components.text
                alike = [
                    number
                    for number, box in enumerate(record.boxes)
                    if set(re.split(r"\W+", entity.text)) - {"one", "shape"} <= {*box.label.split()}
                ]
                assert entity.box == (alike[0] if len(alike) == 1 else None)
                boxed += entity.box is not None
            for relation in components.relations:
                assert relation.subject in components.text
                assert relation.object in components.text
                assert relation.relation in components.text or relation.relation == "reads"  # also where the text has "says"
                if relation.boxes is not None:
                    assert is_true
                    one, other = (record.boxes[number].xyxy for number in relation.boxes)
                    assert {
                        "to the left of": one[2] < other[0],
                        "to the right of": one[0] > other[2],
                        "above": one[3] < other[1],
                        "below": one[1] > other[3],
                        "inside": one[0] > other[0] and one[2] < other[2],
                        "around": one[0] < other[0] and one[2] > other[2],
                    }[relation.relation]
                    related += 1
            assert level != 2 or not is_true or all(relation.boxes for relation in components.relations)
    assert boxed > 50
    assert (related > 0) == (level > 1)
