"""What a configuration or a model folder makes of records and pictures, without its weights.

For `data check` and `data preview`: tokenizer, template, preparation, tiling, and how many visual tokens a crop becomes. The
encoder is built on torch's meta device, where a model has shapes and takes no memory.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from sightline.assembly.config import locate
from sightline.assembly.config import parts as sections
from sightline.assembly.config import resolving as settings
from sightline.assembly.config.locate import CONFIG
from sightline.assembly.config.schema import FromConfig, ModelConfig, RunConfig
from sightline.assembly.config.sources import training_splits
from sightline.assembly.model import tokenizer as tokenizers
from sightline.assembly.model.costs import encoder_shape
from sightline.assembly.model.pretrained import CAPTION_PROMPT
from sightline.data.samples.encoding import ConversationEncoder, Policy, TextRules
from sightline.data.samples.processing import Processing, is_ours, read_processing
from sightline.data.samples.templates import Template
from sightline.errors import ConfigError, UsageError
from sightline.models import composites, language, loading
from sightline.models.connectors import Connector, ConnectorConfig, ConnectorShape
from sightline.models.language import LanguageConfig, TokenizerConfig
from sightline.types import IMAGE


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
    ) -> ConversationEncoder:
        """Makes rows as `ModelBundle.builder` does; what is not given is as the model says."""
        rules = TextRules(
            prompt=self.processing.prompt if prompt is None else prompt,
            supervise=supervise or self.processing.supervise,
            max_tokens=max_tokens or self.processing.max_tokens,
            too_long=too_long,
            captions=captions,
            grid=self.grid or (1, 1),
            tiling=None if self.grid is None else self.processing.tiling,
        )
        return ConversationEncoder(self.tokenizer, Template(self.tokenizer, self.processing.template), rules)

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
    first = settings.plan(config, 0).data
    is_new = config.model.language is not None and isinstance(config.model.language.tokenizer, TokenizerConfig)
    texts = tokenizers.texts_of(training_splits(config)) if is_new else None
    processing = Processing(
        prompt=first.prompt,
        template=first.template,
        supervise=first.supervise,
        max_tokens=first.max_tokens,
        recipe=config.recipe,
    )
    described = _describe(config.model, processing, texts)
    for number in range(len(config.stages)):
        _check_decoder(described.text_config, config, number)
    return replace(described, config=config)


def describe_folder(path: str, arguments: Sequence[str] = ()) -> Description:
    """The model of a run, of one of its stages, or of a model folder; the run's configuration comes along where there is one.

    Args:
        path: the run, `RUN@STAGE`, the folder, or the Hub id of a stock vision-language model.
        arguments: `key=value` over the run's configuration; what is said of the model itself changes nothing.

    Raises:
        UsageError: the run has no checkpoint, or there is no configuration for `arguments`.
        ConfigError, StorageError: the folder is no model that is known.
    """
    run = path if locate.is_run(path) else path.rpartition("@")[0]
    has_config = bool(run) and (Path(run) / CONFIG).is_file()
    if arguments and not has_config:
        raise UsageError(f"{path} has no configuration that {arguments[0]!r} could change.", "Give a run.")
    folder = str(locate.model_folder(path))
    if not is_ours(folder):
        return _describe_stock(folder)
    config = settings.resolve(None, Path(run) / CONFIG, arguments) if has_config else None
    processing, tokenizer, found = read_processing(folder), tokenizers.load_tokenizer(folder), loading.read_config(folder)
    text_config = found.get_text_config(decoder=True)
    if not composites.is_known(found):
        return Description(tokenizer, processing, None, 0, text_config, config)
    connector = _connector(composites.connector_config(found, folder), found.connector_shape())
    return Description(tokenizer, processing, connector.token_grid, connector.tokens_per_crop, text_config, config)


def _describe_stock(path: str) -> Description:
    """A stock vision-language model, by the parts that it consists of."""
    whole = FromConfig(path=path, parts=("vision", "connector", "language", "tiling"))
    described = _describe(ModelConfig(from_=whole), Processing(), None)
    config = loading.read_config(path)
    changes = {
        "prompt": CAPTION_PROMPT,
        "max_tokens": language.position_limit(described.text_config),
        "recipe": f"stock {config.model_type}",
    }
    return replace(described, processing=described.processing.model_copy(update=changes))


def _describe(section: ModelConfig, processing: Processing, texts: Iterable[str] | None) -> Description:
    """A model section without the weights that it names."""
    wanted = sections.resolve(section)
    assert wanted.language is not None  # by `resolve`
    tokenizer = tokenizers.build_tokenizer(wanted.language, texts)
    num_words = tokenizers.num_words(tokenizer)
    if wanted.vision is not None:
        tokenizers.add_tokens(tokenizer, (IMAGE, *wanted.tiling.tokens))
    text_config = _text_config(wanted.language, len(tokenizer))
    if wanted.vision is None:
        return Description(tokenizer, processing, None, 0, text_config, None)
    preparation = None if wanted.vision.external is not None else sections.preparation_of(wanted, wanted.vision)
    encoder = encoder_shape(wanted.vision, preparation)
    drop, patches = encoder.kept(wanted.vision.drop_class_token)
    if encoder.prefix and not drop and wanted.connector.shuffle > 1:
        raise ConfigError("a class token has no place in a grid of blocks.", "Set model.vision.drop_class_token=true.")
    connector = _connector(wanted.connector, ConnectorShape(*patches, encoder.width, text_config.hidden_size, num_words))
    wanted.tiling.check_grid(connector.token_grid)
    processing = processing.model_copy(update={"preparation": preparation, "tiling": wanted.tiling})
    return Description(tokenizer, processing, connector.token_grid, connector.tokens_per_crop, text_config, None)


def _text_config(wanted: LanguageConfig, vocabulary: int) -> PreTrainedConfig:
    if wanted.path is not None:
        return loading.read_config(wanted.path).get_text_config(decoder=True)
    return loading.config_from({**(wanted.config or {}), "vocab_size": vocabulary}, "model.language.config").get_text_config(
        decoder=True
    )


def _check_decoder(text_config: PreTrainedConfig, config: RunConfig, number: int) -> None:
    """What the decoder's configuration alone can say against a stage's rows."""
    data, limit = settings.plan(config, number).data, language.position_limit(text_config)
    if data.max_tokens > limit:
        raise ConfigError(
            f"data.max_tokens={data.max_tokens}, but the decoder has {limit} positions.", f"Set data.max_tokens={limit}."
        )
    if data.pack or data.share_prefix:
        language.check_layers(text_config)


def _connector(config: ConnectorConfig, shape: ConnectorShape) -> Connector:
    """The connector with shapes and no weights."""
    with torch.device("meta"):
        return Connector(config, shape)
