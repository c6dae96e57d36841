"""The folder of a run: who may write there, where the run goes on, what is stored, and what all ranks agree on.

RUN/config.yaml  metrics.jsonl  card.md  contrast/STAGE.npz  checkpoints/step-N/
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from sightline import __version__
from sightline.assembly.config.changes import describe_changes, differences, may_differ
from sightline.assembly.config.locate import CARD, CONFIG, LOCK, METRICS, check_metrics
from sightline.assembly.config.resolving import stage_plan, stored_config
from sightline.assembly.config.schema import RunConfig, StagePlan
from sightline.assembly.model.build import ModelBundle, non_finite, write_model
from sightline.assembly.model.origin import RunOrigin
from sightline.assembly.train.fingerprints import data_fingerprints, refuse_other_data
from sightline.assembly.train.trackers import TrackedSample, Trackers
from sightline.config import to_yaml
from sightline.errors import ConfigError, SightlineError, StorageError
from sightline.reporting.card import Card, write_card
from sightline.runtime import plugins, seeds, storage
from sightline.runtime.logs import logger
from sightline.training import checkpoint, lora
from sightline.training.checkpoint import Links, Progress, Saved

Result = TypeVar("Result")


# The lock -------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def claimed(run: Path) -> Iterator[None]:
    """Locks a run folder; an error before the first step leaves the folder as it was, unless it holds other files."""
    folders = [folder for folder in (run, *run.parents) if not os.path.exists(folder)]  # unlike Path.exists, never an error
    try:
        with storage.Lock(run / LOCK):
            new = [run / name for name in (CONFIG, METRICS) if not (run / name).exists()]
            try:
                yield
            except SightlineError:
                with contextlib.suppress(OSError):
                    _take_back(run, new)
                raise
    except SightlineError:
        with contextlib.suppress(OSError):  # one that is not empty stays: it holds files, or another process holds the lock
            for folder in folders:
                folder.rmdir()
        raise


def _take_back(run: Path, new: Sequence[Path]) -> None:
    """Removes these files of a run that made no step and left nothing else: no checkpoint, no blind logits."""
    log = run / METRICS
    if {item.name for item in run.iterdir()} <= {CONFIG, METRICS, LOCK} and not (log.exists() and log.stat().st_size):
        for file in new:
            file.unlink(missing_ok=True)


# The folder -----------------------------------------------------------------------------------------------------------------


class RunFolder:
    """A run folder as one rank sees it; the first rank alone reads and writes, and the others learn what it found.

    Args:
        path: the folder.
        config: the run.
        accelerator: the ranks.
        facts: of the machine.

    Attributes:
        path, config: as given.
        saved: the last checkpoint; None before the first one.
        rebuilt: damaged files of checkpoints that were written anew.
    """

    def __init__(self, path: Path, config: RunConfig, accelerator: Accelerator, facts: dict[str, Any]) -> None:
        self.path, self.config, self._accelerator = path, config, accelerator
        self._facts = facts | {"world_size": accelerator.num_processes, "plug-ins": plugins.descriptions() or None}
        self.saved: Saved | None = None
        self.rebuilt: list[str] = []
        self._stage_ends: list[int] = []
        self._data: dict[str, Any] = {}
        self._log: MetricsLog | None = None

    def open(self, allow_change: Sequence[str]) -> Progress:
        """Finds where the run goes on and stores the configuration.

        Raises:
            ConfigError: the run has another configuration or other data, or is finished and the change asks for no step.
            StorageError: there are checkpoints and none is valid.
        """
        at, self.saved, self._data = self._agreed(lambda: self._open(allow_change))
        if self.saved is not None:
            ends = list(self.saved.note.get("stage_ends", []))
            is_continued = self.saved.progress.stage > at.stage
            self._stage_ends = ends[:-1] if is_continued else ends
            self.rebuilt.extend(self.saved.rebuilt)
        return at

    def _open(self, allow_change: Sequence[str]) -> tuple[Progress, Saved | None, dict[str, Any]]:
        stored = self.path / CONFIG
        before = stored_config(self.path) if stored.exists() else self.config
        changed = differences(before, self.config)
        refused = {key: values for key, values in changed.items() if not may_differ(key, allow_change)}
        if refused and checkpoint.steps(self.path):
            raise ConfigError(
                f"{self.path} holds a run with another configuration ({describe_changes(refused)}).",
                "Choose another --out, or allow it: --allow-change " + ",".join(".".join(key) for key in refused),
            )
        saved = checkpoint.newest(self.path, RunOrigin(self.path))
        at = Progress()
        if saved is not None:
            allowed = {key: values for key, values in changed.items() if not may_differ(key)}
            at = place_to_go_on(saved, before, self.config, allowed)
            self._compare_facts(saved)
        data = data_fingerprints(self.config, at.stage)
        if saved is not None and at.stage < len(self.config.stages):
            refuse_other_data(self.path, saved.note.get("data"), data, allow_change)
        if saved is not None:
            logger.info("going on from %s (step %d)", saved.path.name, saved.step)
        storage.write_text(stored, to_yaml(self.config))
        return at, saved, (saved.note.get("data") or {} if saved is not None else {}) | data

    def _compare_facts(self, saved: Saved) -> None:
        before = saved.note.get("facts", {})
        for key in ("torch", "threads", "world_size", "device", "bf16", "fp16", "plug-ins"):
            if before.get(key) != self._facts.get(key):
                logger.warning(
                    "%s was %s and is %s: the run goes on, but not bit for bit", key, before.get(key), self._facts.get(key)
                )

    def _agreed(self, work: Callable[[], Result]) -> Result:
        """Does something on the first rank and gives its result, or its error, to all."""
        outcome: list[Any] = [None, None]
        if self._accelerator.is_main_process:
            try:
                outcome[0] = work()
            except SightlineError as error:
                outcome[1] = error
        if self._accelerator.num_processes > 1:
            broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def restore_random(self) -> None:
        """Restores the random state of the last checkpoint, so that what was drawn since then changes nothing.

        Raises:
            StorageError: it is none.
        """
        if self.saved is None:
            return
        states = self.saved.random  # one per process; there may be more of them now
        try:
            seeds.restore_rng_state(states[self._accelerator.process_index % len(states)])
        except (IndexError, KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
            raise StorageError(
                f"{self.saved.path / checkpoint.STATE}: 'random' is no random state ({type(error).__name__}: {error}).",
                "Remove this checkpoint; the run goes on from the one before it.",
            ) from error

    @contextlib.contextmanager
    def metrics(self, step: int) -> Iterator["MetricsLog"]:
        """Yields the log of the run, without lines of steps after `step`."""
        self._log = log = MetricsLog(self.path / METRICS, step, self._accelerator, self.config)
        try:
            yield log
        finally:
            log.close()

    def save(
        self,
        bundle: ModelBundle,
        plan: StagePlan,
        at: Progress,
        weights: Mapping[str, torch.Tensor],
        optimiser: Mapping[str, torch.Tensor] | None,
        changed: set[str],
        ended: Progress | None = None,
    ) -> None:
        """Publishes a checkpoint on the first rank; all ranks learn how it went.

        Args:
            bundle: the model.
            plan: the stage.
            at: where the run goes on from this checkpoint.
            weights: whole, on the first rank.
            optimiser: its state by parameter, or None.
            changed: parts that train in this stage.
            ended: at the end of a stage, where it ended.
        """
        random = gather_object([seeds.rng_state()]) if self._accelerator.num_processes > 1 else [seeds.rng_state()]
        if ended is not None:
            self._stage_ends = [*self._stage_ends, at.step]
        note = {
            "facts": self._facts,
            "stage_ends": self._stage_ends,
            "stage": plan.name,
            "sightline": __version__,
            "data": self._data,
        }
        if ended is not None:
            note["ended"] = {"steps": plan.train.steps, "epochs": plan.train.epochs, "progress": asdict(ended)}
        run = {"recipe": self.config.recipe, "stage": plan.name, "step": at.step}
        described = replace(bundle, processing=bundle.processing.model_copy(update={"run": run}))
        is_same_stage = self.saved is not None and self.saved.note.get("stage") == plan.name and self.saved.progress.stage_step > 0

        def write(target: Path, links: Links) -> None:
            write_model(described, target / checkpoint.MODEL, links.take, changed, weights)
            lora.save(bundle.inner, target / checkpoint.LORA, links.take if is_same_stage else lambda file: False)

        def publish() -> Saved:
            odd = non_finite(weights)
            if odd is not None:
                raise StorageError(f"weight {odd!r} holds NaN or infinity; the checkpoint is not published.")
            checkpoint.check_space(self.path, 2 * sum(p.numel() * 12 for p in bundle.module.parameters() if p.requires_grad))
            if self._log is not None:
                self._log.sync()
            saved = checkpoint.save(self.path, at, random, note, optimiser, write, self.saved, ended is not None)
            best = {at.best[1]} if at.best else set()
            checkpoint.prune(self.path, plan.train.keep, best | set(self._stage_ends))
            checkpoint.keep_copies(self.path)
            return saved

        self.saved = self._agreed(publish)
        self.rebuilt.extend(self.saved.rebuilt)

    def write_card(self, card: Card) -> None:
        """Writes the card; device hours are those of the log, and facts those of this machine."""
        if self._accelerator.is_main_process:
            lines = storage.read_json_lines(self.path / METRICS, check_metrics)
            hours = sum(line.get("seconds", 0.0) for line in lines) / 3600 * self._accelerator.num_processes
            write_card(self.path / CARD, replace(card, hours=hours, facts=self._facts))


def place_to_go_on(
    saved: Saved, before: RunConfig, config: RunConfig, changed: Mapping[tuple[str, ...], tuple[Any, Any]]
) -> Progress:
    """Returns where a run continues: at its last step, or within its last stage if that is finished and made longer.

    Args:
        saved: the newest checkpoint.
        before, config: the settings that it had, and those it has now.
        changed: allowed differences that change results.

    Raises:
        ConfigError: the stage has done more steps than are wanted, or the run is finished and the changes ask for no further step.
    """
    at = saved.progress
    if at.stage < len(config.stages):
        plan = stage_plan(config, at.stage)
        if plan.train.steps is not None and plan.train.steps < at.stage_step:
            raise ConfigError(f"train.steps={plan.train.steps}, but stage {plan.name!r} has done {at.stage_step} steps already.")
        return at
    last = len(config.stages) - 1
    plan, ended = stage_plan(config, last), saved.note.get("ended")
    had = stage_plan(before, len(before.stages) - 1).train
    steps, epochs = (had.steps, had.epochs) if ended is None else (ended["steps"], ended["epochs"])
    now = plan.train
    is_longer = (now.steps is not None and steps is not None and now.steps > steps) or (
        now.epochs is not None and epochs is not None and now.epochs > epochs
    )
    if is_longer and saved.note.get("stage") == plan.name:
        logger.info(
            "stage %s was finished with %s and goes on to %s", plan.name, _length(steps, epochs), _length(now.steps, now.epochs)
        )
        if ended is not None:
            values = ended["progress"]
            return replace(at, stage=last, **{key: values[key] for key in ("stage_step", "epoch", "epoch_step")})
        ends = saved.note.get("stage_ends", [])
        done = at.step - (ends[-2] if len(ends) > 1 else 0)
        return replace(at, stage=last, stage_step=done, epoch=0, epoch_step=done)  # `StageRun` finds the epoch
    if changed:
        raise ConfigError(
            f"the run is finished, and this change would train nothing ({describe_changes(changed)}).",
            f"Give its last stage more than {_length(steps, epochs)}, or choose another --out.",
        )
    return at


def _length(steps: int | None, epochs: float | None) -> str:
    return f"{steps} steps" if steps is not None else f"{epochs} epochs"


# The log --------------------------------------------------------------------------------------------------------------------


class MetricsLog:
    """`metrics.jsonl` and the trackers; lines of steps after the one that the run goes on from are removed."""

    def __init__(self, path: Path, step: int, accelerator: Accelerator, config: RunConfig) -> None:
        self._file = storage.JsonLines(path, check=check_metrics) if accelerator.is_main_process else None
        if self._file is not None:
            self._file.keep(lambda line: line["step"] <= step)
        self._trackers = Trackers(accelerator, config)

    def write(self, line: dict[str, Any]) -> None:
        """Adds a line; only the first rank does."""
        self._trackers.start()
        if self._file is not None:
            self._file.write(line)
        self._trackers.write(line)

    def write_samples(self, step: int, samples: Sequence[TrackedSample]) -> None:
        """Gives generated texts and their images to the trackers."""
        self._trackers.write_samples(step, samples)

    def sync(self) -> None:
        """Waits until all lines are on the disk."""
        if self._file is not None:
            self._file.sync()

    def close(self) -> None:
        """Closes the file and ends the trackers."""
        if self._file is not None:
            self._file.close()
        self._trackers.close()
