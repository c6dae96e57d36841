"""What the connector of a recipe or of a model costs: parameters, operations, visual tokens; for people, JSON and the run card.

A recipe names its encoder and decoder by folder or Hub id; their configurations are enough, no weights are read.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig, PreTrainedModel

from sightline.assembly.config import parts as sections
from sightline.assembly.config.schema import ModelConfig, RunConfig
from sightline.assembly.model import tokenizer as tokenizers
from sightline.assembly.model.bundle import ModelBundle
from sightline.data.features.store import open_store
from sightline.data.images.preparation import ImagePreparation
from sightline.models import loading, vision
from sightline.models.connectors import ConnectorShape
from sightline.models.connectors.cost import ConnectorCost, connector_cost
from sightline.models.language import LanguageConfig, TokenizerConfig
from sightline.models.vision import EncoderShape, VisionConfig

EXAMPLE = (1024, 768)  # a picture's width and height, for tilings whose number of crops depends on it


@dataclass(frozen=True)
class RecipeCost:
    """The connector of a recipe.

    Attributes:
        connector: its cost per crop.
        encoder_flops: of the encoder's forward pass of one crop; 0 where a table takes its place.
        crops, tokens: of a picture of `EXAMPLE` size under the recipe's tiling; tokens are the visual slots.
    """

    connector: ConnectorCost
    encoder_flops: int
    crops: int
    tokens: int

    def to_json(self) -> dict[str, Any]:
        flops, encoder = self.connector.flops * self.crops, self.encoder_flops * self.crops
        picture = {"size": list(EXAMPLE), "crops": self.crops, "tokens": self.tokens, "flops": flops, "encoder_flops": encoder}
        return self.connector.to_json() | {"picture": picture}

    def lines(self) -> list[str]:
        """For people."""
        cost = self.connector
        rows, columns = cost.grid
        shown = [
            f"connector {cost.kind}: {cost.parameters:,} parameters",
            f"forward pass of a crop: connector {short_flops(cost.flops)}, encoder {short_flops(self.encoder_flops)}",
            f"visual tokens of a crop: {cost.tokens}" + (f" ({rows} x {columns})" if rows > 1 else ""),
        ]
        if self.crops > 1:
            width, height = EXAMPLE
            total = short_flops((cost.flops + self.encoder_flops) * self.crops)
            shown.append(f"a picture of {width} x {height} pixels: {self.crops} crops, {self.tokens} visual tokens, {total}")
        return shown


def recipe_cost(config: RunConfig) -> RecipeCost | None:
    """The cost of a recipe's connector; None for a decoder alone.

    Raises:
        ConfigError, UsageError, StorageError, DataError: the encoder or decoder is not at hand, or they do not fit together.
    """
    section = sections.resolve(config.model)
    if section.vision is None:
        return None
    shape = connector_shape(section)
    cost = connector_cost(section.connector, shape)
    layout = section.tiling.layout(*EXAMPLE, cost.grid)
    eye = section.vision
    flops = 0 if eye.external is not None else encoder_flops(eye, sections.preparation_of(section, eye))
    return RecipeCost(cost, flops, layout.num_crops, layout.num_tokens)


def connector_shape(section: ModelConfig) -> ConnectorShape:
    """Where the connector of a resolved model section stands.

    A tokenizer that is still to be trained counts with the size that it is asked to have.

    Raises:
        ConfigError: a part is missing or is none of its kind.
    """
    eye, decoder = section.vision, section.language
    assert eye is not None
    assert decoder is not None  # by `sections.resolve`
    preparation = None if eye.external is not None else sections.preparation_of(section, eye)
    encoder = encoder_shape(eye, preparation)
    _, grid = encoder.kept(eye.drop_class_token)
    width, vocabulary = _decoder_sizes(decoder)
    return ConnectorShape(*grid, encoder.width, width, min(_num_words(decoder), vocabulary))


def encoder_shape(eye: VisionConfig, preparation: ImagePreparation | None) -> EncoderShape:
    """What comes out of an encoder, found without its weights, or stands in the external table that takes its place.

    Args:
        eye: the encoder.
        preparation: how pictures are prepared for it; None for a table.
    """
    if eye.external is not None:
        store = open_store(eye.external)
        return EncoderShape(*store.grid, store.form.width, 0)
    assert preparation is not None
    config, size = vision.encoder_config(eye), (preparation.height, preparation.width)
    try:
        with torch.device("meta"):
            encoder = vision.from_config(config, "eager")
        return vision.probe_shape(encoder, size, eye.layer)
    except (NotImplementedError, RuntimeError):  # it looks at values, which are not there (Idefics3); all its layers are alike
        return vision.probe_shape(vision.from_config(thin(config, 1), "eager"), size, "last")


def encoder_flops(eye: VisionConfig, preparation: ImagePreparation) -> int:
    """Operations of an encoder's forward pass of one crop, a multiply-add counted as two."""
    config = vision.encoder_config(eye)
    try:
        with torch.device("meta"):
            return _flops(vision.from_config(config, "eager"), preparation)
    except (NotImplementedError, RuntimeError):  # as above: two real models of one and two layers tell what a layer takes
        one, two = (_flops(vision.from_config(thin(config, layers), "eager"), preparation) for layers in (1, 2))
        return one + (config.num_hidden_layers - 1) * (two - one)


def _flops(encoder: PreTrainedModel, preparation: ImagePreparation) -> int:
    picture = torch.zeros(1, 3, preparation.height, preparation.width, device=encoder.device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        vision.raw_output(encoder.eval(), picture, "last")
    return counter.get_total_flops()


def thin(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """The same encoder with fewer layers."""
    out = copy.deepcopy(config)
    out.num_hidden_layers = layers
    return out


def text_config_of(decoder: LanguageConfig) -> PreTrainedConfig:
    """The decoder's configuration; that of the text part where it holds several.

    Raises:
        ConfigError: there is none that can be used.
    """
    if decoder.path is not None:
        config = loading.read_config(decoder.path)
    else:
        config = loading.config_from({**(decoder.config or {}), "vocab_size": _num_words(decoder)}, "model.language.config")
    return config.get_text_config(decoder=True)


def _decoder_sizes(decoder: LanguageConfig) -> tuple[int, int]:
    """Width and vocabulary."""
    text = text_config_of(decoder)
    return int(text.hidden_size), int(text.vocab_size)


def _num_words(decoder: LanguageConfig) -> int:
    if isinstance(decoder.tokenizer, TokenizerConfig):
        return decoder.tokenizer.vocabulary
    return tokenizers.num_words(tokenizers.build_tokenizer(decoder, None))


def card_facts(bundle: ModelBundle) -> dict[str, str]:
    """What the run card says of the connector; nothing for a decoder alone or a stock model."""
    connector = bundle.model.connector
    if connector is None:
        return {}
    cost = connector_cost(connector.config, connector.shape)
    known = {"kind": cost.kind, "parameters": f"{cost.parameters:,}", "forward pass of a crop": short_flops(cost.flops)}
    return known | {name.replace("_", " "): f"{value:.4g}" for name, value in connector.log_values().items()}


def log_values(bundle: ModelBundle) -> dict[str, float]:
    """Values of the connector for each line of the log."""
    connector = bundle.model.connector
    return {} if connector is None else {f"connector/{name}": value for name, value in connector.log_values().items()}


def short_flops(value: int) -> str:
    """A number of operations with a unit."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}FLOP"
    return f"{value} FLOP"
