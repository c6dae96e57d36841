"""Opens the data sets of a stage and returns their samples, with known lengths and a loader of visual inputs."""

from dataclasses import replace
from pathlib import Path

from sightline.assembly.config.epochs import samples_of_stage
from sightline.assembly.config.schema import DataConfig, SourceConfig
from sightline.assembly.config.sources import sources_of
from sightline.assembly.encode.features import check_covered, loader_of
from sightline.assembly.model.build import ModelBundle
from sightline.data.batches.corpus import Corpus, Source
from sightline.data.dataset import open_dataset
from sightline.data.images.pixels import VisualInputLoader
from sightline.data.samples.label_noise import with_noise
from sightline.data.samples.length_table import LengthTableRules, load_length_table
from sightline.models.language import check_packable

CACHE = ".cache"


def build_corpus(
    bundle: ModelBundle, data: DataConfig, visual_loader: VisualInputLoader | None, writes_cache: bool = True
) -> Corpus:
    """Opens the data sets of a stage and returns their samples.

    Args:
        bundle: the model.
        data: the stage's section.
        visual_loader: fills visual slots.
        writes_cache: keep the lengths and tokens beside the data.

    Raises:
        ConfigError: weights and epochs of a mixture are mixed, or the decoder cannot keep packed samples apart.
        SkipLimitError: too many conversations cannot be trained on.
    """
    if data.pack or data.share_prefix:
        check_packable(bundle.model.language)
    configs = sources_of(data)
    opened = [_source(bundle, data, source, writes_cache) for source in configs]
    if not data.drop_images:
        check_covered(visual_loader, [(open_dataset(config.path), config.split) for config in configs])
    chosen = zip(opened, *samples_of_stage(data, [source.table for source in opened]), strict=True)
    sources = tuple(replace(source, table=units, samples_per_epoch=draws) for source, units, draws in chosen)
    return Corpus(sources, visual_loader, bundle.tokens_per_crop)


def _source(bundle: ModelBundle, data: DataConfig, source: SourceConfig, writes_cache: bool) -> Source:
    """Returns all samples of a source, each drawn once an epoch."""
    dataset = with_noise(open_dataset(source.path), source.split, data.noise, data.noise_seed)
    prompt = data.prompt if source.prompt is None else source.prompt
    conversation_encoder = bundle.stage_builder(data, prompt)
    rules = LengthTableRules(data.share_prefix, data.width, data.max_skipped)
    units = load_length_table(dataset, source.split, conversation_encoder, rules, Path(source.path) / CACHE, writes_cache)
    name = source.name or Path(source.path).name
    return Source(name, dataset, units, conversation_encoder, len(units), dataset.is_sharded)


def visual_input_loader(bundle: ModelBundle, data: DataConfig) -> VisualInputLoader | None:
    """Returns the loader that fills the visual slots of a stage.

    Raises:
        ConfigError: `data.features` names a store that does not belong to the model.
    """
    return loader_of(bundle, data.features, "--config CONFIG", data.keep_pixels * 1_000_000)


def validation_corpus(
    bundle: ModelBundle, data: DataConfig, visual_loader: VisualInputLoader | None, limit: int, writes_cache: bool = True
) -> Corpus | None:
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
        section = data.model_copy(update={"noise": 0.0})
        opened = _source(bundle, section, source.model_copy(update={"split": data.validation_split}), writes_cache)
        units = opened.table.limited(share)
        sources.append(replace(opened, table=units, samples_per_epoch=len(units)))
    if not data.drop_images:
        check_covered(visual_loader, [(source.dataset, data.validation_split) for source in sources])
    return Corpus(tuple(sources), visual_loader, bundle.tokens_per_crop)
