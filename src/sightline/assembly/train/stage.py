"""One stage of a run: model, data and objective become a job for the training loop, which trains it to its end."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from accelerate import Accelerator

from sightline.assembly.config.epochs import batch_rules, stage_steps
from sightline.assembly.config.resolving import stage_plan
from sightline.assembly.config.schema import StagePlan
from sightline.assembly.model import summary
from sightline.assembly.model.build import ModelBundle, state_of
from sightline.assembly.train.blind_logits import with_blind_logits
from sightline.assembly.train.corpus import build_corpus, validation_corpus, visual_input_loader
from sightline.assembly.train.run_folder import MetricsLog, RunFolder
from sightline.assembly.train.speed import OFF, Speed, choose_speed
from sightline.assembly.train.validation import (
    SHOWN,
    Generated,
    Show,
    Validation,
    check_scored,
    generated_texts,
    sample_texts,
    tracked_samples,
    validation_batches,
)
from sightline.data.batches.corpus import Corpus
from sightline.data.batches.loader import Loader
from sightline.data.batches.plan import EpochPlan
from sightline.data.images.pixels import VisualInputLoader
from sightline.data.samples.length_table import SampleTotals
from sightline.data.samples.templates import NO_CLOSING_TOKEN
from sightline.errors import ConfigError
from sightline.evaluation.tasks import task_by_name
from sightline.objectives.next_token import NextToken
from sightline.reporting.card import Card
from sightline.runtime.logs import logger
from sightline.training import checkpoint, loop, lora, optim, ranks, stages
from sightline.training.checkpoint import Progress
from sightline.training.console import PlannedStage, RunConsole
from sightline.training.loss_scale import HalfAccelerator, LossScale


class StageRun:
    """A stage of a run on this rank.

    Args:
        plan: the stage.
        bundle: the model as the stage before left it.
        folder: the run folder.
        accelerator: the ranks.
    """

    writes_cache = True
    """Whether lengths and tokens of the data are kept beside it."""

    def __init__(self, plan: StagePlan, bundle: ModelBundle, folder: RunFolder, accelerator: Accelerator) -> None:
        self.plan, self.bundle = plan, bundle.for_stage(plan.data)
        self.folder, self.accelerator = folder, accelerator
        self.number = [stage.name for stage in folder.config.stages].index(plan.name)
        self.is_last = self.number == len(folder.config.stages) - 1
        self.is_sharded = False
        """Whether the model is left in pieces."""

    def planned(self) -> PlannedStage:
        """Returns the length of the stage, which follows from its data."""
        epochs = self.loader(self.samples(visual_input_loader(self.bundle, self.plan.data))).plan
        return PlannedStage(self.plan.name, stage_schedule(self.plan, epochs).steps, step_tokens(epochs))

    def train(
        self, at: Progress, guard: optim.NonFiniteGuard, stopped: Callable[[], str], log: MetricsLog, console: RunConsole
    ) -> Progress:
        """Trains the stage to its end and saves it.

        Args:
            at: where the run stands.
            guard: against steps that are not finite.
            stopped: returns a signal that has arrived, or "".
            log: the run's log.
            console: shows how far it is.

        Returns:
            Where the next stage begins.
        """
        bundle, plan = self.bundle, self.plan
        self.folder.restore_random()  # so that new adapters are the same whether the stage before ended in this process or another
        stage = stages.apply(bundle.module, plan.name, plan.parts, plan.train.lr, plan.train.weight_decay, plan.train.decay_all)
        visual_loader = visual_input_loader(bundle, plan.data)
        corpus = self.with_stored(self.samples(visual_loader))
        speed = self.speed()
        loader = self.loader(corpus, speed)
        schedule = stage_schedule(plan, loader.plan)
        at = _within_epoch(at, loader)
        shared, stage = self.shared(stage)
        self.is_sharded = isinstance(shared, ranks.Sharded)
        if isinstance(self.accelerator, HalfAccelerator):
            shared.scale = LossScale(at.loss_scale, at.good_steps)
        optimiser = optim.build_optimiser(stage, plan.train.betas, plan.train.eps)
        names = {parameter: name for group in stage.groups for name, parameter in group.parameters.items()}
        if self.accelerator.is_main_process:
            logger.info("%s", console.title(self.number))
            self._report(stage, corpus, loader, schedule, speed)
        if at.stage_step:
            self._restore(optimiser, names)
        self.folder.restore_random()
        changed = {row.name for row in stage.table if row.lr > 0}

        def save(progress: Progress, ended: Progress | None = None) -> None:
            keeps_optimiser = ended is None or self.is_last  # a finished run may be given more steps
            state = shared.gathered(checkpoint.optimiser_tensors(optimiser, names)) if keeps_optimiser else None
            self.folder.save(bundle, plan, progress, shared.gathered(state_of(bundle)), state, changed, ended)

        def show(progress: Progress, values: dict[str, Any], texts: Sequence[Generated]) -> None:
            is_best = progress.best is None or values.get("value", -math.inf) > progress.best[0]
            samples = sample_texts(texts[:SHOWN])
            console.validated(self.number, progress.step, values, is_best, samples)
            if self.folder.config.tracking.trackers:
                log.write_samples(progress.step, tracked_samples(texts[:SHOWN], samples))

        job = loop.Job(
            accelerator=self.accelerator,
            model=bundle.module,
            ranks=shared,
            stage=stage,
            optimiser=optimiser,
            loader=loader,
            schedule=schedule,
            log=log,
            save=save,
            evaluate=self.validation(visual_loader, show, speed),
            stop=stopped,
            guard=guard,
            log_values=lambda: summary.log_values(bundle),
            sources=corpus.names,
            bar=functools.partial(console.bar, self.number),
        )
        with speed.applied(bundle):
            ended = loop.fit(job, at)
        at = replace(ended, stage=at.stage + 1, stage_step=0, epoch=0, epoch_step=0, best=self._carried(ended.best))
        self.folder.write_card(self._card(stage, corpus, at))
        if not self.is_last:
            lora.fold(bundle.module)
        save(at, ended)
        lora.fold(bundle.module)
        self.accelerator.free_memory()
        return at

    def _carried(self, best: tuple[float, int] | None) -> tuple[float, int] | None:
        """The best checkpoint so far, unless the next stage goes by another value: a loss and a score cannot be compared."""
        if self.is_last:
            return best
        names = [stage.name for stage in self.folder.config.stages]
        following = stage_plan(self.folder.config, names.index(self.plan.name) + 1).train
        own = self.plan.train
        return best if (own.best, own.best_task) == (following.best, following.best_task) else None

    def samples(self, visual_loader: VisualInputLoader | None) -> Corpus:
        """Returns the samples of the stage."""
        return build_corpus(self.bundle, self.plan.data, visual_loader, self.writes_cache)

    def with_stored(self, corpus: Corpus) -> Corpus:
        """Returns the samples with what a frozen part computes of them once."""
        bundle, plan = self.bundle, self.plan
        if not plan.objective.stores_blind_logits or plan.parts.get("language", "frozen") != "frozen":
            return corpus
        bundle.module.eval()
        corpus = with_blind_logits(corpus, bundle, self.accelerator, self.folder.path / "contrast" / f"{plan.name}.npz")
        bundle.module.train()
        return corpus

    def speed(self) -> Speed:
        """Returns what makes the steps fast on this device."""
        return choose_speed(self.folder.config.runtime, self.plan, self.bundle, self.accelerator.device, self.accelerator.autocast)

    def limited(self, corpus: Corpus, count: int) -> Corpus:
        """Returns at most `count` samples of each data set, the same ones each time."""
        tables = [source.table.limited(count) for source in corpus.sources]
        sources = [
            replace(source, table=table, samples_per_epoch=len(table)) for source, table in zip(corpus.sources, tables, strict=True)
        ]
        return replace(corpus, sources=tuple(sources))

    def loader(self, corpus: Corpus, speed: Speed = OFF) -> Loader:
        """Returns the micro-batches of this rank."""
        return Loader(
            corpus,
            batch_rules(self.plan),
            self.bundle.pad_id,
            self.accelerator.process_index,
            self.accelerator.num_processes,
            self.plan.data.workers,
            self.plan.data.worker_timeout,
            min_width=self.plan.data.width if self.plan.data.pack and speed.fixes_shapes else 1,
        )

    def shared(self, stage: stages.Stage) -> tuple[ranks.Ranks, stages.Stage]:
        """Returns the model as the ranks share it, and the stage over the parameters that it then has."""
        module, objective = self.bundle.module, self.plan.objective.build()
        rule = stages.resolve_rule(self.plan.parts.get("language", "frozen"), self.plan.train.lr)
        # Where the decoder is frozen or has adapters, what trains is small, and not every rank's backward pass goes through it.
        if not self.folder.config.runtime.shard or self.accelerator.num_processes == 1 or rule is None or rule.lora is not None:
            return ranks.Replicated(self.accelerator, ranks.StepModule(module, objective)), stage
        seconds = self.folder.config.runtime.deadline
        shared = ranks.Sharded(self.accelerator, module, objective, self.bundle.model.language, seconds)
        return shared, stages.with_current_parameters(stage, module)

    def _restore(self, optimiser: Any, names: dict[Any, str]) -> None:
        """Gives adapters and optimiser the state of the last checkpoint, which lies within the stage."""
        saved = self.folder.saved
        assert saved is not None
        lora.restore(self.bundle.inner, saved.path / checkpoint.LORA)
        if not checkpoint.restore_optimiser(saved, optimiser, names):
            logger.warning("%s was written without the optimiser's state; the optimiser starts from zero", saved.path.name)

    def validation(
        self, visual_loader: VisualInputLoader | None, show: Show | None, speed: Speed = OFF
    ) -> Callable[[Progress], dict[str, Any]] | None:
        """Returns the in-loop validation; None where there is no split for it. `show` gets its values and texts."""
        bundle, plan, accelerator = self.bundle, self.plan, self.accelerator
        corpus = validation_corpus(bundle, plan.data, visual_loader, plan.train.evaluate_samples, self.writes_cache)
        if corpus is None:
            return None
        rank, world, count = accelerator.process_index, accelerator.num_processes, plan.train.generate_samples
        task = task_by_name(plan.train.best_task, resamples=1) if plan.train.best == "score" else None
        if task is not None:
            check_scored(task, corpus, plan.data.drop_images)
        validation = Validation(
            accelerator,
            bundle.module,
            NextToken(),
            lambda: validation_batches(corpus, bundle.pad_id, rank, world),
            (lambda: generated_texts(corpus, bundle, count, accelerator, task)) if count else None,
            task,
            show,
        )

        def validate(at: Progress) -> dict[str, Any]:
            with speed.paused(bundle):
                return validation(at)

        return validate

    def _report(self, stage: stages.Stage, corpus: Corpus, loader: Loader, schedule: loop.StageSchedule, speed: Speed) -> None:
        """Logs the parts, the data and the lengths before the first step."""
        for row in stage.table:
            logger.info("  %s", row.line())
        if self.bundle.closing_token() is None:
            logger.warning("  %s", NO_CLOSING_TOKEN)
        for line in SampleTotals.of([source.table for source in corpus.sources]).lines():
            logger.info("  %s", line)
        logger.info(
            "  length     %13s steps, %d per epoch, %d rows a step",
            f"{schedule.steps:,}",
            loader.steps_in_epoch(0),
            loader.rules.rows_per_step,
        )
        if speed != OFF:
            logger.info("  speed      %s", speed.line())
        for note in speed.notes:
            logger.info("             %s", note)

    def _card(self, stage: stages.Stage, corpus: Corpus, at: Progress) -> Card:
        return Card(
            recipe=self.folder.config.recipe,
            stage=self.plan.name,
            step=at.step,
            parts=[(row.name, row.parameters, row.lr) for row in stage.table],
            tokens_per_image=self.bundle.tokens_per_crop,
            sources=[(source.name, len(source.dataset), source.dataset.summary.get("licence")) for source in corpus.sources],
            seen_tokens=at.seen_tokens,
            seen_samples=at.seen_samples,
            hours=0.0,
            facts={},
            connector=summary.card_facts(self.bundle),
        )


def stage_schedule(plan: StagePlan, epochs: EpochPlan) -> loop.StageSchedule:
    """Returns the lengths of a stage in steps.

    Raises:
        ConfigError: an epoch has no step.
    """
    train, steps = plan.train, stage_steps(plan, epochs)
    if steps < 1:
        raise ConfigError(f"stage {plan.name!r} has no steps: {train.epochs} epochs of {epochs.steps(0)} steps.")
    warmup = round(train.warmup * steps) if train.warmup < 1 else int(train.warmup)
    return loop.StageSchedule(steps, warmup, train.schedule, train.floor, train.clip, train.checkpoint_every, train.evaluate_every)


def step_tokens(epochs: EpochPlan) -> float:
    """Returns the mean tokens of a step in the first epoch, without padding."""
    return float(sum(int(epochs.lengths[list(row)].sum()) for row in epochs.rows(0))) / max(1, epochs.steps(0))


def _within_epoch(at: Progress, loader: Loader) -> Progress:
    """Returns the same position with steps beyond the end of an epoch counted in the following ones."""
    while at.epoch_step > loader.steps_in_epoch(at.epoch):
        at = replace(at, epoch=at.epoch + 1, epoch_step=at.epoch_step - loader.steps_in_epoch(at.epoch))
    return at
