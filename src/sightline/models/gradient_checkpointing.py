"""Gradient checkpointing: of each layer only the input is kept, what happens inside is computed again in the backward pass.

transformers does so for layers in train mode only. A frozen decoder is in eval mode, yet its activations fill the memory while a
connector trains through it. So the layers of a frozen part carry the mark of train mode, and drop it while they compute: no
dropout comes back by it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Turns gradient checkpointing on; takes effect with the next `train()`."""
    # The public method warns under one name and does not exist under the other, depending on transformers' version.
    model._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=partial(checkpoint, use_reentrant=False))


def checkpointed_layers(part: nn.Module) -> list[GradientCheckpointingLayer]:
    """The layers of a part for which gradient checkpointing is on."""
    return [layer for layer in part.modules() if isinstance(layer, GradientCheckpointingLayer) and layer.gradient_checkpointing]


def keep_frozen_in_eval(part: nn.Module) -> None:
    """Prepares the layers of a part for which gradient checkpointing was just turned on."""
    for layer in checkpointed_layers(part):
        # pyrefly: ignore  # a plain attribute that transformers sets on each layer
        layer._gradient_checkpointing_func = partial(_compute_again, layer, layer._gradient_checkpointing_func)


def mark_frozen(part: nn.Module) -> None:
    """Lets the layers of a part in eval mode be computed again."""
    for layer in checkpointed_layers(part):
        layer.training = True


def _compute_again(layer: nn.Module, again: Callable[..., Any], function: Callable[..., Any], *args: Any) -> Any:
    """Runs a layer under `again`, in the mode that its children are in."""
    training = any(child.training for child in layer.children())

    def run(*inputs: Any) -> Any:
        layer.training = training
        try:
            return function(*inputs)
        finally:
            layer.training = True

    return again(run, *args)
