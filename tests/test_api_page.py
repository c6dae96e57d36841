"""The script of docs/api.md runs as it stands, and the functions that the page names take the arguments that it shows."""

import ast
import inspect
import json
import re
import runpy
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from sightline.evaluation.spec import EvalSpec
from tests.pages import DOCS, write_python


def named(path: str) -> Any:
    """The function or class of a dotted path: as much of it as is a module, then attributes."""
    parts = path.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[cut:]:
            found = getattr(found, attribute)
        return found
    raise AssertionError(path)


def test_the_script_runs_and_transformers_alone_gives_the_same_caption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = write_python("api.md", tmp_path / "script.py")
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path(str(script), run_name="__main__")
    assert names["run"].step == 2
    assert names["text"].strip() == names["answer"].text.strip() != ""
    rest = EvalSpec(data="scenes", max_new_tokens=12).name_of_rest()
    folders = sorted((tmp_path / "runs/first/eval/caption").iterdir())
    assert [folder.name for folder in folders] == [f"scenes-val-blind-n4-{rest}-step-2", f"scenes-val-n4-{rest}-step-2"]
    assert [json.loads((folder / "scores.json").read_text())["control"] for folder in folders] == ["blind", None]


def test_functions_of_the_page_take_the_arguments_that_it_shows() -> None:
    calls = re.findall(r"`(sightline(?:\.\w+)+)(\([^`]*\))`", (DOCS / "api.md").read_text("utf-8"))
    assert len(calls) >= 11
    for path, arguments in calls:
        call = ast.parse(f"f{arguments}", mode="eval").body
        assert isinstance(call, ast.Call)
        inspect.signature(named(path)).bind(*call.args, **{str(keyword.arg): keyword.value for keyword in call.keywords})
