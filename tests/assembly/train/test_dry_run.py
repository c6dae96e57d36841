"""A dry run estimates a run from a few steps and writes nothing; a run ends with its results and the next command."""

import json
import shlex
import tempfile
from pathlib import Path

import pytest

from sightline.assembly.config.resolving import resolve_config
from sightline.assembly.config.schema import RunConfig, StageConfig
from sightline.assembly.train import run as training
from sightline.assembly.train.dry_run import RunEstimate, StageEstimate, dry_run
from sightline.assembly.train.outcome import next_command, outcome_lines
from sightline.errors import UsageError
from tests.assembly.helpers import run_config
from tests.cli.helpers import command_line, options_of
from tests.data.check.planted import folder, png, record, scene
from tests.data.pictures import tree

STAGES = (
    StageConfig(name="align", parts={"connector": "train"}),
    StageConfig(name="gain", parts={"connector": "train"}, objective={"kind": "cal"}, train={"epochs": 1.5}),
    StageConfig(name="words", parts={"language": "train"}, data={"drop_images": True}, train={"steps": 5}),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "set"
    rows = [record(f"r{n}", f"{n}.png", "val" if n > 25 else "train", [f"a dog {n}", f"the dog number {n}"]) for n in range(32)]
    folder(path, rows, {f"{n}.png": png(scene(n, 64)) for n in range(32)})
    return path


@pytest.fixture(scope="module")
def config(data: Path) -> RunConfig:
    train = {"evaluate_every": 10, "evaluate_samples": 6, "generate_samples": 2}
    return resolve_config(run_config(STAGES, train, path=str(data)), None, ["runtime.device=cpu", "runtime.threads=1"])


@pytest.fixture(scope="module")
def estimated(config: RunConfig, data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunEstimate:
    """The estimate; data, the working directory and the place for temporary files are as before."""
    place = tmp_path_factory.mktemp("place")
    (place / "own.txt").write_text("mine", "utf-8")
    before = tree(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(tempfile, "tempdir", str(place))
        found = dry_run(config)
    assert tree(data) == before
    assert [item.name for item in place.iterdir()] == ["own.txt"]
    return found


@pytest.fixture(scope="module")
def run(config: RunConfig, estimated: RunEstimate, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int | None]:
    path = tmp_path_factory.mktemp("run") / "r"
    return path, training.train(config, path).best_step


def test_a_dry_run_has_the_lengths_of_the_run(estimated: RunEstimate, run: tuple[Path, int | None]) -> None:
    lines = [json.loads(line) for line in (run[0] / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [stage.name for stage in estimated.stages] == ["align", "gain", "words"]
    for stage in estimated.stages:
        steps = [line for line in lines if line["stage"] == stage.name and "loss" in line]
        assert stage.steps == len(steps)
        assert stage.steps_per_epoch == sum(line["epoch"] == 0 for line in steps) or stage.name == "words"
        assert stage.validations == sum(line["stage"] == stage.name and line.get("event") == "evaluate" for line in lines)
        assert stage.tokens is not None
        assert stage.tokens <= sum(line["tokens"] for line in steps)  # the log counts padding too
        assert stage.tokens > 0.3 * sum(line["tokens"] for line in steps)
        assert stage.measured == 5
        assert stage.step_seconds > 0
        assert stage.validation_seconds > 0
    card = (run[0] / "card.md").read_text("utf-8")
    assert f"{estimated.stages[2].parameters:,}" in card
    assert estimated.memory_bytes > 1e8


def test_an_estimate_adds_up() -> None:
    one = StageEstimate("align", 100, 50, 4, 2000, 10, 0.5, 3, 10.0, 5)
    two = StageEstimate("instruct", 7000, 700, 8, 40_000, 20, 1.0, 0, 0.0, 5)
    found = RunEstimate("x", "cpu", (one, two), int(2.5e9))
    assert (one.seconds, found.seconds, found.steps, found.tokens) == (80.0, 7080.0, 7100, 42_000)
    lines = found.lines()
    assert "  length      100 steps of 4 rows, 50 per epoch; 2,000 tokens" in lines
    assert "  time        0:01:20: 0.500 s a step (5 measured), 3 validations of 10.0 s" in lines
    assert "in all        7,100 steps, 42,000 tokens, about 1:58:00 and checkpoints" in lines
    assert "memory        about 2.5 GB of the process, the peak of the measured steps" in lines
    assert found.to_json()["seconds"] == 7080.0


def test_several_processes_are_not_measured(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="without torchrun"):
        dry_run(config)


def test_a_run_ends_with_its_validations_and_a_command_that_exists(config: RunConfig, run: tuple[Path, int | None]) -> None:
    lines = outcome_lines(config, *run)
    checks = [json.loads(line) for line in (run[0] / "metrics.jsonl").read_text("utf-8").splitlines() if "validation_loss" in line]
    assert lines[0].startswith(f"trained: {checks[-1]['step']:,} steps in 0:0")
    assert lines[1] == f"validation: loss {checks[-1]['validation_loss']:.4f} (step {checks[-1]['step']:,})"
    assert lines[-1] == f"next: sightline report {run[0]} --data {config.data.path} --split val"


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ([], "report RUN --data SET --split val"),
        (["data.validation_split=tune"], "report RUN --data SET --split val"),
        (["data.features=STORE"], "report RUN --data SET --split val --features STORE"),
        (["model.vision=null", "stages=[{name: words, parts: {language: train}}]"], "generate RUN --prompt"),
    ],
)
def test_the_next_command_fits_the_model(config: RunConfig, data: Path, changes: list[str], wanted: str) -> None:
    command = next_command(resolve_config(config, None, changes), Path("RUN"))
    words = shlex.split(command)
    assert " ".join(words[1:]).replace(str(data), "SET").startswith(wanted)
    verb, options = command_line(words[1:])
    assert set(options) <= options_of(verb)
