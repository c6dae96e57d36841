"""What a configuration or a model folder makes of records and pictures, without its weights.

For `data check` and `data preview`: tokenizer, template, preparation, tiling, and how many visual tokens a crop becomes. The
encoder is built on torch's meta device, where a model has shapes and takes no memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from sightline.assembly import locate, settings
from sightline.assembly import tokenizer as tokenizers
from sightline.assembly.data import training_splits
from sightline.assembly.model import PROCESSING, Processing, preparation_of
from sightline.assembly.schema import ModelConfig, RunConfig
from sightline.assembly.train import CONFIG
from sightline.data.preparation import ImagePreparation
from sightline.data.samples import Policy, RowBuilder, TextRules
from sightline.data.templates import IMAGE, Template
from sightline.errors import ConfigError, StorageError, UsageError
from sightline.models import language, loading, vision
from sightline.models.connectors import CONNECTORS, Connector, ConnectorShape
from sightline.models.language import TokenizerConfig
from sightline.models.vision import EncoderShape, VisionConfig
from sightline.models.vlm import SightlineConfig
from sightline.runtime.storage import read_json


@dataclass(frozen=True)
class Description:
    """How records become inputs of a model.

    Attributes:
        tokenizer: knows `<image>` and the tokens of the tiling.
        processing: prompt, template, policy, preparation and tiling.
        grid: rows and columns of visual tokens of a crop; None for a model of text alone.
        tokens_per_crop: visual tokens of a crop.
        text_config: the decoder's configuration.
        config: of the run; None for a model folder that stands alone.
    """

    tokenizer: PreTrainedTokenizerBase
    processing: Processing
    grid: tuple[int, int] | None
    tokens_per_crop: int
    text_config: PreTrainedConfig
    config: RunConfig | None

    def builder(
        self,
        prompt: str | None = None,
        max_tokens: int | None = None,
        too_long: Literal["skip", "truncate"] = "skip",
        supervise: Policy | None = None,
        captions: Literal["all", "first"] = "all",
    ) -> RowBuilder:
        """Makes rows as `Assembled.builder` does; what is not given is as the model says."""
        rules = TextRules(
            prompt=self.processing.prompt if prompt is None else prompt,
            supervise=supervise or self.processing.supervise,
            max_tokens=max_tokens or self.processing.max_tokens,
            too_long=too_long,
            captions=captions,
            grid=self.grid or (1, 1),
            tiling=None if self.grid is None else self.processing.tiling,
        )
        return RowBuilder(self.tokenizer, Template(self.tokenizer, self.processing.template), rules)

    def facts(self) -> dict[str, Any]:
        """What a report says of the model."""
        preparation = self.processing.preparation
        return {
            "recipe": self.processing.recipe,
            "vocabulary": len(self.tokenizer),
            "template": self.processing.template,
            "supervise": self.processing.supervise,
            "position_limit": language.position_limit(self.text_config),
            "tokens_per_crop": self.tokens_per_crop,
            "grid": None if self.grid is None else list(self.grid),
            "image_size": None if preparation is None else [preparation.height, preparation.width],
            "tiling": None if self.grid is None else self.processing.tiling.model_dump(mode="json"),
        }


def describe_config(config: RunConfig) -> Description:
    """The model that a configuration would train; a new tokenizer is trained as the run would train it.

    Raises:
        ConfigError: parts do not fit together, or a folder is missing.
        DataError: the data set that a new tokenizer is to be trained on cannot be read.
    """
    wanted = config.model
    if wanted.language is None:
        raise ConfigError("model.language must be given.", "Name a decoder: model.language.path=...")
    if wanted.language.path is not None:
        folder = str(locate.model_folder(wanted.language.path))
        wanted = wanted.model_copy(update={"language": wanted.language.model_copy(update={"path": folder})})
        assert wanted.language is not None
    is_new = isinstance(wanted.language.tokenizer, TokenizerConfig)
    texts = tokenizers.texts_of(training_splits(config)) if is_new else None
    tokenizer = tokenizers.build_tokenizer(wanted.language, texts)
    num_words = len(tokenizer)
    if wanted.vision is not None:
        tokenizers.add_tokens(tokenizer, (IMAGE, *wanted.tiling.tokens))
    text_config = _text_config(wanted, len(tokenizer))
    first = settings.plan(config, 0).data
    processing = Processing(
        prompt=first.prompt,
        template=first.template,
        supervise=first.supervise,
        max_tokens=first.max_tokens,
        tiling=wanted.tiling,
        recipe=config.recipe,
    )
    for number in range(len(config.stages)):
        _check_decoder(text_config, config, number)
    if wanted.vision is None:
        return Description(tokenizer, processing, None, 0, text_config, config)
    preparation = None if wanted.vision.external is not None else preparation_of(wanted, wanted.vision)
    encoder = _encoder_shape(wanted.vision, preparation)
    drop, patches = encoder.kept(wanted.vision.drop_class_token)
    if encoder.prefix and not drop and wanted.connector.shuffle > 1:
        raise ConfigError("a class token has no place in a grid of blocks.", "Set model.vision.drop_class_token=true.")
    shape = ConnectorShape(*patches, encoder.width, text_config.hidden_size, num_words)
    grid, per_crop = _visual_tokens(wanted.connector.model_dump(), shape)
    processing = processing.model_copy(update={"preparation": preparation})
    return Description(tokenizer, processing, grid, per_crop, text_config, config)


def describe_folder(path: str, arguments: Sequence[str] = ()) -> Description:
    """The model of a run, of one of its stages, or of a model folder; the run's configuration comes along where there is one.

    Args:
        path: the run, `RUN@STAGE`, or the folder.
        arguments: `key=value` over the run's configuration; what is said of the model itself changes nothing.

    Raises:
        UsageError: the run has no checkpoint, or there is no configuration for `arguments`.
        StorageError: the folder is no model of Sightline.
    """
    folder = locate.model_folder(path)
    if not (folder / PROCESSING).is_file():
        raise StorageError(
            f"{folder} is no model of Sightline: it has no {PROCESSING}.", "Give a run, or a checkpoint's model folder."
        )
    processing = Processing.model_validate(read_json(folder / PROCESSING), strict=False)
    tokenizer = tokenizers.load_tokenizer(str(folder))
    found = loading.read_config(str(folder))
    run = path if locate.is_run(path) else path.rpartition("@")[0]
    has_config = bool(run) and (Path(run) / CONFIG).is_file()
    if arguments and not has_config:
        raise UsageError(f"{path} has no configuration that {arguments[0]!r} could change.", "Give a run.")
    config = settings.resolve(None, Path(run) / CONFIG, arguments) if has_config else None
    if not isinstance(found, SightlineConfig):
        return Description(tokenizer, processing, None, 0, found.get_text_config(decoder=True), config)
    grid, per_crop = _visual_tokens(found.connector, found.connector_shape())
    return Description(tokenizer, processing, grid, per_crop, found.text_config.get_text_config(decoder=True), config)


def _text_config(wanted: ModelConfig, vocabulary: int) -> PreTrainedConfig:
    assert wanted.language is not None
    if wanted.language.path is not None:
        return loading.read_config(wanted.language.path).get_text_config(decoder=True)
    values = {**(wanted.language.config or {}), "vocab_size": vocabulary}
    return loading.config_from(values, "model.language.config").get_text_config(decoder=True)


def _check_decoder(text_config: PreTrainedConfig, config: RunConfig, number: int) -> None:
    """What the decoder's configuration alone can say against a stage's rows."""
    data, limit = settings.plan(config, number).data, language.position_limit(text_config)
    if data.max_tokens > limit:
        raise ConfigError(
            f"data.max_tokens={data.max_tokens}, but the decoder has {limit} positions.", f"Set data.max_tokens={limit}."
        )
    if data.pack or data.share_prefix:
        language.check_layers(text_config)


def _encoder_shape(eye: VisionConfig, preparation: ImagePreparation | None) -> EncoderShape:
    """What comes out of the encoder, or stands in the external table that takes its place."""
    if eye.external is not None:
        from sightline.data.features import open_store

        store = open_store(eye.external)
        return EncoderShape(*store.grid, store.form.width, 0)
    assert preparation is not None
    with torch.device("meta"):
        encoder = vision.from_config(vision.encoder_config(eye), "eager")
    return vision.probe_shape(encoder, (preparation.height, preparation.width), eye.layer)


def _visual_tokens(connector: dict[str, Any], shape: ConnectorShape) -> tuple[tuple[int, int], int]:
    """Grid and number of the visual tokens of a crop."""
    config = CONNECTORS[connector["kind"]].model_validate(connector, strict=False)
    with torch.device("meta"):
        made = Connector(config, shape)
    return made.token_grid, made.tokens_per_crop
