"""Each private attribute of transformers that the package uses is still there and does what it is used for."""

import inspect
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, ProcessorMixin, initialization, masking_utils
from transformers.generation.utils import GenerationMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils import chat_template_utils

from sightline.models import transformers_private

CONFIG = LlamaConfig(
    vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2
)


def gone(owner: Any, name: str, user: str) -> str:
    """What to do about an attribute that is missing; empty where it is there."""
    if hasattr(owner, name):
        return ""
    label = getattr(owner, "__name__", type(owner).__name__)
    return f"transformers {transformers.__version__} has no {label}.{name} any more: change {user}."


@pytest.mark.parametrize(
    ("owner", "name", "user"),
    [
        (CONFIG, "_attn_implementation", "attention_kernel, set_attention_kernel and clear_kernels"),
        (CONFIG, "_experts_implementation", "clear_kernels"),
        (PreTrainedModel, "_supports_sdpa", "supports_sdpa and CustomModel"),
        (PreTrainedModel, "_supports_flash_attn", "CustomModel"),
        (PreTrainedModel, "_supports_flex_attn", "supports_flex and CustomModel"),
        (PreTrainedModel, "_supports_attention_backend", "CustomModel"),
        (PreTrainedModel, "_skip_keys_device_placement", "CustomModel"),
        (PreTrainedModel, "_no_split_modules", "layer_classes and CustomModel"),
        (PreTrainedModel, "_init_weights", "CustomModel"),
        (PreTrainedModel, "_set_gradient_checkpointing", "set_checkpointing and CustomModel"),
        (GenerationMixin, "_expand_inputs_for_generation", "CustomModel"),
        (CONFIG_MAPPING, "_extra_content", "runtime/auto_classes.py, which registers classes before they are loaded"),
        (masking_utils, "find_packed_sequence_indices", "positions_unsearched"),
        (PROCESSOR_MAPPING, "_extra_content", "runtime/auto_classes.py, which registers classes before they are loaded"),
        (ProcessorMixin, "get_processor_dict", "assembly/model/tokenizer.py, which reads the chat template of a processor"),
        (chat_template_utils, "render_jinja_template", "data/samples/templates.py, which renders conversations"),
    ],
)
def test_transformers_still_has(owner: Any, name: str, user: str) -> None:
    missing = gone(owner, name, user)
    assert not missing, missing


def test_a_missing_attribute_is_named_with_what_to_change() -> None:
    said = gone(PreTrainedModel, "_renamed", "set_checkpointing")
    assert said == f"transformers {transformers.__version__} has no PreTrainedModel._renamed any more: change set_checkpointing."


def test_a_kernel_that_is_set_is_the_one_that_the_model_runs() -> None:
    config = LlamaConfig(**CONFIG.to_dict())
    transformers_private.set_attention_kernel(config, "eager")
    assert transformers_private.attention_kernel(LlamaForCausalLM(config).config) == "eager", "change set_attention_kernel"
    transformers_private.clear_kernels(config)
    assert transformers_private.attention_kernel(config) is None, "change clear_kernels"
    assert transformers_private.supports_sdpa(LlamaForCausalLM), "change supports_sdpa"


def test_the_layers_of_a_decoder_are_known_by_name() -> None:
    model = LlamaForCausalLM(CONFIG)
    named = [part for part in model.modules() if type(part).__name__ in transformers_private.layer_classes(model)]
    assert len(named) == 2, "change layer_classes"


def test_marked_weights_are_not_initialised_again() -> None:
    linear = nn.Linear(2, 2)
    nn.init.ones_(linear.weight)
    transformers_private.mark_initialised(linear)
    initialization.zeros_(linear.weight)
    assert linear.weight.eq(1).all(), "transformers ignores _is_hf_initialized: change mark_initialised"


def test_checkpointed_layers_run_through_the_wrapper() -> None:
    model, seen = LlamaForCausalLM(CONFIG).train(), []

    def wrapper(layer: nn.Module, function: Any, forward: Any, *inputs: Any) -> Any:
        seen.append(layer)
        return function(forward, *inputs)

    transformers_private.set_checkpointing(model, partial(checkpoint, use_reentrant=False))
    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    for layer in layers:
        transformers_private.wrap_checkpointing(layer, wrapper)
    model(input_ids=torch.arange(4)[None]).logits.sum().backward()
    assert seen == layers, "transformers ignores _gradient_checkpointing_func: change wrap_checkpointing"


def test_the_hook_of_beam_search_has_the_arguments_that_are_passed_to_it() -> None:
    names = list(inspect.signature(GenerationMixin._expand_inputs_for_generation).parameters)[1:4]
    assert names == ["expand_size", "is_encoder_decoder", "input_ids"], "change CustomModel._expand_inputs_for_generation"
