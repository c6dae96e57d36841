"""Checkpoints: a directory is published atomically and holds all state needed to go on with exactly the next step.

    checkpoints/
        step-120/
            model/            a `from_pretrained` folder, with tokenizer and processor
            lora/             within a stage with adapters: the adapters and the weights without them
            optimiser.safetensors
            state.json        step, stage, place in the data, random states of every rank
            manifest.json     size and sha256 of every file
        copies/SHA256         a second copy of each file that several checkpoints share

A checkpoint is valid when its manifest is complete and the hashes match. The newest valid one is found by looking at them all.

Files that did not change (weights of frozen parts) are hard links to those of the checkpoint before, so that a damaged byte would
be damaged in all of them. Three things keep that from costing more than one checkpoint: what is linked is read again and compared
with its hash when it is published (see `Links`); one independent copy of each shared file is kept in `copies/`; and a damaged file
is rebuilt from the copy, from another checkpoint, or from where its weights were first loaded (see `Origin`), when that has the
right hash.
"""

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from sightline.errors import DataError, SightlineError, StorageError
from sightline.runtime import fault_injection, storage
from sightline.runtime.logs import logger
from sightline.training.ranks import shards

_NAME = re.compile(r"step-(0|[1-9][0-9]*)\Z")
_SET_ASIDE = re.compile(r"corrupt-step-([0-9]+)(-again)*\Z")
STATE, OPTIMISER, MODEL, LORA, COPIES = "state.json", "optimiser.safetensors", "model", "lora", "copies"
LARGE_BYTES = 1 << 30  # linked files above this size are not read at every checkpoint
READ_EVERY = 10  # but at the end of a stage and at the latest when they were linked this often without being read


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
        skipped: samples whose images could not be opened.
        best: best validation value so far and its step.
        loss_scale, good_steps: of `LossScale`; 0 where the loss is not scaled.
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
    loss_scale: int = 0
    good_steps: int = 0


@dataclass(frozen=True)
class Saved:
    """A checkpoint on disk.

    Attributes:
        path: its directory.
        progress: where the run stood.
        random: random state of each rank.
        note: further facts: versions, threads, world size, stage names and ends.
        manifest: as verified.
        rebuilt: files that were damaged and have been written anew from a copy, or from memory.
    """

    path: Path
    progress: Progress
    random: list[dict[str, Any]]
    note: dict[str, Any] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    rebuilt: tuple[str, ...] = ()

    @property
    def step(self) -> int:
        return self.progress.step


def folder(run: Path) -> Path:
    """Returns the folder of a run's checkpoints."""
    return run / "checkpoints"


def steps(run: Path) -> list[int]:
    """Steps of the directories that are named like checkpoints, in rising order."""
    home = folder(run)
    found = [_NAME.match(item.name) for item in home.iterdir() if item.is_dir()] if home.is_dir() else []
    return sorted(int(match[1]) for match in found if match)


def set_aside(run: Path) -> list[tuple[int, str]]:
    """Returns step and name of each directory that `newest` found damaged and renamed."""
    found = [(_SET_ASIDE.match(item.name), item.name) for item in folder(run).glob("corrupt-step-*")]
    return sorted((int(match[1]), name) for match, name in found if match)


def path_of(run: Path, step: int) -> Path:
    return folder(run) / f"step-{step}"


class Origin(Protocol):
    """Where the weights of a run's parts were first loaded from."""

    def write(self, checkpoint: Path, name: str, target: Path) -> str:
        """Writes a file of a checkpoint as it was written first.

        Args:
            checkpoint: the checkpoint's directory, for what it says of its weights besides this file.
            name: of the file in it.
            target: where to write.

        Returns:
            The place that the weights come from, for people.

        Raises:
            SightlineError: the file never came from another place, or that place is gone.
        """
        ...


def read(path: Path, origin: Origin | None = None) -> Saved:
    """Reads a checkpoint after checking every hash; a damaged file is rebuilt if another place has the right content.

    Args:
        path: its directory.
        origin: used where no copy and no other checkpoint has the content.

    Raises:
        StorageError: it is not valid.
    """
    run, manifest = path.parent.parent, _own_manifest(path)
    rebuilt = []
    for name, fault in storage.damaged_files(path, manifest):
        entry = manifest["files"].get(name)
        if entry is None:
            raise StorageError(fault)
        place = "another file with the right hash"
        if not _rebuild(run, path / name, entry["sha256"]):
            place = _rebuild_from_origin(origin, path, name, entry["sha256"], fault)
        logger.warning("%s It was rebuilt from %s.", fault, place)
        rebuilt.append(str(path / name))
    progress, random, note = _read_state(path / STATE)
    if path.name != f"step-{progress.step}":
        raise StorageError(f"{path / STATE}: holds step {progress.step}, which is not that of its folder.")
    return Saved(path, progress, random, note, manifest, tuple(rebuilt))


def read_note(path: Path) -> tuple[Progress, dict[str, Any]]:
    """Progress and note of a checkpoint; of its files only `state.json` is checked.

    Raises:
        StorageError: it is damaged.
    """
    entry = _own_manifest(path)["files"].get(STATE)
    try:
        is_whole = entry is not None and storage.sha256_file(path / STATE) == entry["sha256"]
    except OSError as error:
        raise StorageError(f"{path / STATE}: {error.strerror or error}.") from error
    if not is_whole:
        raise StorageError(f"{path / STATE}: its hash is not that of the manifest.")
    progress, _, note = _read_state(path / STATE)
    return progress, note


def _own_manifest(path: Path) -> dict[str, Any]:
    """Reads the manifest of a checkpoint; a StorageError where it, or a folder on the way, is a link out of the run."""
    manifest = storage.read_manifest(path)
    try:
        storage.safe_join(path.parent.parent, f"{path.parent.name}/{path.name}/{storage.MANIFEST}")
    except DataError as error:
        raise StorageError(error.message, error.remedy) from error
    return manifest


def _read_state(file: Path) -> tuple[Progress, list[dict[str, Any]], dict[str, Any]]:
    state = storage.read_json(file)
    try:
        progress, random, note = _progress_of(state["progress"]), state["random"], state["note"]
        if not (isinstance(random, list) and random and all(isinstance(item, dict) for item in random)):
            raise ValueError("'random' is not a list of random states")
        _check_note(note)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise StorageError(f"{file}: not a state of this version ({type(error).__name__}: {error}).") from error
    return progress, random, note


def _progress_of(values: Mapping[str, Any]) -> Progress:
    """Progress as `asdict` writes it; raises a KeyError, TypeError or ValueError where it is none."""
    best = values["best"]
    others: dict[str, Any] = {name: value for name, value in values.items() if name != "best"}
    found = Progress(**others, best=None if best is None else (float(best[0]), best[1]))
    _check_numbers([*others.values(), *([] if found.best is None else found.best[1:])])
    return found


def _check_numbers(numbers: Iterable[object]) -> None:
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("a number of steps, samples or tokens is not a whole number from 0")


def _check_note(note: Mapping[str, Any]) -> None:
    """Raises an AttributeError, KeyError, TypeError or ValueError where a note holds values of other types."""
    _check_numbers(note.get("stage_ends", []))
    data = note.get("data") or {}
    if not all(isinstance(value, dict) for value in (note.get("facts", {}), data, *data.values())):
        raise ValueError("'facts' or 'data' of 'note' is not an object, or does not hold objects")
    if not isinstance(note.get("stage", ""), str):
        raise ValueError("'stage' of 'note' is not a name")
    if (ended := note.get("ended")) is not None:
        _check_numbers(value for value in (ended["steps"],) if value is not None)
        if not isinstance(ended["epochs"], float | int | None) or isinstance(ended["epochs"], bool):
            raise ValueError("'epochs' of 'ended' is not a number")
        _progress_of(ended["progress"])


def newest(run: Path, origin: Origin | None = None) -> Saved | None:
    """Returns the newest valid checkpoint of a run; None when the run has none at all.

    Those after it that are not valid are renamed to `corrupt-step-N` with a warning.

    Raises:
        StorageError: there are checkpoints and none is valid, also of those set aside before: never a silent fresh start.
    """
    storage.sweep(folder(run))
    damaged: list[tuple[Path, StorageError]] = []
    for step in reversed(steps(run)):
        try:
            found = read(path_of(run, step), origin)
        except StorageError as error:
            damaged.append((path_of(run, step), error))
            continue
        for path, error in damaged:
            aside = path.with_name(f"corrupt-{path.name}")
            while aside.exists():
                aside = aside.with_name(aside.name + "-again")
            path.rename(aside)
            logger.warning("checkpoint %s is not valid (%s); it is set aside as %s", path.name, error.message, aside.name)
        return found
    if damaged or set_aside(run):
        why = f" ({damaged[0][0].name}: {damaged[0][1].message})" if damaged else ""
        raise StorageError(
            f"{folder(run)} holds checkpoints, but none is valid{why}.", "Restore one from a copy, or start in another folder."
        )
    return None


class Links:
    """Links unchanged files of the previous checkpoint into a new one; each is read first and compared with its hash.

    Reading costs about a second per gigabyte. Files above `LARGE_BYTES` are therefore read at the end of a stage and at every
    `READ_EVERY`-th checkpoint; the manifest counts how often they were linked unread.

    Args:
        previous: the last checkpoint of the run, or None.
        target: the folder of the new one.
        reads_all: read large files too.

    Attributes:
        known: sha256 of what was linked, by name.
        unread: how often each of them was linked since it was last read, where that is not 0.
        damaged: files of `previous` that were not as they had been written, with the hashes they should have.
    """

    def __init__(self, previous: Saved | None, target: Path, reads_all: bool) -> None:
        self._previous, self._target, self._reads_all = previous, target, reads_all
        self.known: dict[str, str] = {}
        self.unread: dict[str, int] = {}
        self.damaged: dict[Path, str] = {}

    def take(self, file: Path) -> bool:
        """Links `file`, a path in the new checkpoint, to the file of the same name in the previous one.

        Returns:
            False when there is no such file, or it is damaged and there is no copy of it; the caller then writes it.
        """
        name = file.relative_to(self._target).as_posix()
        entry = None if self._previous is None else self._previous.manifest["files"].get(name)
        if self._previous is None or entry is None:
            return False
        source = self._previous.path / name
        unread = self._previous.manifest.get("unread", {}).get(name, 0) + 1
        is_read = self._reads_all or entry["size"] <= LARGE_BYTES or unread >= READ_EVERY
        unread = 0 if is_read else unread
        try:
            is_whole = source.stat().st_size == entry["size"] and (not is_read or storage.sha256_file(source) == entry["sha256"])
        except OSError:
            is_whole = False
        if not is_whole:
            self.damaged[source] = entry["sha256"]
            if not _rebuild(self._previous.path.parent.parent, source, entry["sha256"]):
                return False
            unread = 0
        storage.link_or_copy(source, file)
        if os.path.samefile(source, file):  # a copy is hashed like any new file
            self.known[name] = entry["sha256"]
            if unread:
                self.unread[name] = unread
        return True


ModelWriter = Callable[[Path, Links], None]


def save(
    run: Path,
    progress: Progress,
    random: list[dict[str, Any]],
    note: dict[str, Any],
    optimiser: Mapping[str, torch.Tensor] | None,
    write_model: ModelWriter,
    previous: Saved | None,
    is_stage_end: bool = False,
) -> Saved:
    """Publishes a checkpoint.

    Args:
        run: the run folder.
        progress, random, note: what goes into `state.json`.
        optimiser: its state (see `optimiser_tensors`); None at the end of a stage that another follows with a fresh one.
        write_model: writes the model's files into a checkpoint's folder; may take unchanged ones from the links given second.
        previous: the last checkpoint of this run.
        is_stage_end: all linked files are read, also large ones.

    Raises:
        StorageError: the disk refuses; earlier checkpoints are intact.
    """
    path = path_of(run, progress.step)
    known: dict[str, str] = {}
    manifest_note: dict[str, Any] = {"step": progress.step}
    # A run that was stopped at the last step of a stage has a checkpoint of that step; it stays until the new one is complete.
    with storage.atomic_dir(path, known, manifest_note, replace=True) as target:
        (target / MODEL).mkdir()
        links = Links(previous, target, is_stage_end)
        write_model(target, links)
        fault_injection.hit("checkpoint.after_model")
        known.update(links.known)
        if links.unread:
            manifest_note["unread"] = links.unread
        if optimiser is not None:
            save_file({name: value.detach().to("cpu").contiguous() for name, value in optimiser.items()}, target / OPTIMISER)
        storage.write_json(target / STATE, {"progress": asdict(progress), "random": random, "note": note})
        fault_injection.hit("checkpoint.before_publish")
    fault_injection.hit("checkpoint.published")
    for file, sha256 in links.damaged.items():
        is_rebuilt = _rebuild(run, file, sha256)
        outcome = "it was rebuilt" if is_rebuilt else f"it could not be rebuilt, {path.name} has its content as it is in memory"
        logger.warning("%s was damaged; %s.", file, outcome)
    return Saved(path, progress, random, note, storage.read_manifest(path), tuple(str(file) for file in links.damaged))


# Shared files ---------------------------------------------------------------------------------------------------------------


def keep_copies(run: Path) -> None:
    """Keeps one independent copy of each file that all checkpoints which have it share through hard links; removes other copies.

    Disk space: the size of the frozen parts once more.

    Raises:
        StorageError: the disk refuses.
    """
    files: dict[str, list[Path]] = {}
    for path, entries in _manifests(run):
        for name, entry in entries.items():
            if (path / name).is_file():
                files.setdefault(entry["sha256"], []).append(path / name)
    shared = {
        sha256: found[-1]
        for sha256, found in files.items()
        if len(found) > 1 and all(os.path.samefile(found[0], other) for other in found[1:])
    }
    home = folder(run) / COPIES
    for item in home.iterdir() if home.is_dir() else ():
        if item.name not in shared:
            item.unlink()
    for sha256, file in shared.items():
        if not (home / sha256).exists():
            home.mkdir(exist_ok=True)
            if not _copy(file, home / sha256, sha256):
                logger.warning("%s: its hash is not that of the manifest, so no copy of it is kept", file)
    with contextlib.suppress(OSError):
        home.rmdir()  # when nothing is left in it


def _rebuild_from_origin(origin: Origin | None, path: Path, name: str, sha256: str, fault: str) -> str:
    """Replaces a damaged file by what its origin gives, if that has the right hash; returns the origin's name.

    Raises:
        StorageError: it has not.
    """
    if origin is None:
        raise StorageError(fault)
    made = storage.temporary_beside(path.parent / f"origin-{Path(name).name}")
    alone = f"{fault} Neither its copy nor another checkpoint has what was written"
    try:
        place = origin.write(path, name, made)
        if not _rebuild(path.parent.parent, path / name, sha256, made):
            raise StorageError(f"{alone}, and {place} no longer gives the weights that the run began with; put it back as it was.")
    except OSError as error:
        raise StorageError(f"{alone} ({error.strerror or error}).") from error
    except SightlineError as error:
        if error.message.startswith(fault):
            raise
        raise StorageError(f"{alone}, and it cannot be written anew: {error.message}", error.remedy) from error
    finally:
        made.unlink(missing_ok=True)
    return place


def _rebuild(run: Path, damaged: Path, sha256: str, made: Path | None = None) -> bool:
    """Replaces a damaged file in every checkpoint that shares it; False when no other file, nor `made`, has the right hash."""
    places = [path / name for path, entries in _manifests(run) for name, entry in entries.items() if entry["sha256"] == sha256]
    if damaged not in places:  # the checkpoint has gone meanwhile
        return False
    if not Path(os.path.realpath(damaged.parent)).is_relative_to(os.path.realpath(run)):  # a folder on the way is a link
        return False
    is_there = damaged.exists()
    alike = [place for place in places if place == damaged or (is_there and place.exists() and os.path.samefile(place, damaged))]
    others = [folder(run) / COPIES / sha256, *(place for place in places if place not in alike)] if made is None else [made]
    for source in [damaged, *others]:
        try:
            if source != made:
                storage.safe_join(run, source.relative_to(run).as_posix())
            if not source.is_file() or (source == damaged and storage.sha256_file(source) != sha256):
                continue
            if source == damaged:  # another process has rebuilt it
                return True
            damaged.parent.mkdir(parents=True, exist_ok=True)
            if not _copy(source, damaged, sha256):
                continue
            for place in alike:
                if place != damaged:
                    _replace_by_link(damaged, place)
            return True
        except (OSError, DataError, StorageError):  # DataError: it is not there, or leads out of the run
            continue
    return False


class _OtherContentError(Exception):
    pass


def _copy(source: Path, target: Path, sha256: str) -> bool:
    """Copies a file, if what is read of it has the right hash; otherwise leaves the target as it was and returns False."""
    digest = hashlib.sha256()
    try:
        with source.open("rb") as content, storage.atomic_file(target, "wb") as file:
            while chunk := content.read(1 << 20):
                digest.update(chunk)
                file.write(chunk)
            if digest.hexdigest() != sha256:
                raise _OtherContentError
    except _OtherContentError:
        return False
    return True


def _replace_by_link(source: Path, target: Path) -> None:
    temporary = storage.temporary_beside(target)
    storage.link_or_copy(source, temporary)
    temporary.replace(target)


def _manifests(run: Path) -> list[tuple[Path, dict[str, dict[str, Any]]]]:
    """Returns every checkpoint whose manifest can be read, in rising order, with the entries of its files."""
    found = []
    for step in steps(run):
        with contextlib.suppress(StorageError):
            found.append((path_of(run, step), storage.read_manifest(path_of(run, step))["files"]))
    return found


# Optimisers -----------------------------------------------------------------------------------------------------------------


def restore_optimiser(saved: Saved, optimiser: torch.optim.Optimizer, names: dict[nn.Parameter, str]) -> bool:
    """Gives an optimiser the state that it had; False where the checkpoint holds none.

    Raises:
        StorageError: the state is of other parameters.
    """
    file = saved.path / OPTIMISER
    if not file.exists():
        return False
    by_name = {name: parameter for parameter, name in names.items()}
    with safe_open(file, "pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118 (not a mapping)
            name, _, field_name = key.rpartition("/")
            parameter = by_name.get(name)
            if parameter is None:
                raise StorageError(f"{file}: holds state of {name!r}, which does not train.", "Resume with the same configuration.")
            value = tensors.get_tensor(key)
            is_count = field_name == "step"  # whole on every rank; a fused optimiser has it on the device
            if is_count and optimiser.defaults.get("fused"):
                value = value.to(parameter.device)
            optimiser.state[parameter][field_name] = value if is_count else shards(parameter, value)
    return True


def optimiser_tensors(optimiser: torch.optim.Optimizer, names: dict[nn.Parameter, str]) -> dict[str, torch.Tensor]:
    """Returns the state of an optimiser by `parameter/field`, as it is kept: a parameter in pieces has its state in pieces."""
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
    """Returns one hash over the weight files of a checkpoint."""
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
