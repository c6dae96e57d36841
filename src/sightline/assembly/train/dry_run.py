"""Estimates length, time and memory of a run from a few measured steps of each stage; writes nothing."""

import contextlib
import copy
import math
import os
import resource
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from sightline.assembly.config.schema import RunConfig
from sightline.assembly.model.build import ModelBundle
from sightline.assembly.train.corpus import visual_input_loader
from sightline.assembly.train.run import prepared_accelerator, run_bundle, stage_run
from sightline.assembly.train.run_folder import RunFolder
from sightline.assembly.train.speed import OFF
from sightline.assembly.train.stage import StageRun, stage_schedule, step_tokens
from sightline.assembly.train.trackers import check_trackers
from sightline.assembly.train.validation import ROWS
from sightline.errors import UsageError
from sightline.runtime.device import prepare_runtime, process_settings_restored
from sightline.runtime.logs import readable_clock
from sightline.training import loop, lora, optim, stages
from sightline.training.checkpoint import Progress
from sightline.training.loss_scale import HalfAccelerator, LossScale

MEASURED = 5  # steps after the first, which is slower
MEASURED_SECONDS = 20.0  # fewer steps where they take longer


@dataclass(frozen=True)
class StageEstimate:
    """What a stage will take.

    Attributes:
        name: of the stage.
        steps, steps_per_epoch: its length in optimiser steps.
        rows: rows, or pairs, of a step.
        tokens: of all its steps, without padding; None for pairs.
        parameters: how many train.
        step_seconds: of a measured step, waiting for data included.
        validations, validation_seconds: number of in-loop validations and the time of one.
        measured: number of measured steps.
    """

    name: str
    steps: int
    steps_per_epoch: int
    rows: int
    tokens: int | None
    parameters: int
    step_seconds: float
    validations: int
    validation_seconds: float
    measured: int

    @property
    def seconds(self) -> float:
        return self.steps * self.step_seconds + self.validations * self.validation_seconds


@dataclass(frozen=True)
class RunEstimate:
    """What a run will take.

    Attributes:
        recipe, device: of the run.
        stages: its stages.
        memory_bytes: peak of the measured steps: of the device on a GPU, else of the whole process.
    """

    recipe: str
    device: str
    stages: tuple[StageEstimate, ...]
    memory_bytes: int

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    @property
    def tokens(self) -> int:
        return sum(stage.tokens or 0 for stage in self.stages)

    def to_json(self) -> dict[str, Any]:
        """Returns the value that `train --dry-run --json` prints."""
        return {
            "dry_run": True,
            "recipe": self.recipe,
            "device": self.device,
            "steps": self.steps,
            "tokens": self.tokens or None,
            "seconds": self.seconds,
            "memory_bytes": self.memory_bytes,
            "stages": [vars(stage) | {"seconds": stage.seconds} for stage in self.stages],
        }

    def lines(self) -> list[str]:
        """Returns the estimate as text."""
        out = [f"dry run of {self.recipe} on {self.device}"]
        for number, stage in enumerate(self.stages):
            what = f"{stage.tokens:,} tokens" if stage.tokens is not None else f"{stage.steps * stage.rows:,} pairs"
            unit = "rows" if stage.tokens is not None else "pairs"
            out += [
                f"stage {number + 1} of {len(self.stages)} ({stage.name})",
                f"  length      {stage.steps:,} steps of {stage.rows} {unit}, {stage.steps_per_epoch:,} per epoch; {what}",
                f"  trains      {stage.parameters:,} parameters",
                f"  time        {readable_clock(stage.seconds)}: {stage.step_seconds:.3f} s a step ({stage.measured} measured), "
                f"{stage.validations} validations of {stage.validation_seconds:.1f} s",
            ]
        kind = "of the device" if self.device == "cuda" else "of the process"
        tokens = f", {self.tokens:,} tokens" if self.tokens else ""
        out.append(f"in all        {self.steps:,} steps{tokens}, about {readable_clock(self.seconds)} and checkpoints")
        out.append(f"memory        about {self.memory_bytes / 1e9:.1f} GB {kind}, the peak of the measured steps")
        return [*out, "Nothing was written. The same command without --dry-run trains."]


@process_settings_restored()
def dry_run(config: RunConfig) -> RunEstimate:
    """Builds the model, takes a few steps of each stage, and forgets them.

    Raises:
        ConfigError: the configuration does not work with its data or weights.
        UsageError: there are several processes, or a tracker is not installed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("--dry-run measures one process.", "Call it without torchrun: python -m sightline train ... --dry-run")
    check_trackers(config.tracking.trackers)
    wanted = config.runtime
    runtime = prepare_runtime(wanted.device, wanted.dtype, wanted.threads, wanted.deterministic)
    with tempfile.TemporaryDirectory(prefix="sightline-") as scratch:
        accelerator = prepared_accelerator(config, runtime, Path(scratch))
        folder = RunFolder(Path(scratch), config, accelerator, runtime.facts())
        bundle = run_bundle(config, folder, accelerator)
        found = tuple(
            _estimate(stage_run(config, number, bundle, folder, accelerator), bundle, accelerator)
            for number in range(len(config.stages))
        )
        return RunEstimate(config.recipe, runtime.device, found, _peak_memory(runtime.device))


def _estimate(run: StageRun, bundle: ModelBundle, accelerator: Accelerator) -> StageEstimate:
    run.writes_cache = False
    plan = run.plan
    stage = stages.apply(bundle.module, plan.name, plan.parts, plan.train.lr, plan.train.weight_decay, plan.train.decay_all)
    visual_loader = visual_input_loader(run.bundle, plan.data)
    samples = run.samples(visual_loader)
    epochs = run.loader(samples).plan
    schedule = stage_schedule(plan, epochs)
    # Enough samples for the measured steps: what a frozen part computes once of all of them would take its time here.
    used = max(ROWS, math.ceil(sum(map(len, epochs.rows(0))) / epochs.steps(0) * (MEASURED + 1)))
    speed = run.speed()
    loader = run.loader(run.with_stored(run.limited(samples, used)), speed)
    shared, stage = run.shared(stage)
    if isinstance(accelerator, HalfAccelerator):
        shared.scale = LossScale(0, 0)
    lines: list[dict[str, Any]] = []
    job = loop.Job(
        accelerator=accelerator,
        model=bundle.module,
        ranks=shared,
        stage=stage,
        optimiser=optim.build_optimiser(stage, plan.train.betas, plan.train.eps),
        loader=loader,
        schedule=replace(schedule, steps=1, warmup=0, checkpoint_every=0, evaluate_every=0),
        log=_Lines(lines),
        save=lambda at: None,
        evaluate=None,
        stop=lambda: "",
        guard=optim.NonFiniteGuard(),
    )
    with speed.applied(run.bundle) if speed != OFF else contextlib.nullcontext():
        at = loop.fit(job, Progress())
        more = max(1, min(MEASURED, int(MEASURED_SECONDS / max(lines[0]["seconds"], 1e-6))))
        loop.fit(replace(job, schedule=replace(job.schedule, steps=1 + more)), at)
    validations, validation_seconds = _validation(run, schedule)
    lora.fold(bundle.module)
    accelerator.free_memory()
    return StageEstimate(
        name=plan.name,
        steps=schedule.steps,
        steps_per_epoch=epochs.steps(0),
        rows=plan.rows_per_step,
        tokens=None if plan.objective.compares_pairs else round(step_tokens(epochs) * schedule.steps),
        parameters=sum(row.parameters for row in stage.table if row.lr > 0),
        step_seconds=statistics.median(line["seconds"] for line in lines[1:]),
        validations=validations,
        validation_seconds=validation_seconds,
        measured=more,
    )


class _Lines:
    """A log in memory."""

    def __init__(self, lines: list[dict[str, Any]]) -> None:
        self._lines = lines

    def write(self, line: dict[str, Any]) -> None:
        self._lines.append(line)


def _validation(run: StageRun, schedule: loop.StageSchedule) -> tuple[int, float]:
    """Returns the number of in-loop validations and the seconds of one, from one batch of the loss and one of the texts."""
    train = run.plan.train
    every = schedule.evaluate_every
    count = 1 if every == 0 else -(-schedule.steps // every)

    def seconds(samples: int, texts: int) -> float | None:
        part = copy.copy(run)
        changed = {"evaluate_samples": min(samples, ROWS), "generate_samples": min(texts, ROWS)}
        part.plan = run.plan.model_copy(update={"train": train.model_copy(update=changed | {"best": "loss"})})
        validate = part.validation(visual_input_loader(run.bundle, run.plan.data), None)
        if validate is None:
            return None
        run.bundle.module.eval()
        begin = time.perf_counter()
        with torch.no_grad():
            validate(Progress())
        run.bundle.module.train()
        return time.perf_counter() - begin

    loss = seconds(train.evaluate_samples, 0)
    if loss is None:
        return 0, 0.0
    total = loss * math.ceil(train.evaluate_samples / ROWS)
    both = seconds(train.evaluate_samples, train.generate_samples) if train.generate_samples else None
    if both is not None:
        total += max(0.0, both - loss) * math.ceil(min(train.generate_samples, train.evaluate_samples) / ROWS)
    return count, total


def _peak_memory(device: str) -> int:
    """Returns the peak memory in bytes: of the device on a GPU, else the resident memory of this process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    if device == "mps":
        return torch.mps.driver_allocated_memory()
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
