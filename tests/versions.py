"""Which versions are installed, and which of those that a test needs are not."""

import importlib.metadata
import platform

from packaging.version import Version

NAMED = ("torch", "transformers", "accelerate", "datasets", "numpy", "pydantic", "peft")


def missing(**least: str) -> list[str]:
    """Requirements that the installed packages do not meet, as "name>=version"."""
    return [f"{name}>={version}" for name, version in least.items() if not _is_there(name, Version(version))]


def _is_there(name: str, least: Version) -> bool:
    try:
        return Version(importlib.metadata.version(name)) >= least
    except importlib.metadata.PackageNotFoundError:
        return False


def installed() -> str:
    """Python and the packages on which results depend most."""
    there = [f"{name} {importlib.metadata.version(name)}" for name in NAMED if _is_there(name, Version("0"))]
    return ", ".join([f"Python {platform.python_version()}", *there])
