"""Runs of ComAlign: to the bit after a kill, from stored features, on two ranks, then retrieval, composition and controls."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sightline.assembly.evaluate.evaluate import evaluate
from sightline.assembly.model.build import read_model
from sightline.errors import UsageError
from sightline.evaluation.spec import EvalSpec
from sightline.training import checkpoint
from tests.assembly.train.helpers import prepared_scenes
from tests.assembly.train.pair_runs import assert_equal_weights, finished, last_weights, lines, written
from tests.builders import encoder_folder
from tests.duals import dual_folder, text_folder
from tests.processes import Commands


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    with Commands() as server:
        yield server


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_scenes(tmp_path_factory.mktemp("scenes") / "set", 60, "--level", "2")


def settings(scenes: Path, grid: bool, **alignment: Any) -> dict[str, Any]:
    sizes = {"entities": 2, "relations": 1, "boxes": "record", "heads": 2, **alignment}
    if grid:
        text = {"path": str(text_folder())}
        model: dict[str, Any] = {
            "vision": {"path": str(encoder_folder("mobilenet_v2"))},
            "dual": {"text": text, "width": 8, "pooling": "mean", "alignment": sizes},
        }
    else:
        model = {"dual": {"path": str(dual_folder("siglip")), "alignment": sizes}}
    return {
        "model": model,
        "objective": {"kind": "comalign", "hard_negatives": 1, "held_out": 4},
        "data": {"path": str(scenes), "captions": "one", "pack": False, "share_prefix": False},
        "train": {"batch_size": 6, "lr": 0.01, "steps": 6, "checkpoint_every": 2, "evaluate_every": 3, "evaluate_samples": 8},
        "stages": [{"name": "align", "parts": {"alignment": "train"}}],
        "runtime": {"device": "cpu", "threads": 1},
    }


def test_a_killed_run_goes_on_to_the_bit_and_is_asked_by_level(scenes: Path, tmp_path: Path, commands: Commands) -> None:
    config = written(tmp_path / "config.yaml", settings(scenes, grid=False, sides="both", temperature=0.1))
    whole = finished(commands, config, tmp_path / "whole")
    code, said = commands.run(["train", "--config", config, "--out", tmp_path / "killed"], "step.end=kill@5")
    assert code == -9, said
    killed = finished(commands, config, tmp_path / "killed")
    assert lines(whole) == lines(killed)
    assert_equal_weights(whole, killed)
    steps = [line for line in lines(whole) if "loss" in line]
    assert {"global", "entity", "relation", "scale"} <= steps[0].keys()
    assert steps[0]["loss"] == pytest.approx(sum(steps[0][level] for level in ("global", "entity", "relation")), rel=1e-5)
    assert steps[-1]["scale"] != steps[0]["scale"]
    (check, *_) = [line for line in lines(whole) if line.get("event") == "evaluate"]
    assert 0 <= check["held_out_t2i_r1"] <= 1
    saved = checkpoint.newest(whole)
    assert saved is not None
    first = checkpoint.newest(killed)
    assert first is not None
    assert sorted(file.name for file in (saved.path / "model").glob("*.safetensors")) == [
        "alignment.safetensors",
        "dual.safetensors",
    ]
    weights = json.loads((saved.path / "model/config.json").read_text())["score_weights"]
    assert weights == json.loads((first.path / "model/config.json").read_text())["score_weights"]
    assert set(weights["t2i"]) == {"plain", "global", "entity", "relation"}
    assert sum(weights["t2i"].values()) == pytest.approx(1)
    frozen = read_model(dual_folder("siglip")).inner.state_dict()
    mine = last_weights(whole)
    assert all((mine[f"dual.{name}"] == value).all() for name, value in frozen.items() if f"dual.{name}" in mine)
    for task in ("retrieval", "composition"):
        spec = EvalSpec(data=str(scenes), task=task, split="train", resamples=10)
        done = evaluate(spec, str(whole), threads=1)
        assert done.scores[done.task.headline.name].n == len(done.queries) > 20
        shuffled = evaluate(spec.model_copy(update={"control": "shuffled"}), str(whole), threads=1)
        assert shuffled.scores != done.scores
    blind = evaluate(spec.model_copy(update={"control": "blind", "task": "retrieval"}), str(whole), threads=1)
    assert blind.scores["t2i_r1"].value < 0.1
    values = {}
    for scoring in ("mean", "published"):
        spec = EvalSpec(data=str(scenes), task="retrieval", split="train", resamples=10, scoring=scoring)
        values[scoring] = evaluate(spec, str(whole), threads=1).folder
    assert values["mean"] != values["published"]
    with pytest.raises(UsageError, match="whole gallery"):
        evaluate(EvalSpec(data=str(scenes), task="composition", split="train", scoring="published"), str(whole), threads=1)
    with pytest.raises(UsageError, match="light networks"):
        evaluate(EvalSpec(data=str(scenes), task="retrieval", split="train", scoring="mean"), str(dual_folder("siglip")), threads=1)


@pytest.mark.parametrize("grid", [True, False])
def test_stored_features_train_the_same(grid: bool, scenes: Path, tmp_path: Path, commands: Commands) -> None:
    run = settings(scenes, grid)
    run["train"] |= {"steps": 3, "checkpoint_every": 0, "evaluate_every": 0}
    config = written(tmp_path / "config.yaml", run)
    whole = finished(commands, config, tmp_path / "whole")
    store = tmp_path / "store"
    arguments = ["data", "features", scenes, "--config", config, "--out", store, "--dtype", "fp32", "--device", "cpu"]
    code, said = commands.run(arguments)
    assert code == 0, said
    summary = json.loads((store / "store.json").read_text())
    assert summary["rows"] == summary["ok"] * (1 if grid else 4)
    run["data"]["features"] = str(store)
    stored = finished(commands, written(tmp_path / "stored.yaml", run), tmp_path / "stored")
    for mine, theirs in zip(lines(whole), lines(stored), strict=True):
        if "loss" in mine:
            assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-4)
    spec = EvalSpec(data=str(scenes), task="retrieval", split="val", resamples=10, features=str(store))
    assert evaluate(spec, str(stored), threads=1).scores["rsum"].n > 2
    assert evaluate(spec.model_copy(update={"control": "blind"}), str(stored), threads=1).scores["rsum"].n > 2


def test_a_step_of_two_ranks_is_that_of_one(scenes: Path, tmp_path: Path, commands: Commands) -> None:
    run = settings(scenes, grid=True, dropout=0.0)
    run["train"] |= {"steps": 2, "checkpoint_every": 0, "evaluate_every": 0, "lr": 1e-3}
    config = written(tmp_path / "config.yaml", run)
    one = finished(commands, config, tmp_path / "one")
    for command in commands.ranks(2, ["train", "--config", config, "--out", tmp_path / "two"]):
        assert command.wait() == 0, command.said
    for mine, theirs in zip(lines(one), lines(tmp_path / "two"), strict=True):
        if "loss" in mine:
            assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-4)
            assert theirs["grad_norm"] == pytest.approx(mine["grad_norm"], rel=1e-3)


def test_levels_need_components(scenes: Path, tmp_path: Path, commands: Commands) -> None:
    run = settings(scenes, grid=True, relations=0)
    code, said = commands.run(["train", "--config", written(tmp_path / "one.yaml", run), "--out", tmp_path / "one"])
    assert code == 2
    assert "no such components" in said
    run["objective"] = {"kind": "info_nce"}
    code, said = commands.run(["train", "--config", written(tmp_path / "two.yaml", run), "--out", tmp_path / "two"])
    assert code == 2
    assert "objective.kind=comalign" in said
