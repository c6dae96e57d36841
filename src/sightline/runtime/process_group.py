"""The processes that torchrun starts for one command, and the exchange of values between them over gloo."""

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

Value = TypeVar("Value")


@contextlib.contextmanager
def process_group(seconds: int = 1800) -> Iterator[None]:
    """Joins the other processes of a command that torchrun has started; does nothing for a command of one process.

    Args:
        seconds: how long a process waits for the others before it gives up.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("gloo", timeout=timedelta(seconds=seconds))
    try:
        yield
    finally:
        dist.destroy_process_group()


def process_count() -> int:
    """Returns the number of processes of this command."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_number() -> int:
    """Returns the number of this process; the first one, 0, writes the files."""
    return dist.get_rank() if process_count() > 1 else 0


def host_group(seconds: float) -> "dist.ProcessGroup | None":
    """Returns a group for `host_sum`: a new one over gloo, or None where the default group exchanges tensors of the host.

    Args:
        seconds: how long a process waits for the others before it gives up.
    """
    if "cpu:" in dist.get_backend_config():
        return None
    return dist.new_group(backend="gloo", timeout=timedelta(seconds=seconds))  # pyrefly: ignore


def host_sum(value: int, group: "dist.ProcessGroup | None") -> int:
    """Returns the sum of a number over all processes; on a GPU no process waits for its device, only for the other processes."""
    total = torch.tensor(value)
    dist.all_reduce(total, group=group)
    return int(total)


def gathered(value: Value) -> list[Value]:
    """Returns the values of all processes, in their order; every process must call it, and waits for the others."""
    if process_count() == 1:
        return [value]
    values: list[Any] = [None] * process_count()
    dist.all_gather_object(values, value)
    return values
