"""No class name stands twice in the package, and no test module is a library for another."""

import ast
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEST_MODULE = re.compile(r"^tests\.(\w+\.)*test_\w+$")


def python_files(folder: str) -> dict[str, str]:
    """Content of each Python file below a folder of the repository."""
    return {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in sorted((ROOT / folder).rglob("*.py"))}


def classes_defined_twice(files: Mapping[str, str]) -> dict[str, list[str]]:
    """Class names with more than one definition, and the files that hold them."""
    places = defaultdict(list)
    for path, code in files.items():
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(path)
    return {name: paths for name, paths in places.items() if len(paths) > 1}


def imports_of_tests(files: Mapping[str, str]) -> list[str]:
    """Imports of, or from, a module below `tests/` whose name begins with `test_`."""
    found = []
    for path, code in files.items():
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom):
                modules = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names if node.module == "tests")]
            elif isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            else:
                continue
            found += [f"{path}:{node.lineno}: {module}" for module in modules if TEST_MODULE.search(module)]
    return found


def test_each_class_name_is_defined_once() -> None:
    files = python_files("src/sightline")
    assert len(files) > 100
    assert classes_defined_twice(files) == {}


def test_no_module_imports_from_a_test_module() -> None:
    assert imports_of_tests(python_files("tests") | python_files("benchmarks") | python_files("src/sightline")) == []


def test_a_second_definition_and_an_import_from_a_test_are_found() -> None:
    files = {"a.py": "class A:\n    class B: ...", "b.py": "class B: ...\nfrom tests.x.test_y import z\nimport tests.test_z"}
    assert classes_defined_twice(files) == {"B": ["a.py", "b.py"]}
    assert imports_of_tests(files) == ["b.py:2: tests.x.test_y", "b.py:3: tests.test_z"]
