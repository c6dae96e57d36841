"""Finds the model folder of what a user names: a run, a checkpoint, a model folder, or a Hub id."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.errors import StorageError, UsageError
from sightline.runtime import hub
from sightline.runtime.logs import logger
from sightline.training import checkpoint
from sightline.training.checkpoint import Origin, Saved

OriginOf = Callable[[Path], Origin]  # of a run folder; rebuilds damaged parts of its checkpoints
CONFIG, METRICS, LOCK, CARD = "config.yaml", "metrics.jsonl", "lock.json", "card.md"


@dataclass(frozen=True)
class CheckpointChoice:
    """The checkpoint of a run that a command uses, and why it is this one.

    Attributes:
        saved: the checkpoint, its hashes checked.
        reason: for people.
    """

    saved: Saved
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Returns the value that `eval --json` and `generate --json` print; `rebuilt` only where a file was rebuilt."""
        rebuilt = {"rebuilt": list(self.saved.rebuilt)} if self.saved.rebuilt else {}
        return {"step": self.saved.step, "path": str(self.saved.path), "reason": self.reason, **rebuilt}


def check_metrics(line: dict[str, Any]) -> None:
    """Raises ValueError for a line that is none of `metrics.jsonl`: its step is no whole number, or its loss or time no number."""
    if type(line.get("step")) is not int or line["step"] < 0:
        raise ValueError("'step' is not a whole number from 0")
    rates = line.get("lr")
    numbers = {f"lr of {part}": rate for part, rate in rates.items()} if isinstance(rates, dict) else {}
    for key, value in (numbers | {key: line.get(key, 0.0) for key in ("loss", "seconds", "validation_loss", "grad_norm")}).items():
        if isinstance(value, bool) or not isinstance(value, int | float) or (isinstance(value, int) and abs(value) > 2**63):
            raise ValueError(f"{key!r} is not a number")


def is_run(path: str | Path) -> bool:
    """Returns whether a folder holds checkpoints of a run."""
    return checkpoint.folder(Path(path)).is_dir()


def model_folder(path: str | Path, which: str = "last", origin_of: OriginOf | None = None) -> Path:
    """Returns the model folder of a run's checkpoint; any other folder is returned as it is. See `find_model`."""
    return find_model(path, which, origin_of=origin_of)[0]


def find_model(
    path: str | Path, which: str = "last", fallback: bool = False, origin_of: OriginOf | None = None
) -> tuple[Path, CheckpointChoice | None]:
    """Returns the model folder of a run's checkpoint, and which checkpoint that is; any other folder is returned as it is.

    Args:
        path: a run folder, optionally `RUN@STAGE`; or a model folder.
        which: `last`, `best`, the name of a stage (its end), or a step.
        fallback: where the last checkpoint is damaged, take the newest that is not.
        origin_of: rebuilds parts whose copies are all damaged.

    Raises:
        UsageError: the run has no such checkpoint.
        ConfigError: it is a path, and nothing lies there.
        StorageError: that checkpoint is damaged.
    """
    text = str(path)
    run, at, stage = text.rpartition("@")
    if at and is_run(run):
        text, which = run, stage
    if not is_run(text):
        if which != "last":
            raise UsageError(f"{text} is no run, so it has no checkpoint {which!r}.", "Leave --checkpoint out, or name a run.")
        hub.find_local(text)  # before Path() makes a Hub id of "./name"
        return Path(text), None
    choice = find_checkpoint(Path(text), which, fallback, origin_of)
    return choice.saved.path / checkpoint.MODEL, choice


def run_of(path: str | Path) -> Path:
    """Returns the run folder of `RUN` or `RUN@STAGE`.

    Raises:
        UsageError: it is no run.
    """
    text = str(path)
    run, at, _ = text.rpartition("@")
    for found in (text, run) if at else (text,):
        if is_run(found):
            return Path(found)
    if not Path(text).exists():
        raise UsageError(f"{text} does not exist.", hub.nearest_hint(Path(text)) or "Name the folder that `sightline train` wrote.")
    raise UsageError(f"{text} is no run of Sightline: it has no checkpoints.", "Name the folder that `sightline train` wrote.")


def find_checkpoint(run: Path, which: str, fallback: bool = False, origin_of: OriginOf | None = None) -> CheckpointChoice:
    """Returns a checkpoint of a run by name, its hashes checked; see `find_model`."""
    steps = checkpoint.steps(run)
    origin = None if origin_of is None else origin_of(run)
    if not steps:
        raise UsageError(f"{run} has no complete checkpoint yet.", "Train it first.")
    if which == "last":
        return _last(run, steps, fallback, origin)
    if which.isdecimal():
        if int(which) not in steps:
            raise UsageError(f"{run} has no checkpoint of step {which}.", f"It has {', '.join(map(str, steps))}.")
        return CheckpointChoice(checkpoint.read(checkpoint.path_of(run, int(which)), origin), f"step {int(which)} was asked for")
    notes, damaged = _notes(run, steps)
    if which == "best":
        best = next((progress.best for _, (progress, _) in sorted(notes.items(), reverse=True)), None)
        if best is None or best[1] not in steps:
            raise UsageError(f"{run} has no best checkpoint: it was not validated in the loop.", "Use --checkpoint last.")
        return CheckpointChoice(checkpoint.read(checkpoint.path_of(run, best[1]), origin), "best validation value")
    ends = {note["stage"]: step for step, (_, note) in notes.items() if step in note.get("stage_ends", [])}
    if which not in ends:
        if damaged:
            raise StorageError(f"{run} has no whole end of a stage {which!r}, but damaged checkpoints: {'; '.join(damaged)}")
        raise UsageError(
            f"{run} has no end of a stage {which!r}.", f"It has {', '.join(['last', 'best', *ends, *map(str, steps)])}."
        )
    return CheckpointChoice(checkpoint.read(checkpoint.path_of(run, ends[which]), origin), f"end of stage {which!r}")


def _last(run: Path, steps: list[int], fallback: bool, origin: Origin | None) -> CheckpointChoice:
    faults = []
    for step in reversed(steps):
        path = checkpoint.path_of(run, step)
        try:
            saved = checkpoint.read(path, origin)
        except StorageError as error:
            if not fallback:
                others = ", ".join(f"--checkpoint {other}" for other in reversed(steps) if other != step)
                raise StorageError(
                    f"the last checkpoint {path.name} is damaged: {error.message}",
                    f"Take another ({others}), or the newest that is whole: --fallback (eval, generate, report)." if others else "",
                ) from error
            faults.append(f"{path.name} is damaged ({error.message})")
            continue
        aside = [f"{name} (damaged)" for number, name in checkpoint.set_aside(run) if number > step]
        reason = "last checkpoint" if not faults else "newest whole checkpoint: " + "; ".join(faults)
        if faults:
            logger.warning("%s: using %s, for %s", run, path.name, "; ".join(faults))
        return CheckpointChoice(saved, reason + (f"; training set aside {', '.join(aside)}" if aside else ""))
    raise StorageError(f"{run} has no checkpoint that is whole: {'; '.join(faults)}.")


def _notes(run: Path, steps: list[int]) -> tuple[dict[int, tuple[checkpoint.Progress, dict[str, Any]]], list[str]]:
    """Progress and note of each checkpoint that has them, and what is wrong with the others."""
    notes, damaged = {}, []
    for step in steps:
        try:
            notes[step] = checkpoint.read_note(checkpoint.path_of(run, step))
        except StorageError as error:
            damaged.append(error.message)
    return notes, damaged
