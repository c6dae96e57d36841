"""Training jobs over given batches, for benchmarks and tests."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from sightline.data.batches.loader import MicroBatch
from sightline.objectives import Objective
from sightline.training import loop, optim, stages
from sightline.training.ranks import Replicated, StepModule

EVERY: dict[str, Any] = {"vision": "train", "connector": "train", "language": "train"}


def accelerator_on(device: torch.device | str, mixed_precision: str = "no", kind: type[Accelerator] = Accelerator) -> Accelerator:
    """Returns an accelerator on a device, whatever accelerators this process has had before."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return kind(cpu=torch.device(device).type == "cpu", mixed_precision=mixed_precision)


class GivenBatches:
    """A loader of given micro-batches: one entry per step, again from the beginning in each epoch."""

    def __init__(self, steps: Sequence[Sequence[Any]]) -> None:
        self.steps = steps

    def steps_in_epoch(self, epoch: int) -> int:
        return len(self.steps)

    def stream(self, epoch: int, step: int, until: int) -> Iterator[list[MicroBatch]]:
        """Yields the micro-batches of `until` steps from `step` on."""
        for number in range(until):
            yield [MicroBatch(batch, ()) for batch in self.steps[(step + number) % len(self.steps)]]


class Lines(list):
    """A log in memory."""

    def write(self, line: dict[str, Any]) -> None:
        self.append(line)


def job(model: nn.Module, batches: Sequence[Sequence[Any]], objective: Objective, rules: Any = EVERY, **changes: Any) -> loop.Job:
    """Returns a stage over given micro-batches, a step for each entry of `batches`; by default plain SGD at rate 1.

    Args:
        model: the model.
        batches: the micro-batches of each step.
        objective: the objective.
        rules: how each part trains.
        changes: other fields of `loop.Job` and `loop.StageSchedule`, `lr` and `decay`; `adamw` takes the optimiser of training.
    """
    stage = changes.pop("stage", None) or stages.apply(model, "test", rules, changes.pop("lr", 1.0), changes.pop("decay", 0.0))
    schedule: dict[str, Any] = {"steps": len(batches), "warmup": 0, "schedule": "constant", "floor": 0.0, "clip": 0.0}
    schedule |= {"checkpoint_every": 0, "evaluate_every": 0}
    schedule |= {name: changes.pop(name) for name in list(changes) if name in schedule}
    accelerator = changes.pop("accelerator", None) or Accelerator(cpu=True)
    if changes.pop("adamw", False):
        optimiser: torch.optim.Optimizer = optim.build_optimiser(stage, (0.9, 0.999), 1e-8)
    else:
        groups = [{"params": list(g.parameters.values()), "lr": g.lr, "peak": g.lr, "part": g.name} for g in stage.groups]
        optimiser = torch.optim.SGD(groups, lr=1.0)
    parts: dict[str, Any] = {
        "accelerator": accelerator,
        "model": model,
        "ranks": changes.pop("ranks", None) or Replicated(accelerator, StepModule(model, objective)),
        "stage": stage,
        "optimiser": optimiser,
        "loader": GivenBatches(batches),
        "schedule": loop.StageSchedule(**schedule),
        "log": Lines(),
        "save": lambda at: None,
        "evaluate": None,
        "stop": str,
        "guard": optim.NonFiniteGuard(),
    }
    return loop.Job(**(parts | changes))
