"""Rows of all ranks as one tensor, with exact gradients."""

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor


def gather_rows(rows_N: Shaped[Tensor, "N ..."]) -> tuple[Shaped[Tensor, "M ..."], int]:
    """Concatenates the rows of all ranks in the order of ranks; ranks may have different numbers of rows.

    In the backward pass the gradients that all ranks have for a row are summed on the rank that owns it, so the sum over ranks of
    losses of gathered rows has the gradient that one process with all rows would have. Every rank must call it.

    Returns:
        All rows, and the index of this rank's first one.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows_N, 0
    count = torch.tensor([len(rows_N)], device=rows_N.device)
    counts = [torch.empty_like(count) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, count)
    sizes = [int(size) for size in counts]
    gathered = _Gather.apply(rows_N, sizes)
    assert isinstance(gathered, Tensor)
    return gathered, sum(sizes[: dist.get_rank()])


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_N: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        padded = rows_N.new_zeros((max(sizes), *rows_N.shape[1:]))  # all_gather takes tensors of one shape
        padded[: len(rows_N)] = rows_N
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        rank = dist.get_rank()
        first = sum(ctx.sizes[:rank])
        return total[first : first + ctx.sizes[rank]], None
