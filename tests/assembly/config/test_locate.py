"""Which checkpoint of a run a name stands for, and that a damaged one is never left aside without a word."""

from pathlib import Path

import pytest

from sightline.assembly.config import locate
from sightline.errors import SightlineError, StorageError, UsageError
from sightline.training import checkpoint
from sightline.training.checkpoint import Progress
from tests.training.checkpoints import flip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two stages that end at the steps 2 and 6, checkpoints between, the best one at 4."""
    for step, stage, ends in ((2, "align", [2]), (4, "instruct", [2]), (5, "instruct", [2]), (6, "instruct", [2, 6])):

        def write(target: Path, links: checkpoint.Links, step: int = step) -> None:
            (target / "model/weights").write_text(str(step))

        note = {"facts": {}, "stage": stage, "stage_ends": ends}
        best = (0.5, 4) if step >= 4 else None
        checkpoint.save(tmp_path, Progress(step=step, best=best), [{"rank": 0}], note, None, write, None)
    return tmp_path


def path_of(run: Path, step: int) -> Path:
    return checkpoint.path_of(run, step)


@pytest.mark.parametrize(
    ("name", "which", "step", "reason"),
    [
        ("", "last", 6, "last checkpoint"),
        ("", "best", 4, "best validation value"),
        ("", "5", 5, "step 5 was asked for"),
        ("", "align", 2, "end of stage 'align'"),
        ("@align", "last", 2, "end of stage 'align'"),
        ("@instruct", "last", 6, "end of stage 'instruct'"),
        ("@best", "last", 4, "best validation value"),
        ("@5", "last", 5, "step 5 was asked for"),
    ],
)
def test_a_checkpoint_is_found_by_name_and_says_why(run: Path, name: str, which: str, step: int, reason: str) -> None:
    folder, choice = locate.find_model(f"{run}{name}", which)
    assert choice is not None
    assert folder == path_of(run, step) / "model"
    assert choice.to_json() == {"step": step, "path": str(path_of(run, step)), "reason": reason}


def test_a_model_folder_is_no_checkpoint(tmp_path: Path) -> None:
    assert locate.find_model(tmp_path) == (tmp_path, None)
    for which in ("best", "3", "align"):
        with pytest.raises(UsageError, match=f"is no run, so it has no checkpoint '{which}'"):
            locate.find_model(tmp_path, which)


@pytest.mark.parametrize("which", ["7", "tune", "007x"])
def test_a_name_that_the_run_does_not_have_is_a_usage_error(run: Path, which: str) -> None:
    with pytest.raises(UsageError):
        locate.find_checkpoint(run, which)


DAMAGES = ["flip", "cut", "gone", "manifest", "state", "empty"]


def damage(run: Path, step: int, kind: str) -> None:
    path = path_of(run, step)
    match kind:
        case "flip":
            flip(path / "model/weights")
        case "cut":
            (path / "model/weights").write_bytes(b"")
        case "gone":
            (path / "model/weights").unlink()
        case "manifest":
            (path / "manifest.json").unlink()
        case "state":
            flip(path / "state.json", 20)
        case _:
            for item in path.rglob("*"):
                if item.is_file():
                    item.unlink()


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_last_checkpoint_is_an_error_unless_another_is_asked_for(
    run: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    damage(run, 6, kind)
    with pytest.raises(StorageError, match=r"the last checkpoint step-6 is damaged: .*--checkpoint 5.*--fallback") as caught:
        locate.find_model(run)
    assert caught.value.exit_code == 5
    assert not caplog.text
    folder, choice = locate.find_model(run, fallback=True)
    assert choice is not None
    assert folder == path_of(run, 5) / "model"
    assert choice.reason.startswith("newest whole checkpoint: step-6 is damaged (")
    assert "step-5, for step-6 is damaged" in caplog.text
    for which, step in (("5", 5), ("best", 4), ("align", 2)):
        assert locate.find_checkpoint(run, which).saved.step == step


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize(("which", "step"), [("6", 6), ("best", 4), ("align", 2)])
def test_a_damaged_checkpoint_that_was_named_is_never_replaced_by_another(run: Path, kind: str, which: str, step: int) -> None:
    damage(run, step, kind)
    with pytest.raises(StorageError):
        locate.find_model(run, which, fallback=True)


def test_where_all_are_damaged_there_is_no_fallback(run: Path) -> None:
    for step in (2, 4, 5, 6):
        damage(run, step, "flip")
    with pytest.raises(StorageError, match="has no checkpoint that is whole: step-6 is damaged"):
        locate.find_model(run, fallback=True)


def test_what_training_has_set_aside_is_said(run: Path) -> None:
    damage(run, 6, "flip")
    assert checkpoint.newest(run) is not None
    _, choice = locate.find_model(run)
    assert choice is not None
    assert choice.saved.step == 5
    assert choice.reason == "last checkpoint; training set aside corrupt-step-6 (damaged)"


@pytest.mark.parametrize("name", ["step-007", "step-x"])
def test_an_empty_folder_of_another_name_is_no_checkpoint(run: Path, name: str) -> None:
    (checkpoint.folder(run) / name).mkdir()
    assert locate.find_checkpoint(run, "last").saved.step == 6
    with pytest.raises(SightlineError):
        locate.find_checkpoint(run, name)
