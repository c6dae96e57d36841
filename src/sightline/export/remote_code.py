"""Copies the package's own modules into a model folder, for `trust_remote_code=True` where Sightline is not installed.

transformers copies the files that a module imports by `from .name import ...` into its cache, all from one folder. So each module
becomes one file, `sightline.models.vlm` for example `sightline_models_vlm.py`, and its imports are rewritten; nothing else changes.
"""

import ast
from importlib.util import find_spec
from pathlib import Path

from sightline.runtime.storage import write_text

AUTO_MAP = {
    "AutoConfig": "sightline.models.vlm.SightlineConfig",
    "AutoModel": "sightline.models.vlm.SightlineModel",
    "AutoModelForImageTextToText": "sightline.models.vlm.SightlineForConditionalGeneration",
    "AutoModelForMultimodalLM": "sightline.models.vlm.SightlineForConditionalGeneration",  # `transformers serve` loads this one
    "AutoProcessor": "sightline.assembly.model.processor.SightlineProcessor",
}


def auto_map() -> dict[str, str]:
    """Returns `auto_map` of `config.json` and `processor_config.json`: the class that each Auto class loads, as `FILE.CLASS`."""
    return {auto: flat_name(place.rpartition(".")[0]) + "." + place.rpartition(".")[2] for auto, place in AUTO_MAP.items()}


def write_code(folder: Path) -> list[str]:
    """Writes the modules of the classes in `AUTO_MAP`, and all modules that these import, into a folder.

    Returns:
        The names of the files.
    """
    todo = sorted({place.rpartition(".")[0] for place in AUTO_MAP.values()})
    done: dict[str, str] = {}
    while todo:
        module = todo.pop()
        if module not in done:
            done[module], needed = rewritten(_source(module).read_text("utf-8"))
            todo += needed
    for module, code in done.items():
        write_text(folder / f"{flat_name(module)}.py", code)
    return sorted(f"{flat_name(module)}.py" for module in done)


def flat_name(module: str) -> str:
    """Returns the name of a module's file, without its suffix."""
    return module.replace(".", "_")


def rewritten(code: str) -> tuple[str, list[str]]:
    """Returns a module's code with imports that need neither Sightline nor jaxtyping, and the modules of Sightline that it imports.

    Shapes of tensors stay in the annotations, by `typing.Annotated` instead of jaxtyping's types.
    """
    lines, needed = code.splitlines(), []
    tree = ast.parse(code)
    unused = {id(node) for part in ast.walk(tree) if _is_for_checkers(part) for node in ast.walk(part)}
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    for node in sorted(imports, key=lambda node: -node.lineno):
        assert node.end_lineno is not None
        if id(node) in unused:
            lines[node.lineno - 1 : node.end_lineno] = [" " * node.col_offset + "pass"]
            continue
        if not _is_to_rewrite(node):
            continue
        assert isinstance(node, ast.ImportFrom), f"write `from ... import`: {ast.unparse(node)}"
        new: list[str] = []
        for alias in node.names:
            name = alias.asname or alias.name
            if node.module == "jaxtyping":
                new.append(f"from typing import Annotated as {name}")
                continue
            module = f"{node.module}.{alias.name}"
            if _is_module(module):
                # The first line is for transformers, which finds the files that it copies by lines of this form.
                new += [f"from .{flat_name(module)} import __name__ as _", f"from . import {flat_name(module)} as {name}"]
            else:
                module = str(node.module)
                new.append(f"from .{flat_name(module)} import {alias.name} as {name}")
            needed.append(module)
        indent = " " * node.col_offset
        lines[node.lineno - 1 : node.end_lineno] = [indent + line for line in new]
    return "\n".join(lines) + "\n", needed


def _is_for_checkers(node: ast.AST) -> bool:
    """Returns whether these are imports for type checkers alone, whose packages users would need otherwise."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _is_to_rewrite(node: ast.Import | ast.ImportFrom) -> bool:
    names = [str(node.module)] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
    return any(name.partition(".")[0] in ("sightline", "jaxtyping") for name in names)


def _source(module: str) -> Path:
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin)


def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # the name belongs to a module that is no package
        return False
