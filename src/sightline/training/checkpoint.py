"""Checkpoints: directories that are complete or absent, with everything that makes the next step the same step.

    step-120/
        model/            a `from_pretrained` folder, with tokenizer and processor
        lora/             within a stage with adapters: the unfolded weights
        optimiser.safetensors
        state.json        step, stage, place in the data, random states of every rank
        manifest.json     size and sha256 of every file

Valid means: the manifest is complete and the hashes match. The newest valid one is found by looking, never by a pointer.
"""

import hashlib
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from sightline.errors import StorageError
from sightline.runtime import fault_injection as faults
from sightline.runtime import storage
from sightline.runtime.logs import logger
from sightline.training.ranks import shards

_NAME = re.compile(r"step-(\d+)\Z")
STATE, OPTIMISER, MODEL, LORA = "state.json", "optimiser.safetensors", "model", "lora"


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        step: optimiser steps done over all stages.
        stage: number of the stage that comes next or goes on.
        stage_step: steps done in it.
        epoch, epoch_step: place in the data of the stage.
        seen_tokens, seen_samples: since the beginning.
        refused: steps that the guard against non-finite steps refused.
        skipped: samples whose pictures could not be opened.
        best: best validation value so far and its step.
    """

    step: int = 0
    stage: int = 0
    stage_step: int = 0
    epoch: int = 0
    epoch_step: int = 0
    seen_tokens: int = 0
    seen_samples: int = 0
    refused: int = 0
    skipped: int = 0
    best: tuple[float, int] | None = None


@dataclass(frozen=True)
class Saved:
    """A checkpoint on disk.

    Attributes:
        path: its directory.
        progress: where the run stood.
        random: random state of each rank.
        note: further facts: versions, threads, world size, stage names and ends.
        manifest: as verified.
    """

    path: Path
    progress: Progress
    random: list[dict[str, Any]]
    note: dict[str, Any] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)

    @property
    def step(self) -> int:
        return self.progress.step


def folder(run: Path) -> Path:
    """Where a run's checkpoints lie."""
    return run / "checkpoints"


def steps(run: Path) -> list[int]:
    """Steps of the directories that are named like checkpoints, in rising order."""
    home = folder(run)
    found = [_NAME.match(item.name) for item in home.iterdir() if item.is_dir()] if home.is_dir() else []
    return sorted(int(match[1]) for match in found if match)


def path_of(run: Path, step: int) -> Path:
    return folder(run) / f"step-{step}"


def read(path: Path) -> Saved:
    """Reads a checkpoint after checking every hash.

    Raises:
        StorageError: it is not valid.
    """
    manifest = storage.verify_dir(path)
    try:
        state = storage.read_json(path / STATE)
        values = dict(state["progress"])
        values["best"] = tuple(values["best"]) if values["best"] else None
        return Saved(path, Progress(**values), state["random"], state["note"], manifest)
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(f"{path / STATE}: not a state of this version ({error}).") from error


def newest(run: Path) -> Saved | None:
    """The newest valid checkpoint of a run; None when the run has none at all.

    One that is not valid is renamed to `corrupt-...` and said; the one before it is taken.

    Raises:
        StorageError: there are checkpoints and none is valid: never a silent fresh start.
    """
    storage.sweep(folder(run))
    found = steps(run)
    for step in reversed(found):
        path = path_of(run, step)
        try:
            return read(path)
        except StorageError as error:
            aside = path.with_name(f"corrupt-{path.name}")
            while aside.exists():
                aside = aside.with_name(aside.name + "-again")
            path.rename(aside)
            logger.warning("checkpoint %s is not valid (%s); it is set aside as %s", path.name, error.message, aside.name)
    if found:
        raise StorageError(
            f"{folder(run)} holds checkpoints, but none is valid.", "Restore one from a copy, or start in another folder."
        )
    return None


ModelWriter = Callable[[Path, Path | None], list[str]]


def save(
    run: Path,
    progress: Progress,
    random: list[dict[str, Any]],
    note: dict[str, Any],
    optimiser: Mapping[str, torch.Tensor] | None,
    write_model: ModelWriter,
    previous: Saved | None,
) -> Saved:
    """Publishes a checkpoint.

    Args:
        run: the run folder.
        progress, random, note: what goes into `state.json`.
        optimiser: its state (see `optimiser_tensors`); None at the end of a stage, where the next begins with a fresh one.
        write_model: writes the model's files into a checkpoint's folder, may link unchanged ones from the checkpoint given second,
            and returns the names of those.
        previous: the last checkpoint of this run.

    Raises:
        StorageError: the disk refuses; earlier checkpoints are intact.
    """
    path = path_of(run, progress.step)
    known: dict[str, str] = {}
    # A run that was stopped at the last step of a stage has a checkpoint of that step; it stays until the new one is complete.
    with storage.atomic_dir(path, known, {"step": progress.step}, replace=True) as target:
        (target / MODEL).mkdir()
        linked = write_model(target, previous.path if previous else None)
        faults.hit("checkpoint.after_model")
        if previous is not None:
            known.update({name: previous.manifest["files"][name]["sha256"] for name in linked})
        if optimiser is not None:
            save_file({name: value.detach().to("cpu").contiguous() for name, value in optimiser.items()}, target / OPTIMISER)
        storage.write_json(target / STATE, {"progress": asdict(progress), "random": random, "note": note})
        faults.hit("checkpoint.before_publish")
    faults.hit("checkpoint.published")
    return Saved(path, progress, random, note, storage.read_manifest(path))


def restore_optimiser(saved: Saved, optimiser: torch.optim.Optimizer, names: dict[nn.Parameter, str]) -> None:
    """Gives an optimiser the state that it had.

    Raises:
        StorageError: the state is of other parameters.
    """
    file = saved.path / OPTIMISER
    if not file.exists():
        return
    by_name = {name: parameter for parameter, name in names.items()}
    with safe_open(file, "pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118 (not a mapping)
            name, _, field_name = key.rpartition("/")
            parameter = by_name.get(name)
            if parameter is None:
                raise StorageError(f"{file}: holds state of {name!r}, which does not train.", "Resume with the same configuration.")
            value = tensors.get_tensor(key)
            is_count = field_name == "step"  # which stays where it is, on every rank
            optimiser.state[parameter][field_name] = value if is_count else shards(parameter, value)


def optimiser_tensors(optimiser: torch.optim.Optimizer, names: dict[nn.Parameter, str]) -> dict[str, torch.Tensor]:
    """The state of an optimiser by `parameter/field`, as it is kept: a parameter in pieces has its state in pieces."""
    return {
        f"{name}/{key}": value for parameter, name in names.items() for key, value in optimiser.state.get(parameter, {}).items()
    }


def prune(run: Path, keep: int, protected: set[int]) -> None:
    """Deletes old checkpoints; the newest `keep` valid ones (at least two) stay, and those of `protected` steps."""
    valid = [step for step in steps(run) if storage.has_all_files(path_of(run, step))]
    for step in valid[: -max(keep, 2)]:
        if step not in protected:
            storage.remove(path_of(run, step))


def weights_sha256(manifest: dict[str, Any]) -> str:
    """One hash over the weight files of a checkpoint."""
    files = manifest["files"]
    lines = [
        f"{name} {files[name]['sha256']}" for name in sorted(files) if name.endswith(".safetensors") and name.startswith(MODEL)
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def check_space(run: Path, needed: int) -> None:
    """Refuses to begin a save that cannot fit.

    Raises:
        StorageError: less than `needed` bytes are free.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(run).free
    except OSError as error:
        raise StorageError(f"{run}: {error.strerror or error}.", "Choose another folder.") from error
    if free < needed:
        raise StorageError(
            f"{run}: a checkpoint takes about {needed / 1e6:.0f} MB, {free / 1e6:.0f} MB are free.",
            "Free space or choose another folder.",
        )
