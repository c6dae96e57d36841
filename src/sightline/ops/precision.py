"""Precision of intermediate results that the fused functions share."""

import torch
from torch import Tensor


def at_least_fp32(values: Tensor) -> Tensor:
    """Casts to fp32; float64 stays float64."""
    return values if values.dtype == torch.float64 else values.float()


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Adds `left @ right` to `total` in place, without a temporary tensor where the dtypes are equal."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
