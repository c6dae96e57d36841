"""Scores of retrieval and composition from hand-made answers."""

import pytest

from sightline.evaluation.tasks import task_by_name
from sightline.metrics.retrieval import RankedImage
from sightline.types import Prediction, Record


def record(name: str, **fields: object) -> Record:
    return Record(name, images=(f"{name}.png",), captions=("a", "b"), **fields)  # type: ignore[arg-type]


def test_retrieval_means_over_images_and_over_captions() -> None:
    task = task_by_name("retrieval", resamples=20)
    records = [record("one"), Record("two", images=("two.png",), captions=("a",) * 7)]
    queries = [query for item in records for query in task.queries(item, "")]
    assert [len(query.candidates) for query in queries] == [2, 5]  # the first five captions take part
    right, wrong, far = (0, 1, 1), (1, 1, 1), (20, 1, 1)
    ranked = [RankedImage(right, 1.0, 0.75, (right, far)), RankedImage(wrong, 0.5, 0.25, (wrong, wrong, wrong, wrong, right))]
    predictions = [Prediction(query.id, scores=rank.to_scores()) for query, rank in zip(queries, ranked, strict=True)]
    scores = task.score(queries, predictions)
    assert set(scores) == {info.name for info in task.scores}
    values = {name: score.value for name, score in scores.items()}
    assert values["i2t_r1"] == 0.5
    assert values["i2t_r5"] == 1.0
    assert values["t2i_r1"] == pytest.approx(2 / 7)
    assert values["t2i_r10"] == pytest.approx(6 / 7)
    assert values["rsum"] == pytest.approx(100 * (0.5 + 1 + 1 + 2 / 7 + 6 / 7 + 6 / 7))
    assert scores["t2i_r1"].items == (0.5, 0.2)
    assert values["t2i_median_rank"] == 2
    assert values["i2t_map_at_r"] == 0.5
    assert all(score.low <= score.value <= score.high for score in scores.values())


def test_composition_pairs_each_negative_with_its_caption() -> None:
    task = task_by_name("composition", resamples=20)
    meta = {"negative_of": [0, 1, 1], "negative_kinds": ["swap", "swap", "count"]}
    one = record("one", negatives=("x", "y", "z"), meta=meta)
    two = record("two", negatives=("x",), meta={"subset": "swap"})
    queries = [query for item in (one, two) for query in task.queries(item, "")]
    assert queries[0].candidates == ("a", "b", "x", "y", "z")
    assert queries[0].form == "likelihood"
    predictions = [Prediction("one", scores=(3.0, 1.0, 2.0, 1.0, 0.0)), Prediction("two", scores=(1.0, 9.0, 2.0))]
    scores = task.score(queries, predictions)
    # one: a > x, b = y (a tie is wrong), b > z; two: a < x
    assert scores["accuracy"].value == pytest.approx(2 / 4)
    assert scores["accuracy"].items == (pytest.approx(2 / 3), 0.0)
    assert scores["swap"].value == pytest.approx(1 / 3)
    assert scores["count"].value == 1.0
    assert scores["macro"].value == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((4.0, 1.0), (4.0, 1.0), (1, 1, 1)),  # s(C0,I0), s(C1,I0); s(C1,I1), s(C0,I1)
        ((4.0, 3.0), (2.0, 1.0), (1, 0, 0)),  # each image has its caption, but caption 1 prefers image 0
        ((2.0, 3.0), (4.0, 1.0), (0, 1, 0)),
        ((2.0, 2.0), (2.0, 2.0), (0, 0, 0)),  # ties are wrong
    ],
)
def test_winoground(first: tuple[float, float], second: tuple[float, float], expected: tuple[int, int, int]) -> None:
    task = task_by_name("composition", resamples=20)
    records = [
        Record(f"{side}", images=(f"{side}.png",), captions=(own,), negatives=(other,), meta={"group": 5})
        for side, own, other in ((0, "c0", "c1"), (1, "c1", "c0"))
    ]
    queries = [query for item in records for query in task.queries(item, "")]
    scores = task.score(queries, [Prediction("0", scores=first), Prediction("1", scores=second)])
    assert tuple(scores[name].value for name in ("text", "image", "group")) == expected


def test_classify_takes_the_mean_over_templates_and_shares_ties() -> None:
    task = task_by_name("classify", resamples=20)
    records = [Record(name, images=("a.png",), captions=(label,)) for name, label in (("1", "dog"), ("2", "cat"), ("3", "dog"))]
    records.append(Record("4", images=("a.png",), captions=("x", "y"), meta={"label": "cow"}))
    assert all(task.asks(item) for item in records)
    assert not task.asks(Record("5", images=("a.png",), captions=("x", "y")))
    task.survey(records)
    queries = [query for item in records for query in task.queries(item, "a {label}.|the {label}")]
    assert queries[0].candidates == ("a cat.", "the cat", "a cow.", "the cow", "a dog.", "the dog")
    assert queries[3].answers == ("a cow.", "the cow")
    given = [(0, 0, 5, 0, 2, 4), (0, 0, 0, 0, 0, 0), (1, 1, 2, 2, 0, 0), (0, 0, 1, 1, 0, 0)]
    scores = task.score(queries, [Prediction(query.id, scores=row) for query, row in zip(queries, given, strict=True)])
    assert scores["accuracy"].items == (1.0, pytest.approx(1 / 3), 0.0, 1.0)
    assert scores["top5"].value == 1.0
