"""What a training job changed, for tests; the jobs themselves are those of the benchmarks."""

import torch
from benchmarks.jobs import EVERY as EVERY
from benchmarks.jobs import GivenBatches as GivenBatches
from benchmarks.jobs import Lines as Lines
from benchmarks.jobs import job as job
from torch import Tensor, nn


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def moved(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in model.named_parameters() if not torch.equal(value.detach(), before[name])}
