"""Regional compilation: each layer of decoder and encoder is compiled by itself, and all layers of one kind share the result.

Only the forward function of a layer is replaced, for as long as the context lasts. Modules, names of tensors, hooks, gradient
checkpointing and the shards of FSDP2 stay outside of what is compiled and work as before.
"""

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

BACKEND = "inductor"
COMPILERS = ("cc", "gcc", "clang")


def why_not_compiled() -> str:
    """Returns what torch lacks to compile for a GPU on this machine, as the end of a sentence; empty if nothing."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if not any(map(shutil.which, COMPILERS)):
        return f"there is no C compiler ({', '.join(COMPILERS)}), which Triton needs"
    return ""


def layers_of(part: nn.Module | None) -> list[nn.Module]:
    """Returns the layers of a part: the modules that transformers also checkpoints one by one."""
    return [] if part is None else [module for module in part.modules() if isinstance(module, GradientCheckpointingLayer)]


@contextmanager
def compiled_layers(decoder: nn.Module | None, encoder: nn.Module | None, backend: Any = None) -> Iterator[int]:
    """Compiles the layers of decoder and encoder at their first call within the context; yields their number.

    A decoder's layers see rows of one shape, an encoder's any number of crops. What is compiled is dropped at the end.

    Args:
        decoder, encoder: modules with layers of transformers.
        backend: of `torch.compile`; `BACKEND` by default.
    """
    backend = BACKEND if backend is None else backend
    parts: list[tuple[list[nn.Module], bool | None]] = [(layers_of(decoder), None), (layers_of(encoder), True)]
    for layers, dynamic in parts:
        for layer in layers:
            layer.forward = torch.compile(layer.forward, backend=backend, dynamic=dynamic)
    try:
        yield sum(len(layers) for layers, _ in parts)
    finally:
        for layers, _ in parts:
            for layer in layers:
                del layer.forward
        torch.compiler.reset()


def not_compiled() -> AbstractContextManager[Any]:
    """Returns a context in which compiled layers run as they were, for validation and generation with their many shapes."""
    return torch.compiler.set_stance("force_eager")
