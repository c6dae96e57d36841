"""Makes Sightline's classes known to the Auto classes of transformers, on demand: loads neither torch nor transformers itself.

An entry is left in transformers' tables of configurations and processors: at once if these have been imported, else when they are.
The first look-up of the entry imports Sightline's classes, which register themselves.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

CLASSES = "sightline.assembly.model"  # registers all classes but those of `SCRATCH` when it is imported
SCRATCH = "sightline.models.scratch.shell"
MODULES = {"sightline": CLASSES, "sightline_decoder": SCRATCH, "sightline_vit": SCRATCH}  # by model type
_TABLES = {
    "transformers.models.auto.configuration_auto": "CONFIG_MAPPING",
    "transformers.models.auto.processing_auto": "PROCESSOR_MAPPING",
}


class _Entries(dict[Any, Any]):
    """Entries that were registered with a table of transformers; loads ours when they are asked for."""

    def __contains__(self, key: object) -> bool:
        return key in MODULES or super().__contains__(key)

    def __getitem__(self, key: Any) -> Any:
        if key in MODULES and not super().__contains__(key):
            importlib.import_module(MODULES[key])
        return super().__getitem__(key)

    def values(self) -> Any:
        importlib.import_module(CLASSES)  # processors are looked up by the name of their class, among all values
        return super().values()


def _add_entry(module: ModuleType) -> None:
    """Replaces the registered entries of a module's table; there is no public way to register a class unloaded."""
    table = getattr(module, _TABLES[module.__name__])
    if not isinstance(table._extra_content, _Entries):
        table._extra_content = _Entries(table._extra_content)


class _AfterImport(MetaPathFinder):
    """Adds the entry to each table as soon as its module has been imported."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname not in _TABLES:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                # Each module has a loader of its own.
                spec.loader.exec_module = partial(_execute, spec.loader.exec_module)  # pyrefly: ignore
                return spec
        return None


def _execute(execute: Callable[[ModuleType], None], module: ModuleType) -> None:
    execute(module)
    _add_entry(module)


def register_on_demand() -> None:
    """Makes `AutoConfig`, `AutoModel`, `AutoModelForImageTextToText` and `AutoProcessor` open folders of Sightline's models."""
    for name in _TABLES:
        if name in sys.modules:
            _add_entry(sys.modules[name])
    if not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())
