"""Placeholder for an encoder whose outputs are read from an external table; describes the shape of those outputs.

A model trained on an external table is saved, loaded and resumed like any other, but cannot take pixels.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from sightline.errors import UsageError


class StoredFeaturesConfig(PreTrainedConfig):
    """Describes the features in an external table.

    Args:
        rows, columns: grid of the tokens of an image.
        hidden_size: width of a token.
        store_key: key of the feature store that the model was built for.
    """

    model_type = "sightline_stored_features"

    def __init__(self, rows: int = 1, columns: int = 1, hidden_size: int = 1, store_key: str = "", **kwargs: Any) -> None:
        self.rows, self.columns, self.hidden_size, self.store_key = rows, columns, hidden_size, store_key
        super().__init__(**kwargs)


class StoredFeatures(PreTrainedModel):
    """An encoder without parameters that refuses pixels."""

    config_class = StoredFeaturesConfig
    main_input_name = "pixel_values"

    def __init__(self, config: StoredFeaturesConfig) -> None:
        super().__init__(config)
        self.post_init()

    @property
    def dtype(self) -> torch.dtype:  # the base class reads it from the parameters, of which there are none
        return torch.float32

    def forward(self, pixel_values: Float[Tensor, "N 3 h w"], **kwargs: Any) -> Tensor:
        """Refuses pixels.

        Raises:
            UsageError: always; the message says how to use stored features.
        """
        raise UsageError(
            "this model was trained on an external table of features: it has no encoder, so it cannot take images.",
            "Evaluate it with --features STORE, made by `sightline data features DATASET --external FILE`.",
        )
