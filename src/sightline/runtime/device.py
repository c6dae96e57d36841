"""Chooses device, arithmetic and threads; entry points of the library restore the settings of the process."""

import contextlib
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from sightline.errors import ConfigError


@dataclass(frozen=True)
class Runtime:
    """Device and arithmetic of a run.

    Attributes:
        device: `cpu`, `cuda` or `mps`.
        bf16: autocast to bf16 over fp32 weights.
        fp16: autocast to fp16 over fp32 weights, in training alone.
        threads: CPU threads of torch.
        deterministic: allow only deterministic kernels (`torch.use_deterministic_algorithms`).
    """

    device: str
    bf16: bool
    threads: int
    deterministic: bool
    fp16: bool = False

    def apply(self) -> None:
        """Applies the settings to torch and the environment of this process; call it inside `process_settings_restored`."""
        if self.threads != torch.get_num_threads():
            torch.set_num_threads(self.threads)
        torch.use_deterministic_algorithms(self.deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = False  # pyrefly: ignore
        if self.deterministic and self.device == "cuda":
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    def facts(self) -> dict[str, Any]:
        """Returns the facts that the exact bits of a result depend on."""
        return {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "device": self.device,
            "gpu": torch.cuda.get_device_name() if self.device == "cuda" else "",
            "bf16": self.bf16,
            **({"fp16": True} if self.fp16 else {}),
            "threads": self.threads,
        }


def choose_runtime(
    device: str, dtype: Literal["auto", "bf16", "fp16", "fp32"], threads: int | None, deterministic: bool | None = None
) -> Runtime:
    """Chooses device and arithmetic without changing settings of this process.

    Args:
        device: `auto` takes a GPU (`cuda`, then `mps`) where available.
        dtype: `auto` is bf16 on CUDA GPUs that support it, else fp32.
        threads: CPU threads; None keeps torch's choice.
        deterministic: allow only deterministic kernels; None does so on a CPU, where it costs nothing.

    Raises:
        ConfigError: the device is not available.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if (device == "cuda" and not torch.cuda.is_available()) or (device == "mps" and not torch.backends.mps.is_available()):
        raise ConfigError(
            f"runtime.device={device}, but torch finds no such device.", "Use runtime.device=cpu, or see `sightline doctor`."
        )
    bf16 = dtype == "bf16" or (dtype == "auto" and device == "cuda" and torch.cuda.is_bf16_supported())
    exact = device == "cpu" if deterministic is None else deterministic
    return Runtime(device, bf16, torch.get_num_threads() if threads is None else threads, exact, dtype == "fp16")


def prepare_runtime(
    device: str, dtype: Literal["auto", "bf16", "fp16", "fp32"], threads: int | None, deterministic: bool | None = None
) -> Runtime:
    """Chooses a runtime as `choose_runtime` does and applies it to this process."""
    runtime = choose_runtime(device, dtype, threads, deterministic)
    runtime.apply()
    return runtime


@contextlib.contextmanager
def process_settings_restored() -> Iterator[None]:
    """Restores on exit the settings that `Runtime.apply` changes. Decorates every entry point that applies a runtime."""
    is_exact, warns_only = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fills, threads = torch.utils.deterministic.fill_uninitialized_memory, torch.get_num_threads()  # pyrefly: ignore
    variables = {name: os.environ.get(name) for name in ("CUBLAS_WORKSPACE_CONFIG", "TOKENIZERS_PARALLELISM")}
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(is_exact, warn_only=warns_only)
        torch.utils.deterministic.fill_uninitialized_memory = fills  # pyrefly: ignore
        if threads != torch.get_num_threads():
            torch.set_num_threads(threads)
        for name, value in variables.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
