"""Examines installed packages and the machine, and says how to install what is missing."""

import importlib
import importlib.metadata
import os
import platform
import shlex
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
        remedy: a command to paste into a shell; "" where there is nothing to do.
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
    "cut-cross-entropy": ("25.1.1", "gpu"),
    "datasets": ("5.1", "data"),
    "filelock": ("4.2.1", ""),
    "h5py": ("3.14", "data"),
    "httpx": ("0.28", "data"),
    "jaxtyping": ("0.3.2", ""),
    "jinja2": ("3.1.6", ""),
    "mlflow": ("3.17", "mlflow"),
    "numpy": ("2.0", ""),
    "peft": ("0.18", "lora"),
    "pillow": ("12.3", ""),
    "pydantic": ("2.11.10", ""),
    "pyyaml": ("6.0.2", ""),
    "rich": ("14.2", ""),
    "safetensors": ("0.8", ""),
    "tensorboard": ("2.20", "tensorboard"),
    "torch": ("2.11", ""),
    "trackio": ("0.43", "trackio"),
    "transformers": ("5.17", ""),
    "typer": ("0.26", ""),
    "wandb": ("0.31", "wandb"),
    "webdataset": ("1.0.2", "data"),
}


def examine() -> list[Check]:
    """Runs all checks, the most important first."""
    checks = [_python(), *(_package(name) for name in PACKAGES)]
    if all(check.state != "bad" for check in checks if check.name == "torch"):
        checks += [_devices(), _torchvision()]
    checks = [_imported(check) if check.name in ("torch", "transformers") and check.state == "ok" else check for check in checks]
    return [*checks, _threads(), _space()]


def _python() -> Check:
    good = sys.version_info >= (3, 11)
    return Check("python", "ok" if good else "bad", platform.python_version(), "" if good else "python3.11 -m venv .venv")


def _package(name: str) -> Check:
    minimum, extra = PACKAGES[name]
    command = pip_install(f"sightline[{extra}]" if extra else f"{name}>={minimum}")
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(name, "missing" if extra else "bad", "not installed", command)
    if _numbers(found) < _numbers(minimum):
        return Check(name, "bad", f"{found}, at least {minimum} is needed", pip_install("--upgrade", f"{name}>={minimum}"))
    return Check(name, "ok", found)


def pip_install(*arguments: str) -> str:
    """Returns the command that installs packages into this environment."""
    return shlex.join([sys.executable or "python", "-m", "pip", "install", *arguments])


def _imported(check: Check) -> Check:
    """Imports an installed package: an interrupted installation or a missing library of the system shows only then."""
    try:
        importlib.import_module(check.name)
    except Exception as error:  # whatever a broken installation raises
        lines = str(error).strip().splitlines() or [""]
        reason = f"{check.found} cannot be imported ({type(error).__name__}: {lines[0]})"
        return Check(check.name, "bad", reason, pip_install("--force-reinstall", f"{check.name}=={check.found.partition('+')[0]}"))
    return check


def _numbers(version: str) -> tuple[int, ...]:
    parts = []
    for part in version.split("+")[0].split("."):
        digits = "".join(character for character in part if character.isdecimal())
        if not digits:
            break
        parts.append(int(digits))
    return tuple(parts)


def _devices() -> Check:
    try:
        import torch
    except Exception as error:  # `_imported` says what to do
        return Check("devices", "bad", f"torch cannot be imported ({type(error).__name__})")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        return Check("devices", "ok", f"{', '.join(names)} ({bf16}, CUDA {torch.version.cuda})")
    if shutil.which("nvidia-smi"):
        return Check("devices", "bad", "torch does not find the GPU", pip_install("--force-reinstall", "torch"))
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
        return Check("torchvision", "bad", f"{version} does not fit this torch ({error})", _uninstall("torchvision"))
    return Check("torchvision", "ok", version)


def _uninstall(name: str) -> str:
    return shlex.join([sys.executable or "python", "-m", "pip", "uninstall", "--yes", name])


def _threads() -> Check:
    policy = os.environ.get("OMP_WAIT_POLICY", "")
    if policy.lower() == "passive":
        return Check("threads", "ok", "OMP_WAIT_POLICY=passive")
    found = f"OMP_WAIT_POLICY={policy or 'unset'}: waiting threads occupy the cores"
    return Check("threads", "bad", found, "export OMP_WAIT_POLICY=passive")


def _space() -> Check:
    free = shutil.disk_usage(Path.cwd()).free
    good = free > 2e9
    return Check(
        "disk",
        "ok" if good else "bad",
        f"{free / 1e9:.0f} GB free here",
        "" if good else f"du -xh --max-depth=1 {shlex.quote(str(Path.cwd()))} | sort -h | tail",
    )
