"""Precision of intermediate results that the fused functions share, and of numbers that leave the device."""

from collections.abc import Mapping

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


def read_at_once(values: Mapping[str, float | Tensor]) -> dict[str, float]:
    """Returns numbers and scalar tensors of one device as floats, with a single copy to the host."""
    tensors = {name: value.detach() for name, value in values.items() if isinstance(value, Tensor)}
    found = torch.stack([widest(value) for value in tensors.values()]).tolist() if tensors else []
    read = dict(zip(tensors, found, strict=True))
    return {name: read[name] if name in read else float(value) for name, value in values.items()}


def widest(value: Tensor) -> Tensor:
    """Returns a tensor in float64, or in fp32 where the device has no float64."""
    return value.to(torch.float32 if value.device.type == "mps" else torch.float64)
