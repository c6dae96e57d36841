"""Half-truths: which wrong units are made, and that the arithmetic is that of composition."""

import pytest

from sightline.evaluation.tasks import task_by_name
from sightline.types import Box, Components, Entity, Prediction, Record, Relation

BROWN = Components(
    "a brown dog behind a blue car",
    (Entity("brown dog", 0), Entity("blue car", 1)),
    (Relation("brown dog", "behind", "blue car", (0, 1)),),
)
OTHER = Components("a red ball on grass", (Entity("red ball"), Entity("grass")), (Relation("red ball", "on", "grass"),))


def record(name: str, components: Components, extra: str = "") -> Record:
    captions = (components.text, *([extra] if extra else []))
    boxes = (Box("dog", (0, 0, 0.5, 1)), Box("car", (0.5, 0, 1, 1)))
    return Record(id=name, images=(f"{name}.png",), captions=captions, boxes=boxes, components=(components,))


def test_wrong_units_exchange_one_word_of_its_class_that_no_caption_has() -> None:
    task = task_by_name("half_truth", 10)
    records = [record("1", BROWN, "a purple scene of grass"), record("2", OTHER)]
    task.survey(records)
    (query,) = task.queries(records[0], "")
    units, joined = query.record.captions, query.record.negatives
    assert units == ("brown dog", "blue car", "brown dog behind blue car")
    assert query.candidates == (*units, *joined)
    assert query.form == "likelihood"
    kinds = query.record.meta["negative_kinds"]
    for unit, both, kind in zip(units, joined, kinds, strict=True):
        assert both.startswith(f"{unit} and ")
        wrong = both.removeprefix(f"{unit} and ")
        changed = [(a, b) for a, b in zip(unit.split(), wrong.split(), strict=True) if a != b]
        assert len(changed) == 1
        ((_, new),) = changed
        assert new not in " ".join(records[0].captions)
        assert kind == ("relation" if unit == units[2] else "object" if new == "ball" else "attribute")
    assert joined[2] == "brown dog behind blue car and brown dog on blue car"
    assert query.record.components_of(joined[2]).relations[1] == Relation("brown dog", "on", "blue car")
    assert len(query.record.components_of(joined[0]).entities) == 2
    assert task.queries(records[0], "") == (query,)  # the same each time
    assert not task.asks(Record(id="3", images=("a.png",), captions=("x",)))


def test_a_case_is_right_if_the_half_truth_scores_lower() -> None:
    task = task_by_name("half_truth", 10)
    records = [record("1", BROWN), record("2", OTHER)]
    task.survey(records)
    queries = [query for item in records for query in task.queries(item, "")]
    counts = [len(query.record.captions) for query in queries]
    scores = [(*[2.0] * count, 1.0, *[2.0] * (count - 1)) for count in counts]  # the first is right, ties are wrong
    predictions = [Prediction(query.id, scores=values) for query, values in zip(queries, scores, strict=True)]
    found = task.score(queries, predictions)
    assert found["accuracy"].value == pytest.approx(2 / sum(counts))
    assert found["relation"].value == 0
