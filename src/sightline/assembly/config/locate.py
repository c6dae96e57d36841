"""From what a user names (a run, a checkpoint, a model folder, a Hub id) to the folder of a model."""

from pathlib import Path

from sightline.errors import UsageError
from sightline.runtime import storage
from sightline.training import checkpoint
from sightline.training.checkpoint import Saved


def is_run(path: str | Path) -> bool:
    """Whether a folder holds checkpoints of a run."""
    return checkpoint.folder(Path(path)).is_dir()


def model_folder(path: str | Path, which: str = "last") -> Path:
    """The model folder of a run's checkpoint; any other folder is returned as it is.

    Args:
        path: a run folder, optionally `RUN@STAGE`; or a model folder.
        which: `last`, `best`, the name of a stage (its end), or a step.

    Raises:
        UsageError: the run has no such checkpoint.
        StorageError: that checkpoint fails its hashes.
    """
    text = str(path)
    run, at, stage = text.rpartition("@")
    if at and is_run(run):
        text, which = run, stage
    if not is_run(text):
        return Path(text)
    return find_checkpoint(Path(text), which).path / checkpoint.MODEL


def run_of(path: str | Path) -> Path:
    """The run folder of `RUN` or `RUN@STAGE`.

    Raises:
        UsageError: it is no run.
    """
    text = str(path)
    run, at, _ = text.rpartition("@")
    for found in (text, run) if at else (text,):
        if is_run(found):
            return Path(found)
    raise UsageError(f"{text} is no run of Sightline: it has no checkpoints.", "Name the folder that `sightline train` wrote.")


def find_checkpoint(run: Path, which: str) -> Saved:
    """A checkpoint of a run by name, its hashes checked."""
    steps = [step for step in checkpoint.steps(run) if storage.has_all_files(checkpoint.path_of(run, step))]
    if not steps:
        raise UsageError(f"{run} has no complete checkpoint yet.", "Train it first.")
    if which == "last":
        return checkpoint.read(checkpoint.path_of(run, steps[-1]))
    if which.isdecimal():
        if int(which) not in steps:
            raise UsageError(f"{run} has no checkpoint of step {which}.", f"It has {', '.join(map(str, steps))}.")
        return checkpoint.read(checkpoint.path_of(run, int(which)))
    if which == "best":
        best = checkpoint.read(checkpoint.path_of(run, steps[-1])).progress.best
        if best is None or best[1] not in steps:
            raise UsageError(f"{run} has no best checkpoint: it was not validated in the loop.", "Use --checkpoint last.")
        return checkpoint.read(checkpoint.path_of(run, best[1]))
    ends = {}
    for step in steps:
        state = storage.read_json(checkpoint.path_of(run, step) / checkpoint.STATE)
        if step in state["note"]["stage_ends"]:
            ends[state["note"]["stage"]] = step
    if which not in ends:
        raise UsageError(f"{run} has no end of a stage {which!r}.", f"It has last, best, {', '.join([*ends, *map(str, steps)])}.")
    return checkpoint.read(checkpoint.path_of(run, ends[which]))


CONFIG, METRICS, LOCK, CARD = "config.yaml", "metrics.jsonl", "lock.json", "card.md"
