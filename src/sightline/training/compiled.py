"""Regional compilation: each layer of decoder and encoder is compiled by itself, and all layers of one kind share the result.

Only the forward function of a layer is replaced, for as long as the context lasts. Modules, names of tensors, hooks, gradient
checkpointing and the shards of FSDP2 stay outside of what is compiled and work as before.
"""

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from sightline.models.transformers_private import checkpointing_of

BACKEND = "inductor"
COMPILERS = ("cc", "gcc", "clang")


def why_not_compiled() -> str:
    """Returns what torch lacks to compile for a GPU on this machine, as the end of a sentence; empty if nothing."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if not any(map(shutil.which, COMPILERS)):
        return f"there is no C compiler ({', '.join(COMPILERS)}), which Triton needs"
    return ""


def layers_of(part: nn.Module | None) -> list[GradientCheckpointingLayer]:
    """Returns the layers of a part: what transformers checkpoints one by one, in a list of layers."""
    lists = [] if part is None else [module for module in part.modules() if isinstance(module, nn.ModuleList)]
    return [layer for layers in lists for layer in layers if isinstance(layer, GradientCheckpointingLayer)]


@contextmanager
def compiled_layers(decoder: nn.Module | None, encoder: nn.Module | None, backend: Any = None) -> Iterator[int]:
    """Compiles the layers of decoder and encoder at their first call within the context; yields their number.

    A decoder's layers see rows of one shape, an encoder's any number of crops. What is compiled is dropped at the end.

    Args:
        decoder, encoder: modules with layers of transformers.
        backend: of `torch.compile`; `BACKEND` by default.
    """
    backend = BACKEND if backend is None else backend
    changed = []
    for part, dynamic in ((decoder, None), (encoder, True)):
        for layer in layers_of(part):
            changed.append((layer, layer.gradient_checkpointing))
            run = torch.compile(layer.forward, backend=backend, dynamic=dynamic)
            layer.forward = _checkpointed(layer, run) if layer.gradient_checkpointing else run
            layer.gradient_checkpointing = False
    try:
        yield len(changed)
    finally:
        for layer, is_checkpointed in changed:
            del layer.forward
            layer.gradient_checkpointing = is_checkpointed
        torch.compiler.reset()


def _checkpointed(layer: GradientCheckpointingLayer, run: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a forward function that checkpoints `run`: transformers does so outside or inside of it, by its version."""
    function = checkpointing_of(layer)

    def forward(*args: Any, **kwargs: Any) -> Any:
        return function(partial(run, **kwargs), *args) if torch.is_grad_enabled() else run(*args, **kwargs)

    return forward


def not_compiled() -> AbstractContextManager[Any]:
    """Returns a context in which compiled layers run as they were, for validation and generation with their many shapes."""
    return torch.compiler.set_stance("force_eager")
