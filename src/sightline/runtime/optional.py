"""Imports optional packages on use, with an error that says how to install them."""

import importlib
from types import ModuleType

from sightline.errors import UsageError


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Imports an optional package.

    Args:
        module: module to import.
        extra: the extra of Sightline that installs it.
        purpose: the feature that needs it, for the error message.

    Raises:
        UsageError: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UsageError(f"{purpose} needs the package {package!r}.", f"pip install 'sightline[{extra}]'") from error
