"""A training run from its configuration: start or go on, train one stage after the other, leave a run folder."""

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import nn

from sightline.assembly.config.resolving import stage_plan
from sightline.assembly.config.schema import RunConfig
from sightline.assembly.model.blueprint import config_blueprint
from sightline.assembly.model.build import ModelBundle, build_bundle, load_initial_weights, read_model
from sightline.assembly.model.origin import RunOrigin
from sightline.assembly.train.pairs import PairStageRun
from sightline.assembly.train.run_folder import RunFolder, claimed
from sightline.assembly.train.stage import StageRun
from sightline.assembly.train.trackers import check_trackers
from sightline.errors import SightlineError
from sightline.models.gradient_checkpointing import checkpoint_activations
from sightline.runtime import seeds
from sightline.runtime.device import Runtime, prepare_runtime, process_settings_restored
from sightline.runtime.signals import watch_signals
from sightline.training import checkpoint, optim
from sightline.training.checkpoint import Progress
from sightline.training.console import PlannedStage, RunConsole
from sightline.training.loss_scale import HalfAccelerator
from sightline.training.ranks import exchange_errors_named


@dataclass(frozen=True)
class TrainResult:
    """The outcome of a run.

    Attributes:
        run: its folder.
        step: optimiser steps over all stages.
        checkpoint: the last checkpoint.
        weights_sha256: one hash over its weight files.
        rebuilt: damaged files of checkpoints that were written anew.
        best_step: step of the best checkpoint of the last stage; None without a validation.
    """

    run: Path
    step: int
    checkpoint: Path
    weights_sha256: str
    rebuilt: tuple[str, ...] = ()
    best_step: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the value that `train --json` prints."""
        return {
            "run": str(self.run),
            "step": self.step,
            "checkpoint": str(self.checkpoint),
            "weights_sha256": self.weights_sha256,
            "rebuilt": list(self.rebuilt),
        }


@process_settings_restored()
def train(config: RunConfig, run: Path, allow_change: Sequence[str] = ()) -> TrainResult:
    """Trains, or goes on where a run in this folder stopped.

    Args:
        config: the whole run.
        run: its folder.
        allow_change: keys that may differ from those that the run began with.

    Raises:
        ConfigError: the folder holds a run with another configuration or other data.
        StorageError: another process writes there, or its checkpoints are damaged.
        DistributedError: another rank died, or missed its deadline.
        Stopped: a signal arrived; the state is saved.
    """
    check_trackers(config.tracking.trackers)
    wanted = config.runtime
    runtime = prepare_runtime(wanted.device, wanted.dtype, wanted.threads, wanted.deterministic)
    with exchange_errors_named(int(os.environ.get("WORLD_SIZE", "1"))):
        accelerator = prepared_accelerator(config, runtime, run)
        with claimed(run) if accelerator.is_main_process else contextlib.nullcontext(), watch_signals() as stopped:
            return _train(config, RunFolder(run, config, accelerator, runtime.facts()), accelerator, stopped, allow_change)


def prepared_accelerator(config: RunConfig, runtime: Runtime, run: Path) -> Accelerator:
    """Returns device, precision and ranks of a run."""
    kind: type[Accelerator] = HalfAccelerator if runtime.fp16 else Accelerator
    return kind(
        cpu=runtime.device == "cpu",
        mixed_precision="bf16" if runtime.bf16 else "no",
        log_with=list(config.tracking.trackers) or None,
        project_dir=str(run),
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=timedelta(seconds=config.runtime.deadline)),
            DistributedDataParallelKwargs(find_unused_parameters=True),
        ],
    )


def _train(
    config: RunConfig, folder: RunFolder, accelerator: Accelerator, stopped: Callable[[], str], allow_change: Sequence[str]
) -> TrainResult:
    """Runs one rank's part of a training."""
    at = folder.open(allow_change)
    bundle = run_bundle(config, folder, accelerator)
    guard = optim.NonFiniteGuard()
    console = RunConsole(_planned(config, bundle, folder, accelerator, at), accelerator.is_main_process)
    with folder.metrics(at.step) as log:
        while at.stage < len(config.stages):
            stage = stage_run(config, at.stage, bundle, folder, accelerator)
            at = stage.train(at, guard, stopped, log, console)
            if stage.is_sharded and at.stage < len(config.stages):
                bundle = run_bundle(config, folder, accelerator)  # whole again, as every rank reads it from the stage's checkpoint
    saved = folder.saved
    assert saved is not None
    return TrainResult(
        folder.path,
        at.step,
        saved.path,
        checkpoint.weights_sha256(saved.manifest),
        tuple(folder.rebuilt),
        at.best[1] if at.best else None,
    )


def stage_run(config: RunConfig, number: int, bundle: ModelBundle, folder: RunFolder, accelerator: Accelerator) -> StageRun:
    """Returns a stage of a run, of pairs or of conversations."""
    plan = stage_plan(config, number)
    kind = PairStageRun if plan.objective.compares_pairs else StageRun
    return kind(plan, bundle, folder, accelerator)


def _planned(
    config: RunConfig, bundle: ModelBundle, folder: RunFolder, accelerator: Accelerator, at: Progress
) -> list[PlannedStage]:
    """Returns the lengths of all stages, as far as they are known, for the time that is left.

    The length of a later stage in epochs follows from its data. One process looks at it now, and keeps the lengths beside the data;
    of several, the others would have to wait.
    """
    random = seeds.rng_state()
    out = []
    for number, stage in enumerate(config.stages):
        known = PlannedStage(stage.name, stage_plan(config, number).train.steps)
        if len(config.stages) > 1 and number >= at.stage and accelerator.num_processes == 1:
            with contextlib.suppress(SightlineError):  # it is reported when the stage begins
                known = stage_run(config, number, bundle, folder, accelerator).planned()
        out.append(known)
    seeds.restore_rng_state(random)
    return out


def own_weights(module: nn.Module) -> None:
    """Copies weights that are mapped from a file, so that a change of the file does not change the model."""
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.clone()


def run_bundle(config: RunConfig, folder: RunFolder, accelerator: Accelerator) -> ModelBundle:
    """Returns the model of the last checkpoint, or a new one."""
    seeds.seed_all(config.train.seed)
    if folder.saved is not None:
        bundle = read_model(folder.saved.path / checkpoint.MODEL, config.runtime.attention)
    else:
        bundle = build_bundle(config_blueprint(config), config)
        if config.init is not None:
            load_initial_weights(bundle, config.init, RunOrigin)
    bundle.module.to(accelerator.device)
    if accelerator.device.type == "cpu":
        own_weights(bundle.module)
    if config.runtime.gradient_checkpointing:
        checkpoint_activations(bundle.inner)
    return bundle
