"""What a model can do is asked of the model: outside of `models/` nothing looks at its class, or at that of its configuration."""

import ast
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "sightline"
CLASSES = re.compile(r"\b(TextModel|StockModel|SightModel|Sightline(Config|ForConditionalGeneration))\b")


def class_tests(code: str) -> list[int]:
    """Lines that test for a class of models: `isinstance`, `issubclass`, a comparison of `type(...)`, or a class pattern."""
    lines = []
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.Call(func=ast.Name(id="isinstance" | "issubclass"), args=[_, classes]):
                tested = ast.unparse(classes)
            case ast.Compare() if "type(" in ast.unparse(node):
                tested = ast.unparse(node)
            case ast.MatchClass(cls=cls):
                tested = ast.unparse(cls)
            case _:
                continue
        if CLASSES.search(tested):
            lines.append(node.lineno)
    return lines


def test_no_module_outside_of_models_tests_for_a_class_of_models() -> None:
    modules = [path for path in sorted(SOURCE.rglob("*.py")) if path.relative_to(SOURCE).parts[0] != "models"]
    assert len(modules) > 100
    assert {str(path): lines for path in modules if (lines := class_tests(path.read_text("utf-8")))} == {}


@pytest.mark.parametrize(
    "code",
    [
        "isinstance(bundle.model, TextModel)",
        "isinstance(model, (stock.StockModel, TextModel))",
        "isinstance(model, SightlineForConditionalGeneration | StockModel)",
        "issubclass(kind, SightlineConfig)",
        "type(config) is SightlineConfig",
        "match model:\n    case TextModel():\n        pass",
    ],
)
def test_each_way_of_testing_is_seen(code: str) -> None:
    assert class_tests(code) != []


def test_other_classes_may_be_tested() -> None:
    assert class_tests("isinstance(model, PreTrainedModel)\nTextModel(decoder)\ntype(x) is int") == []
