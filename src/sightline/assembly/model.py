"""Building a model with everything that belongs to it, saving it as a folder, and reading such a folder back.

What belongs to it: the tokenizer with the image token, how pictures are prepared and tiled, the chat template, the prompt, and
when generation stops. All of it goes into the model's folder, so that a folder alone can be evaluated, served and resumed.
"""

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel, PreTrainedTokenizerBase

from sightline.assembly import locate
from sightline.assembly import tokenizer as tokenizers
from sightline.assembly.schema import ModelConfig, RunConfig
from sightline.config import Config
from sightline.data.preparation import ImagePreparation
from sightline.data.samples import Policy, RowBuilder, TextRules
from sightline.data.templates import IMAGE, TEMPLATES, Template
from sightline.data.tiling import AnyTiling, WholeConfig
from sightline.errors import ConfigError, StorageError
from sightline.models import language, loading, vision
from sightline.models.connectors import Connector
from sightline.models.saving import non_finite as non_finite
from sightline.models.saving import save_model
from sightline.models.text import TextModel
from sightline.models.vlm import PARTS, SightlineConfig, SightlineForConditionalGeneration
from sightline.runtime.storage import read_json, write_json
from sightline.training import lora
from sightline.types import Message, Part

PROCESSING, PROCESSOR = "sightline.json", "preprocessor_config.json"


class Processing(Config):
    """How records become inputs of a model; `sightline.json` of its folder."""

    schema_version: int = 1
    prompt: str = ""
    template: str = "auto"
    supervise: Policy = "assistant"
    max_tokens: int = 2048
    tiling: AnyTiling = WholeConfig()
    preparation: ImagePreparation | None = None
    recipe: str = "custom"
    run: dict[str, Any] = Field(default_factory=dict)
    """Where the weights come from: recipe, stage, step."""


@dataclass(frozen=True)
class Assembled:
    """A model with all that it takes to use it.

    Attributes:
        model: the vision-language model, or a `TextModel`.
        tokenizer: knows `<image>` and the tokens of the tiling.
        processing: how records become inputs.
    """

    model: SightlineForConditionalGeneration | TextModel
    tokenizer: PreTrainedTokenizerBase
    processing: Processing

    @property
    def inner(self) -> PreTrainedModel:
        """The transformers model that `generate` is called on."""
        return self.model.language if isinstance(self.model, TextModel) else self.model

    @property
    def template(self) -> Template:
        return Template(self.tokenizer, self.processing.template)

    @property
    def tokens_per_crop(self) -> int:
        return 0 if isinstance(self.model, TextModel) else self.model.connector.tokens_per_crop

    @property
    def pad_id(self) -> int:
        return self.builder().pad_id

    def builder(
        self,
        prompt: str | None = None,
        max_tokens: int | None = None,
        too_long: Literal["skip", "truncate"] = "skip",
        supervise: Policy | None = None,
        captions: Literal["all", "first"] = "all",
        drop_images: bool = False,
    ) -> RowBuilder:
        """Makes rows for this model; what is not given is as it was trained."""
        sees = isinstance(self.model, SightlineForConditionalGeneration)
        rules = TextRules(
            prompt=self.processing.prompt if prompt is None else prompt,
            supervise=supervise or self.processing.supervise,
            max_tokens=max_tokens or self.processing.max_tokens,
            too_long=too_long,
            captions=captions,
            drop_images=drop_images,
            grid=self.model.connector.token_grid if isinstance(self.model, SightlineForConditionalGeneration) else (1, 1),
            tiling=self.processing.tiling if sees else None,
        )
        return RowBuilder(self.tokenizer, self.template, rules)


# Building ------------------------------------------------------------------------------------------------------------------------


def build(config: RunConfig, processing: Processing, texts: Iterable[str] | None) -> Assembled:
    """Loads or makes the parts of a model and puts them together.

    Args:
        config: the run.
        processing: prompt, template and policy of the run; preparation and tiling are filled in here.
        texts: what a new tokenizer is trained on.

    Raises:
        ConfigError: parts do not fit together.
        StorageError: weights are missing or damaged.
    """
    wanted = config.model
    if wanted.language is None:
        raise ConfigError("model.language must be given.", "Name a decoder: model.language.path=...")
    if wanted.language.path is not None:  # a run stands for the model of its last checkpoint
        folder = str(locate.model_folder(wanted.language.path))
        wanted = wanted.model_copy(update={"language": wanted.language.model_copy(update={"path": folder})})
        assert wanted.language is not None
    attention = "sdpa" if config.runtime.attention == "auto" else config.runtime.attention
    tokenizer = tokenizers.build_tokenizer(wanted.language, texts)
    num_words = len(tokenizer)
    if wanted.vision is not None:
        tokenizers.add_tokens(tokenizer, (IMAGE, *wanted.tiling.tokens))
    torch.manual_seed(config.train.seed)
    decoder = language.build_decoder(wanted.language, len(tokenizer), attention)
    language.check_decoder(decoder)
    num_words = min(num_words, rows_of(decoder.get_input_embeddings()).shape[0])
    fit_vocabulary(decoder, len(tokenizer))
    limit = language.position_limit(language.text_config(decoder))
    if processing.max_tokens > limit:
        raise ConfigError(
            f"data.max_tokens={processing.max_tokens}, but the decoder has {limit} positions.", f"Set data.max_tokens={limit}."
        )
    if wanted.vision is None:
        made = Assembled(TextModel(decoder), tokenizer, processing)
    else:
        model, preparation = _with_vision(wanted, wanted.vision, decoder, tokenizer, num_words, config.train.seed, attention)
        processing = processing.model_copy(update={"preparation": preparation, "tiling": wanted.tiling})
        made = Assembled(model, tokenizer, processing)
    made.inner.generation_config = generation_config(made)
    return made


def _with_vision(
    wanted: ModelConfig,
    eye: vision.VisionConfig,
    decoder: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    num_words: int,
    seed: int,
    attention: str,
) -> tuple[SightlineForConditionalGeneration, ImagePreparation]:
    torch.manual_seed(seed + 1)
    encoder = vision.build_encoder(eye, attention)
    vision.strip_labels(encoder.config)
    preparation = preparation_of(wanted, eye)
    shape = vision.probe_shape(encoder, (preparation.height, preparation.width), eye.layer)
    drop = shape.prefix if eye.drop_class_token else 0
    if shape.prefix and not drop and wanted.connector.shuffle > 1:
        raise ConfigError("a class token has no place in a grid of blocks.", "Set model.vision.drop_class_token=true.")
    image_id = tokenizer.convert_tokens_to_ids(IMAGE)
    assert isinstance(image_id, int)
    kept = shape.prefix - drop
    model_config = SightlineConfig(
        vision_config=encoder.config,
        text_config=decoder.config,
        connector=wanted.connector.model_dump(mode="json"),
        vision_layer=eye.layer,
        vision_drop=drop,
        grid=(shape.rows, shape.columns) if not kept else (1, shape.rows * shape.columns + kept),
        vision_width=shape.width,
        image_mean=preparation.mean,
        image_std=preparation.std,
        rescale_factor=preparation.rescale,
        image_token_id=image_id,
        num_words=num_words,
        num_separators=wanted.tiling.num_separators,
    )
    torch.manual_seed(seed + 2)
    connector = Connector(wanted.connector, model_config.connector_shape())
    return SightlineForConditionalGeneration(model_config, encoder, connector, decoder), preparation


def preparation_of(wanted: ModelConfig, eye: vision.VisionConfig) -> ImagePreparation:
    """How pictures are prepared for an encoder: as its folder says, or from the sizes of a new one.

    Raises:
        ConfigError: a new encoder has no `image_size`.
    """
    if eye.path is not None:
        return ImagePreparation.from_folder(eye.path, wanted.fit, wanted.draft)
    size = (eye.config or {}).get("image_size")
    if not isinstance(size, int):
        raise ConfigError("model.vision.config needs a whole number as 'image_size'.")
    values = {key: tuple(value) for key, value in eye.normalise.items()}
    try:
        made = ImagePreparation.model_validate({"resize": (size, size), **values}, strict=False)
    except ValueError as error:
        raise ConfigError(f"model.vision.normalise: {loading.first_line(error)}") from error
    return made.refitted(wanted.fit).model_copy(update={"draft": wanted.draft})


def fit_vocabulary(decoder: PreTrainedModel, size: int) -> None:
    """Gives the decoder rows for added tokens: the mean of the rows it has, so that they stand out in neither input nor output."""
    old = rows_of(decoder.get_input_embeddings()).shape[0]
    if size <= old:
        return
    ends = (decoder.get_input_embeddings, decoder.get_output_embeddings)
    means = [rows_of(end()).detach().mean(0) for end in ends]
    decoder.resize_token_embeddings(size, mean_resizing=False)
    with torch.no_grad():
        for end, mean in zip(ends, means, strict=True):
            rows_of(end())[old:] = mean


def rows_of(module: nn.Module | None) -> nn.Parameter:
    """The `[vocabulary, width]` matrix of an embedding or a head."""
    assert isinstance(module, nn.Embedding | nn.Linear)
    assert isinstance(module.weight, nn.Parameter)
    return module.weight


def generation_config(made: Assembled) -> Any:
    """The decoder's generation settings with the ends of a turn, the padding, and no image token among what may be said."""
    config = made.inner.generation_config if isinstance(made.model, TextModel) else made.model.language.generation_config
    ends = config.eos_token_id
    found = set(ends if isinstance(ends, list) else [] if ends is None else [ends])
    if made.tokenizer.eos_token_id is not None:
        found.add(int(made.tokenizer.eos_token_id))
    closing = _closing_token(made)
    if closing is not None:
        found.add(closing)
    config.eos_token_id = sorted(found)
    config.pad_token_id = made.pad_id
    config.bos_token_id = made.tokenizer.bos_token_id
    if isinstance(made.model, SightlineForConditionalGeneration):
        tokens = (IMAGE, *made.processing.tiling.tokens)
        config.suppress_tokens = sorted(made.tokenizer.get_vocab()[token] for token in tokens)
    return config


def _closing_token(made: Assembled) -> int | None:
    """The special token that ends an assistant turn in the model's template."""
    builder = made.builder()
    turn = (Message("user", (Part("a"),)), Message("assistant", (Part("a"),)))
    row = builder.row(turn, [])
    last = int(row.ids[row.spans[-1].end - 1])
    return last if last in builder.special_ids else None


# Folders -------------------------------------------------------------------------------------------------------------------------


def write(made: Assembled, folder: Path, previous: Path | None = None, changed: Collection[str] = PARTS) -> list[str]:
    """Writes a model's folder; returns the names of weight files that are links into `previous`."""
    state = lora.plain_state(made.inner) if any(True for _ in lora.layers(made.inner)) else None
    linked = save_model(made.inner, folder, previous, changed, state)
    if made.processing.template in TEMPLATES or made.tokenizer.chat_template is None:
        made.tokenizer.chat_template = made.template.source
    made.tokenizer.save_pretrained(folder)
    write_json(folder / PROCESSING, json.loads(made.processing.model_dump_json()))
    if made.processing.preparation is not None:
        write_json(folder / PROCESSOR, made.processing.preparation.to_processor())
    return linked


def read(folder: str | Path, attention: str = "auto") -> Assembled:
    """Reads a folder that `write` made.

    Raises:
        StorageError: it is not one, or its weights are damaged.
    """
    folder = Path(folder)
    if not (folder / PROCESSING).is_file():
        raise StorageError(
            f"{folder} is no model of Sightline: it has no {PROCESSING}.", "Give a run, or a checkpoint's model folder."
        )
    processing = Processing.model_validate(read_json(folder / PROCESSING), strict=False)
    tokenizer = tokenizers.load_tokenizer(str(folder))
    config = loading.read_config(str(folder))
    kernel = "sdpa" if attention == "auto" else attention
    if isinstance(config, SightlineConfig):
        config.vision_config._attn_implementation = vision.kernel_for(config.vision_config, kernel)
        config.text_config._attn_implementation = language.kernel_for(config.text_config, kernel)
        model = loading.load(AutoModelForImageTextToText, str(folder), config, None)
        assert isinstance(model, SightlineForConditionalGeneration)
        return Assembled(model, tokenizer, processing)
    decoder = loading.load(AutoModelForCausalLM, str(folder), config, language.kernel_for(config, kernel))
    return Assembled(TextModel(decoder), tokenizer, processing)


def initialise(made: Assembled, origin: str) -> None:
    """Gives a model the weights of another run or model folder, all of them.

    Raises:
        ConfigError: that model is not of the same shape.
    """
    other = read(locate.model_folder(origin))
    mine, theirs = made.inner.state_dict(), other.inner.state_dict()
    odd = sorted(set(mine) ^ set(theirs)) or sorted(name for name in mine if mine[name].shape != theirs[name].shape)
    if odd:
        raise ConfigError(f"init: the model at {origin} differs from this one, first in {odd[0]!r}.", "Use the same model section.")
    made.inner.load_state_dict(theirs)


def part_sizes(model: nn.Module) -> dict[str, int]:
    """Parameters of each part."""
    return {name: sum(parameter.numel() for parameter in child.parameters()) for name, child in model.named_children()}
