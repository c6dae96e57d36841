"""Small training jobs, for tests."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from sightline.data.batches.loader import MicroBatch
from sightline.objectives import Objective
from sightline.training import loop, optim, stages
from sightline.training.ranks import Replicated, StepModule
from sightline.types import Batch

EVERY = {"vision": "train", "connector": "train", "language": "train"}


class Batches:
    """A loader of given micro-batches: one entry per step, again from the beginning in each epoch."""

    def __init__(self, steps: Sequence[Sequence[Batch]]) -> None:
        self.steps = steps

    def steps_in_epoch(self, epoch: int) -> int:
        return len(self.steps)

    def stream(self, epoch: int, step: int, until: int) -> Iterator[list[MicroBatch]]:
        for number in range(until):
            yield [MicroBatch(batch, ()) for batch in self.steps[(step + number) % len(self.steps)]]


class Lines(list):
    """A log in memory."""

    def write(self, line: dict[str, Any]) -> None:
        self.append(line)


def job(model: nn.Module, batches: Sequence[Sequence[Batch]], objective: Objective, rules: Any = EVERY, **changes: Any) -> loop.Job:
    """A stage over given micro-batches, a step for each entry of `batches`; plain SGD at rate 1 unless told otherwise."""
    stage = changes.pop("stage", None) or stages.apply(model, "test", rules, changes.pop("lr", 1.0), changes.pop("decay", 0.0))
    schedule: dict[str, Any] = {"steps": len(batches), "warmup": 0, "schedule": "constant", "floor": 0.0, "clip": 0.0}
    schedule |= {"checkpoint_every": 0, "evaluate_every": 0}
    schedule |= {name: changes.pop(name) for name in list(changes) if name in schedule}
    groups = [{"params": list(g.parameters.values()), "lr": g.lr, "peak": g.lr, "part": g.name} for g in stage.groups]
    accelerator = changes.pop("accelerator", None) or Accelerator(cpu=True)
    parts: dict[str, Any] = {
        "accelerator": accelerator,
        "model": model,
        "ranks": changes.pop("ranks", None) or Replicated(accelerator, StepModule(model, objective)),
        "stage": stage,
        "optimiser": torch.optim.SGD(groups, lr=1.0),
        "loader": Batches(batches),
        "schedule": loop.StageSchedule(**schedule),
        "log": Lines(),
        "save": lambda at: None,
        "evaluate": None,
        "stop": lambda: "",
        "guard": optim.NonFiniteGuard(),
    }
    return loop.Job(**(parts | changes))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def moved(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in model.named_parameters() if not torch.equal(value.detach(), before[name])}
