"""The notebooks run from top to bottom, with 20 steps of training; `make examples` runs them in full."""

import json
from pathlib import Path

import pytest
from examples.run import run

FOLDER = Path(__file__).parents[2] / "examples"


def test_the_architecture_is_as_the_notebook_shows(capsys: pytest.CaptureFixture[str]) -> None:
    run(FOLDER / "architecture.ipynb")
    assert "pixels (1, 3, 48, 48) patches (1, 64, 6, 6)" in capsys.readouterr().out


def test_the_mixture_trains_and_is_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SIGHTLINE_EXAMPLE_STEPS", "20")
    monkeypatch.setenv("SIGHTLINE_EXAMPLE_OUT", str(tmp_path))
    names = run(FOLDER / "mixture.ipynb")
    assert names["lines"][-1]["step"] == 20
    assert names["lines"][-1]["loss"] < names["lines"][0]["loss"]
    assert names["control"] is None
    assert "mixtures: 3 layers of 4 experts, 2 per token" in capsys.readouterr().out


def test_notebooks_hold_no_outputs() -> None:
    for notebook in sorted(FOLDER.glob("*.ipynb")):
        cells = json.loads(notebook.read_text("utf-8"))["cells"]
        assert not any(cell.get("outputs") for cell in cells), notebook.name
