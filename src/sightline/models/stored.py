"""The place of an encoder that is not there: its outputs come from a table, and this says what they look like.

A model that was trained on an external table is saved, loaded and resumed as any other; only pixels cannot be given to it.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from sightline.errors import UsageError


class StoredFeaturesConfig(PreTrainedConfig):
    """What the rows of an external table are.

    Args:
        rows, columns: grid of the tokens of a picture.
        hidden_size: width of a token.
        store_key: key of the feature store that the model was built for.
    """

    model_type = "sightline_stored_features"

    def __init__(self, rows: int = 1, columns: int = 1, hidden_size: int = 1, store_key: str = "", **kwargs: Any) -> None:
        self.rows, self.columns, self.hidden_size, self.store_key = rows, columns, hidden_size, store_key
        super().__init__(**kwargs)


class StoredFeatures(PreTrainedModel):
    """An encoder without parameters that takes no pixels."""

    config_class = StoredFeaturesConfig
    main_input_name = "pixel_values"

    def __init__(self, config: StoredFeaturesConfig) -> None:
        super().__init__(config)
        self.post_init()

    @property
    def dtype(self) -> torch.dtype:  # that of transformers asks the parameters
        return torch.float32

    def forward(self, pixel_values: Float[Tensor, "N 3 h w"], **kwargs: Any) -> Tensor:
        """Refuses.

        Raises:
            UsageError: always; says what to do.
        """
        raise UsageError(
            "this model was trained on an external table of features: it has no encoder and takes no pictures.",
            "Evaluate it with --features STORE, made by `sightline data features DATASET --external FILE`.",
        )


AutoConfig.register(StoredFeaturesConfig.model_type, StoredFeaturesConfig)
AutoModel.register(StoredFeaturesConfig, StoredFeatures)
