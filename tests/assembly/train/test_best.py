"""`train.best`: the best checkpoint is that of the lowest validation loss, or of the best score of generated texts."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sightline.assembly.config import locate
from sightline.assembly.config.schema import RunConfig, StageConfig, TrainConfig
from sightline.assembly.train import stage as stage_module
from sightline.assembly.train.run import train
from sightline.assembly.train.run_folder import METRICS
from sightline.errors import ConfigError
from sightline.evaluation.tasks import Query, ScoreInfo
from sightline.evaluation.tasks.caption import Caption
from sightline.metrics.caption import score_captions
from sightline.runtime import storage
from sightline.types import Prediction, Score
from tests.assembly.helpers import run_config
from tests.data.pictures import picture, prepared, put

SAMPLES = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures with two captions each, six of them for validation."""
    place = tmp_path_factory.mktemp("best")
    rows = []
    for n in range(12):
        put(place / f"in/{n}.png", picture(n, size=(40, 30 + n)))
        captions = [f"A dog number {n}.", f"{n} children play."]
        rows.append({"id": f"r{n}", "images": [f"{n}.png"], "captions": captions, "split": "val" if n >= 6 else "train"})
    put(place / "in/records.jsonl", rows)
    prepared("records", place / "in", place / "set")
    return place / "set"


class Scripted(Caption):
    """Scores the texts of successive validations by a given list of values."""

    scores = (ScoreInfo("scripted", "scripted"),)

    def __init__(self, values: Sequence[float]) -> None:
        super().__init__(resamples=1)
        self.values = list(values)
        self.asked: list[list[tuple[str, str]]] = []

    def score(self, queries: Sequence[Query], predictions: Sequence[Prediction]) -> dict[str, Score]:
        self.asked.append([(query.id, prediction.id) for query, prediction in zip(queries, predictions, strict=True)])
        value = self.values[len(self.asked) - 1]
        return {"scripted": Score("scripted", value, value, value, (value,))}


class ScriptedCost(Scripted):
    """The same, where a smaller value is better."""

    scores = (ScoreInfo("scripted", "scripted", higher_is_better=False),)


def config(folder: Path, stages: tuple[StageConfig, ...] = (), **train_keys: Any) -> RunConfig:
    keys = {"epochs": None, "steps": 4, "evaluate_every": 1, "evaluate_samples": SAMPLES, "generate_samples": SAMPLES, "keep": 2}
    return run_config(stages, keys | train_keys, path=str(folder), share_prefix=False)


def validations(run: Path) -> list[dict[str, Any]]:
    return [line for line in storage.read_json_lines(run / METRICS) if line.get("event") == "evaluate"]


def best_step(run: Path) -> int:
    return locate.find_checkpoint(run, "best").saved.progress.step


@pytest.mark.parametrize(("kind", "step"), [(Scripted, 2), (ScriptedCost, 3)])
def test_the_best_score_decides_where_it_is_asked_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Scripted], step: int
) -> None:
    task = kind([0.2, 0.4, 0.1, 0.3])
    monkeypatch.setattr(stage_module, "task_by_name", lambda name, resamples: task)
    train(config(folder, best="score"), tmp_path / "run")
    lines = validations(tmp_path / "run")
    assert [line["validation_score"] for line in lines] == [{"scripted": value} for value in task.values]
    assert best_step(tmp_path / "run") == step
    ids = [made["id"] for made in lines[0]["generated"]]
    assert len(set(ids)) == len(ids) == SAMPLES // 2  # samples are single captions here, two of a record
    assert task.asked == 4 * [[(name, name) for name in ids]]


def test_the_loss_decides_by_default(folder: Path, tmp_path: Path) -> None:
    train(config(folder), tmp_path / "run")
    losses = [line["validation_loss"] for line in validations(tmp_path / "run")]
    assert best_step(tmp_path / "run") == 1 + losses.index(min(losses))
    assert all("validation_score" not in line for line in validations(tmp_path / "run"))


def test_a_loss_is_never_compared_with_a_score(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_module, "task_by_name", lambda name, resamples: Scripted([-90.0, -80.0, -95.0, -99.0]))
    stages = (
        StageConfig(name="first", parts={"connector": "train"}, train={"steps": 2}),
        StageConfig(name="second", parts={"connector": "train"}, train={"best": "score"}),
    )
    train(config(folder, stages), tmp_path / "run")  # every loss is larger than -80
    assert best_step(tmp_path / "run") == 4


def test_the_logged_score_is_that_of_the_texts(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"r7": "A dog number 7.", "r9": "9 children play."}
    generated = stage_module.generated_texts
    monkeypatch.setattr(
        stage_module,
        "generated_texts",
        lambda *arguments: [replace(made, text=told.get(made.query.id, "a cat")) for made in generated(*arguments)],
    )
    train(config(folder, best="score", steps=1, evaluate_every=0), tmp_path / "run")
    (line,) = validations(tmp_path / "run")
    numbers = [int(made["id"].removeprefix("r")) for made in line["generated"]]
    references = [[f"A dog number {n}.", f"{n} children play."] for n in numbers]
    expected = score_captions([made["text"] for made in line["generated"]], references, ("cider",), resamples=1)["cider_d"].value
    assert expected > 0
    assert line["validation_score"] == {"cider_d": pytest.approx(expected)}
    assert line["value"] == line["validation_score"]["cider_d"]


def test_a_stage_without_images_has_no_score(folder: Path, tmp_path: Path) -> None:
    stage = StageConfig(name="words", parts={"language": "train"}, data={"drop_images": True})
    with pytest.raises(ConfigError, match="trains on text alone"):
        train(config(folder, (stage,), best="score"), tmp_path / "run")


def test_a_score_needs_texts() -> None:
    with pytest.raises(ValueError, match="generate_samples"):
        TrainConfig(best="score", generate_samples=0)
