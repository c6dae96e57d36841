"""A run that is killed, stopped, or loses a checkpoint ends as one that was left alone: to the bit, with the same command."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sightline.assembly.config.epochs import samples_per_epoch
from sightline.assembly.config.schema import SourceConfig
from sightline.cli import main
from sightline.data.dataset import open_dataset
from sightline.runtime import storage
from sightline.training import checkpoint
from tests.assembly.train.helpers import prepared_scenes
from tests.builders import decoder_folder, encoder_folder
from tests.processes import Commands

OF_THE_CLOCK = {"seconds", "tokens_per_s", "wait_share"}


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    with Commands() as server:
        yield server


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_scenes(tmp_path_factory.mktemp("scenes") / "set", 24)


def settings(scenes: Path, kind: str) -> dict[str, Any]:
    """A run of ten steps that has what could be forgotten: dropout, random masks, stored contrast, adapters, accumulation."""
    run: dict[str, Any] = {
        "model": {"vision": {"path": str(encoder_folder("siglip"))}, "language": {"path": str(decoder_folder("llama"))}},
        "data": {"path": str(scenes), "max_tokens": 96, "row_tokens": 128, "max_skipped": 0.5},
        "train": {"batch_size": 2, "lr": 0.01, "checkpoint_every": 2, "evaluate_every": 2, "evaluate_samples": 2, "warmup": 2},
        "runtime": {"device": "cpu", "threads": 1},
    }
    run["train"] |= {"generate_samples": 1 if kind == "full" else 0, "weight_decay": 0.1}
    adapters = {"lr": 0.01, "lora": {"r": 2, "dropout": 0.2, "full": ["norms"]}}
    if kind == "full":
        run["train"] |= {"steps": 7, "accumulate": 2, "evaluate_every": 3}
        run["stages"] = [{"name": "full", "parts": {"vision": "train", "connector": "train", "language": 0.001}}]
    else:
        run["objective"] = {"kind": "cal"}
        run["stages"] = [
            {"name": "align", "parts": {"connector": "train"}, "train": {"steps": 5}},
            {
                "name": "instruct",
                "parts": {"connector": "train", "language": adapters},
                "objective": {"contrast": "masked"},
                "train": {"epochs": 1},
                "data": {"captions": "first", "limit": 12, "pack": False, "share_prefix": False},
            },
        ]
    return run


def written(folder: Path, run: dict[str, Any]) -> Path:
    file = folder / "config.yaml"
    file.write_text(json.dumps(run))
    return file


KINDS = ["full", "stages"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, scenes: Path, commands: Commands) -> dict[str, tuple[Path, Path]]:
    """For each kind its settings and a run that nobody disturbed."""
    made = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp(kind)
        config = written(folder, settings(scenes, kind))
        code, said = commands.run(["train", "--config", config, "--out", folder / "run"])
        assert code == 0, said
        made[kind] = (config, folder / "run")
    return made


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = storage.read_json_lines(run / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key not in OF_THE_CLOCK} for line in lines]


def files(run: Path) -> dict[int, dict[str, Any]]:
    """Size and hash of every file of every checkpoint: weights, adapters, optimiser, random states, place in the data."""
    return {step: storage.verify_dir(checkpoint.path_of(run, step))["files"] for step in checkpoint.steps(run)}


def assert_same_run(run: Path, reference: Path) -> None:
    assert metrics(run) == metrics(reference)
    mine, theirs = files(run), files(reference)
    assert list(theirs) == list(mine)
    for step, entries in theirs.items():
        assert mine[step] == entries, step
    assert any("optimiser.safetensors" in entries for entries in theirs.values())
    assert not [item for item in checkpoint.folder(run).iterdir() if item.name.startswith(".")]
    assert not (run / "lock.json").exists()


# Killed -----------------------------------------------------------------------------------------------------------------------

KILL = -signal.SIGKILL
PLANS = {
    "between steps": [("step.end=kill@1", KILL), ("step.end=kill@3", KILL), ("step.end=kill@4", KILL)],
    "while a checkpoint is written": [
        ("checkpoint.after_model=kill@1", KILL),
        ("checkpoint.before_publish=kill@2", KILL),
        ("dir.before_rename=kill@2", KILL),
    ],
    "between publishing and pruning": [("dir.after_rename=kill@2", KILL), ("checkpoint.published=kill@2", KILL)],
    "while a line is written": [("log.write=kill@5", KILL), ("file.before_rename=kill@4", KILL)],
    "the disk is full": [("checkpoint.before_publish=enospc@2", 5), ("log.write=enospc@4", 5), ("file.before_sync=eio@5", 5)],
}


@pytest.mark.parametrize(
    ("where", "kind"),
    [*((where, "stages") for where in PLANS), ("while a checkpoint is written", "full"), ("the disk is full", "full")],
)
def test_a_run_that_fails_anywhere_ends_as_one_that_did_not(
    tmp_path: Path, commands: Commands, whole: dict[str, tuple[Path, Path]], where: str, kind: str
) -> None:
    config, reference = whole[kind]
    arguments = ["train", "--config", config, "--out", tmp_path / "run"]
    for plan, expected in PLANS[where]:
        code, said = commands.run(arguments, plan)
        assert code == expected, (plan, said)
        assert expected == KILL or "error[storage]" in said
        assert "Traceback" not in said
    code, said = commands.run([*arguments, "--json"])
    assert code == 0, said
    assert_same_run(tmp_path / "run", reference)
    result = json.loads(said.splitlines()[-1])
    last = checkpoint.path_of(reference, result["step"])
    assert result["weights_sha256"] == checkpoint.weights_sha256(storage.read_manifest(last))


def test_a_run_that_is_killed_at_random_moments_ends_the_same(
    tmp_path: Path, commands: Commands, whole: dict[str, tuple[Path, Path]]
) -> None:
    config, reference = whole["stages"]
    draw = random.Random(5)
    arguments = ["train", "--config", config, "--out", tmp_path / "run"]
    for _ in range(5):
        command = commands.start(arguments)
        command.until(tmp_path / "run/metrics.jsonl")
        command_ends = draw.uniform(0.0, 0.6)
        signal.sigtimedwait([], command_ends)
        command.kill()
        assert command.wait() in (0, KILL)
    code, said = commands.run(arguments)
    assert code == 0, said
    assert_same_run(tmp_path / "run", reference)


def test_a_mixture_that_is_killed_draws_from_its_sources_as_if_it_had_not_been(
    tmp_path: Path, commands: Commands, scenes: Path
) -> None:
    """Of the larger source an epoch shows a part and the next goes on there; the smaller one, in shards, comes round within it."""
    few = prepared_scenes(tmp_path / "few", 6, "--shards", "100K")
    sizes = [open_dataset(folder).splits["train"] for folder in (scenes, few)]
    mixture = [{"path": str(scenes), "name": "many", "weight": 1.0}, {"path": str(few), "name": "few", "weight": 2.0}]
    drawn = samples_per_epoch([SourceConfig(**source) for source in mixture], sizes)
    assert drawn[0] < sizes[0]
    assert drawn[1] > 2 * sizes[1]
    steps = -(-sum(drawn) // 8)
    run = settings(scenes, "full")
    run["data"] = {"mixture": mixture, "max_tokens": 96, "captions": "first", "pack": False, "validation_split": None, "workers": 1}
    run["train"] |= {"batch_size": 8, "accumulate": 1, "steps": 2 * steps + 2, "evaluate_every": 0, "evaluate_samples": 0}
    adapters = {"lr": 0.01, "lora": {"r": 2, "dropout": 0.2}}  # so that a random number too many changes the weights
    run["stages"] = [{"name": "adapted", "parts": {"connector": "train", "language": adapters}}]
    config = written(tmp_path, run)
    code, said = commands.run(["train", "--config", config, "--out", tmp_path / "whole", "--json"])
    assert code == 0, said
    assert all({"nll/many", "nll/few"} & line.keys() for line in metrics(tmp_path / "whole"))
    # Gone on from the middle of the first epoch, from its end, and from the middle of the second.
    for plan in ("step.end=kill@3", f"step.end=kill@{steps - 1}", "checkpoint.before_publish=kill@2"):
        code, again = commands.run(["train", "--config", config, "--out", tmp_path / "run"], plan)
        assert code == KILL, (plan, again)
    code, again = commands.run(["train", "--config", config, "--out", tmp_path / "run", "--json"])
    assert code == 0, again
    assert f"(step {steps + 2})" in again, again
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    results = [json.loads(text.splitlines()[-1]) for text in (said, again)]
    assert results[0]["weights_sha256"] == results[1]["weights_sha256"]


# Stopped ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_sigterm_at_any_step_saves_and_exits_with_75(
    tmp_path: Path, commands: Commands, whole: dict[str, tuple[Path, Path]], kind: str
) -> None:
    """At every step of the run, the last of each stage included; the checkpoint that it makes is dropped in time."""
    config, reference = whole[kind]
    arguments = ["train", "--config", config, "--out", tmp_path / "run"]
    last = max(checkpoint.steps(reference))
    for step in (1, 5, 7 if kind == "full" else 8):
        done = max([0, *checkpoint.steps(tmp_path / "run")])
        code, said = commands.run(arguments, f"step.end=term@{step - done}")
        assert code == 75, said
        assert f"error[stopped]: SIGTERM at step {step}; the state is saved." in said
        assert checkpoint.steps(tmp_path / "run")[-1] == step
    if kind == "full":  # killed while the end of the stage takes the place of that checkpoint, which is the only one of the step
        code, said = commands.run(arguments, "checkpoint.before_publish=kill@1")
        assert code == KILL
        assert checkpoint.steps(tmp_path / "run")[-1] == last
    code, said = commands.run(arguments)
    assert code == 0, said
    assert metrics(tmp_path / "run") == metrics(reference)
    assert files(tmp_path / "run")[last] == files(reference)[last]


def test_the_real_command_stops_at_a_signal_and_goes_on(tmp_path: Path, whole: dict[str, tuple[Path, Path]]) -> None:
    config, reference = whole["full"]
    command = [sys.executable, "-m", "sightline", "train", "--config", str(config), "--out", str(tmp_path / "run"), "--json"]
    first = subprocess.run(command, env=os.environ | {"SIGHTLINE_FAULTS": "step.end=term@3"}, capture_output=True, text=True)
    assert first.returncode == 75, first.stderr
    assert not first.stdout
    second = subprocess.run(command, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert set(json.loads(second.stdout)) == {"run", "step", "checkpoint", "weights_sha256", "rebuilt"}
    assert metrics(tmp_path / "run") == metrics(reference)
    assert files(tmp_path / "run")[7] == files(reference)[7]


# Damaged ----------------------------------------------------------------------------------------------------------------------


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_is_used(
    tmp_path: Path, commands: Commands, whole: dict[str, tuple[Path, Path]]
) -> None:
    config, reference = whole["full"]
    arguments = ["train", "--config", config, "--out", tmp_path / "run"]
    assert commands.run(arguments, "step.end=kill@6")[0] == KILL
    newest = checkpoint.path_of(tmp_path / "run", 4)
    flip(newest / "model/language.safetensors")
    (checkpoint.folder(tmp_path / "run") / "step-9").mkdir()  # empty, as other programs' writers leave them
    code, said = commands.run(arguments)
    assert code == 0, said
    assert "checkpoint step-4 is not valid" in said
    assert "step-9 is not valid" in said
    assert "going on from step-3 (step 3)" in said
    assert sorted(item.name for item in checkpoint.folder(tmp_path / "run").iterdir() if "corrupt" in item.name) == [
        "corrupt-step-4",
        "corrupt-step-9",
    ]
    assert_same_run(tmp_path / "run", reference)


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def test_where_every_checkpoint_is_damaged_nothing_begins_anew(
    tmp_path: Path, commands: Commands, whole: dict[str, tuple[Path, Path]]
) -> None:
    config, _ = whole["full"]
    arguments = ["train", "--config", config, "--out", tmp_path / "run"]
    assert commands.run(arguments, "step.end=kill@3")[0] == KILL
    lines = (tmp_path / "run/metrics.jsonl").read_bytes()
    flip(checkpoint.path_of(tmp_path / "run", 2) / "state.json")
    code, said = commands.run(arguments)
    assert code == 5, said
    assert "holds checkpoints, but none is valid" in said
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == lines


# Others -----------------------------------------------------------------------------------------------------------------------


def test_a_second_process_is_refused_and_the_first_is_not_disturbed(
    tmp_path: Path, commands: Commands, scenes: Path, whole: dict[str, tuple[Path, Path]]
) -> None:
    endless = settings(scenes, "full")
    endless["train"] |= {"steps": 100_000, "checkpoint_every": 0, "evaluate_every": 0}
    arguments = ["train", "--config", written(tmp_path, endless), "--out", tmp_path / "run"]
    first = commands.start(arguments)
    first.until(tmp_path / "run/metrics.jsonl")
    code, said = commands.run(arguments)
    assert code == 5
    assert f"is in use by process {first.pid}" in said
    first.kill(signal.SIGTERM)
    assert first.wait() == 75, first.said


def test_a_finished_run_says_its_result_again_and_does_nothing(
    tmp_path: Path, commands: Commands, whole: dict[str, tuple[Path, Path]]
) -> None:
    config, run = whole["stages"]
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*.safetensors")}
    code, said = commands.run(["train", "--config", config, "--out", run, "--json"])
    assert code == 0, said
    last = checkpoint.read(checkpoint.path_of(run, max(checkpoint.steps(run))))
    assert json.loads(said.splitlines()[-1])["weights_sha256"] == checkpoint.weights_sha256(last.manifest)
    assert before == {file: file.stat().st_mtime_ns for file in run.rglob("*.safetensors")}


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("train.lr=0.02", "train.lr"),
        ("train.seed=1", "train.seed"),
        ("data.max_tokens=97", "data.max_tokens"),
        ("objective={kind: cal, low: 0.5}", "objective.low"),
        ("stages.align.train.steps=6", "stages.0.train.steps"),
        ("model.connector.kind=linear", "model.connector.kind"),
    ],
)
def test_other_settings_are_refused_by_the_name_of_the_key(
    capsys: pytest.CaptureFixture[str], whole: dict[str, tuple[Path, Path]], change: str, key: str
) -> None:
    config, run = whole["stages"]
    before = (run / "config.yaml").read_bytes()
    with pytest.raises(SystemExit) as caught:
        main(["train", change, "--config", str(config), "--out", str(run)])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert f"holds a run with another configuration ({key}: " in said or f"; {key}: " in said
    assert "--allow-change" in said
    assert key in said.partition("--allow-change")[2]
    assert (run / "config.yaml").read_bytes() == before


def test_an_allowed_change_and_a_harmless_one_are_taken(
    tmp_path: Path, commands: Commands, whole: dict[str, tuple[Path, Path]]
) -> None:
    config, reference = whole["full"]
    arguments = ["--config", config, "--out", tmp_path / "run"]
    assert commands.run(["train", *arguments], "step.end=kill@5")[0] == KILL
    code, said = commands.run(
        ["train", "train.lr=0.05", "train.keep=5", "data.workers=0", *arguments, "--allow-change", "train.lr"]
    )
    assert code == 0, said
    assert metrics(tmp_path / "run")[:5] == metrics(reference)[:5]  # four steps and a validation
    assert metrics(tmp_path / "run")[-1] != metrics(reference)[-1]
    assert "lr: 0.05" in (tmp_path / "run/config.yaml").read_text()


def test_the_second_stage_begins_with_the_weights_of_the_first(tmp_path: Path, commands: Commands, scenes: Path) -> None:
    """Its end equals that of a run of this stage alone which begins with the first stage's end by `init`."""
    run = settings(scenes, "full")
    run["train"] |= {"evaluate_every": 0, "evaluate_samples": 0, "steps": 2, "checkpoint_every": 0}
    later = {"name": "later", "parts": {"connector": "train", "language": "train"}, "train": {"steps": 3}}
    run["stages"] = [{"name": "first", "parts": {"connector": "train"}}, later]
    code, said = commands.run(["train", "--config", written(tmp_path, run), "--out", tmp_path / "both"])
    assert code == 0, said
    (tmp_path / "next").mkdir()
    alone = written(tmp_path / "next", run | {"stages": [later], "init": f"{tmp_path / 'both'}@first"})
    code, said = commands.run(["train", "--config", alone, "--out", tmp_path / "alone"])
    assert code == 0, said
    assert checkpoint.steps(tmp_path / "both") == [2, 5]
    both, other = files(tmp_path / "both"), files(tmp_path / "alone")[3]
    for part in ("connector", "language", "vision"):
        name = f"model/{part}.safetensors"
        assert both[5][name] == other[name]
        assert (both[2][name] == both[5][name]) == (part == "vision")
    assert [line["loss"] for line in metrics(tmp_path / "both")[2:]] == [line["loss"] for line in metrics(tmp_path / "alone")]
