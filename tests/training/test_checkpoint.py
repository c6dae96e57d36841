"""Which checkpoints stay, which one is taken, and what is not one."""

from pathlib import Path

import pytest
import torch

from sightline.errors import StorageError
from sightline.runtime import storage
from sightline.training import checkpoint
from sightline.training.checkpoint import Progress


def save(run: Path, step: int, **changes: object) -> checkpoint.Saved:
    parameter = torch.nn.Parameter(torch.full((3,), float(step)))
    optimiser = torch.optim.AdamW([parameter], lr=0.1)
    parameter.grad = torch.ones(3)
    optimiser.step()

    def write(target: Path, previous: Path | None) -> list[str]:
        (target / "model/w").write_text(str(step))
        return []

    at = Progress(step=step, best=(0.5, 2), **changes)  # pyrefly: ignore
    return checkpoint.save(
        run, at, [{"rank": 0}], {"facts": {}}, checkpoint.optimiser_tensors(optimiser, {parameter: "p"}), write, None
    )


def damage(run: Path, step: int) -> None:
    (checkpoint.path_of(run, step) / "model/w").write_text("damaged")


def test_what_was_saved_is_read_back(tmp_path: Path) -> None:
    saved = save(tmp_path, 7, stage=1, seen_tokens=2**40)
    found = checkpoint.newest(tmp_path)
    assert found == saved
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimiser = torch.optim.AdamW([parameter], lr=0.1)
    checkpoint.restore_optimiser(saved, optimiser, {parameter: "p"})
    assert {name: value.tolist() for name, value in optimiser.state[parameter].items()} == {
        "step": 1.0,
        "exp_avg": pytest.approx([0.1] * 3),
        "exp_avg_sq": pytest.approx([0.001] * 3),
    }
    with pytest.raises(StorageError, match="holds state of 'p', which does not train"):
        checkpoint.restore_optimiser(saved, optimiser, {parameter: "q"})


def test_the_newest_is_by_step_and_not_by_name_or_time(tmp_path: Path) -> None:
    for step in (10, 9, 2):
        save(tmp_path, step)
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.step == 10
    assert checkpoint.steps(tmp_path) == [2, 9, 10]


def test_only_valid_ones_count_among_those_that_stay(tmp_path: Path) -> None:
    """Three partial directories newer than two valid ones push nothing out."""
    for step in range(1, 6):
        save(tmp_path, step)
    for step in (7, 8, 9):
        (checkpoint.folder(tmp_path) / f"step-{step}").mkdir()
    checkpoint.prune(tmp_path, keep=2, protected={1})
    assert checkpoint.steps(tmp_path) == [1, 4, 5, 7, 8, 9]
    checkpoint.prune(tmp_path, keep=1, protected=set())  # never less than two
    assert checkpoint.steps(tmp_path) == [4, 5, 7, 8, 9]
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.step == 5


def test_damaged_ones_are_set_aside_each_under_a_name_of_its_own(tmp_path: Path) -> None:
    for _ in range(2):
        for step in (1, 2):
            save(tmp_path, step)
        damage(tmp_path, 2)
        found = checkpoint.newest(tmp_path)
        assert found is not None
        assert found.step == 1
    names = sorted(item.name for item in checkpoint.folder(tmp_path).iterdir())
    assert names == ["corrupt-step-2", "corrupt-step-2-again", "step-1"]
    damage(tmp_path, 1)
    with pytest.raises(StorageError, match="holds checkpoints, but none is valid"):
        checkpoint.newest(tmp_path)


def test_a_folder_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None
    (checkpoint.folder(tmp_path) / "step-x").mkdir(parents=True)
    (checkpoint.folder(tmp_path) / "step-3.txt").write_text("x")
    assert checkpoint.newest(tmp_path) is None


@pytest.mark.parametrize("content", ["{}", "[]", '{"progress": {"step": 1}, "random": [], "note": {}}', '{"progress": {"x": 1}}'])
def test_a_state_of_another_version_is_no_checkpoint(tmp_path: Path, content: str) -> None:
    with storage.atomic_dir(checkpoint.path_of(tmp_path, 1)) as folder:
        (folder / "state.json").write_text(content)
    with pytest.raises(StorageError, match="not a state of this version"):
        checkpoint.read(checkpoint.path_of(tmp_path, 1))


def test_a_save_of_the_same_step_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    save(tmp_path, 3)
    save(tmp_path, 3, stage=1)
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.progress.stage == 1
    assert [item.name for item in checkpoint.folder(tmp_path).iterdir()] == ["step-3"]


def test_a_save_that_cannot_fit_is_refused_before_it_begins(tmp_path: Path) -> None:
    checkpoint.check_space(tmp_path / "run", 1)
    with pytest.raises(StorageError, match=r"takes about 1000000000000 MB, .* MB are free"):
        checkpoint.check_space(tmp_path / "run", 10**18)
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match=r"file: (File exists|Not a directory)"):
        checkpoint.check_space(tmp_path / "file", 1)
