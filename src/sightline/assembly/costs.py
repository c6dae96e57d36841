"""What the connector of a recipe or of a model costs: parameters, operations, visual tokens; for people, JSON and the run card.

A recipe names its encoder and decoder by folder or Hub id; their configurations are enough, no weights are read.
"""

from dataclasses import dataclass
from typing import Any

import torch

from sightline.assembly import sections
from sightline.assembly import tokenizer as tokenizers
from sightline.assembly.assembled import Assembled
from sightline.assembly.schema import ModelConfig, RunConfig
from sightline.data.features import open_store
from sightline.errors import ConfigError
from sightline.models import loading, vision
from sightline.models.connectors import ConnectorShape
from sightline.models.connectors.cost import ConnectorCost, connector_cost
from sightline.models.language import LanguageConfig, TokenizerConfig
from sightline.models.vlm import SightlineForConditionalGeneration

EXAMPLE = (1024, 768)  # a picture's width and height, for tilings whose number of crops depends on it


@dataclass(frozen=True)
class RecipeCost:
    """The connector of a recipe.

    Attributes:
        connector: its cost per crop.
        crops, tokens: of a picture of `EXAMPLE` size under the recipe's tiling; tokens are the visual slots.
    """

    connector: ConnectorCost
    crops: int
    tokens: int

    def to_json(self) -> dict[str, Any]:
        flops = self.connector.flops * self.crops
        picture = {"size": list(EXAMPLE), "crops": self.crops, "tokens": self.tokens, "flops": flops}
        return self.connector.to_json() | {"picture": picture}

    def lines(self) -> list[str]:
        """For people."""
        cost = self.connector
        rows, columns = cost.grid
        shown = [
            f"connector {cost.kind}: {cost.parameters:,} parameters",
            f"forward pass of a crop: {short_flops(cost.flops)}",
            f"visual tokens of a crop: {cost.tokens}" + (f" ({rows} x {columns})" if rows > 1 else ""),
        ]
        if self.crops > 1:
            width, height = EXAMPLE
            total = short_flops(cost.flops * self.crops)
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
    return RecipeCost(cost, layout.num_crops, layout.num_tokens)


def connector_shape(section: ModelConfig) -> ConnectorShape:
    """Where the connector of a resolved model section stands.

    A tokenizer that is still to be trained counts with the size that it is asked to have.

    Raises:
        ConfigError: a part is missing or is none of its kind.
    """
    eye, decoder = section.vision, section.language
    assert eye is not None
    assert decoder is not None  # by `sections.resolve`
    if eye.external is not None:
        store = open_store(eye.external)
        encoder = vision.EncoderShape(*store.grid, store.form.width, 0)
    else:
        preparation = sections.preparation_of(section, eye)
        with torch.device("meta"):
            made = vision.from_config(vision.encoder_config(eye), "eager")
        encoder = vision.probe_shape(made, (preparation.height, preparation.width), eye.layer)
    _, grid = encoder.kept(eye.drop_class_token)
    width, vocabulary = _decoder_sizes(decoder)
    return ConnectorShape(*grid, encoder.width, width, min(_num_words(decoder), vocabulary))


def _decoder_sizes(decoder: LanguageConfig) -> tuple[int, int]:
    """Width and vocabulary."""
    if decoder.path is not None:
        config = loading.read_config(decoder.path)
    else:
        config = loading.config_from({**(decoder.config or {}), "vocab_size": _num_words(decoder)}, "model.language.config")
    text = config.get_text_config(decoder=True)
    return int(text.hidden_size), int(text.vocab_size)


def _num_words(decoder: LanguageConfig) -> int:
    if isinstance(decoder.tokenizer, TokenizerConfig):
        return decoder.tokenizer.vocabulary
    folder = decoder.tokenizer or decoder.path
    if folder is None:
        raise ConfigError("model.language has neither a tokenizer nor a path.")
    return tokenizers.num_words(tokenizers.load_tokenizer(folder))


def card_facts(made: Assembled) -> dict[str, str]:
    """What the run card says of the connector; nothing for a decoder alone or a stock model."""
    if not isinstance(made.model, SightlineForConditionalGeneration):
        return {}
    connector = made.model.connector
    cost = connector_cost(connector.config, connector.shape)
    known = {"kind": cost.kind, "parameters": f"{cost.parameters:,}", "forward pass of a crop": short_flops(cost.flops)}
    return known | {name.replace("_", " "): f"{value:.4g}" for name, value in connector.log_values().items()}


def log_values(made: Assembled) -> dict[str, float]:
    """Values of the connector for each line of the log."""
    if not isinstance(made.model, SightlineForConditionalGeneration):
        return {}
    return {f"connector/{name}": value for name, value in made.model.connector.log_values().items()}


def short_flops(value: int) -> str:
    """A number of operations with a unit."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}FLOP"
    return f"{value} FLOP"
