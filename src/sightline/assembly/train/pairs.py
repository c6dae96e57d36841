"""A stage that trains a dual encoder on pairs of images and captions."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator

from sightline.assembly.config.epochs import batch_rules, samples_per_epoch
from sightline.assembly.config.schema import DataConfig, SourceConfig
from sightline.assembly.config.sources import sources_of
from sightline.assembly.encode.features import check_covered
from sightline.assembly.model.bundle import ModelBundle
from sightline.assembly.model.towers import component_rules, text_tokens
from sightline.assembly.train.speed import OFF, Speed
from sightline.assembly.train.stage import StageRun
from sightline.assembly.train.text_states import with_text_states
from sightline.assembly.train.validation import Show
from sightline.data.batches.loader import Loader
from sightline.data.batches.pairs import Captions, PairCorpus, PairSource, pair_table
from sightline.data.dataset import open_dataset
from sightline.data.images.pixels import VisualInputLoader
from sightline.data.samples.label_noise import with_noise
from sightline.errors import ConfigError
from sightline.metrics.retrieval import recall_at
from sightline.metrics.score_weights import choose_weights
from sightline.objectives.comalign import ComAlignObjectiveConfig
from sightline.objectives.contrastive import ContrastiveConfig, ContrastiveObjective, local_rows
from sightline.ops.component_similarity import join_rows, level_similarity, weighted_similarity
from sightline.ops.late_interaction import LateInteraction
from sightline.runtime.logs import logger
from sightline.training import loop, stages
from sightline.training.checkpoint import Progress
from sightline.types import ComponentEmbeddings, Embeddings, PairBatch, Texts

ROWS = 32  # validation pairs per batch; fixed, so that values do not depend on the training batch


def build_pair_corpus(
    bundle: ModelBundle, data: DataConfig, hard_negatives: int, visual_loader: VisualInputLoader | None, held_out: int = 0
) -> PairCorpus:
    """Returns the pairs of a stage, without those of `held_out` images.

    Raises:
        ConfigError: weights and epochs of a mixture are mixed, a feature store lacks images, or no caption has components.
        SkipLimitError: too many records make no pair.
    """
    configs = sources_of(data)
    sources = [_source(data, config, data.captions) for config in configs]
    check_covered(visual_loader, [(source.dataset, config.split) for source, config in zip(sources, configs, strict=True)])
    tables = [source.table.split(held_out // len(sources))[1].limited(data.limit) for source in sources]
    draws = samples_per_epoch(configs, [table.units for table in tables])
    drawn = [
        replace(source, table=table, units_per_epoch=count) for source, table, count in zip(sources, tables, draws, strict=True)
    ]
    assert visual_loader is not None  # a dual encoder takes images
    rules = component_rules(bundle)
    if rules is not None and rules.count and not any(_has_components(source) for source in drawn):
        raise ConfigError(
            f"no caption of {', '.join(source.name for source in drawn)} has components (entities and relations).",
            "Add them with `sightline data components`, or set entities and relations of model.dual.alignment to 0.",
        )
    return PairCorpus(tuple(drawn), visual_loader, text_tokens(bundle), hard_negatives=hard_negatives, components=rules)


def _has_components(source: PairSource) -> bool:
    return any(source.dataset.record(int(index)).components for index in source.table.record_P)


def held_out_pairs(
    bundle: ModelBundle, data: DataConfig, visual_loader: VisualInputLoader | None, held_out: int
) -> PairCorpus | None:
    """Returns the first caption of the images that `build_pair_corpus` leaves out; None where there is none."""
    configs = sources_of(data)
    found = [_source(data.model_copy(update={"noise": 0.0}), config, "first") for config in configs]
    sources = [replace(source, table=source.table.split(held_out // len(found))[0]) for source in found]
    sources = [source for source in sources if source.table.units]
    if not sources:
        return None
    assert visual_loader is not None  # a dual encoder takes images
    return PairCorpus(tuple(sources), visual_loader, text_tokens(bundle), components=component_rules(bundle))


def validation_pairs(
    bundle: ModelBundle, data: DataConfig, visual_loader: VisualInputLoader | None, limit: int
) -> PairCorpus | None:
    """Returns the first caption of at most `limit` images of the validation split; None where there is no such split."""
    split = data.validation_split
    if split is None or limit == 0:
        return None
    found = [source for source in sources_of(data) if split in open_dataset(source.path).splits]
    if not found:
        return None
    section = data.model_copy(update={"noise": 0.0})
    sources = [_source(section, source.model_copy(update={"split": split}), "first") for source in found]
    check_covered(visual_loader, [(source.dataset, split) for source in sources])
    share = max(1, limit // len(found))
    assert visual_loader is not None  # a dual encoder takes images
    limited = tuple(replace(source, table=source.table.limited(share)) for source in sources)
    return PairCorpus(limited, visual_loader, text_tokens(bundle), components=component_rules(bundle))


def _source(data: DataConfig, source: SourceConfig, captions: Captions) -> PairSource:
    dataset = with_noise(open_dataset(source.path), source.split, data.noise, data.noise_seed)
    table = pair_table(dataset, source.split, captions, data.max_skipped)
    return PairSource(source.name or Path(source.path).name, dataset, table, table.units, dataset.is_sharded)


class PairStageRun(StageRun):
    """A stage of a dual encoder on this rank; the same as every other stage but for its data and its validation."""

    def samples(self, visual_loader: VisualInputLoader | None) -> PairCorpus:
        """Returns the pairs of the stage."""
        objective = self.plan.objective
        assert isinstance(objective, ContrastiveConfig)
        held_out = objective.held_out if isinstance(objective, ComAlignObjectiveConfig) else 0
        return build_pair_corpus(self.bundle, self.plan.data, objective.hard_negatives, visual_loader, held_out)

    def with_stored(self, corpus: PairCorpus) -> PairCorpus:
        """Returns the pairs with what a frozen text encoder computes of them once."""
        bundle, plan = self.bundle, self.plan
        if plan.parts.get("text", "frozen") != "frozen":
            return corpus
        bundle.module.eval()
        corpus = with_text_states(corpus, bundle, self.accelerator, self.folder.path / "texts" / f"{plan.name}.npz")
        bundle.module.train()
        return corpus

    def limited(self, corpus: PairCorpus, count: int) -> PairCorpus:
        """Returns at most `count` units of each data set, the same ones each time."""
        tables = [source.table.limited(count) for source in corpus.sources]
        sources = [
            replace(source, table=table, units_per_epoch=table.units) for source, table in zip(corpus.sources, tables, strict=True)
        ]
        return replace(corpus, sources=tuple(sources))

    def speed(self) -> Speed:
        return OFF  # the towers see no packed rows

    def loader(self, corpus: PairCorpus, speed: Speed = OFF) -> Loader:
        """Returns the micro-batches of this rank."""
        plan, ranks = self.plan, self.accelerator
        rules, data = batch_rules(plan), plan.data
        pad = self.bundle.pad_id
        if rules.rows_per_step < 2:
            raise ConfigError("train.batch_size=1: a contrastive loss of one pair is 0.", "Set train.batch_size to 2 or more.")
        return Loader(
            corpus, rules, pad, ranks.process_index, ranks.num_processes, data.workers, data.worker_timeout, corpus.arrays
        )

    def validation(
        self, visual_loader: VisualInputLoader | None, show: Show | None, speed: Speed = OFF
    ) -> Callable[[Progress], dict[str, Any]] | None:
        """Returns the in-loop validation; None where there is no split for it. `show` gets its values."""
        config = self.plan.objective
        corpus = validation_pairs(self.bundle, self.plan.data, visual_loader, self.plan.train.evaluate_samples)
        choice = None
        if isinstance(config, ComAlignObjectiveConfig):
            set_even_weights(self.bundle, config.levels)
            held_out = held_out_pairs(self.bundle, self.plan.data, visual_loader, config.held_out)
            choice = None if held_out is None else WeightChoice(self.accelerator, self.bundle, held_out, config.levels)
        if corpus is None:
            return choice
        objective, by_recall = config.build(), self.plan.train.best == "score"
        return PairValidation(self.accelerator, self.bundle, cast(ContrastiveObjective, objective), corpus, by_recall, show, choice)

    def _report(self, stage: stages.Stage, corpus: PairCorpus, loader: Loader, schedule: loop.StageSchedule, speed: Speed) -> None:
        for row in stage.table:
            logger.info("  %s", row.line())
        for source in corpus.sources:
            skipped = ", ".join(f"{reason} {count}" for reason, count in source.table.skipped.items())
            logger.info("  %-10s %13s pairs, %s drawn per epoch%s", source.name, f"{len(source.table.record_P):,}",
                        f"{source.units_per_epoch:,}", f"; left out: {skipped}" if skipped else "")  # fmt: skip
        logger.info(
            "  length     %13s steps, %d per epoch, %d pairs a step",
            f"{schedule.steps:,}",
            loader.steps_in_epoch(0),
            loader.rules.rows_per_step,
        )


@dataclass(frozen=True)
class WeightChoice:
    """Chooses the weights of ComAlign's score on a part of the training split that is not trained on, and stores them in the model.

    Args:
        accelerator: device and arithmetic.
        bundle: the model.
        corpus: pairs that are not trained on.
        levels: levels that are trained; the encoder's own cosine takes part too.
    """

    accelerator: Accelerator
    bundle: ModelBundle
    corpus: PairCorpus
    levels: tuple[str, ...]

    def __call__(self, at: Progress) -> dict[str, Any]:
        """Returns the recall at 1 of both directions with the chosen weights, for the log."""
        found = list(embedded_pairs(self.accelerator, self.bundle, self.corpus))
        if not found:
            return {}
        embeddings, batch = joined_pairs(found)
        assert isinstance(embeddings, ComponentEmbeddings)
        terms = ("plain", *self.levels)
        matrices = [level_similarity(embeddings.images, embeddings.texts, term) for term in terms]
        to_image, to_text = (np.stack([pair[way].double().cpu().numpy() for pair in matrices]) for way in (0, 1))
        positives = (batch.owner_C[None] == batch.image_N[:, None]).cpu().numpy()
        found_weights = {
            "t2i": choose_weights(to_image.transpose(0, 2, 1), positives.T),
            "i2t": choose_weights(to_text, positives),
        }
        self.bundle.inner.config.score_weights = {  # pyrefly: ignore
            way: dict(zip(terms, weights, strict=True)) for way, (weights, _) in found_weights.items()
        }
        return {f"held_out_{way}_r1": recall for way, (_, recall) in found_weights.items()}


@dataclass(frozen=True)
class PairValidation:
    """Called by the loop with the model in `eval` mode; every rank computes all of it.

    Args:
        accelerator: device and arithmetic.
        bundle: the dual encoder.
        objective: of training.
        corpus: validation pairs.
        by_recall: whether the best checkpoint is the one with the largest sum of recalls, not with the lowest loss.
        show: called with the values on the first rank.
        choice: chooses the weights of the score first, for ComAlign.
    """

    accelerator: Accelerator
    bundle: ModelBundle
    objective: ContrastiveObjective
    corpus: PairCorpus
    by_recall: bool = False
    show: Show | None = None
    choice: WeightChoice | None = None

    def __call__(self, at: Progress) -> dict[str, Any]:
        """Returns the loss over all validation pairs as one batch, recall at 1 of both directions, and `value`."""
        chosen = {} if self.choice is None else self.choice(at)
        found = list(embedded_pairs(self.accelerator, self.bundle, self.corpus))
        if not found:
            return chosen  # no image of the validation split can be opened
        embeddings, batch = joined_pairs(found)
        loss = self.objective.loss(embeddings, batch, local_rows)
        mean = float(loss.total) / float(loss.weight)
        to_image, to_text = (matrix.double().cpu().numpy() for matrix in _similarity(self.bundle, embeddings))
        positives = (batch.owner_C[None] == batch.image_N[:, None]).cpu().numpy()
        values = {"i2t_r1": recall_at(to_text, positives, 1).mean(), "t2i_r1": recall_at(to_image.T, positives.T, 1).mean()}
        recalls = {name: float(value) for name, value in values.items()}
        value = sum(recalls.values()) if self.by_recall else -mean
        out = {"validation_loss": mean, **recalls, **chosen, "value": value}
        if self.show is not None and self.accelerator.is_main_process:
            self.show(at, out, ())
        return out


def set_even_weights(bundle: ModelBundle, levels: tuple[str, ...]) -> None:
    """Weighs the levels of ComAlign's score equally, as the paper's figure does, until weights are chosen."""
    weights = {level: 1 / len(levels) for level in levels}
    config: Any = bundle.inner.config
    config.score_weights = config.score_weights or {"t2i": weights, "i2t": weights}


def _similarity(bundle: ModelBundle, embeddings: Embeddings) -> LateInteraction:
    """Returns the scores of all images and texts in both directions."""
    if not isinstance(embeddings, ComponentEmbeddings):
        cosines = embeddings.image_NW @ embeddings.text_CW.T
        return LateInteraction(cosines, cosines)
    weights: Any = bundle.inner.config.score_weights  # pyrefly: ignore
    return weighted_similarity(embeddings.images, embeddings.texts, weights["t2i"], weights["i2t"])


def embedded_pairs(accelerator: Accelerator, bundle: ModelBundle, corpus: PairCorpus) -> Iterator[tuple[Embeddings, PairBatch]]:
    """Embeds all pairs of a corpus, in batches of fixed size."""
    model = bundle.pairs
    assert model is not None
    count = int(corpus.first_pair[-1])
    for begin in range(0, count, ROWS):
        arrays = corpus.arrays((tuple(range(begin, min(begin + ROWS, count))),))
        batch = arrays.to_batch().to(accelerator.device)
        if len(batch.image_N):
            with accelerator.autocast():
                yield model.embeddings(batch), batch


def joined_pairs(parts: list[tuple[Embeddings, PairBatch]]) -> tuple[Embeddings, PairBatch]:
    """Returns several batches without hard negatives as one."""
    last = parts[-1][0]
    images = torch.cat([embeddings.image_NW for embeddings, _ in parts])
    texts = torch.cat([embeddings.text_CW for embeddings, _ in parts])
    batch = PairBatch(
        pixels_NHWC=None,
        features_NPE=None,
        texts=Texts(),
        image_N=torch.cat([batch.image_N for _, batch in parts]),
        owner_C=torch.cat([batch.owner_C for _, batch in parts]),
        text_C=torch.cat([batch.text_C for _, batch in parts]),
    )
    if not isinstance(last, ComponentEmbeddings):
        return Embeddings(images, texts, last.scale, last.bias), batch
    with_components = [embeddings for embeddings, _ in parts if isinstance(embeddings, ComponentEmbeddings)]
    image_parts = join_rows([embeddings.images for embeddings in with_components])
    text_parts = join_rows([embeddings.texts for embeddings in with_components])
    return ComponentEmbeddings(images, texts, last.scale, images=image_parts, texts=text_parts), batch
