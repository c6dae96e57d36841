"""The data sets that a configuration names."""

from pathlib import Path

from sightline.assembly.config.schema import DataConfig, RunConfig, SourceConfig
from sightline.data.dataset import Dataset, open_dataset
from sightline.errors import ConfigError


def sources_of(data: DataConfig) -> list[SourceConfig]:
    """Returns the data sets of a stage; a single `path` is a mixture of one.

    Raises:
        ConfigError: none is given.
    """
    if data.mixture:
        return list(data.mixture)
    if data.path is None:
        raise ConfigError("data.path is not set.", "Give a dataset folder: data.path=DIR (made by `sightline data prepare`).")
    return [SourceConfig(path=data.path, split=data.split)]


def prompt_for(data: DataConfig, folder: Path) -> str:
    """Returns the prompt of caption records of one dataset folder, whether or not the stage trains on it."""
    listed = sources_of(data) if data.path is not None or data.mixture else []
    source_prompt = next((source.prompt for source in listed if Path(source.path) == folder), None)
    return data.prompt if source_prompt is None else source_prompt


def training_splits(config: RunConfig) -> list[tuple[Dataset, str]]:
    """Returns the data sets and splits of the run's data section, for training a tokenizer."""
    return [(open_dataset(source.path), source.split) for source in sources_of(config.data)]
