"""An evaluation from a file, and one that several processes share: the files are those of one process, byte for byte."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sightline.assembly.model.build import Processing, build_from_config, write_model
from tests.assembly.evaluate.helpers import COUNT, data
from tests.assembly.helpers import run_config
from tests.data.check.planted import record
from tests.processes import Command, Commands

FILES = ("predictions.jsonl", "scores.json", "items.json")


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    with Commands() as started:
        yield started


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a data set and the file of an evaluation."""
    path = tmp_path_factory.mktemp("evaluation")
    (path / "model").mkdir()
    write_model(build_from_config(run_config(), Processing(prompt="Look.", max_tokens=120), None), path / "model")
    data(path / "set")
    (path / "eval.yaml").write_text(f"data: {path / 'set'}\nbatch_size: 2\nmax_new_tokens: 6\nresamples: 20\n")
    return path


def arguments(place: Path, out: Path) -> list[object]:
    return ["eval", place / "model", "--config", place / "eval.yaml", "--out", out, "--device", "cpu", "--threads", "1"]


def bytes_of(folder: Path) -> dict[str, bytes]:
    assert not list(folder.glob("predictions-*"))
    return {name: (folder / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def alone(place: Path, commands: Commands) -> dict[str, bytes]:
    """The files of one process, which leaves its folder to the next evaluation: `scores.json` names it."""
    code, said = commands.run(arguments(place, place / "out"))
    assert code == 0, said
    found = bytes_of(place / "out")
    assert found["predictions.jsonl"].count(b"\n") == COUNT
    return found


@pytest.fixture
def out(place: Path, alone: dict[str, bytes]) -> Path:
    shutil.rmtree(place / "out", ignore_errors=True)
    return place / "out"


def codes(processes: list[Command]) -> list[int]:
    return [process.wait() for process in processes]


@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_write_the_files_of_one(
    place: Path, out: Path, alone: dict[str, bytes], commands: Commands, world: int
) -> None:
    processes = commands.ranks(world, [*arguments(place, out), "--json"])
    assert codes(processes) == [0] * world, processes[0].said
    assert bytes_of(out) == alone
    printed = [[line for line in process.said.splitlines() if line.startswith("{")] for process in processes]
    assert [len(lines) for lines in printed] == [1, *[0] * (world - 1)]  # one object in all
    assert json.loads(printed[0][0])["ok"] == COUNT


@pytest.mark.parametrize("task", ["composition", "retrieval"])
def test_likelihoods_of_two_processes_are_those_of_one(place: Path, tmp_path: Path, commands: Commands, task: str) -> None:
    negatives = [
        record(f"{split}{n}", f"{n}.png", split, [f"a dog {n}"], negatives=[f"a cat {n}"])
        for split in ("train", "val")
        for n in range(3)
    ]
    data(tmp_path / "set", more=negatives)
    options = ["--task", task, "--likelihood", "gain", "--data", tmp_path / "set", "--captions", 1]
    command = [*arguments(place, tmp_path / "out"), *(options if task == "retrieval" else options[:-2])]
    code, said = commands.run(command)
    assert code == 0, said
    alone = bytes_of(tmp_path / "out")
    assert json.loads(alone["scores.json"])["likelihood"]["chosen_on"]["split"] == "train"
    shutil.rmtree(tmp_path / "out")
    assert codes(commands.ranks(2, command)) == [0, 0]
    assert bytes_of(tmp_path / "out") == alone


def test_vectors_are_ranked_by_two_processes_as_by_one(place: Path, tmp_path: Path, commands: Commands) -> None:
    for name, rows in (("image", COUNT), ("text", 2 * COUNT)):
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(rows).normal(size=(rows, 4)))
    command = ["eval", tmp_path, "--task", "retrieval", "--data", place / "set", "--batch-size", 2, "--out", tmp_path / "out"]
    code, said = commands.run(command)
    assert code == 0, said
    alone = bytes_of(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    assert codes(commands.ranks(2, command)) == [0, 0]
    assert bytes_of(tmp_path / "out") == alone


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_killed_evaluation_goes_on_with_any_number_of_processes(
    place: Path, out: Path, alone: dict[str, bytes], commands: Commands, world: int
) -> None:
    processes = commands.ranks(2, arguments(place, out), {1: "log.write=kill@3"})
    assert codes(processes) == [6, -9], processes[0].said
    kept = sum(file.read_bytes().count(b"\n") for file in out.glob("predictions*.jsonl"))
    assert 2 <= kept < COUNT
    if world == 1:
        code, said = commands.run(arguments(place, out))
        assert code == 0, said
    else:
        assert codes(commands.ranks(world, arguments(place, out))) == [0] * world
    assert bytes_of(out) == alone


def test_shares_of_other_settings_are_removed(place: Path, out: Path, alone: dict[str, bytes], commands: Commands) -> None:
    assert codes(commands.ranks(2, [*arguments(place, out), "--prompt", "And?"], {1: "log.write=kill@3"})) == [6, -9]
    assert list(out.glob("predictions-*"))
    code, said = commands.run(arguments(place, out))
    assert code == 0, said
    assert bytes_of(out) == alone


def test_options_override_the_file(place: Path, tmp_path: Path, commands: Commands) -> None:
    code, said = commands.run([*arguments(place, tmp_path / "out"), "--limit", 3, "--batch-size", 4, "--beams", 2])
    assert code == 0, said
    spec = json.loads((tmp_path / "out" / "scores.json").read_text())["spec"]
    wanted = {"task": "caption", "limit": 3, "batch_size": 4, "num_beams": 2, "max_new_tokens": 6, "resamples": 20, "split": "val"}
    assert spec.items() >= wanted.items()


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("data: x\nnum_beam: 2\n", [], "eval.yaml:2: num_beam: unknown key; did you mean"),
        ("data: x\nbatch_size: 0\n", [], "eval.yaml:2"),
        ("data: x\n", ["--limit", "0"], "limit"),
        ("batch_size: 2\n", [], "data"),
        (None, ["--task", "caption"], "eval needs --data, or --config"),
    ],
)
def test_faults_of_the_file_name_its_line(
    place: Path, tmp_path: Path, commands: Commands, text: str | None, options: list[str], message: str
) -> None:
    (tmp_path / "eval.yaml").write_text(text or "")
    file = [] if text is None else ["--config", tmp_path / "eval.yaml"]
    code, said = commands.run(["eval", place / "model", *file, *options])
    assert code == 2
    assert message in said
    assert not (place / "model-eval").exists()
