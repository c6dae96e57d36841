"""`eval` and `generate` say which checkpoint they used and why; a damaged last one is an error unless another is asked for."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sightline.training import checkpoint
from tests.cli.helpers import call
from tests.golden import make
from tests.training.checkpoints import flip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The stopped golden run: the end of its first stage at step 360, and step 370 within its second."""
    return shutil.copytree(make.HOME / make.RUN, tmp_path / "run")


def evaluation(run: Path, *options: str) -> list[object]:
    data = make.HOME / make.DATA
    return ["eval", run, "--task", "caption", "--data", data, "--split", "held", "--limit", 2, "--max-new-tokens", 2, *options]


def generation(run: Path, *options: str) -> list[object]:
    image = next((make.HOME / make.DATA / "images").rglob("*.png"))
    return ["generate", run, "--image", image, "--max-new-tokens", 2, *options]


@pytest.mark.parametrize("command", [evaluation, generation])
def test_the_checkpoint_is_said_and_never_silently_an_older_one(
    run: Path, capsys: pytest.CaptureFixture[str], command: Any
) -> None:
    last, first = checkpoint.path_of(run, 370), checkpoint.path_of(run, 360)
    code, out, err = call(capsys, *command(run, "--json"))
    assert code == 0, err
    assert json.loads(out)["checkpoint"] == {"step": 370, "path": str(last), "reason": "last checkpoint"}
    assert f"model: {last} (last checkpoint)" in err

    flip(last / "model/connector.safetensors")
    code, out, err = call(capsys, *command(run, "--json"))
    assert (code, out) == (5, "")
    assert err.startswith("error[storage]: the last checkpoint step-370 is damaged: ")
    assert "--checkpoint 360" in err
    assert "--fallback" in err

    code, out, err = call(capsys, *command(run, "--json", "--fallback"))
    assert code == 0, err
    used = json.loads(out)["checkpoint"]
    assert (used["step"], used["path"]) == (360, str(first))
    assert used["reason"].startswith("newest whole checkpoint: step-370 is damaged (")
    for which, reason in (("360", "step 360 was asked for"), ("full", "end of stage 'full'")):
        code, out, err = call(capsys, *command(run, "--json", "--checkpoint", which))
        assert code == 0, err
        assert json.loads(out)["checkpoint"] == {"step": 360, "path": str(first), "reason": reason}


def test_people_are_told_too(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, *evaluation(run, "--checkpoint", "full"))
    assert code == 0, err
    assert "checkpoint: step 360 (end of stage 'full')" in out
    code, out, err = call(capsys, *generation(run))
    assert code == 0, err
    assert f"model: {checkpoint.path_of(run, 370)} (last checkpoint)" in err
