"""docs/evaluation.md lists every option of `sightline eval` and every field of `EvalSpec`."""

import re

import typer.main

from sightline.cli.app import app
from sightline.evaluation.spec import EvalSpec
from tests.pages import DOCS

PAGE = (DOCS / "evaluation.md").read_text("utf-8")


def table(section: str) -> list[list[str]]:
    """The code words of each row of the tables in a section, column by column."""
    text = PAGE.split(f"## {section}\n")[1].split("\n## ")[0]
    return [re.findall(r"`([^`]+)`", line) for line in text.splitlines() if line.startswith("| `")]


def test_every_option_and_every_field_is_in_the_tables() -> None:
    rows = table("Options")
    command = typer.main.get_command(app).commands["eval"]  # type: ignore[attr-defined]
    options = {name for parameter in command.params for name in parameter.opts if name.startswith("--")} - {"--help"}
    assert {word for row in rows for word in row if word.startswith("--")} == options
    assert {word for row in rows for word in row[1:2]} & set(EvalSpec.model_fields) == set(EvalSpec.model_fields)
