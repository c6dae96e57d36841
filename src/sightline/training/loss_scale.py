"""Training in fp16, for GPUs without bf16: autocast, and a loss that is scaled so that small gradients do not become 0."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator

INITIAL = 2**8  # the loss is a sum over tokens, not a mean: a usual 2**16 would overflow for a dozen steps
LARGEST = 2**24
PATIENCE = 1000


class HalfAccelerator(Accelerator):
    """An accelerator whose autocast computes in fp16; accelerate's own needs its scaler, its optimiser and a GPU."""

    @contextmanager
    def autocast(self, autocast_handler: Any = None) -> Iterator[None]:
        with torch.autocast(self.device.type, torch.float16):
            yield


class LossScale:
    """Factor on the loss: halved after a step whose gradient overflowed, doubled after 1,000 steps in a row that did not.

    Micikevicius et al. 2018 (arXiv 1710.03740), section 3.2. Powers of two, so that scaling itself rounds nothing.

    Args:
        value: the factor; 0 begins with the initial one.
        good_steps: steps since it last changed.
    """

    def __init__(self, value: int = 0, good_steps: int = 0) -> None:
        self.value, self.good_steps = value or INITIAL, good_steps

    def overflowed(self) -> bool:
        """Halves the factor; False where it is 1 already, so that something else is wrong."""
        if self.value == 1:
            return False
        self.value, self.good_steps = self.value // 2, 0
        return True

    def stepped(self) -> None:
        """Counts a step that was made."""
        self.good_steps += 1
        if self.good_steps >= PATIENCE and self.value < LARGEST:
            self.value, self.good_steps = self.value * 2, 0
