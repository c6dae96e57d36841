"""Examines installed packages and the machine, and says how to install what is missing."""

import importlib.metadata
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Check:
    """Result of one check.

    Attributes:
        name: what was checked.
        state: `ok`, `missing` (an optional package), or `bad`.
        found: the version or fact that was found.
        remedy: what to do about it.
    """

    name: str
    state: str
    found: str
    remedy: str = ""

    def to_json(self) -> dict[str, str]:
        return {"name": self.name, "state": self.state, "found": self.found, "remedy": self.remedy}


# Distribution -> (minimum version, extra that installs it; "" for a core dependency).
PACKAGES: dict[str, tuple[str, str]] = {
    "accelerate": ("1.13", ""),
    "datasets": ("5.1", "data"),
    "filelock": ("4.2.1", ""),
    "h5py": ("3.14", "data"),
    "httpx": ("0.28", "data"),
    "jaxtyping": ("0.3.2", ""),
    "jinja2": ("3.1.6", ""),
    "numpy": ("2.0", ""),
    "peft": ("0.18", "lora"),
    "pillow": ("12.3", ""),
    "pydantic": ("2.11.10", ""),
    "pyyaml": ("6.0.2", ""),
    "rich": ("14.2", ""),
    "safetensors": ("0.8", ""),
    "tensorboard": ("2.20", "track"),
    "torch": ("2.11", ""),
    "transformers": ("5.17", ""),
    "typer": ("0.26", ""),
    "webdataset": ("1.0.2", "data"),
}


def examine() -> list[Check]:
    """Runs all checks, the most important first."""
    checks = [_python(), *(_package(name) for name in PACKAGES)]
    if all(check.state != "bad" for check in checks if check.name == "torch"):
        checks += [_devices(), _torchvision()]
    return [*checks, _threads(), _space()]


def _python() -> Check:
    good = sys.version_info >= (3, 11)
    return Check("python", "ok" if good else "bad", platform.python_version(), "" if good else "Use Python 3.11 or newer.")


def _package(name: str) -> Check:
    minimum, extra = PACKAGES[name]
    command = f"pip install 'sightline[{extra}]'" if extra else f"pip install '{name}>={minimum}'"
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(name, "missing" if extra else "bad", "not installed", command)
    if _numbers(found) < _numbers(minimum):
        return Check(name, "bad", found, f"at least {minimum} is needed: {command}")
    return Check(name, "ok", found)


def _numbers(version: str) -> tuple[int, ...]:
    parts = []
    for part in version.split("+")[0].split("."):
        digits = "".join(character for character in part if character.isdecimal())
        if not digits:
            break
        parts.append(int(digits))
    return tuple(parts)


def _devices() -> Check:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        return Check("devices", "ok", f"{', '.join(names)} ({bf16}, CUDA {torch.version.cuda})")
    if shutil.which("nvidia-smi"):
        return Check("devices", "bad", "torch does not find the GPU", "Install the CUDA build of torch.")
    return Check("devices", "ok", f"{os.cpu_count()} CPU cores, no GPU")


def _torchvision() -> Check:
    """Checks that torchvision can be imported: one built for another torch breaks every image processor of transformers."""
    try:
        version = importlib.metadata.version("torchvision")
    except importlib.metadata.PackageNotFoundError:
        return Check("torchvision", "ok", "not installed, not needed")
    try:
        import torchvision  # noqa: F401  # pyrefly: ignore
    except (ImportError, RuntimeError) as error:
        return Check("torchvision", "bad", f"{version} does not fit this torch ({error})", "pip uninstall torchvision")
    return Check("torchvision", "ok", version)


def _threads() -> Check:
    policy = os.environ.get("OMP_WAIT_POLICY", "")
    if policy.lower() == "passive":
        return Check("threads", "ok", "OMP_WAIT_POLICY=passive")
    return Check(
        "threads", "bad", f"OMP_WAIT_POLICY={policy or 'unset'}", "Set it to passive: otherwise waiting threads occupy the cores."
    )


def _space() -> Check:
    free = shutil.disk_usage(Path.cwd()).free
    good = free > 2e9
    return Check("disk", "ok" if good else "bad", f"{free / 1e9:.0f} GB free here", "" if good else "Free some space.")
