"""Measures tensors that a function makes, and a stand-in for a package that needs a GPU."""

import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Largest(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else [out]:
            if isinstance(value, Tensor):
                self.elements = max(self.elements, value.numel())
        return out


@dataclass
class CCEParams:
    """The fields of `cut_cross_entropy.cce.CCEParams`."""

    targets: Tensor
    valids: Tensor | None
    softcap: float | None
    reduction: str
    filter_eps: float | None
    shift: bool
    batch_shape: torch.Size


def stand_in_for_cut_cross_entropy(monkeypatch: pytest.MonkeyPatch) -> list[CCEParams]:
    """Puts a module with the interface of cut_cross_entropy 25.1.1 in its place; returns the list of its calls' parameters."""
    seen: list[CCEParams] = []

    def apply(e: Tensor, c: Tensor, params: CCEParams) -> Tensor:
        assert e.is_contiguous()
        assert params.valids is None
        assert (params.reduction, params.shift, params.filter_eps) == ("none", False, None)
        assert params.batch_shape == params.targets.shape == e.shape[:-1]
        seen.append(params)
        logits = e.float() @ c.float().T
        if params.softcap is not None:
            logits = params.softcap * torch.tanh(logits / params.softcap)
        return torch.nn.functional.cross_entropy(logits, params.targets, reduction="none")

    package, module = ModuleType("cut_cross_entropy"), ModuleType("cut_cross_entropy.cce")
    module.CCEParams, module.linear_cross_entropy_apply = CCEParams, apply  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cut_cross_entropy", package)
    monkeypatch.setitem(sys.modules, "cut_cross_entropy.cce", module)
    return seen
