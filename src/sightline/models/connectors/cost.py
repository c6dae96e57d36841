"""Counts a connector's cost from its configuration alone: it is built on torch's meta device, where nothing is computed.

A multiply-add counts as two floating-point operations, as in torch's own counter; the count is for the forward pass of one crop.
Elementwise steps (norms, activations, softmax) are not counted.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sightline.errors import ConfigError
from sightline.models.connectors.base import Connector, ConnectorConfig, ConnectorShape, merged_shape

WIDEST = 2**24  # upper limit of the search for a width


@dataclass(frozen=True)
class ConnectorCost:
    """Size and cost of a connector between a given encoder and decoder.

    Attributes:
        parameters: of the connector, without the decoder's input embeddings that `align` mixes.
        flops: of the forward pass of one crop.
        tokens: visual tokens of one crop.
        grid: their rows and columns.
    """

    kind: str
    parameters: int
    flops: int
    tokens: int
    grid: tuple[int, int]

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "parameters": self.parameters,
            "flops_per_crop": self.flops,
            "tokens_per_crop": self.tokens,
            "grid": list(self.grid),
        }


def connector_cost(config: ConnectorConfig, shape: ConnectorShape) -> ConnectorCost:
    """Counts parameters, operations and visual tokens of a connector.

    Raises:
        ConfigError: the connector does not support this shape.
    """
    with torch.device("meta"):
        made = Connector(config, shape)
        features = torch.empty(1, shape.num_tokens, shape.width_in)
        words = torch.empty(shape.num_words, shape.width_out)
        with FlopCounterMode(display=False) as counter:
            made(features, lambda: words)
    return ConnectorCost(config.kind, num_parameters(made), counter.get_total_flops(), made.tokens_per_crop, made.token_grid)


def num_parameters(module: nn.Module) -> int:
    """Returns the number of entries of all parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def match_parameters(config: ConnectorConfig, shape: ConnectorShape, wanted: int) -> ConnectorConfig:
    """Returns the configuration with the width whose parameter count is nearest to `wanted`.

    Raises:
        ConfigError: this kind has no width field, or no width reaches that count.
    """
    name = config.width_field
    if not name:
        raise ConfigError(
            f"connector {config.kind!r} has no width field, so its number of parameters cannot be matched.",
            "Leave this connector out of match_parameters.",
        )
    values = config.model_dump()
    step = int(values[config.width_step]) if config.width_step else 1

    def at(units: int) -> ConnectorConfig:
        return config.model_copy(update={name: units * step})

    def size(units: int) -> int:
        with torch.device("meta"):
            return num_parameters(at(units).build(merged_shape(config, shape)))

    low, high = 1, 2
    if size(low) > wanted:
        raise ConfigError(f"connector {config.kind!r} has {size(low):,} parameters at {name}={step}, more than {wanted:,}.")
    while size(high) < wanted:
        low, high = high, high * 2
        if high * step > WIDEST:
            raise ConfigError(f"connector {config.kind!r} has fewer than {wanted:,} parameters at {name}={low * step}.")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= wanted else (low, middle)
    return at(min((low, high), key=lambda units: abs(size(units) - wanted)))
