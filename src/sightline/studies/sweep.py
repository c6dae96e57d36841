"""Makes the runs of a sweep one after another and asks each what the sweep file asks.

    DIR/sweep.json              what was asked for, last
    DIR/runs/NAME/              a run folder as `sightline train` makes it, and in it
        sweep.json              done or failed, seconds, hash of the weights
        eval/KEY/               predictions.jsonl, scores.json, items.json (scores of each record)

What is finished is not done again: a run whose last checkpoint is there with its hashes and the same settings, an evaluation whose
settings are the same. A run that fails is noted with its error and the next one begins. Each run is locked while it is made, so
that several processes may share one folder.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.assembly.config.changes import describe_changes, differences, may_differ
from sightline.assembly.config.locate import CONFIG, model_folder
from sightline.assembly.config.resolving import stored_config
from sightline.assembly.config.sources import sources_of
from sightline.assembly.evaluate.evaluate import evaluate
from sightline.assembly.evaluate.opened import weights_hash
from sightline.assembly.train.run import train
from sightline.data.dataset import open_dataset
from sightline.errors import ConfigError, SightlineError, Stopped, StorageError
from sightline.evaluation.predict import ITEMS, SCORES
from sightline.runtime import storage
from sightline.runtime.logs import logger, readable_duration
from sightline.runtime.signals import watch_signals
from sightline.studies.spec import Asked, PlannedRun, Sweep
from sightline.studies.stored import is_same, is_stored
from sightline.training import checkpoint

RUNS, EVALUATIONS, STATE, LOCK = "runs", "eval", "sweep.json", "sweep.lock"


@dataclass(frozen=True)
class Outcome:
    """How a run of a sweep went.

    Attributes:
        state: `done`; `failed`; `elsewhere` when another process is making it.
        error: why it failed.
        seconds: spent on it now.
    """

    name: str
    state: str
    error: str = ""
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return {"run": self.name, "state": self.state, "error": self.error, "seconds": round(self.seconds, 1)}


def folder_of(out: Path, run: PlannedRun) -> Path:
    """Returns the folder of a run."""
    return out / RUNS / run.name


def make_runs(runs: Sequence[PlannedRun], out: Path) -> list[Outcome]:
    """Makes runs in order; what is finished takes no time.

    Raises:
        ConfigError: a run of that name was started with other settings.
        Stopped: a signal arrived; the state is saved and the same command goes on.
    """
    refuse_others(runs, out)
    outcomes: list[Outcome] = []
    todo = [run for run in runs if not is_finished(run, out)]
    if len(todo) < len(runs):
        logger.info("%d of %d runs are finished already", len(runs) - len(todo), len(runs))
    for number, run in enumerate(todo):
        if number and is_finished(run, out):  # another process has made it meanwhile
            outcomes.append(Outcome(run.name, "done"))
            continue
        logger.info("run %d of %d: %s", number + 1, len(todo), run.name)
        outcome = make_run(run, out)
        outcomes.append(outcome)
        spent = [done.seconds for done in outcomes if done.state == "done" and done.seconds]
        left = f"; about {readable_duration(sum(spent) / len(spent) * (len(todo) - number - 1))} left" if spent else ""
        logger.info("%s: %s after %s%s", run.name, outcome.error or outcome.state, readable_duration(outcome.seconds), left)
    finished = [Outcome(run.name, "done") for run in runs if run not in todo]
    return finished + outcomes


def make_run(run: PlannedRun, out: Path) -> Outcome:
    """Trains and evaluates one run, or goes on with it; an error is noted in its folder.

    Raises:
        Stopped: a signal arrived.
    """
    folder = folder_of(out, run)
    begin = time.perf_counter()
    try:
        with storage.Lock(folder / LOCK):
            return _made(run, folder, begin)
    except StorageError as error:
        return Outcome(run.name, "elsewhere", error.message)


def _made(run: PlannedRun, folder: Path, begin: float) -> Outcome:
    note: dict[str, Any] = {"run": run.name, "arm": run.arm, "seed": run.seed, "cell": dict(run.cell)}
    note["asked"] = {asked.key: run.spec_of(asked).model_dump(mode="json") for asked in run.asked}
    try:
        sha = train(run.config, folder).weights_sha256
        weights = weights_hash(model_folder(str(folder)))
        for asked in run.asked:
            _ask(run, asked, folder, weights)
    except Stopped:
        raise
    except Exception as error:  # whatever it was, the other runs are worth making
        said = str(error) if isinstance(error, SightlineError) else f"{type(error).__name__}: {error}"
        logger.debug("%s failed", run.name, exc_info=True)
        seconds = time.perf_counter() - begin
        storage.write_json(folder / STATE, {"state": "failed", "error": said, **note, "seconds": round(seconds, 1)})
        return Outcome(run.name, "failed", said, seconds)
    seconds = time.perf_counter() - begin
    storage.write_json(folder / STATE, {"state": "done", "weights_sha256": sha, **note, "seconds": round(seconds, 1)})
    return Outcome(run.name, "done", "", seconds)


def _ask(run: PlannedRun, asked: Asked, folder: Path, weights: str) -> None:
    """Evaluates a run, unless that is done with the same weights."""
    spec, out = run.spec_of(asked), folder / EVALUATIONS / asked.key
    if is_stored(spec, out, weights):
        return
    machine = run.config.runtime
    done = evaluate(spec, str(folder), out=out, device=machine.device, threads=machine.threads)
    values = ", ".join(
        f"{info.name} {done.scores[info.name].value:.4f}" for info in done.task.highlights if info.name in done.scores
    )
    logger.info("%s %s: %s", run.name, asked.key, values)


# What is there --------------------------------------------------------------------------------------------------------------------


def weights_of(folder: Path) -> str:
    """Returns hash of the weights that a run ended with, as its last checkpoint's manifest has it; empty where there is none."""
    steps = checkpoint.steps(folder)
    path = checkpoint.path_of(folder, steps[-1]) if steps else None
    return checkpoint.weights_sha256(storage.read_manifest(path)) if path is not None and storage.has_all_files(path) else ""


def is_finished(run: PlannedRun, out: Path) -> bool:
    """Returns whether a run and all its evaluations are done: noted as such, the weights as they were, nothing new asked."""
    folder = folder_of(out, run)
    try:
        note = storage.read_json(folder / STATE)
        if note["state"] != "done" or note["weights_sha256"] != weights_of(folder):
            return False
        if not all(is_same(note["asked"].get(asked.key), run.spec_of(asked)) for asked in run.asked):
            return False
        storage.verify_dir(checkpoint.path_of(folder, checkpoint.steps(folder)[-1]))
        return all(storage.read_json(folder / EVALUATIONS / asked.key / name) for asked in run.asked for name in (ITEMS, SCORES))
    except (StorageError, KeyError, TypeError, AttributeError):
        return False


def refuse_others(runs: Sequence[PlannedRun], out: Path) -> None:
    """Makes sure that runs that were started before have the settings that are wanted now.

    Raises:
        ConfigError: one has others; names it and what differs.
    """
    for run in runs:
        stored = folder_of(out, run) / CONFIG
        if not stored.exists() or not checkpoint.steps(folder_of(out, run)):
            continue
        before = stored_config(folder_of(out, run))
        changed = {key: both for key, both in differences(before, run.config).items() if not may_differ(key)}
        if changed:
            raise ConfigError(
                f"{folder_of(out, run)} was started with other settings ({describe_changes(dict(list(changed.items())[:5]))}).",
                "Choose another --out, give the settings that it was started with, or remove that folder.",
            )


def check_data(runs: Sequence[PlannedRun]) -> None:
    """Opens every data set that the runs name, so that a wrong path is an error before the first run.

    Raises:
        ConfigError: no data set is named.
        DataError: one does not exist, or lacks a split.
    """
    seen: set[tuple[str, str]] = set()
    for run in runs:
        wanted = {(source.path, source.split) for source in sources_of(run.config.data)}
        wanted |= {(spec.data, spec.split) for spec in map(run.spec_of, run.asked)}
        for path, split in sorted(wanted - seen):
            open_dataset(path).split_indices(split)
        seen |= wanted


def write_note(sweep: Sweep, arguments: Sequence[str], out: Path) -> None:
    """Stores the sweep file and the arguments in the folder."""
    note = {"file": sweep.path.name, "sweep": json.loads(sweep.config.model_dump_json()), "settings": list(arguments)}
    out.mkdir(parents=True, exist_ok=True)
    storage.write_json(out / STATE, note | {"runs": [run.name for run in sweep.runs]})


def share(words: Sequence[str], jobs: int) -> None:
    """Starts `jobs` processes of the same command, which take the runs from each other's hands, and waits for them.

    Raises:
        Stopped: a signal arrived; the processes were stopped and have saved.
    """
    command = [sys.executable, "-m", "sightline", *words]
    with watch_signals() as stopped:
        workers = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(jobs)]
        signalled = False
        while any(worker.poll() is None for worker in workers):
            if stopped() and not signalled:
                signalled = True
                for worker in workers:
                    worker.terminate()
            time.sleep(0.2)
        if stopped():
            raise Stopped(f"{stopped()}; what is finished is kept.", "The same command goes on from here.")
