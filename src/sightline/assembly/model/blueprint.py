"""A model without its weights: tokenizer, sizes of all parts, visual tokens of a crop, and how records become inputs.

`build_bundle`, `data check`, `data preview`, `recipes show` and the cost tables all begin with a `Blueprint`, so they agree.
Configurations, tokenizers and image processors are read; weights are not. Shapes are found on torch's meta device.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from sightline.assembly.config import locate
from sightline.assembly.config.locate import CONFIG
from sightline.assembly.config.parts import preparation_of, resolve_model_section
from sightline.assembly.config.resolving import stage_plan, stored_config
from sightline.assembly.config.schema import FromConfig, ModelConfig, RunConfig
from sightline.assembly.config.sources import training_splits
from sightline.assembly.model import pretrained, towers
from sightline.assembly.model.inputs import ModelInputs
from sightline.assembly.model.tokenizer import add_tokens, build_tokenizer, count_words, load_tokenizer, texts_of
from sightline.data.features.store import open_store
from sightline.data.images.preparation import ImagePreparation
from sightline.data.images.tilings import WholeConfig
from sightline.data.samples.processing import Processing, is_ours, read_processing
from sightline.errors import ConfigError, StorageError, UsageError
from sightline.models import composites, language, loading, vision
from sightline.models.connectors import Connector, ConnectorConfig, ConnectorShape
from sightline.models.dual import DualConfig, dual_config
from sightline.models.language import LanguageConfig, TokenizerConfig
from sightline.models.stored import StoredFeaturesConfig
from sightline.models.vision import EncoderShape, VisionConfig
from sightline.models.vlm import SightlineConfig, vlm_config
from sightline.types import IMAGE


@dataclass(frozen=True)
class EncoderBlueprint:
    """An encoder without its weights.

    Attributes:
        config: its configuration; a `StoredFeaturesConfig` where an external table takes its place.
        preparation: how images are prepared for it; None for an external table.
        shape: what comes out of it.
        drop: leading tokens (class and register tokens) that are left out.
        grid: rows and columns of the tokens that are kept; one row where class tokens are kept.
    """

    config: PreTrainedConfig
    preparation: ImagePreparation | None
    shape: EncoderShape
    drop: int
    grid: tuple[int, int]


@dataclass(frozen=True)
class Blueprint(ModelInputs):
    """A model without its weights.

    Attributes:
        known_tokenizer: the tokenizer with the image token and the tokens of the tiling; None where it is still to be trained
            and only sizes were asked for.
        processing: prompt, template, supervision, tiling and image preparation.
        text_config: configuration of the decoder, with a row of the vocabulary for each token of the tokenizer.
        vlm: configuration of the whole vision-language model; None for a decoder alone.
        section: the model section with everything in it looked up; None for a saved model.
        config: configuration of the run; None where there is none.
        dual: configuration of the whole dual encoder; None for every other model.
    """

    known_tokenizer: PreTrainedTokenizerBase | None
    processing: Processing
    text_config: PreTrainedConfig
    vlm: SightlineConfig | None = None
    section: ModelConfig | None = None
    config: RunConfig | None = None
    dual: PreTrainedConfig | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:  # pyrefly: ignore[bad-override]
        """The tokenizer.

        Raises:
            ConfigError: it is to be trained, but no text was given.
        """
        if self.known_tokenizer is None:
            where = "model.dual.text" if self.dual is not None else "model.language"
            raise ConfigError(f"{where}.tokenizer is to be trained, but there is no training text.", "Give data.path.")
        return self.known_tokenizer

    @property
    def takes_images(self) -> bool:
        return self.vlm is not None

    @property
    def token_grid(self) -> tuple[int, int]:
        return self.connector().token_grid if self.takes_images else (1, 1)

    @property
    def tokens_per_crop(self) -> int:
        return self.connector().tokens_per_crop if self.takes_images else 0

    @property
    def connector_config(self) -> ConnectorConfig:
        """Kind and sizes of the connector; a decoder alone has none."""
        assert self.vlm is not None
        return composites.connector_config(self.vlm, "")

    @property
    def connector_shape(self) -> ConnectorShape:
        """Grid and width of the encoder, width and vocabulary of the decoder; a decoder alone has none."""
        assert self.vlm is not None
        return self.vlm.connector_shape()

    def connector(self) -> Connector:
        """Returns the connector on the meta device.

        Raises:
            ConfigError: it does not fit between encoder and decoder.
        """
        with torch.device("meta"):
            return Connector(self.connector_config, self.connector_shape)

    def facts(self) -> dict[str, Any]:
        """Returns what reports say about the model, as JSON."""
        preparation = self.processing.preparation
        return {
            "recipe": self.processing.recipe,
            "vocabulary": len(self.tokenizer),
            "template": self.processing.template,
            "supervise": self.processing.supervise,
            "position_limit": language.max_sequence_length(self.text_config),
            "tokens_per_crop": self.tokens_per_crop,
            "grid": list(self.token_grid) if self.takes_images else None,
            "image_size": None if preparation is None else [preparation.height, preparation.width],
            "tiling": self.processing.tiling.model_dump(mode="json") if self.takes_images else None,
        }


# From a configuration -----------------------------------------------------------------------------------------------------------


def config_blueprint(config: RunConfig) -> Blueprint:
    """Returns the model that a run with this configuration trains; a new tokenizer is trained on the run's texts.

    Raises:
        ConfigError: parts do not fit together, a folder is missing, or a stage has rows that the decoder cannot take.
        DataError: the data set that a new tokenizer is to be trained on cannot be read.
    """
    plans = [stage_plan(config, number).data for number in range(len(config.stages))]
    text = config.model.language if config.model.dual is None else config.model.dual.text
    is_new = text is not None and isinstance(text.tokenizer, TokenizerConfig)
    texts = texts_of(training_splits(config)) if is_new else None
    first = plans[0]
    processing = Processing(
        prompt=first.prompt,
        template=first.template,
        supervise=first.supervise,
        max_tokens=first.max_tokens,
        recipe=config.recipe,
    )
    made = section_blueprint(config.model, processing, texts)
    for data in plans if made.dual is None else ():
        _check_positions(made.text_config, data.max_tokens)
        if data.pack or data.share_prefix:
            language.check_layers(made.text_config)
    return replace(made, config=config)


def section_blueprint(section: ModelConfig, processing: Processing | None = None, texts: Iterable[str] | None = None) -> Blueprint:
    """Returns the model that a model section describes.

    The number of words (the decoder's own vocabulary, which `align` mixes) is the number of entries of the tokenizer before any
    token is added, but never more than the rows of the decoder's embedding: a tokenizer may know more tokens than its decoder.

    Args:
        section: the model section of a run.
        processing: prompt, template, supervision and row length; tiling and preparation are filled in here. None where only the
            sizes of the model are section.
        texts: what a new tokenizer is trained on. Without them the sizes are those of a tokenizer that uses its whole vocabulary.

    Raises:
        ConfigError: parts are missing or do not fit together.
        UsageError, StorageError: a run that is named has no usable checkpoint.
    """
    section = resolve_model_section(section)
    if section.dual is not None:
        made = towers.describe(section, processing or Processing(), texts)
        return Blueprint(made.tokenizer, made.processing, made.config.text_config, section=section, dual=made.config)
    assert section.language is not None  # by `resolve_model_section`
    added = (IMAGE, *section.tiling.tokens) if section.vision is not None else ()
    tokenizer, num_words, vocabulary = _tokenizer(section.language, texts, added)
    text_config = _text_config(section, vocabulary)
    num_words = min(num_words, int(text_config.vocab_size))
    text_config.vocab_size = max(int(text_config.vocab_size), vocabulary)
    if processing is None:
        processing = Processing()
    else:
        _check_positions(text_config, processing.max_tokens)
    if section.vision is None:
        return Blueprint(tokenizer, processing, text_config, section=section)
    encoder = encoder_blueprint(section)
    image_id = 0 if tokenizer is None else tokenizer.convert_tokens_to_ids(IMAGE)
    assert isinstance(image_id, int)
    vlm = SightlineConfig(
        vision_config=encoder.config,
        text_config=text_config,
        connector=section.connector.model_dump(mode="json"),
        vision_layer=section.vision.layer,
        vision_drop=encoder.drop,
        grid=encoder.grid,
        vision_width=encoder.shape.width,
        image_token_id=image_id,
        num_words=num_words,
        num_separators=section.tiling.num_separators,
    )
    if encoder.preparation is not None:
        vlm.image_mean, vlm.image_std = list(encoder.preparation.mean), list(encoder.preparation.std)
        vlm.rescale_factor = encoder.preparation.rescale
    processing = processing.model_copy(update={"preparation": encoder.preparation, "tiling": section.tiling})
    made = Blueprint(tokenizer, processing, text_config, vlm, section)
    section.tiling.check_grid(made.token_grid)
    return made


def _tokenizer(
    decoder: LanguageConfig, texts: Iterable[str] | None, added: Sequence[str]
) -> tuple[PreTrainedTokenizerBase | None, int, int]:
    """Returns the tokenizer, its entries before tokens are added, and its entries with them."""
    tokenizer = build_tokenizer(decoder, texts)
    if tokenizer is None:
        assert isinstance(decoder.tokenizer, TokenizerConfig)  # any other is loaded
        return None, decoder.tokenizer.vocabulary, decoder.tokenizer.vocabulary + len(added)
    num_words = count_words(tokenizer)
    add_tokens(tokenizer, added)
    return tokenizer, num_words, len(tokenizer)


def _text_config(section: ModelConfig, vocabulary: int) -> PreTrainedConfig:
    """Returns the decoder's configuration as its folder has it, or of a new decoder with `vocabulary` entries.

    Raises:
        ConfigError: it is no causal language model.
    """
    decoder = section.language
    assert decoder is not None
    if decoder.path is None:
        whole = loading.config_from({**(decoder.config or {}), "vocab_size": vocabulary}, "model.language.config")
    else:
        whole = loading.read_config(decoder.path)
    config = copy.deepcopy(whole.get_text_config(decoder=True))
    if section.takes("language") and whole.model_type in composites.COMPOSITES:  # they tie head and embeddings themselves
        config.tie_word_embeddings = bool(whole.tie_word_embeddings)
    language.kernel_for(config if section.takes("language") else whole, "eager")
    return config


def encoder_blueprint(section: ModelConfig) -> EncoderBlueprint:
    """Returns the encoder of a resolved model section that has one.

    Raises:
        ConfigError: it is no vision model, it does not fit the section, or an external table is tiled or holds the outputs of a
            known encoder.
    """
    choice = section.vision
    assert choice is not None
    if choice.external is not None:
        config, preparation, shape = _external(choice.external, section)
    else:
        config, preparation = vision.encoder_config(choice), preparation_of(section, choice)
        shape = _encoder_shape(choice, config, preparation)
    if section.from_ is not None and section.takes("vision"):
        composites.check_prefix(loading.read_config(section.from_.path), shape.prefix)
    drop, grid = shape.kept(choice.drop_class_token)
    if shape.prefix and not drop and section.connector.shuffle > 1:
        raise ConfigError("a class token has no place in a grid of blocks.", "Set model.vision.drop_class_token=true.")
    return EncoderBlueprint(config, preparation, shape, drop, grid)


def _external(path: str, section: ModelConfig) -> tuple[PreTrainedConfig, None, EncoderShape]:
    store = open_store(path)
    if store.kind != "external":
        raise ConfigError(
            f"model.vision.external={path}: that store holds the outputs of an encoder.",
            "Name the encoder in model.vision.path and the store in data.features.",
        )
    if section.tiling != WholeConfig():
        raise ConfigError("an external table knows no tiles.", "Use model.tiling.kind=whole.")
    shape = EncoderShape(*store.grid, store.row_format.width, 0)
    return StoredFeaturesConfig(*store.grid, shape.width, store.key), None, shape


def _encoder_shape(choice: VisionConfig, config: PreTrainedConfig, preparation: ImagePreparation) -> EncoderShape:
    """Computes the output shape of an encoder on the meta device."""
    size = (preparation.height, preparation.width)
    try:
        with torch.device("meta"):
            encoder = vision.from_config(config, "eager")
        return vision.probe_shape(encoder, size, choice.layer)
    except (NotImplementedError, RuntimeError):  # Idefics3 reads values, which the meta device has not; its layers are all alike
        return vision.probe_shape(vision.from_config(with_layers(config, 1), "eager"), size, "last")


def with_layers(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """Returns the configuration of the same encoder with another number of layers."""
    out = copy.deepcopy(config)
    out.num_hidden_layers = layers
    return out


def _check_positions(text_config: PreTrainedConfig, max_tokens: int) -> None:
    limit = language.max_sequence_length(text_config)
    if max_tokens > limit:
        raise ConfigError(f"data.max_tokens={max_tokens}, but the decoder has {limit} positions.", f"Set data.max_tokens={limit}.")


# From a folder ------------------------------------------------------------------------------------------------------------------


def folder_blueprint(path: str, arguments: Sequence[str] = ()) -> Blueprint:
    """Returns the model of a run, of one of its stages, or of a model folder, with the run's configuration where there is one.

    Args:
        path: the run, `RUN@STAGE`, the folder, or the Hub id of a stock vision-language model.
        arguments: `key=value` over the run's configuration; what they say of the model itself changes nothing.

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
        if dual_config(loading.read_config(folder)) is not None:
            return section_blueprint(ModelConfig(dual=DualConfig(path=folder)))
        return _stock_blueprint(folder)
    config = stored_config(Path(run), arguments) if has_config else None
    return replace(saved_blueprint(folder), config=config)


def saved_blueprint(folder: str) -> Blueprint:
    """Returns the model in a folder that `sightline.assembly.model.build.write_model` made.

    Raises:
        ConfigError, StorageError: its files are damaged.
    """
    processing, config, tokenizer = read_processing(folder), loading.read_config(folder), load_tokenizer(folder)
    whole = dual_config(config)
    if whole is None and processing.template == "auto" and tokenizer.chat_template is None:
        raise StorageError(
            f"{folder} has no chat_template.jinja, the chat template that the model was trained with.",
            "Give a run, or copy the whole model folder of a checkpoint.",
        )
    text_config = config.get_text_config(decoder=True) if whole is None else config.text_config
    vlm = vlm_config(config)
    if whole is None and len(tokenizer) > text_config.vocab_size:
        raise StorageError(
            f"{folder}: the tokenizer has {len(tokenizer)} entries, the decoder {text_config.vocab_size}.",
            "Copy the whole model folder of a checkpoint.",
        )
    if vlm is not None and tokenizer.convert_tokens_to_ids(IMAGE) != vlm.image_token_id:
        raise StorageError(
            f"{folder}: image_token_id is {vlm.image_token_id} in config.json, but the tokenizer's {IMAGE!r} is "
            f"{tokenizer.convert_tokens_to_ids(IMAGE)}.",
            "Copy the whole model folder of a checkpoint.",
        )
    return Blueprint(tokenizer, processing, text_config, vlm, dual=whole)


def _stock_blueprint(path: str) -> Blueprint:
    """Returns a stock vision-language model, with the connector of ours that computes the same."""
    tokenizer, processing = pretrained.stock_inputs(path)
    whole = FromConfig(path=path, parts=("vision", "connector", "language", "tiling"))
    sizes = section_blueprint(ModelConfig(from_=whole), processing)
    return replace(sizes, known_tokenizer=tokenizer)
