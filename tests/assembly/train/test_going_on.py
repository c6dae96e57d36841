"""A run that goes on: with more steps, with other data, and after a bit of what it stored has flipped."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sightline.assembly.config import locate
from sightline.assembly.config.resolving import resolve_config
from sightline.assembly.config.schema import RunConfig, StageConfig
from sightline.assembly.model.origin import RunOrigin
from sightline.assembly.train import blind_logits
from sightline.assembly.train import run as training
from sightline.assembly.train.fingerprints import CONTENT_BYTES, data_fingerprints, refuse_other_data
from sightline.assembly.train.run import TrainResult
from sightline.data.features.store import FeatureStore
from sightline.errors import ConfigError, DataError, Stopped, StorageError
from sightline.runtime import fault_injection, storage
from sightline.training import checkpoint
from tests.assembly.helpers import run_config
from tests.builders import encoder_folder
from tests.data.check.planted import folder, png, record, scene
from tests.data.pictures import tree
from tests.duals import text_folder
from tests.golden import make
from tests.training.checkpoints import flip

FROZEN = "model/language.safetensors"
ADAPTERS = {"lr": 0.01, "lora": {"r": 2, "dropout": 0.1, "full": ["norms"]}}


def data(path: Path, words: str = "a dog") -> Path:
    return folder(
        path,
        [record(f"r{n}", f"{n}.png", "train", [f"{words} {n}"]) for n in range(5)],
        {f"{n}.png": png(scene(n, 64)) for n in range(5)},
    )


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """Four steps of a connector at a constant rate; an epoch has three."""
    train = {"epochs": None, "steps": 4, "checkpoint_every": 1, "evaluate_samples": 0, "schedule": "constant", "warmup": 1}
    return run_config(path=str(data(tmp_path / "set")), train=train, pack=False)


def with_adapters(config: RunConfig) -> RunConfig:
    stage = StageConfig.model_validate({"name": "tune", "parts": {"connector": "train", "language": ADAPTERS}}, strict=False)
    return config.model_copy(update={"stages": (stage,)})


def train(config: RunConfig, run: Path, *changes: str, allow: str = "") -> TrainResult:
    return training.train(resolve_config(config, None, ["runtime.device=cpu", *changes]), run, allow.split(",") if allow else [])


def stopped(config: RunConfig, run: Path, step: int, monkeypatch: pytest.MonkeyPatch, *changes: str) -> None:
    """A run that a signal stopped after a step."""
    monkeypatch.setattr(fault_injection, "_passages", Counter())
    monkeypatch.setenv(fault_injection.VARIABLE, f"step.end=term@{step}")
    with pytest.raises(Stopped):
        train(config, run, *changes)
    monkeypatch.delenv(fault_injection.VARIABLE)


def losses(run: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in storage.read_json_lines(run / "metrics.jsonl")]


def with_state(run: Path, step: int, change: Any, optimiser: bool = True) -> None:
    """Writes a checkpoint anew, with another state and a manifest that fits; without the state of its optimiser if so asked."""
    path = checkpoint.path_of(run, step)
    known = storage.verify_dir(path)["files"]
    state = storage.read_json(path / checkpoint.STATE)
    change(state)
    with storage.atomic_dir(path, replace=True) as target:
        for name in known:
            if name != checkpoint.STATE and (optimiser or name != checkpoint.OPTIMISER):
                (target / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(path / name, target / name)
        storage.write_json(target / checkpoint.STATE, state)


# More steps -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapted", [False, True], ids=["connector", "adapters"])
def test_a_finished_run_that_is_given_more_steps_ends_as_one_that_had_them_from_the_start(
    tmp_path: Path, config: RunConfig, adapted: bool
) -> None:
    """At a constant rate, bit for bit: optimiser, adapters, order of samples and random numbers go on."""
    config = with_adapters(config) if adapted else config
    whole = train(config, tmp_path / "whole", "train.steps=7")
    assert train(config, tmp_path / "run").step == 4
    longer = train(config, tmp_path / "run", "train.steps=7", allow="train.steps")
    assert (longer.step, longer.weights_sha256) == (7, whole.weights_sha256)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert checkpoint.read(longer.checkpoint).note["stage_ends"] == [7]
    assert train(config, tmp_path / "run", "train.steps=7").weights_sha256 == whole.weights_sha256


def test_more_epochs_of_a_finished_run_are_trained_too(tmp_path: Path, config: RunConfig) -> None:
    whole = train(config, tmp_path / "whole", "train.epochs=2")
    assert whole.step == 6
    assert train(config, tmp_path / "run", "train.epochs=1").step == 3
    assert train(config, tmp_path / "run", "train.epochs=2", allow="train.epochs").weights_sha256 == whole.weights_sha256


def test_a_run_that_was_killed_before_its_further_steps_still_makes_them(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its config.yaml has the new number by then, and its newest checkpoint is the end of the old one."""
    train(config, tmp_path / "run")
    monkeypatch.setattr(fault_injection, "_passages", Counter())
    monkeypatch.setenv(fault_injection.VARIABLE, "log.write=enospc@1")
    with pytest.raises(Exception, match="No space"):
        train(config, tmp_path / "run", "train.steps=6", allow="train.steps")
    monkeypatch.delenv(fault_injection.VARIABLE)
    assert checkpoint.steps(tmp_path / "run")[-1] == 4
    assert train(config, tmp_path / "run", "train.steps=6").step == 6


@pytest.mark.parametrize(
    ("changes", "allow", "says"),
    [
        (["train.steps=6"], "", r"holds a run with another configuration \(train.steps: 4 -> 6\)"),
        (["train.steps=3"], "train.steps", r"finished, and this change would train nothing \(train.steps: 4 -> 3\)"),
        (["train.lr=0.1"], "train.lr", "finished, and this change would train nothing"),
        (["train.epochs=9"], "train.steps,train.epochs", "more than 4 steps"),
    ],
)
def test_what_a_finished_run_cannot_do_is_refused_before_anything_is_written(
    tmp_path: Path, config: RunConfig, changes: list[str], allow: str, says: str
) -> None:
    train(config, tmp_path / "run")
    before = tree(tmp_path / "run")
    with pytest.raises(ConfigError, match=says):
        train(config, tmp_path / "run", *changes, allow=allow)
    assert tree(tmp_path / "run") == before


def test_fewer_steps_than_are_done_are_refused(tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(config, tmp_path / "run", 3, monkeypatch)
    before = tree(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"train.steps=2, but stage 'align' has done 3 steps already"):
        train(config, tmp_path / "run", "train.steps=2", allow="train.steps")
    assert tree(tmp_path / "run") == before


def test_a_run_of_an_earlier_version_goes_on_with_a_new_optimiser_at_the_right_place(
    tmp_path: Path, config: RunConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """Its last checkpoint holds neither the optimiser nor the place in the data; the order of samples is found again."""
    train(config, tmp_path / "run")
    train(config, tmp_path / "whole", "train.steps=6")
    with_state(tmp_path / "run", 4, lambda state: (state["note"].pop("ended"), state["note"].pop("data")), optimiser=False)
    assert train(config, tmp_path / "run", "train.steps=6", allow="train.steps").step == 6
    assert "step-4 was written without the optimiser's state; the optimiser starts from zero" in caplog.text
    assert losses(tmp_path / "run")[:5] == losses(tmp_path / "whole")[:5]  # the fifth loss is that of the same rows
    assert losses(tmp_path / "run")[5] != losses(tmp_path / "whole")[5]


# Other data -------------------------------------------------------------------------------------------------------------------


def exchange_image(path: Path) -> None:
    image = next(file for file in sorted(path.rglob("*.png")))
    image.write_bytes(png(scene(77, 64)))


def exchange_set(path: Path) -> None:
    shutil.rmtree(path)
    shutil.rmtree(path.with_name(path.name + "-source"))
    data(path, "a cat")


@pytest.mark.parametrize(("exchange", "what"), [(exchange_image, "(files)"), (exchange_set, "(records, files)")])
def test_a_run_does_not_go_on_with_other_data_under_the_same_path(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, exchange: Any, what: str
) -> None:
    run = tmp_path / "run"
    stopped(config, run, 2, monkeypatch)
    exchange(tmp_path / "set")
    before = tree(run)
    with pytest.raises(ConfigError) as caught:
        train(config, run)
    assert f"what differs now: data set {tmp_path / 'set'} {what}" in caught.value.message
    assert tree(run) == before
    assert train(config, run, allow="data.path").step == 4
    assert "goes on with other data, as allowed" in caplog.text
    assert train(config, run).step == 4


def test_a_run_without_fingerprints_goes_on_with_one_warning(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    stopped(config, run, 2, monkeypatch)
    with_state(run, 2, lambda state: state["note"].pop("data"))
    exchange_image(tmp_path / "set")
    assert train(config, run).step == 4
    assert caplog.text.count("stored no fingerprints") == 1
    assert checkpoint.read(checkpoint.path_of(run, 4)).note["data"].keys() == {f"data set {tmp_path / 'set'}"}


def golden_config(tmp_path: Path) -> RunConfig:
    for name in (make.DATA, make.FEATURES):
        shutil.copytree(make.HOME / name, tmp_path / name)
    config = resolve_config(
        None, make.HOME / make.STORED_SETTINGS, [f"data.path={tmp_path / 'data'}", f"data.features={tmp_path / 'features'}"]
    )
    return config


def test_a_feature_store_that_was_exchanged_is_named(tmp_path: Path) -> None:
    config = golden_config(tmp_path)
    before = data_fingerprints(config)
    assert before.keys() == {f"data set {tmp_path / 'data'}", f"feature store {tmp_path / 'features'}"}
    refuse_other_data(tmp_path, before, data_fingerprints(config), ())
    flip(next(iter((tmp_path / "features/shards").iterdir())))
    with pytest.raises(ConfigError, match=r"feature store .*features \(files\)"):
        refuse_other_data(tmp_path, before, data_fingerprints(config), ())
    flip(tmp_path / "features/index.npy")
    with pytest.raises(DataError, match=r"index\.npy"):  # no store with a damaged index is opened, so it has no fingerprint
        FeatureStore(tmp_path / "features")
    assert data_fingerprints(config).keys() == {f"data set {tmp_path / 'data'}"}


def test_of_large_sets_names_and_sizes_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sightline.assembly.train import fingerprints

    config = golden_config(tmp_path)
    assert sum(file.stat().st_size for file in (tmp_path / "data").rglob("*") if file.is_file()) < CONTENT_BYTES
    monkeypatch.setattr(fingerprints, "CONTENT_BYTES", 10)
    before = data_fingerprints(config)
    image = next((tmp_path / "data/images").rglob("*.png"))
    flip(image)
    assert data_fingerprints(config) == before
    image.write_bytes(image.read_bytes() + b"x")
    assert data_fingerprints(config) != before


# Damage -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "random",
    [{}, {"python": 5}, {"python": [3, [1], None], "numpy": [], "torch": ""}, {"python": [3, ["x"], None]}, {"python": None}],
)
def test_a_random_state_of_a_wrong_kind_is_one_clear_error(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch, random: dict[str, Any]
) -> None:
    stopped(config, tmp_path / "run", 1, monkeypatch)
    with_state(tmp_path / "run", 1, lambda state: state.update(random=[random]))
    with pytest.raises(StorageError, match="'random' is no random state"):
        train(config, tmp_path / "run")


def test_a_flipped_bit_in_the_frozen_decoder_costs_no_checkpoint_of_a_finished_run(tmp_path: Path, config: RunConfig) -> None:
    run = tmp_path / "run"
    done = train(config, run)
    paths = [checkpoint.path_of(run, step) for step in checkpoint.steps(run)]
    weights = {name: value.clone() for name, value in load_file(paths[0] / FROZEN).items()}  # what is loaded is mapped
    assert len({(path / FROZEN).stat().st_ino for path in paths}) == 1
    flip(paths[-1] / FROZEN, 5000)
    again = train(config, run)
    assert again.weights_sha256 == done.weights_sha256
    assert again.to_json()["rebuilt"] == [str(paths[-1] / FROZEN)]
    for path in paths:
        assert not checkpoint.read(path).rebuilt
        assert all(torch.equal(value, weights[name]) for name, value in load_file(path / FROZEN).items())


def flip_everywhere(run: Path, name: str) -> None:
    """Damages a file of all checkpoints and its copy."""
    for file in {path.stat().st_ino: path for path in run.glob(f"checkpoints/step-*/{name}")}.values():
        flip(file, 5000)
    for copy in (run / "checkpoints/copies").iterdir():
        flip(copy, 5000)


def with_origins(config: RunConfig, folder: Path) -> RunConfig:
    """The configuration with an encoder and a decoder of its own, which a test may change."""
    vision, language = (shutil.copytree(str(part.path), folder / name) for name, part in parts_of(config).items())
    return resolve_config(config, None, [f"model.vision.path={vision}", f"model.language.path={language}"])


def parts_of(config: RunConfig) -> dict[str, Any]:
    return {"vision": config.model.vision, "language": config.model.language}


def weights_of(path: Path) -> dict[str, Any]:
    return {name: value.clone() for name, value in load_file(path).items()}


@pytest.mark.parametrize("part", ["vision", "language"])
def test_a_frozen_part_that_is_damaged_everywhere_is_written_anew_from_where_it_was_loaded(
    tmp_path: Path, config: RunConfig, caplog: pytest.LogCaptureFixture, part: str
) -> None:
    run, name, config = tmp_path / "run", f"model/{part}.safetensors", with_origins(config, tmp_path)
    done = train(config, run)
    paths = [checkpoint.path_of(run, step) for step in checkpoint.steps(run)]
    weights, read = weights_of(paths[-1] / name), checkpoint.read
    flip_everywhere(run, name)
    with pytest.raises(StorageError, match="its hash is not that of the manifest"):
        read(paths[-1])
    _, choice = locate.find_model(run, origin_of=RunOrigin)
    assert choice is not None
    assert choice.to_json()["rebuilt"] == [str(paths[-1] / name)]
    assert f"It was rebuilt from model.{part}.path={tmp_path / part}." in caplog.text
    for path in paths:
        assert read(path).rebuilt == ()
        assert all(torch.equal(value, weights[key]) for key, value in load_file(path / name).items())
    flip_everywhere(run, name)
    again = train(config, run)
    assert (again.weights_sha256, again.rebuilt) == (done.weights_sha256, (str(paths[-1] / name),))


def test_an_origin_that_is_another_by_now_or_gone_is_a_clear_error_and_no_checkpoint_is_set_aside(
    tmp_path: Path, config: RunConfig
) -> None:
    run, config = tmp_path / "run", with_origins(config, tmp_path)
    done = train(config, run)
    shutil.copytree(tmp_path / "vision", tmp_path / "kept")
    flip_everywhere(run, "model/vision.safetensors")
    flip(tmp_path / "vision/model.safetensors", -2, 0)
    before = tree(run)
    says = f"model.vision.path={tmp_path / 'vision'} no longer gives the weights that the run began with"
    for work in (lambda: train(config, run), lambda: locate.find_model(run, origin_of=RunOrigin)):
        with pytest.raises(StorageError) as caught:
            work()
        assert says in caught.value.message
        assert tree(run) == before
    shutil.rmtree(tmp_path / "vision")
    with pytest.raises(StorageError, match=r"cannot be written anew: .*vision does not exist"):
        locate.find_model(run, origin_of=RunOrigin)
    shutil.copytree(tmp_path / "kept", tmp_path / "vision")
    again = train(config, run)
    assert (again.weights_sha256, len(again.rebuilt)) == (done.weights_sha256, 1)


def test_a_part_that_trained_has_no_origin(tmp_path: Path, config: RunConfig) -> None:
    train(config, tmp_path / "run")
    name = "model/connector.safetensors"
    flip(checkpoint.path_of(tmp_path / "run", 4) / name)
    with pytest.raises(StorageError, match=f"cannot be written anew: {name} has no origin outside of the run"):
        locate.find_model(tmp_path / "run", origin_of=RunOrigin)


def test_the_weights_below_adapters_are_written_anew_too(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, name, config = tmp_path / "run", "lora/base.safetensors", with_adapters(config)
    whole = train(config, tmp_path / "whole")
    stopped(config, run, 2, monkeypatch)
    flip_everywhere(run, name)
    again = train(config, run)
    assert again.weights_sha256 == whole.weights_sha256
    assert again.rebuilt == (str(checkpoint.path_of(run, 2) / name),)


def test_parts_of_a_run_that_began_from_another_run_are_taken_from_there(tmp_path: Path, config: RunConfig) -> None:
    train(config, tmp_path / "first")
    run, name = tmp_path / "run", "model/vision.safetensors"
    done = train(config, run, f"init={tmp_path / 'first'}")
    flip_everywhere(run, name)
    again = train(config, run, f"init={tmp_path / 'first'}")
    assert (again.weights_sha256, len(again.rebuilt)) == (done.weights_sha256, 1)


@pytest.mark.parametrize("part", ["vision", "text"])
def test_encoders_of_a_dual_encoder_are_written_anew_too(tmp_path: Path, caplog: pytest.LogCaptureFixture, part: str) -> None:
    settings = {
        "model": {"vision": {"path": str(encoder_folder("dinov2"))}, "dual": {"text": {"path": str(text_folder())}, "width": 8}},
        "objective": {"kind": "info_nce"},
        "data": {"path": str(data(tmp_path / "set")), "captions": "one", "pack": False, "share_prefix": False},
        "train": {"batch_size": 2, "steps": 3, "checkpoint_every": 1, "evaluate_samples": 0},
        "stages": [{"name": "heads", "parts": {"projection": "train"}}],
    }
    (tmp_path / "config.yaml").write_text(json.dumps(settings), "utf-8")
    config, run, name = resolve_config(None, tmp_path / "config.yaml", []), tmp_path / "run", f"model/{part}.safetensors"
    done = train(config, run)
    flip_everywhere(run, name)
    again = train(config, run)
    assert (again.weights_sha256, again.rebuilt) == (done.weights_sha256, (str(done.checkpoint / name),))
    assert f"It was rebuilt from model.{'dual.text' if part == 'text' else part}.path=" in caplog.text


def test_a_bit_that_flips_while_the_run_goes_on_is_repaired_and_reported(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run, prune = tmp_path / "run", checkpoint.prune

    def flipping(path: Path, keep: int, protected: set[int]) -> None:
        prune(path, keep, protected)
        if checkpoint.steps(path) == [1, 2]:
            flip(checkpoint.path_of(path, 2) / FROZEN, 5000)

    monkeypatch.setattr(checkpoint, "prune", flipping)
    done = train(config, run, "train.keep=9")
    assert done.rebuilt == (str(checkpoint.path_of(run, 2) / FROZEN),)
    assert "step-2/model/language.safetensors was damaged; it was rebuilt" in caplog.text
    for step in checkpoint.steps(run):
        storage.verify_dir(checkpoint.path_of(run, step))


def test_a_file_that_changes_after_a_run_has_read_it_changes_nothing_in_the_run(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU what is read from a file is mapped; the weights of a run are its own."""
    whole = train(config, tmp_path / "whole")
    stopped(config, tmp_path / "run", 2, monkeypatch)
    read = training.read_model

    def changed_after_reading(path: Path, attention: str) -> Any:
        bundle = read(path, attention)
        folders.append(path)
        return bundle

    folders: list[Path] = []
    monkeypatch.setattr(training, "read_model", changed_after_reading)
    train_stage = training.StageRun.train

    def flip_first(*arguments: Any) -> Any:
        for place in range(4000, 30_000, 1000):
            flip(folders[0] / "language.safetensors", place)
        return train_stage(*arguments)

    monkeypatch.setattr(training.StageRun, "train", flip_first)
    done = train(config, tmp_path / "run")
    assert done.weights_sha256 == whole.weights_sha256
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    for step in checkpoint.steps(tmp_path / "run"):
        storage.verify_dir(checkpoint.path_of(tmp_path / "run", step))


def test_damaged_blind_logits_are_made_again_and_the_run_ends_the_same(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cal = "objective={kind: cal}"
    whole = train(config, tmp_path / "whole", cal)
    stopped(config, tmp_path / "run", 2, monkeypatch, cal)
    file = tmp_path / "run/contrast/align.npz"
    written = file.read_bytes()
    file.write_bytes(written[: len(written) // 2])
    assert train(config, tmp_path / "run", cal).weights_sha256 == whole.weights_sha256
    assert f"{file} is damaged (" in caplog.text
    assert file.read_bytes() == written

    with np.load(file) as stored:
        key, logits = str(stored["key"]), stored["logits"]
    found = 0
    for place in range(len(written)):
        file.write_bytes(written)
        flip(file, place, place % 8)
        read = blind_logits._read(file, key, len(logits))
        found += read is not None
        assert read is None or np.array_equal(read, logits, equal_nan=True), place
    assert found < len(written) / 2
    file.write_bytes(written)
    assert blind_logits._read(file, key, len(logits) + 1) is None
    assert blind_logits._read(file, "another", len(logits)) is None


@pytest.mark.parametrize(
    "line",
    [
        {"step": "x"},
        {"step": True},
        {"step": 1.0},
        {"step": -1},
        {"loss": 1.0},
        {"step": 1, "seconds": "x"},
        {"step": 1, "loss": []},
        {"step": 1, "validation_loss": None},
    ],
)
def test_a_line_of_metrics_that_is_none_is_moved_aside_and_reported(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, line: dict[str, Any]
) -> None:
    run = tmp_path / "run"
    stopped(config, run, 2, monkeypatch)
    log = run / "metrics.jsonl"
    whole = log.read_bytes()
    log.write_bytes(json.dumps(line).encode() + b"\n" + whole)
    assert train(config, run).step == 4
    assert "metrics.jsonl: 1 damaged line (number 1), moved to metrics.jsonl.damaged" in caplog.text
    assert [step for step, _ in losses(run)] == [1, 2, 3, 4]
    assert log.read_bytes().startswith(whole)
