"""Plug-ins: Python files and installed modules that the user names. No other code from outside the package is imported by name.

A configuration names a class of a plug-in as `MODULE:Class`. Configurations come with models, from the Hub and from other people's
runs, so `MODULE` must have been loaded by `load` (on the command line: `--plugin`) before; `find` itself imports nothing.
"""

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from sightline.errors import SightlineError, UsageError
from sightline.runtime.storage import sha256_file


@dataclass(frozen=True)
class Plugin:
    """A loaded module.

    Attributes:
        description: name of the file with the beginning of its SHA-256, or name of the module.
        is_file: whether it was loaded from a file that the user named.
    """

    module: ModuleType
    description: str
    is_file: bool


_loaded: dict[str, Plugin] = {}


def load(name: str) -> None:
    """Imports a plug-in, whose classes can then be named `MODULE:Class`.

    Args:
        name: `FILE.py`, whose module is named like the file without `.py`; or the dotted name of a module or package that Python
            can import.

    Raises:
        UsageError: there is no such file or module, its name is no module's or hides another module, or its code raises an error.
    """
    file = Path(name) if name.endswith(".py") else None
    module = name if file is None else file.stem
    if not all(part.isidentifier() for part in module.split(".")):
        raise UsageError(f"--plugin {name}: {module!r} is no name of a Python module.", "Give FILE.py, or package.module")
    if file is not None:
        _check_file(file, name)
    try:
        loaded = importlib.import_module(module) if file is None else _import_file(file)
    except SightlineError:
        raise
    except Exception as error:  # code of a user can raise anything
        lines = str(error).splitlines() or [""]
        raise UsageError(f"--plugin {name} cannot be imported: {type(error).__name__}: {lines[0]}") from error
    description = module if file is None else f"{file.name} (sha256 {sha256_file(file)[:16]})"
    _loaded[module] = Plugin(loaded, description, file is not None)


def _check_file(file: Path, name: str) -> None:
    if not file.is_file():
        raise UsageError(f"--plugin {name}: there is no such file.")
    if file.stem in _loaded:
        raise UsageError(f"--plugin {name}: another plug-in is named {file.stem!r}.", "Rename the file.")
    try:
        other = importlib.util.find_spec(file.stem)
    except ValueError:  # a module without a specification, as `__main__`
        raise UsageError(f"--plugin {name}: there is a module {file.stem!r} already.", "Rename the file.") from None
    if other is not None and (other.origin is None or Path(other.origin).resolve() != file.resolve()):
        raise UsageError(f"--plugin {name}: there is a module {file.stem!r} already ({other.origin}).", "Rename the file.")


def _import_file(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module  # dataclasses and pydantic look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[file.stem]
        raise
    return module


def forget() -> None:
    """Makes the names of all loaded plug-ins invalid again."""
    for name, plugin in _loaded.items():
        if plugin.is_file:
            sys.modules.pop(name, None)
    _loaded.clear()


def find(name: str) -> object:
    """Returns what `MODULE:Class` names in a loaded plug-in.

    Raises:
        LookupError: the module is not loaded, or has nothing of that name; the text says what to do, without a full stop.
    """
    module, _, attribute = name.partition(":")
    if module not in _loaded:
        file = "" if "." in module else f", or --plugin PATH/{module}.py for a file"
        raise LookupError(
            f"{name!r} is code outside of Sightline, which runs only if this command names it; "
            f"if you trust it, add --plugin {module}{file}"
        )
    found = vars(_loaded[module].module).get(attribute)
    if found is None:
        raise LookupError(f"plug-in {module!r} has no class {attribute!r}")
    return found


def descriptions() -> str:
    """Names the loaded plug-ins for the record of a run; empty where there are none."""
    return ", ".join(plugin.description for plugin in _loaded.values())
