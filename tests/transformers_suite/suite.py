"""transformers' own model and generation tests, on our model and on a stock LLaVA of the same size beside it.

Run by `make test-transformers` in an environment of its own; the normal suite does not collect this file. `fetch.py` makes
`transformers_tests`, and `compare.py` judges the outcome.
"""

import unittest
from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.testing_utils import torch_device
from transformers_tests.generation.test_utils import GenerationTesterMixin
from transformers_tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor

from sightline.models.vlm import SightlineConfig, SightlineForConditionalGeneration

# Tests that look at names alone then treat our class as they treat LLaVA's.
MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["sightline"] = SightlineForConditionalGeneration.__name__

BATCH, SIDE, PATCH = 3, 16, 4
TOKENS = (SIDE // PATCH) ** 2
TEXT = 7
VOCABULARY, IMAGE, FIRST_WORD = 99, 4, 5


def parts() -> dict[str, PreTrainedConfig]:
    """A tiny encoder and decoder, the same for both models."""
    layers = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 37}
    return {
        "vision_config": CLIPVisionConfig(image_size=SIDE, patch_size=PATCH, projection_dim=32, **layers),
        "text_config": LlamaConfig(
            vocab_size=VOCABULARY,
            num_key_value_heads=2,
            max_position_embeddings=128,
            pad_token_id=1,
            bos_token_id=2,
            eos_token_id=3,
            **layers,
        ),
    }


class Inputs:
    """What the mixins ask for: configurations and inputs of a batch in which each row begins with its image."""

    batch_size = BATCH
    seq_length = TOKENS + TEXT
    num_hidden_layers = 2
    num_attention_heads = 4
    hidden_size = 32
    image_size = SIDE
    is_training = True

    def __init__(self, parent: Any) -> None:
        self.parent = parent
        self.vision_config = parts()["vision_config"].to_dict()
        self.text_config = parts()["text_config"].to_dict()

    def get_config(self) -> PreTrainedConfig:
        return self.parent.config()

    def prepare_config_and_inputs_for_common(self) -> tuple[PreTrainedConfig, dict[str, Any]]:
        ids = ids_tensor([BATCH, TOKENS + TEXT], VOCABULARY - FIRST_WORD) + FIRST_WORD
        ids[:, :TOKENS] = IMAGE
        inputs = {
            "pixel_values": floats_tensor([BATCH, 3, SIDE, SIDE]),
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids, device=torch_device),
        }
        return self.get_config(), inputs

    prepare_config_and_inputs = prepare_config_and_inputs_for_common


class StockLlavaTest(ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):
    """What a model of transformers passes with these inputs."""

    all_model_classes = (LlavaForConditionalGeneration,)
    _is_composite = True
    test_torch_exportable = False

    def setUp(self) -> None:
        self.model_tester = Inputs(self)

    def config(self) -> PreTrainedConfig:
        return LlavaConfig(
            **parts(),
            image_token_index=IMAGE,
            vision_feature_layer=-1,
            vision_feature_select_strategy="default",
            tie_word_embeddings=False,
        )


class SightlineTest(ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):
    """Our model."""

    all_model_classes = (SightlineForConditionalGeneration,)
    _is_composite = True
    test_torch_exportable = False
    test_can_init_all_missing_weights_before_2023 = True  # our file names no year, which reads as an old model

    def setUp(self) -> None:
        self.model_tester = Inputs(self)

    def config(self) -> PreTrainedConfig:
        return SightlineConfig(
            **parts(),
            connector={"kind": "mlp"},
            vision_drop=1,
            grid=(SIDE // PATCH, SIDE // PATCH),
            vision_width=32,
            image_token_id=IMAGE,
        )
