"""The data sets of a stage, as its configuration names them."""

from sightline.assembly.config.schema import DataConfig, RunConfig, SourceConfig
from sightline.data.dataset import Dataset, open_dataset
from sightline.errors import ConfigError


def sources_of(data: DataConfig) -> list[SourceConfig]:
    """The sources of a stage; a single `path` is a mixture of one.

    Raises:
        ConfigError: none is given.
    """
    if data.mixture:
        return list(data.mixture)
    if data.path is None:
        raise ConfigError("data.path is not set.", "Give a dataset folder: data.path=DIR (made by `sightline data prepare`).")
    return [SourceConfig(path=data.path, split=data.split)]


def training_splits(config: RunConfig) -> list[tuple[Dataset, str]]:
    """The data sets and splits that a run trains on first, for a tokenizer."""
    return [(open_dataset(source.path), source.split) for source in sources_of(config.data)]
