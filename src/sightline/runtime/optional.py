"""Packages that only some features need: imported when the feature is used, or an error that says how to get them."""

import importlib
from types import ModuleType

from sightline.errors import UsageError


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Imports an optional package.

    Args:
        module: what to import.
        extra: the extra of Sightline that brings it.
        purpose: what needs it, for the message.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UsageError(f"{purpose} needs the package {package!r}.", f"pip install 'sightline[{extra}]'") from error
