"""Optimiser, learning-rate schedule, and the check for non-finite steps."""

import math
from typing import Literal

import torch

from sightline.errors import NumericsError
from sightline.training.stages import Stage

Schedule = Literal["constant", "cosine", "linear"]


def build_optimiser(stage: Stage, betas: tuple[float, float], eps: float) -> torch.optim.AdamW:
    """Builds AdamW with one parameter group per part and decay rule; each group keeps its peak rate as `peak`.

    On a GPU it is the fused one: one kernel for all parameters.
    """
    groups = [
        {
            "params": list(group.parameters.values()),
            "lr": group.lr,
            "weight_decay": group.weight_decay,
            "peak": group.lr,
            "part": group.name,
        }
        for group in stage.groups
    ]
    fused = all(parameter.device.type == "cuda" for group in groups for parameter in group["params"])
    return torch.optim.AdamW(groups, betas=betas, eps=eps, fused=True if fused else None)


def lr_factor(step: int, steps: int, warmup: int, schedule: Schedule, floor: float) -> float:
    """Returns the factor on the peak rate at `step` (0 is the first): linear warm-up, then the schedule down to `floor`.

    Args:
        step: number of optimiser steps before this one.
        steps: length of the stage.
        warmup: number of warm-up steps; step `warmup - 1` runs at the peak.
        schedule: `cosine`, `linear` or `constant`.
        floor: factor that is reached after the last step.
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    share = (step - warmup) / max(1, steps - warmup)
    fall = (1 + math.cos(math.pi * min(share, 1.0))) / 2 if schedule == "cosine" else 1 - min(share, 1.0)
    return floor + (1 - floor) * fall


def set_lr(optimiser: torch.optim.Optimizer, factor: float) -> dict[str, float]:
    """Sets the rate of every group to `factor` times its peak; returns the rate of each part."""
    rates = {}
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * factor
        rates[group["part"]] = group["lr"]
    return rates


class NonFiniteGuard:
    """Allows a step only if loss and gradient norm are finite; three consecutive failures end the run.

    A skipped step leaves weights and optimiser unchanged.
    """

    def __init__(self, patience: int = 3) -> None:
        self.patience = patience
        self.consecutive = 0

    def allows(self, loss: float, norm: float, step: int, where: str) -> bool:
        """Returns whether the step may be made.

        Args:
            loss, norm: of this step, the same on every rank.
            step: number of the step, for the message.
            where: ids of the records of this step, for the message.

        Raises:
            NumericsError: `patience` consecutive steps were not finite.
        """
        if math.isfinite(loss) and math.isfinite(norm):
            self.consecutive = 0
            return True
        self.consecutive += 1
        if self.consecutive >= self.patience:
            raise NumericsError(
                f"the loss ({loss}) or the gradient norm ({norm}) is not finite at step {step}, {self.consecutive} steps in a row "
                f"(records {where}).",
                "Lower the learning rate, or check these records; the last checkpoint is finite.",
            )
        return False
