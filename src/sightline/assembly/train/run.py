"""A training run from its configuration: start or resume, go through the stages, leave a run folder.

RUN/config.yaml  metrics.jsonl  card.md  checkpoints/step-N/
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list, gather_object

from sightline import __version__
from sightline import config as files
from sightline.assembly.config import resolving as settings
from sightline.assembly.config.changes import differences, may_differ
from sightline.assembly.config.epochs import batch_rules, stage_steps
from sightline.assembly.config.locate import CARD, CONFIG, LOCK, METRICS
from sightline.assembly.config.schema import RunConfig, StagePlan
from sightline.assembly.model import build as models
from sightline.assembly.model import summary
from sightline.assembly.model.blueprint import config_blueprint
from sightline.assembly.model.build import ModelBundle
from sightline.assembly.train import blind_logits as contrast
from sightline.assembly.train import corpus as data
from sightline.assembly.train.validation import Validation, captions, validation_batches
from sightline.data.batches.corpus import Corpus
from sightline.data.batches.loader import Loader
from sightline.data.batches.plan import EpochPlan
from sightline.data.samples.length_table import SampleTotals
from sightline.errors import ConfigError, DistributedError, SightlineError, StorageError
from sightline.models.gradient_checkpointing import checkpoint_activations
from sightline.objectives.next_token import NextToken
from sightline.reporting.card import Card, write_card
from sightline.runtime import plugins, seeds, storage
from sightline.runtime.device import prepare_runtime, process_settings_restored
from sightline.runtime.logs import logger
from sightline.runtime.signals import watch_signals
from sightline.training import checkpoint, loop, lora, optim, ranks, stages
from sightline.training.checkpoint import Progress, Saved


@dataclass(frozen=True)
class TrainResult:
    """What `train --json` says."""

    run: Path
    step: int
    checkpoint: Path
    weights_sha256: str

    def to_json(self) -> dict[str, Any]:
        return {
            "run": str(self.run),
            "step": self.step,
            "checkpoint": str(self.checkpoint),
            "weights_sha256": self.weights_sha256,
        }


@process_settings_restored()
def train(config: RunConfig, run: Path, allow_change: Sequence[str] = ()) -> TrainResult:
    """Trains, or goes on where a run in this folder stopped.

    Args:
        config: the whole run.
        run: its folder.
        allow_change: keys that may differ from those that the run began with.

    Raises:
        ConfigError: the folder holds a run with another configuration.
        StorageError: another process writes there, or its checkpoints are damaged.
        DistributedError: another rank died, or missed its deadline.
        Stopped: a signal arrived; the state is saved.
    """
    wanted = config.runtime
    runtime = prepare_runtime(wanted.device, wanted.dtype, wanted.threads, wanted.deterministic)
    accelerator = Accelerator(
        cpu=runtime.device == "cpu",
        mixed_precision="bf16" if runtime.bf16 else "no",
        log_with=list(config.tracking.trackers) or None,
        project_dir=str(run),
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=timedelta(seconds=config.runtime.deadline)),
            DistributedDataParallelKwargs(find_unused_parameters=True),
        ],
    )
    with _claimed(run) if accelerator.is_main_process else contextlib.nullcontext(), watch_signals() as stopped:
        try:
            return _Run(config, run, accelerator, stopped, runtime.facts()).go(allow_change)
        except RuntimeError as error:
            if accelerator.num_processes == 1 or not _is_of_exchange(error):
                raise
            raise DistributedError(
                f"another process of this run died or missed its deadline ({str(error).splitlines()[0]}).",
                "Look at what the others said; the same command goes on from the last checkpoint.",
            ) from error


def _is_of_exchange(error: RuntimeError) -> bool:
    """Whether an error comes from the exchange between processes; gloo has no class for its own."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error).lower() or "peer" in str(error)


@contextlib.contextmanager
def _claimed(run: Path) -> Iterator[None]:
    """The lock of a run folder; an error before the first step leaves the place as it was, unless more was begun there."""
    folders = [folder for folder in (run, *run.parents) if not os.path.exists(folder)]  # unlike Path.exists, never an error
    try:
        with storage.Lock(run / LOCK):
            files = [run / name for name in (CONFIG, METRICS) if not (run / name).exists()]
            try:
                yield
            except SightlineError:
                with contextlib.suppress(OSError):
                    _take_back(run, files)
                raise
    except SightlineError:
        with contextlib.suppress(OSError):  # one that is not empty stays: something was begun, or another process holds the lock
            for folder in folders:
                folder.rmdir()
        raise


def _take_back(run: Path, files: Sequence[Path]) -> None:
    """Removes these files of a run that made no step and left nothing else: no checkpoint, no stored contrast."""
    log = run / METRICS
    if {item.name for item in run.iterdir()} <= {CONFIG, METRICS, LOCK} and not (log.exists() and log.stat().st_size):
        for file in files:
            file.unlink(missing_ok=True)


class _Run:
    """One process's view of a run."""

    def __init__(
        self, config: RunConfig, run: Path, accelerator: Accelerator, stopped: Callable[[], str], facts: dict[str, Any]
    ) -> None:
        self.config, self.path, self.accelerator, self.stopped = config, run, accelerator, stopped
        self.main = accelerator.is_main_process
        self.facts = facts | {"world_size": accelerator.num_processes, "plug-ins": plugins.descriptions() or None}
        self.saved: Saved | None = None
        self.stage_ends: list[int] = []
        self.guard = optim.NonFiniteGuard()

    def go(self, allow_change: Sequence[str]) -> TrainResult:
        self.saved = self._agreed(lambda: self._open(allow_change))
        at = self.saved.progress if self.saved else Progress()
        bundle = self._model()
        if self.saved is not None:
            self.stage_ends = list(self.saved.note["stage_ends"])
        self.log = _Log(self.path / METRICS, at.step, self.accelerator, self.config)
        try:
            while at.stage < len(self.config.stages):
                at, is_split = self._stage(bundle, at)
                if is_split and at.stage < len(self.config.stages):
                    bundle = self._model()  # whole again, as every rank reads it from the stage's checkpoint
        finally:
            self.log.close()
        assert self.saved is not None
        return TrainResult(self.path, at.step, self.saved.path, checkpoint.weights_sha256(self.saved.manifest))

    # Beginning ----------------------------------------------------------------------------------------------------------

    def _agreed(self, work: Callable[[], Any]) -> Any:
        """Does something on the first rank and gives its result, or its error, to all."""
        outcome: list[Any] = [None, None]
        if self.main:
            try:
                outcome[0] = work()
            except SightlineError as error:
                outcome[1] = error
        if self.accelerator.num_processes > 1:
            broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def _open(self, allow_change: Sequence[str]) -> Saved | None:
        """Looks for a run to go on with; writes the configuration of a new one."""
        saved = checkpoint.newest(self.path)
        stored = self.path / CONFIG
        if stored.exists():
            before = settings.resolve(None, stored, [])
            changed = differences(before, self.config)
            refused = [key for key in changed if not may_differ(key, allow_change)]
            if refused and saved is not None:
                lines = "; ".join(f"{'.'.join(key)}: {old!r} -> {new!r}" for key, (old, new) in changed.items() if key in refused)
                raise ConfigError(
                    f"{self.path} holds a run with another configuration ({lines}).",
                    "Choose another --out, or allow it: --allow-change " + ",".join(".".join(key) for key in refused),
                )
        storage.write_text(stored, files.to_yaml(self.config))
        if saved is not None:
            self._compare_facts(saved)
            logger.info("going on from %s (step %d)", saved.path.name, saved.step)
        return saved

    def _compare_facts(self, saved: Saved) -> None:
        before = saved.note.get("facts", {})
        for key in ("torch", "threads", "world_size", "device", "bf16", "plug-ins"):
            if before.get(key) != self.facts.get(key):
                logger.warning(
                    "%s was %s and is %s: the run goes on, but not bit for bit", key, before.get(key), self.facts.get(key)
                )

    def _model(self) -> ModelBundle:
        seeds.seed_all(self.config.train.seed)
        bundle = self._new_model() if self.saved is None else self._saved_model(self.saved)
        bundle.module.to(self.accelerator.device)
        if self.config.runtime.gradient_checkpointing:
            checkpoint_activations(bundle.inner)
        return bundle

    def _saved_model(self, saved: Saved) -> ModelBundle:
        return models.read(saved.path / checkpoint.MODEL, self.config.runtime.attention)

    def _new_model(self) -> ModelBundle:
        bundle = models.build_bundle(config_blueprint(self.config), self.config)
        if self.config.init is not None:
            models.initialise(bundle, self.config.init)
        return bundle

    # Stages -------------------------------------------------------------------------------------------------------------

    def _stage(self, bundle: ModelBundle, at: Progress) -> tuple[Progress, bool]:
        """Trains a stage to its end; says too whether the model is left in pieces."""
        plan = settings.plan(self.config, at.stage)
        bundle = bundle.for_stage(plan.data)
        self._give_back_random()  # so that new adapters are the same whether the stage before ended in this process or another
        stage = stages.apply(bundle.module, plan.name, plan.parts, plan.train.lr, plan.train.weight_decay, plan.train.decay_all)
        pictures = data.pictures_of(bundle, plan.data)
        corpus = data.build_corpus(bundle, plan.data, pictures)
        if plan.objective.stores_blind_logits and plan.parts.get("language", "frozen") == "frozen":
            bundle.module.eval()
            corpus = contrast.with_blind_logits(corpus, bundle, self.accelerator, self.path / "contrast" / f"{plan.name}.npz")
            bundle.module.train()
        loader = self._loader(corpus, plan, bundle.pad_id)
        schedule = stage_schedule(plan, loader.plan)
        shared, stage = self._shared(bundle, plan, stage)
        optimiser = optim.build_optimiser(stage, plan.train.betas, plan.train.eps)
        names = {parameter: name for group in stage.groups for name, parameter in group.parameters.items()}
        self._say(bundle, stage, corpus, loader, schedule)
        if self.saved is not None and at.stage_step:
            lora.restore(bundle.inner, self.saved.path / checkpoint.LORA)
            checkpoint.restore_optimiser(self.saved, optimiser, names)
        self._give_back_random()
        changed = {row.name for row in stage.table if row.lr > 0}

        def save(progress: Progress, end: bool = False) -> None:
            tensors = None if end else shared.gathered(checkpoint.optimiser_tensors(optimiser, names))
            self._save(bundle, plan, progress, shared.gathered(models.state_of(bundle)), tensors, changed, end)

        job = loop.Job(
            accelerator=self.accelerator,
            model=bundle.module,
            ranks=shared,
            stage=stage,
            optimiser=optimiser,
            loader=loader,
            schedule=schedule,
            log=self.log,
            save=save,
            evaluate=self._validation(bundle, plan, pictures),
            stop=self.stopped,
            guard=self.guard,
            log_values=lambda: summary.log_values(bundle),
            sources=corpus.names,
        )
        at = loop.fit(job, at)
        lora.fold(bundle.module)
        at = replace(at, stage=at.stage + 1, stage_step=0, epoch=0, epoch_step=0)
        self._card(bundle, plan, stage, corpus, at)
        save(at, end=True)
        self.accelerator.free_memory()
        return at, isinstance(shared, ranks.Sharded)

    def _shared(self, bundle: ModelBundle, plan: StagePlan, stage: stages.Stage) -> tuple[ranks.Ranks, stages.Stage]:
        """The model as the ranks share it, and the stage over the parameters that it then has."""
        objective = plan.objective.build()
        rule = stages.resolve_rule(plan.parts.get("language", "frozen"), plan.train.lr)
        # Where the decoder is frozen or has adapters, what trains is small, and not every rank's backward pass goes through it.
        if not self.config.runtime.shard or self.accelerator.num_processes == 1 or rule is None or rule.lora is not None:
            return ranks.Replicated(self.accelerator, ranks.StepModule(bundle.module, objective)), stage
        shared = ranks.Sharded(self.accelerator, bundle.module, objective, bundle.model.language)
        return shared, stages.with_current_parameters(stage, bundle.module)

    def _give_back_random(self) -> None:
        """The random state of the last checkpoint: what came between is not part of the run."""
        if self.saved is not None:
            states = self.saved.random  # one per process; there may be more of them now
            seeds.restore_rng_state(states[self.accelerator.process_index % len(states)])

    def _loader(self, corpus: Corpus, plan: StagePlan, pad_id: int) -> Loader:
        return Loader(
            corpus,
            batch_rules(plan),
            pad_id,
            self.accelerator.process_index,
            self.accelerator.num_processes,
            plan.data.workers,
            plan.data.worker_timeout,
        )

    def _validation(self, bundle: ModelBundle, plan: StagePlan, pictures: Any) -> Callable[[Progress], dict[str, Any]] | None:
        corpus = data.validation_corpus(bundle, plan.data, pictures, plan.train.evaluate_samples)
        if corpus is None:
            return None
        accelerator, count = self.accelerator, plan.train.generate_samples
        rank, world = accelerator.process_index, accelerator.num_processes
        return Validation(
            accelerator,
            bundle.module,
            NextToken(),
            lambda: validation_batches(corpus, bundle.pad_id, rank, world),
            (lambda: captions(corpus, bundle, count, accelerator)) if count else None,
        )

    def _save(
        self,
        bundle: ModelBundle,
        plan: StagePlan,
        at: Progress,
        weights: dict[str, torch.Tensor],
        optimiser: dict[str, torch.Tensor] | None,
        changed: set[str],
        end: bool,
    ) -> None:
        """Publishes a checkpoint on the first rank; all ranks learn how it went."""
        random = gather_object([seeds.rng_state()]) if self.accelerator.num_processes > 1 else [seeds.rng_state()]
        if end:
            self.stage_ends = [*self.stage_ends, at.step]
        note = {"facts": self.facts, "stage_ends": self.stage_ends, "stage": plan.name, "sightline": __version__}
        run = {"recipe": self.config.recipe, "stage": plan.name, "step": at.step}
        described = replace(bundle, processing=bundle.processing.model_copy(update={"run": run}))

        def publish() -> Saved:
            odd = models.non_finite(weights)
            if odd is not None:
                raise StorageError(f"weight {odd!r} holds NaN or infinity; the checkpoint is not published.")
            checkpoint.check_space(self.path, 2 * sum(p.numel() * 12 for p in bundle.module.parameters() if p.requires_grad))
            self.log.sync()
            saved = checkpoint.save(
                self.path,
                at,
                random,
                note,
                optimiser,
                lambda target, before: _write_model(described, target, before, changed, weights),
                self.saved,
            )
            best = {at.best[1]} if at.best else set()
            checkpoint.prune(self.path, plan.train.keep, best | set(self.stage_ends))
            return saved

        self.saved = self._agreed(publish)

    # Words --------------------------------------------------------------------------------------------------------------

    def _say(self, bundle: ModelBundle, stage: stages.Stage, corpus: Corpus, loader: Loader, schedule: loop.StageSchedule) -> None:
        """The table of parts, the data and the lengths, before the first step."""
        if not self.main:
            return
        logger.info("stage %s", stage.name)
        for row in stage.table:
            logger.info("  %s", row.line())
        for line in SampleTotals.of([source.table for source in corpus.sources]).lines():
            logger.info("  %s", line)
        logger.info(
            "  length     %13s steps, %d per epoch, %d rows a step",
            f"{schedule.steps:,}",
            loader.steps_in_epoch(0),
            loader.rules.rows_per_step,
        )

    def _card(self, bundle: ModelBundle, plan: StagePlan, stage: stages.Stage, corpus: Corpus, at: Progress) -> None:
        if not self.main:
            return
        lines = storage.read_json_lines(self.path / METRICS)
        write_card(
            self.path / CARD,
            Card(
                recipe=self.config.recipe,
                stage=plan.name,
                step=at.step,
                parts=[(row.name, row.parameters, row.lr) for row in stage.table],
                tokens_per_image=bundle.tokens_per_crop,
                sources=[(source.name, len(source.dataset), source.dataset.summary.get("licence")) for source in corpus.sources],
                seen_tokens=at.seen_tokens,
                seen_samples=at.seen_samples,
                hours=sum(line.get("seconds", 0.0) for line in lines) / 3600 * self.accelerator.num_processes,
                facts=self.facts,
                connector=summary.card_facts(bundle),
            ),
        )


def _write_model(
    bundle: ModelBundle, target: Path, before: Path | None, changed: set[str], weights: dict[str, torch.Tensor]
) -> list[str]:
    """Writes `model/` and, where there are adapters, `lora/` of a checkpoint; gives the names of linked files."""
    model, adapters = checkpoint.MODEL, checkpoint.LORA
    linked = models.write(bundle, target / model, before / model if before else None, changed, weights)
    unfolded = lora.save(bundle.inner, target / adapters, before / adapters if before else None)
    return [f"{model}/{name}" for name in linked] + [f"{adapters}/{name}" for name in unfolded]


class _Log:
    """`metrics.jsonl` and the trackers; lines after the resumed step are cut."""

    def __init__(self, path: Path, step: int, accelerator: Accelerator, config: RunConfig) -> None:
        self.accelerator = accelerator
        self.file = storage.JsonLines(path) if accelerator.is_main_process else None
        if self.file is not None:
            self.file.keep(lambda line: line.get("step", 0) <= step)
        self.tracks = bool(config.tracking.trackers)
        if self.tracks:
            accelerator.init_trackers(config.tracking.project, config={"yaml": files.to_yaml(config)})

    def write(self, line: dict[str, Any]) -> None:
        if self.file is not None:
            self.file.write(line)
        if self.tracks:
            flat = {key: value for key, value in line.items() if isinstance(value, int | float) and key != "step"}
            flat |= {f"lr/{part}": value for part, value in line.get("lr", {}).items()}
            self.accelerator.log(flat, step=line["step"])

    def sync(self) -> None:
        if self.file is not None:
            self.file.sync()

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
        if self.tracks:
            self.accelerator.end_training()


# Lengths -------------------------------------------------------------------------------------------------------------------------


def stage_schedule(plan: StagePlan, epochs: EpochPlan) -> loop.StageSchedule:
    """The lengths of a stage in steps.

    Raises:
        ConfigError: an epoch has no step.
    """
    train, steps = plan.train, stage_steps(plan, epochs)
    if steps < 1:
        raise ConfigError(f"stage {plan.name!r} has no steps: {train.epochs} epochs of {epochs.steps(0)} steps.")
    warmup = round(train.warmup * steps) if train.warmup < 1 else int(train.warmup)
    return loop.StageSchedule(steps, warmup, train.schedule, train.floor, train.clip, train.checkpoint_every, train.evaluate_every)
