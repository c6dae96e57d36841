"""Gradient checkpointing: only the input of each layer is kept, and its activations are computed again in the backward pass.

transformers checkpoints a layer only in train mode. A frozen decoder is in eval mode, yet its activations take most of the memory
while a connector trains through it. So the layers of a frozen part are marked as being in train mode, and go back to eval mode
while they compute, so that no dropout is active.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from sightline.models.transformers_private import set_checkpointing, wrap_checkpointing


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Turns gradient checkpointing on, without re-entrant autograd; takes effect with the next `train()`."""
    set_checkpointing(model, partial(checkpoint, use_reentrant=False))


def checkpointed_layers(part: nn.Module) -> list[GradientCheckpointingLayer]:
    """Returns the layers of a part for which gradient checkpointing is on."""
    return [layer for layer in part.modules() if isinstance(layer, GradientCheckpointingLayer) and layer.gradient_checkpointing]


def keep_frozen_in_eval(part: nn.Module) -> None:
    """Makes checkpointed layers compute in the mode of their children; call it once, after turning checkpointing on."""
    for layer in checkpointed_layers(part):
        wrap_checkpointing(layer, _in_mode_of_children)


def mark_frozen(part: nn.Module) -> None:
    """Marks the layers of a part in eval mode as being in train mode, so that transformers checkpoints them."""
    for layer in checkpointed_layers(part):
        layer.training = True


def _in_mode_of_children(layer: nn.Module, checkpointed: Callable[..., Any], function: Callable[..., Any], *args: Any) -> Any:
    """Runs a layer by `checkpointed(function, *args)`, in the mode that its children are in."""
    training = any(child.training for child in layer.children())

    def run(*inputs: Any) -> Any:
        layer.training = training
        try:
            return function(*inputs)
        finally:
            layer.training = True

    return checkpointed(run, *args)
