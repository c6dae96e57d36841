"""Which checkpoints stay, which one is taken, and what is not one."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sightline.errors import StorageError
from sightline.runtime import storage
from sightline.training import checkpoint
from sightline.training.checkpoint import Progress
from tests.training.checkpoints import FROZEN, flip, frozen_run, save


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
    for _ in range(2):  # and it stays so: none is renamed where there is none to go on from
        with pytest.raises(StorageError, match=r"holds checkpoints, but none is valid \(step-1: .*1 expected"):
            checkpoint.newest(tmp_path)
    checkpoint.path_of(tmp_path, 1).rename(checkpoint.folder(tmp_path) / "corrupt-step-1")  # as earlier versions did
    with pytest.raises(StorageError, match="holds checkpoints, but none is valid"):
        checkpoint.newest(tmp_path)


@pytest.mark.parametrize("name", ["step-007", "step-", "step-x", "step-7 ", "step-\u0667", "Step-7", "step-+7"])
def test_a_folder_that_is_not_named_as_a_checkpoint_is_left_alone(tmp_path: Path, name: str) -> None:
    save(tmp_path, 3)
    (checkpoint.folder(tmp_path) / name).mkdir()
    assert checkpoint.steps(tmp_path) == [3]
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.step == 3
    assert (checkpoint.folder(tmp_path) / name).is_dir()


def test_a_checkpoint_under_the_name_of_another_step_is_not_valid(tmp_path: Path) -> None:
    save(tmp_path, 3)
    checkpoint.path_of(tmp_path, 3).rename(checkpoint.path_of(tmp_path, 9))
    with pytest.raises(StorageError, match="holds step 3, which is not that of its folder"):
        checkpoint.read(checkpoint.path_of(tmp_path, 9))


@pytest.mark.parametrize("name", ["state.json", "manifest.json", "model", "model/w", "", ".."])
def test_a_checkpoint_with_a_link_out_of_its_run_is_not_read(tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    path = save(run, 5).path
    place = Path(os.path.normpath(path / name))
    place.rename(tmp_path / "outside")
    place.symlink_to(tmp_path / "outside")
    with pytest.raises(StorageError, match=r"outside|missing"):
        checkpoint.read(path)
    if not name.startswith("model"):  # a note is read from the state alone
        with pytest.raises(StorageError, match=r"outside"):
            checkpoint.read_note(path)


def test_a_damaged_file_is_not_rebuilt_through_a_link(tmp_path: Path) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    frozen_run(run, (1, 2), torch.ones(4))  # both have the frozen part, so that one can be rebuilt from the other
    model = checkpoint.path_of(run, 2) / "model"
    for file in model.iterdir():
        file.unlink()
    model.rename(outside)
    model.symlink_to(outside)
    sha256 = storage.read_manifest(model.parent)["files"][FROZEN]["sha256"]
    assert not checkpoint._rebuild(run, model.parent / FROZEN, sha256)
    assert list(outside.iterdir()) == []


def test_a_folder_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None
    (checkpoint.folder(tmp_path) / "step-x").mkdir(parents=True)
    (checkpoint.folder(tmp_path) / "step-3.txt").write_text("x")
    assert checkpoint.newest(tmp_path) is None


GOOD = {"progress": asdict(Progress(step=1)), "random": [{}], "note": {"facts": {}}}
WRONG = [
    {"progress": {"step": 1}, "random": [{}], "note": {}},
    {"progress": {"x": 1}},
    *(
        {**GOOD, "progress": GOOD["progress"] | change}
        for change in (
            {"step": "1"},
            {"step": 1.0},
            {"step": True},
            {"stage": None},
            {"seen_tokens": -1},
            {"best": 3},
            {"best": [0.5]},
            {"best": ["a", 1]},
            {"best": [0.5, "2"]},
            {"epoch": [1]},
        )
    ),
    *({**GOOD, "random": random} for random in ([], {}, None, "x", [1])),
    *(
        {**GOOD, "note": note}
        for note in (
            None,
            [],
            {"stage_ends": 5},
            {"stage_ends": ["1"]},
            {"facts": []},
            {"data": "x"},
            {"ended": 1},
            {"ended": {}},
            {"ended": {"steps": 1, "epochs": None, "progress": {"y": 1}}},
            {"ended": {"steps": "1", "epochs": None, "progress": GOOD["progress"]}},
            {"ended": {"steps": 1, "epochs": "1", "progress": GOOD["progress"]}},
            {"ended": {"steps": 1, "epochs": None, "progress": {**GOOD["progress"], "epoch": "x"}}},
            {"data": {"data set x": 5}},
            {"stage": None},
            {"stage": {}},
        )
    ),
]


@pytest.mark.parametrize("content", ["{}", "[]", "5", "null", *map(json.dumps, WRONG)])
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


# Shared files -----------------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_in_a_shared_file_costs_no_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Four checkpoints and one inode; the copy of it rebuilds all of them, and they share one file again."""
    frozen = torch.arange(5000.0)
    frozen_run(tmp_path, [1, 2, 3, 4], frozen)
    paths = [checkpoint.path_of(tmp_path, step) for step in (1, 2, 3, 4)]
    (copy,) = (checkpoint.folder(tmp_path) / "copies").iterdir()
    assert [(path / FROZEN).stat().st_nlink for path in paths] == [4] * 4
    assert copy.stat().st_nlink == 1
    assert copy.name == storage.sha256_file(copy)
    flip(paths[0] / FROZEN)
    for path in paths:
        with pytest.raises(StorageError):
            storage.verify_dir(path)
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert (found.step, found.rebuilt) == (4, (str(paths[3] / FROZEN),))
    assert "step-4/model/language.safetensors: its hash is not that of the manifest. It was rebuilt" in caplog.text
    for path in paths:
        assert checkpoint.read(path).rebuilt == ()
        assert torch.equal(load_file(path / FROZEN)["w"], frozen)
    assert [(path / FROZEN).stat().st_nlink for path in paths] == [4] * 4


@pytest.mark.parametrize("damage", ["cut", "gone", "empty"])
def test_a_shared_file_that_is_cut_or_gone_is_rebuilt(tmp_path: Path, damage: str) -> None:
    frozen = torch.arange(5000.0)
    frozen_run(tmp_path, [1, 2], frozen)
    file = checkpoint.path_of(tmp_path, 2) / FROZEN
    if damage == "gone":
        file.unlink()
    else:
        os.truncate(file, 100 if damage == "cut" else 0)
    for step in (1, 2):
        checkpoint.read(checkpoint.path_of(tmp_path, step))
        assert torch.equal(load_file(checkpoint.path_of(tmp_path, step) / FROZEN)["w"], frozen)


def test_a_damaged_copy_costs_nothing_and_both_damaged_are_an_error(tmp_path: Path) -> None:
    frozen_run(tmp_path, [1, 2], torch.arange(5000.0))
    (copy,) = (checkpoint.folder(tmp_path) / "copies").iterdir()
    flip(copy)
    for step in (1, 2):
        assert checkpoint.read(checkpoint.path_of(tmp_path, step)).rebuilt == ()
    flip(checkpoint.path_of(tmp_path, 1) / FROZEN)
    with pytest.raises(StorageError, match=r"language.safetensors: its hash is not that of the manifest"):
        checkpoint.read(checkpoint.path_of(tmp_path, 2))


def test_a_bit_that_flips_while_a_run_goes_on_is_found_at_the_next_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also without any copy: what is frozen stands in memory, and the new checkpoint's file rebuilds the earlier ones."""
    frozen = torch.arange(5000.0)
    frozen_run(tmp_path, [1, 2], frozen)
    flip(checkpoint.path_of(tmp_path, 1) / FROZEN)
    for copy in (checkpoint.folder(tmp_path) / "copies").iterdir():
        copy.unlink()
    previous = checkpoint.Saved(
        checkpoint.path_of(tmp_path, 2), Progress(step=2), [{}], {}, storage.read_manifest(checkpoint.path_of(tmp_path, 2))
    )

    def write(target: Path, links: checkpoint.Links) -> None:
        assert not links.take(target / FROZEN)
        save_file({"w": frozen}, target / FROZEN)

    saved = checkpoint.save(tmp_path, Progress(step=3), [{}], {}, None, write, previous)
    assert saved.rebuilt == (str(previous.path / FROZEN),)
    assert "step-2/model/language.safetensors was damaged; it was rebuilt" in caplog.text
    for step in (1, 2, 3):
        storage.verify_dir(checkpoint.path_of(tmp_path, step))


def test_large_linked_files_are_read_at_every_tenth_checkpoint_and_at_the_end_of_a_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "LARGE_BYTES", 1000)
    read: list[Path] = []
    sha256 = storage.sha256_file
    monkeypatch.setattr(storage, "sha256_file", lambda path: read.append(path) or sha256(path))
    frozen_run(tmp_path, range(1, 23), torch.arange(5000.0))
    sources = [path.parent.parent.name for path in read if path.name == "language.safetensors" and path.parent.parent.name != "."]
    assert [name for name in sources if name.startswith("step-")] == ["step-10", "step-20"]
    manifest = storage.read_manifest(checkpoint.path_of(tmp_path, 22))
    assert manifest["unread"] == {FROZEN: 1}
    saved = checkpoint.read(checkpoint.path_of(tmp_path, 22))
    read.clear()
    target = tmp_path / "target"
    (target / "model").mkdir(parents=True)
    assert checkpoint.Links(saved, target, reads_all=True).take(target / FROZEN)
    assert read == [saved.path / FROZEN]


def test_no_copy_is_kept_of_a_file_that_is_damaged_already(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frozen_run(tmp_path, [1, 2], torch.arange(5000.0))
    copies = checkpoint.folder(tmp_path) / "copies"
    next(iter(copies.iterdir())).unlink()
    flip(checkpoint.path_of(tmp_path, 1) / FROZEN)
    checkpoint.keep_copies(tmp_path)
    assert not copies.exists()
    assert "so no copy of it is kept" in caplog.text


def test_a_copy_is_kept_while_checkpoints_share_its_file_and_no_longer(tmp_path: Path) -> None:
    frozen_run(tmp_path, [1, 2, 3], torch.arange(5000.0))
    copies = checkpoint.folder(tmp_path) / "copies"
    assert len(list(copies.iterdir())) == 1
    checkpoint.prune(tmp_path, 2, set())
    checkpoint.keep_copies(tmp_path)
    assert len(list(copies.iterdir())) == 1
    storage.remove(checkpoint.path_of(tmp_path, 2))
    checkpoint.keep_copies(tmp_path)
    assert not copies.exists()


def test_where_the_file_system_has_no_hard_links_nothing_is_shared_and_no_copy_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    frozen_run(tmp_path, [1, 2], torch.arange(5000.0))
    assert not (checkpoint.folder(tmp_path) / "copies").exists()
    flip(checkpoint.path_of(tmp_path, 1) / FROZEN)
    assert checkpoint.read(checkpoint.path_of(tmp_path, 1)).rebuilt == (str(checkpoint.path_of(tmp_path, 1) / FROZEN),)
    assert checkpoint.read(checkpoint.path_of(tmp_path, 2)).rebuilt == ()


def test_whatever_bit_flips_in_a_checkpoint_it_is_refused_or_holds_what_was_saved(tmp_path: Path) -> None:
    """Every file, the manifest among them: a StorageError, or the state and the weights as they were."""
    frozen = torch.arange(40.0)
    saved = frozen_run(tmp_path, [1], frozen)[0]
    outcomes = {True: 0, False: 0}
    for file in sorted(item for item in saved.path.rglob("*") if item.is_file()):
        written = file.read_bytes()
        for place in range(0, len(written), max(1, len(written) // 150)):
            flip(file, place, place % 8)
            try:
                found = checkpoint.read(saved.path)
            except StorageError:
                outcomes[False] += 1
            else:
                outcomes[True] += 1
                assert (found.progress, found.random, found.note) == (saved.progress, saved.random, saved.note)
                assert torch.equal(load_file(saved.path / FROZEN)["w"], frozen)
            file.write_bytes(written)
    assert outcomes[False] > 500
    assert outcomes[True] < 30  # such as the step in the manifest, which nothing goes by
