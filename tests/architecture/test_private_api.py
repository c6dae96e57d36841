"""Private attributes of other libraries are used in one file for transformers, and else only where they are listed here."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "sightline"
TRANSFORMERS = Path("models/transformers_private.py")
NAMEDTUPLE = {"_asdict", "_fields", "_make", "_replace"}  # public, in spite of their names
ALLOWED = {
    (Path("data/images/opener.py"), "_new"),  # Pillow: the pixels of an opened file without the file; a copy would cost 3 %
    (Path("runtime/auto_classes.py"), "_extra_content"),  # transformers: a class that is loaded on demand has no public way in
}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def defined(tree: ast.AST) -> Iterator[str]:
    """Private names that a module makes itself: functions, classes, variables, fields, and attributes of `self` or `cls`."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Name(id=name, ctx=ast.Store()):
                yield name
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                yield name
            case ast.Constant(value=str(name)) if name.isidentifier():  # __slots__
                yield name


def used(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            yield node.lineno, node.attr


def trees() -> dict[Path, ast.AST]:
    return {path.relative_to(SOURCE): ast.parse(path.read_text("utf-8")) for path in sorted(SOURCE.rglob("*.py"))}


def faults(code: str, own: set[str], of_transformers: set[str], path: Path = Path("training/loop.py")) -> list[str]:
    """Uses of private attributes that a module may not make."""
    tree = ast.parse(code)
    found = [
        f"{path}:{line}: {name} is private to another library"
        for line, name in used(tree)
        if name not in own | NAMEDTUPLE | of_transformers and (path, name) not in ALLOWED
    ]
    found += [f"{path}:{line}: {name}; use {TRANSFORMERS}" for line, name in used(tree) if name in of_transformers]
    return found + [f"{path}: defines {name}; use {TRANSFORMERS}" for name in defined(tree) if name in of_transformers]


def private_to_transformers() -> set[str]:
    tree = trees()[TRANSFORMERS]
    return {name for name in [*(name for _, name in used(tree)), *defined(tree)] if is_private(name)}


def own_names() -> set[str]:
    return {name for path, tree in trees().items() if path != TRANSFORMERS for name in defined(tree)}


def test_private_attributes_of_other_libraries_stay_in_their_file() -> None:
    names, own = private_to_transformers(), own_names()
    assert names >= {"_attn_implementation", "_no_split_modules", "_is_hf_initialized", "_expand_inputs_for_generation"}
    files = [path for path in sorted(SOURCE.rglob("*.py")) if path.relative_to(SOURCE) != TRANSFORMERS]
    assert [fault for path in files for fault in faults(path.read_text("utf-8"), own, names, path.relative_to(SOURCE))] == []


@pytest.mark.parametrize(
    "code",
    [
        "kernel = config._attn_implementation",
        "config._attn_implementation = None",
        "getattr(config, '_attn_implementation')",
        "class A(PreTrainedModel):\n    _no_split_modules = []",
        "class A(PreTrainedModel):\n    def _init_weights(self, module): pass",
        "torch._foreach_mul_(gradients, factor)",
        "image._new(core)",
    ],
)
def test_each_use_is_found(code: str) -> None:
    assert len(faults(code, {"_own"}, private_to_transformers())) == 1


def test_names_of_the_package_itself_are_free() -> None:
    assert faults("self._own = other._own", {"_own"}, private_to_transformers()) == []
