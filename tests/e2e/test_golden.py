"""The run, data set and feature store under tests/golden/ are opened, resumed and evaluated as by the version that made them.

Hashes are compared where packages and processor are those of the recording: the last bits of a sum depend on them. Losses, norms of
weights, texts and scores are compared everywhere.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.golden import make
from tests.processes import Commands

FEW_STEPS, MANY_STEPS = 1e-4, 1e-2  # relative differences that another processor may make
EXPECTED = json.loads((make.HOME / make.EXPECTED).read_text("utf-8"))


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    with Commands() as server:
        yield server


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    """A copy of the golden files, which commands may write into."""
    for name in make.FILES:
        source = make.HOME / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    return tmp_path


def told(commands: Commands, folder: Path, *arguments: str) -> dict[str, Any]:
    """The JSON of a command that runs in a folder, to which the golden settings are relative."""
    command = commands.start([folder, *arguments, "--json"], function="tests.golden.make:run_in")
    assert command.wait() == 0, command.said
    return json.loads(command.said.splitlines()[-1])


def train(commands: Commands, folder: Path, settings: str, run: str) -> dict[str, Any]:
    return make.of_run(folder, run, told(commands, folder, "train", "--config", settings, "--out", run))


def evaluate(commands: Commands, folder: Path, run: str, view: str) -> dict[str, Any]:
    return make.of_evaluation(folder, told(commands, folder, *make.evaluation(run, view, f"answers/{view}")))


def assert_same_run(found: dict[str, Any], expected: dict[str, Any], rel: float) -> None:
    assert found["step"] == expected["step"]
    assert found["norms"] == pytest.approx(expected["norms"], rel=rel, abs=1e-6)
    for mine, theirs in zip(found["last_steps"], expected["last_steps"], strict=True):
        assert mine == pytest.approx(theirs, rel=rel)
    is_same = found["weights_sha256"] == expected["weights_sha256"] and found["last_steps"] == expected["last_steps"]
    now, then = make.facts(), EXPECTED["facts"]
    differ = {key: (then.get(key), now[key]) for key in now if now[key] != then.get(key)}
    assert is_same or differ, "other bits than those of the recording, with the same packages and the same kind of processor"


def assert_same_evaluation(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["ok"] == expected["ok"]
    assert found["predictions"] == expected["predictions"]
    assert found["scores"].keys() >= expected["scores"].keys()
    for name, score in expected["scores"].items():
        assert {key: found["scores"][name][key] for key in score} == pytest.approx(score, rel=1e-9, abs=1e-12), name


@pytest.mark.parametrize("view", make.VIEWS)
def test_the_stored_run_gives_the_recorded_texts_and_scores(commands: Commands, golden: Path, view: str) -> None:
    assert_same_evaluation(evaluate(commands, golden, make.RUN, view), EXPECTED["stopped"][view])


def test_the_stored_run_goes_on_to_the_recorded_weights_and_texts(commands: Commands, golden: Path) -> None:
    """From the middle of a stage, with the optimiser, the place in the data and the blind logits of the stored checkpoint."""
    blind_logits = (golden / make.RUN / "contrast/align.npz").read_bytes()
    assert_same_run(train(commands, golden, f"{make.RUN}/config.yaml", make.RUN), EXPECTED["finished"], FEW_STEPS)
    assert (golden / make.RUN / "contrast/align.npz").read_bytes() == blind_logits
    assert_same_evaluation(evaluate(commands, golden, make.RUN, "seeing"), EXPECTED["finished"]["seeing"])


def test_a_new_run_of_the_recorded_settings_ends_with_the_recorded_weights(commands: Commands, golden: Path) -> None:
    assert_same_run(train(commands, golden, make.SETTINGS, "new"), EXPECTED["finished"], MANY_STEPS)


def test_a_run_from_a_stored_stage_and_feature_store_ends_with_the_recorded_weights(commands: Commands, golden: Path) -> None:
    assert_same_run(train(commands, golden, make.STORED_SETTINGS, "from_store"), EXPECTED["from_store"], FEW_STEPS)
