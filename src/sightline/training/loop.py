"""The training loop: load, forward, backward, scale and clip, check for non-finite values, step, log, evaluate, save.

A micro-batch gives a loss sum and a weight. StepTotals are back-propagated, weights are added over micro-batches and ranks, and the
gradient is divided once by the total weight, before clipping. So one large batch and several small ones give the same step.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from sightline.data.batches.loader import MicroBatch
from sightline.errors import Stopped
from sightline.runtime import fault_injection, seeds
from sightline.runtime.logs import Bar, progress
from sightline.training import optim
from sightline.training.checkpoint import Progress
from sightline.training.meters import StepTotals
from sightline.training.ranks import Ranks
from sightline.training.stages import Stage


class Log(Protocol):
    """Writes lines to `metrics.jsonl`."""

    def write(self, line: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class StageSchedule:
    """Length of a stage, its learning-rate schedule, and its intervals, in optimiser steps.

    Attributes:
        steps: length of the stage.
        warmup, schedule, floor: of the learning rate (see `optim.lr_factor`).
        clip: maximum gradient norm; 0 turns clipping off.
        checkpoint_every, evaluate_every: interval in steps; 0 means only at the end.
    """

    steps: int
    warmup: int
    schedule: optim.Schedule
    floor: float
    clip: float
    checkpoint_every: int
    evaluate_every: int


class StepLoader(Protocol):
    """Yields the micro-batches of this rank, step by step."""

    def steps_in_epoch(self, epoch: int) -> int: ...

    def stream(self, epoch: int, step: int, until: int) -> Iterator[Sequence[MicroBatch]]:
        """Yields the micro-batches of each of the next `until` steps, starting at `(epoch, step)`, across epochs."""
        ...


@dataclass(frozen=True)
class Job:
    """Everything that one stage of training needs.

    Attributes:
        accelerator: device, precision and ranks.
        model: the model, not wrapped.
        ranks: model and objective as one module, and how the ranks share them and compute a step's gradient.
        stage: the parameters that train.
        optimiser: of the stage's parameter groups.
        loader: micro-batches of this rank; of any type that `ranks.module` accepts.
        schedule: length, learning-rate schedule and intervals.
        log: gets a line per step.
        save: writes a checkpoint; called on all ranks.
        evaluate: in-loop validation; returns values for the log, of which `value` selects the best checkpoint.
        stop: returns the name of a signal that has arrived, or "".
        guard: skips steps that are not finite.
        log_values: returns values of the model for each line of the log.
        sources: names of the data sources, by number.
        bar: shows the progress; called with the length of the stage and the steps that are done. A bar of its name by default.
    """

    accelerator: Accelerator
    model: nn.Module
    ranks: Ranks
    stage: Stage
    optimiser: torch.optim.Optimizer
    loader: StepLoader
    schedule: StageSchedule
    log: Log
    save: Callable[[Progress], None]
    evaluate: Callable[[Progress], dict[str, Any]] | None
    stop: Callable[[], str]
    guard: optim.NonFiniteGuard
    log_values: Callable[[], dict[str, float]] = dict
    sources: tuple[str, ...] = ()
    bar: Callable[[int, int], AbstractContextManager[Bar]] | None = None


def fit(job: Job, at: Progress) -> Progress:
    """Trains one stage from the position `at` to its end; the caller saves the last checkpoint.

    Returns:
        The position at the end of the stage.

    Raises:
        Stopped: a signal arrived; a checkpoint was saved.
        NumericsError: several consecutive steps were not finite.
    """
    schedule = job.schedule
    parameters = [parameter for group in job.stage.groups for parameter in group.parameters.values()]
    steps = job.loader.stream(at.epoch, at.epoch_step, schedule.steps - at.stage_step)
    with _bar(job, at.stage_step) as bar:
        job.model.train()
        for micro_batches, waited in _timed(steps):
            begin = time.perf_counter() - waited
            factor = optim.lr_factor(at.stage_step, schedule.steps, schedule.warmup, schedule.schedule, schedule.floor)
            rates = optim.set_lr(job.optimiser, factor)

            sums = _forward_backward(job, micro_batches)
            sums.stop = job.stop()
            gathered = sums.gathered(job.accelerator)
            sums, (norm,) = gathered.read(_scale_and_clip(job, parameters, gathered.weight))  # the only wait for the device
            # With a total weight of 0 there is nothing to train on; a weight that is not finite is handled like such a loss.
            stepped = sums.weight != 0 and _may_step(job, sums, norm, at.step + 1, micro_batches)
            if stepped:
                job.optimiser.step()
            job.optimiser.zero_grad(set_to_none=True)

            at = _advanced(at, job, sums, stepped)
            seconds = time.perf_counter() - begin
            values = sums.line(job.sources)
            job.log.write(_line(at, job.stage.name, sums, values, norm, rates, stepped, seconds, waited) | job.log_values())
            unit = "tokens" if "tokens" in sums.counts else "samples"
            bar.step(1, f"loss {sums.mean:.4f}  {sums.counts.get(unit, 0) / seconds:,.0f} {unit}/s")
            fault_injection.hit("step.end")

            if _due(at.stage_step, schedule.evaluate_every, schedule.steps) and job.evaluate is not None:
                at = _evaluated(job, at)
            stop = sums.stop or _stop_now(job)
            is_best = at.best is not None and at.best[1] == at.step  # saved at once: a later step cannot restore it
            if stop or ((is_best or _due(at.stage_step, schedule.checkpoint_every, 0)) and at.stage_step < schedule.steps):
                job.save(at)
            if stop:
                raise Stopped(f"{stop} at step {at.step}; the state is saved.", "Run the same command again to continue.")
    return at


def _bar(job: Job, done: int) -> AbstractContextManager[Bar]:
    if job.bar is not None:
        return job.bar(job.schedule.steps, done)
    return progress(job.stage.name, job.schedule.steps, done, show=job.accelerator.is_main_process)


def _stop_now(job: Job) -> str:
    """Returns a signal that has arrived since the step began; always "" on several ranks, which must agree first (each step)."""
    return job.stop() if job.accelerator.num_processes == 1 else ""


def _timed(steps: Iterator[Sequence[MicroBatch]]) -> Iterator[tuple[Sequence[MicroBatch], float]]:
    """Yields each step's micro-batches with the seconds spent waiting for them."""
    while True:
        begin = time.perf_counter()
        try:
            group = next(steps)
        except StopIteration:
            return
        yield group, time.perf_counter() - begin


def _forward_backward(job: Job, micro_batches: Sequence[MicroBatch]) -> StepTotals:
    sums = StepTotals()
    for micro in micro_batches:
        sums.count(micro)
    for loss in job.ranks.forward_backward([micro.batch for micro in micro_batches]):
        sums.add(loss)
    return sums


def _may_step(job: Job, sums: StepTotals, norm: float, step: int, micro_batches: Sequence[MicroBatch]) -> bool:
    """Returns whether loss and gradient are finite; a gradient that overflowed in fp16 lowers the factor on the loss instead."""
    scale = job.ranks.scale
    if scale is not None and math.isfinite(sums.mean) and not math.isfinite(norm) and scale.overflowed():
        return False
    allowed = job.guard.allows(sums.mean, norm, step, _ids(micro_batches))
    if allowed and scale is not None:
        scale.stepped()
    return allowed


def _scale_and_clip(job: Job, parameters: list[nn.Parameter], weight: Tensor) -> Tensor:
    """Divides gradients by the weight of the complete step (the ranks' average is undone), clips them, and returns the norm."""
    factor = torch.where(weight > 0, job.accelerator.num_processes / weight, 1.0)
    if job.ranks.scale is not None:
        factor = factor / job.ranks.scale.value
    return job.ranks.scale_and_clip(parameters, factor, job.schedule.clip if job.schedule.clip > 0 else float("inf"))


def _advanced(at: Progress, job: Job, sums: StepTotals, stepped: bool) -> Progress:
    epoch, epoch_step = at.epoch, at.epoch_step
    if epoch_step >= job.loader.steps_in_epoch(epoch):
        epoch, epoch_step = epoch + 1, 0
    return replace(
        at,
        step=at.step + 1,
        stage_step=at.stage_step + 1,
        epoch=epoch,
        epoch_step=epoch_step + 1,
        seen_tokens=at.seen_tokens + sums.counts.get("tokens", 0),
        seen_samples=at.seen_samples + sums.counts.get("samples", 0),
        refused=at.refused + (0 if stepped else 1),
        skipped=at.skipped + sums.skipped,
        loss_scale=0 if job.ranks.scale is None else job.ranks.scale.value,
        good_steps=0 if job.ranks.scale is None else job.ranks.scale.good_steps,
    )


def _line(
    at: Progress,
    stage: str,
    sums: StepTotals,
    values: dict[str, float],
    norm: float,
    rates: dict[str, float],
    stepped: bool,
    seconds: float,
    waited: float,
) -> dict[str, Any]:
    """Returns a line of `metrics.jsonl`; only `seconds`, `*_per_s` and `wait_share` differ between identical runs."""
    return {
        "step": at.step,
        "stage": stage,
        "epoch": at.epoch,
        **values,
        "grad_norm": norm,
        "lr": rates,
        "weight": sums.weight,
        **({"loss_scale": at.loss_scale} if at.loss_scale else {}),
        **sums.counts,
        **({"skipped": sums.skipped} if sums.skipped else {}),
        **({} if stepped else {"refused": True}),
        "seconds": round(seconds, 6),
        **({"tokens_per_s": round(sums.counts["tokens"] / seconds, 1)} if "tokens" in sums.counts else {}),
        "wait_share": round(waited / seconds, 4),
    }


def _ids(micro_batches: Sequence[MicroBatch]) -> str:
    ids = [record for micro in micro_batches for sample in micro.batch.record_ids for record in sample]
    return ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")


def _due(step: int, every: int, last: int) -> bool:
    return (every > 0 and step % every == 0) or step == last


def _evaluated(job: Job, at: Progress) -> Progress:
    """Runs the in-loop validation without changing any random state, and records a new best value."""
    assert job.evaluate is not None
    random = seeds.rng_state()
    job.model.eval()
    try:
        with torch.no_grad(), job.ranks.unsharded():
            values = job.evaluate(at)
    finally:
        job.model.train()
        seeds.restore_rng_state(random)
    job.log.write({"step": at.step, "stage": job.stage.name, "event": "evaluate", **values})
    value = values.get("value")
    if value is not None and (at.best is None or value > at.best[0]):
        at = replace(at, best=(float(value), at.step))
    return at
