"""Where arithmetic happens: device, type, threads."""

import os
import platform
from dataclasses import dataclass
from typing import Any, Literal

import torch

from sightline.errors import ConfigError


@dataclass(frozen=True)
class Runtime:
    """The machine as a run uses it.

    Attributes:
        device: `cpu`, `cuda` or `mps`.
        bf16: autocast to bf16 over fp32 weights.
        threads: CPU threads of torch.
    """

    device: str
    bf16: bool
    threads: int

    def facts(self) -> dict[str, Any]:
        """What a result's bits depend on."""
        return {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "device": self.device,
            "gpu": torch.cuda.get_device_name() if self.device == "cuda" else "",
            "bf16": self.bf16,
            "threads": self.threads,
        }


def prepare_runtime(
    device: str, dtype: Literal["auto", "bf16", "fp32"], threads: int | None, deterministic: bool | None = None
) -> Runtime:
    """Chooses the device, sets threads and whether sums may run in changing order.

    Args:
        device: `auto` takes a GPU where there is one.
        dtype: `auto` is bf16 on GPUs that have it.
        threads: CPU threads; None leaves torch's choice.
        deterministic: refuse kernels that add in changing order; by default on a CPU, where it costs nothing.

    Raises:
        ConfigError: the wanted device is not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("runtime.device=cuda, but torch sees no GPU.", "Use runtime.device=cpu, or see `sightline doctor`.")
    if threads is not None:
        torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(device == "cpu" if deterministic is None else deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyrefly: ignore
    if deterministic and device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    bf16 = dtype == "bf16" or (dtype == "auto" and device == "cuda" and torch.cuda.is_bf16_supported())
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return Runtime(device, bf16, torch.get_num_threads())
