"""A run that fails before its first step leaves the place as it was; one that began, or is another's, is not touched."""

import json
import os
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sightline.assembly.config.resolving import resolve_config
from sightline.assembly.config.schema import RunConfig
from sightline.assembly.train import run as training
from sightline.assembly.train import stage
from sightline.config import to_yaml
from sightline.errors import ConfigError, DataError, SightlineError, SkipLimitError, StorageError
from sightline.runtime import fault_injection, storage
from sightline.runtime.storage import Lock
from tests.assembly.helpers import run_config
from tests.data.check.planted import folder, png, record, scene
from tests.data.pictures import tree

OTHER_LOCK = {"pid": 1, "host": socket.gethostname(), "start": storage._start_time(1)}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Two steps that work."""
    path = tmp_path_factory.mktemp("data") / "set"
    folder(
        path,
        [record(f"r{n}", f"{n}.png", "train", [f"a dog {n}"]) for n in range(4)],
        {f"{n}.png": png(scene(n, 64)) for n in range(4)},
    )
    return run_config(path=str(path), train={"epochs": None, "steps": 2, "checkpoint_every": 1, "evaluate_samples": 0})


def begun(config: RunConfig, run: Path, *changes: str) -> Any:
    return training.train(resolve_config(config, None, ["runtime.device=cpu", *changes]), run)


WRONG = [
    ("data.path=NONE", DataError, "NONE"),
    ("data.split=nothing", DataError, "has no split 'nothing'"),
    ("model.vision.path=NONE", SightlineError, "NONE"),
    ("init=NONE", SightlineError, "NONE"),
    ("model.connector.shuffle=3", ConfigError, "does not divide"),
    ("data.max_tokens=12 data.row_tokens=12", SkipLimitError, "nothing of split 'train'"),
    ("stages.align.parts={nothing: train}", SightlineError, "nothing"),
]


@pytest.mark.parametrize(("change", "error", "says"), WRONG)
def test_what_is_wrong_from_the_start_leaves_no_folder(
    tmp_path: Path, config: RunConfig, change: str, error: type[SightlineError], says: str
) -> None:
    changes = change.replace("NONE", str(tmp_path / "NONE")).split()
    with pytest.raises(error, match=says):
        begun(config, tmp_path / "new/runs/x", *changes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("there", [{}, {"config.yaml": b""}, {"notes.txt": b"mine"}, {"metrics.jsonl": b""}])
def test_a_folder_that_was_there_stays_with_all_that_it_held(tmp_path: Path, config: RunConfig, there: dict[str, bytes]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name, content in there.items():
        (run / name).write_bytes(content)
    if "config.yaml" in there:  # of a run that was killed before its first checkpoint
        (run / "config.yaml").write_text(to_yaml(config))
    with pytest.raises(DataError):
        begun(config, run, f"data.path={tmp_path / 'NONE'}")
    assert there.keys() <= tree(run).keys()
    assert "lock.json" not in tree(run)
    if not there:
        assert not tree(run)
    if "notes.txt" in there:
        assert (run / "notes.txt").read_bytes() == b"mine"


def test_a_run_that_has_a_checkpoint_keeps_it(tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    begun(config, run)
    before = tree(run)

    def gone(*arguments: Any) -> None:
        raise StorageError("the model cannot be read.")

    monkeypatch.setattr(training, "read_model", gone)
    with pytest.raises(StorageError, match="the model cannot be read"):
        begun(config, run)
    assert tree(run) == before


def test_a_step_that_was_made_is_kept_though_no_checkpoint_was(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fault_injection, "_passages", Counter())
    monkeypatch.setenv(fault_injection.VARIABLE, "log.write=enospc@2")
    with pytest.raises(StorageError, match="No space left"):
        begun(config, tmp_path / "run", "train.checkpoint_every=0")
    assert {"config.yaml", "metrics.jsonl"} == set(tree(tmp_path / "run"))
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 1


def test_what_took_long_to_compute_is_kept(tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"

    def stored_and_failed(*arguments: Any) -> None:
        (run / "contrast").mkdir()
        (run / "contrast/align.npz").write_bytes(b"logits")
        raise DataError("and then the disk went away.")

    monkeypatch.setattr(stage, "build_corpus", stored_and_failed)
    with pytest.raises(DataError):
        begun(config, run)
    assert {"config.yaml", "contrast/align.npz"} <= set(tree(run))


def test_the_folder_of_another_process_is_not_touched(tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one that is there before, nor one whose lock is taken in the moment between ours and the removal of the folder."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "lock.json").write_text(json.dumps(OTHER_LOCK))
    before = tree(run)
    with pytest.raises(StorageError, match="in use by process 1 on "):
        begun(config, run)
    assert tree(run) == before

    leave = Lock.__exit__

    def left_and_taken(self: Lock, *exception: object) -> None:
        leave(self, *exception)
        self.path.write_text(json.dumps(OTHER_LOCK))

    monkeypatch.setattr(Lock, "__exit__", left_and_taken)
    with pytest.raises(DataError):
        begun(config, tmp_path / "next", f"data.path={tmp_path / 'NONE'}")
    assert os.listdir(tmp_path / "next") == ["lock.json"]
