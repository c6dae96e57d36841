"""From the `data` section of a stage to a corpus: data sets opened, lengths known, pictures ready to be filled in."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sightline.assembly.config.schema import DataConfig, SourceConfig, StagePlan
from sightline.assembly.config.sources import sources_of
from sightline.assembly.encode.features import check_covered, open_features
from sightline.assembly.model.build import ModelBundle
from sightline.data.batches.corpus import Corpus, Source
from sightline.data.batches.loader import BatchRules
from sightline.data.dataset import open_dataset
from sightline.data.images.pixels import Pictures, PixelPictures
from sightline.data.samples.label_noise import with_noise
from sightline.data.samples.length_table import LengthTableRules, load_length_table
from sightline.errors import ConfigError
from sightline.models.language import check_packable
from sightline.runtime.keyed import keyed_generator

CACHE = ".cache"


def build_corpus(bundle: ModelBundle, data: DataConfig, pictures: Pictures | None) -> Corpus:
    """The training units of a stage.

    Args:
        made: the model.
        data: the stage's section.
        pictures: fills visual slots.

    Raises:
        ConfigError: weights and epochs of a mixture are mixed, or the decoder cannot keep packed samples apart.
        BudgetError: too many conversations cannot be trained on.
    """
    if data.pack or data.share_prefix:
        check_packable(bundle.model.language)
    configs = sources_of(data)
    opened = [_source(bundle, data, source) for source in configs]
    if not data.drop_images:
        check_covered(pictures, [(open_dataset(config.path), config.split) for config in configs])
    draws = draws_of(configs, [len(source.units) for source in opened])
    sources = tuple(
        Source(source.name, source.dataset, source.units, source.builder, count, source.windowed)
        for source, count in zip(opened, draws, strict=True)
    )
    return Corpus(sources, pictures, bundle.tokens_per_crop)


def _source(bundle: ModelBundle, data: DataConfig, source: SourceConfig) -> Source:
    dataset = with_noise(open_dataset(source.path), source.split, data.noise, data.noise_seed)
    prompt = data.prompt if source.prompt is None else source.prompt
    builder = bundle.builder(prompt, data.max_tokens, data.too_long, data.supervise, data.captions, data.drop_images)
    rules = LengthTableRules(data.share_prefix, data.width, data.max_skipped)
    units = load_length_table(dataset, source.split, builder, rules, Path(source.path) / CACHE)
    if data.limit is not None and data.limit < len(units):
        chosen = keyed_generator("limit", 0).permutation(len(units))[: data.limit]
        units = units.subset(np.sort(chosen))
    name = source.name or Path(source.path).name
    return Source(name, dataset, units, builder, len(units), dataset.is_sharded)


def draws_of(configs: Sequence[SourceConfig], sizes: Sequence[int]) -> list[int]:
    """Units that an epoch takes of each source.

    Raises:
        ConfigError: weights and epochs are mixed.
    """
    weighted = [config for config in configs if config.weight is not None]
    if weighted and (len(weighted) < len(configs) or any(config.epochs is not None for config in configs)):
        raise ConfigError("data.mixture: give every source a 'weight', or none (then 'epochs' says how often it is seen).")
    if weighted:
        total = sum(config.weight or 0.0 for config in configs)
        return [max(1, round(sum(sizes) * (config.weight or 0.0) / total)) for config in configs]
    return [max(1, round(size * (config.epochs or 1.0))) for config, size in zip(configs, sizes, strict=True)]


def pictures_of(bundle: ModelBundle, data: DataConfig) -> Pictures | None:
    """What fills the visual slots of a stage.

    Raises:
        ConfigError: `data.features` names a store that does not belong to the model.
    """
    if not bundle.model.takes_images:
        return None
    if data.features is not None:
        return open_features(data.features, bundle, "--config CONFIG")
    preparation = bundle.processing.preparation
    if preparation is None:
        raise ConfigError("the model was trained on an external table and has no encoder.", "Set data.features=STORE.")
    return PixelPictures(preparation, bundle.processing.tiling, data.keep_pixels * 1_000_000)


def batch_rules(plan: StagePlan) -> BatchRules:
    """How the units of a stage become rows and steps."""
    return BatchRules(
        pack=plan.data.pack,
        row_tokens=plan.data.width,
        row_images=plan.data.row_images,
        rows_per_step=plan.rows_per_step,
        accumulate=plan.train.accumulate,
        sort_by_length=plan.data.sort_by_length,
        seed=plan.train.seed,
    )


def validation_corpus(bundle: ModelBundle, data: DataConfig, pictures: Pictures | None, limit: int) -> Corpus | None:
    """Units of the validation split, at most `limit` of them, the same ones each time; None where there is no such split."""
    if data.validation_split is None or limit == 0:
        return None
    configs = sources_of(data)
    found = [source for source in configs if data.validation_split in open_dataset(source.path).splits]
    if not found:
        return None
    share = max(1, limit // len(found))
    sources = []
    for source in found:
        section = data.model_copy(update={"limit": share, "noise": 0.0})
        sources.append(_source(bundle, section, source.model_copy(update={"split": data.validation_split})))
    if not data.drop_images:
        check_covered(pictures, [(source.dataset, data.validation_split) for source in sources])
    return Corpus(tuple(sources), pictures, bundle.tokens_per_crop)
