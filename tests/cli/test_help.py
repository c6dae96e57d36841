"""What a new user reaches for: help with examples, the version, completion, and remedies that name what a verb has."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sightline.cli.app import wrapped_help
from tests.cli.helpers import COMMANDS, OPTION, VERBS, call, command_line, options_of

SOURCE = Path(__file__).parents[2] / "src" / "sightline"
# Help -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_every_help_has_an_example_that_the_verb_understands(words: tuple[str, ...]) -> None:
    verb = " ".join(words)
    lines = [line.strip() for line in (COMMANDS[verb].help or "").splitlines()]
    examples = [line for line in lines if re.match(r"(sightline|torchrun|python) ", line)]
    own = [line for line in examples if f"sightline {verb}".strip() in line]
    assert own, f"no example in sightline {verb} --help"
    for line in examples:
        found, options = command_line(line.partition("sightline ")[2].split())
        assert set(options) <= options_of(found) | {"--install-completion"}, line


def test_paragraphs_have_no_line_breaks_of_their_own_and_examples_keep_theirs() -> None:
    text = wrapped_help("Does this.\n\n    A long\n    sentence.\n\n      sightline eval RUN --task caption\n    ")
    assert text == "Does this.\n\nA long sentence.\n\n  sightline eval RUN --task caption"
    for verb, command in COMMANDS.items():
        assert all("\n" not in paragraph for paragraph in (command.help or "").split("\n\n")), verb


def test_help_fits_a_narrow_and_fills_a_wide_terminal() -> None:
    for columns in (60, 120):
        environment = os.environ | {"COLUMNS": str(columns), "TERM": "dumb"}
        command = [sys.executable, "-m", "sightline", "train", "--help"]
        text = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60).stdout
        widest = max(len(line.rstrip()) for line in text.splitlines())
        assert columns - 10 <= widest <= columns


def test_the_version_comes_with_those_of_torch_and_transformers(capsys: pytest.CaptureFixture[str]) -> None:
    from importlib.metadata import version

    import sightline

    code, out, _ = call(capsys, "--version")
    assert code == 0
    assert out.startswith(f"sightline {sightline.__version__} (python 3.")
    assert f"torch {version('torch')}, transformers {version('transformers')})" in out


@pytest.mark.parametrize(
    ("shell", "environment", "wanted"),
    [
        ("bash", {"COMP_WORDS": "sightline da", "COMP_CWORD": "1"}, "data"),
        ("zsh", {"_TYPER_COMPLETE_ARGS": "sightline train --dry"}, "--dry-run"),
        ("fish", {"_TYPER_COMPLETE_ARGS": "sightline ev", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}, "eval"),
    ],
)
def test_shells_complete_verbs_and_options(shell: str, environment: dict[str, str], wanted: str) -> None:
    command = [sys.executable, "-c", "import sys; sys.argv[0] = 'sightline'; from sightline.cli import main; main()"]
    for variables, expected in (
        ({"_SIGHTLINE_COMPLETE": f"complete_{shell}"} | environment, wanted),
        ({"_SIGHTLINE_COMPLETE": f"source_{shell}"}, "complet"),
    ):
        done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=60)
        assert expected in done.stdout, done.stderr


# Remedies -------------------------------------------------------------------------------------------------------------------

# Which verbs reach the errors of a folder; elsewhere an option must be one of any verb.
REACHED_BY = {
    "assembly/evaluate": ("eval", "probe", "generate", "export", "report", "compare"),
    "assembly/train": ("train",),
    "assembly/inspect": ("data check", "data preview", "probe", "eval"),
    "data/prepare": ("data prepare",),
    "data/readers": ("data prepare",),
    "data/skip_limit": ("data prepare", "data features", "data check"),
    "data/download": ("data prepare", "data get"),
    "data/features": ("data features",),
    "evaluation": ("eval", "probe", "compare"),
    "studies": ("compare", "sweep"),
    "cli/compare": ("compare",),
    "cli/data_check": ("data check",),
    "cli/data_export": ("data export",),
    "cli/data_features": ("data features",),
    "cli/data_preview": ("data preview",),
    "cli/evaluate": ("eval",),
    "cli/export": ("export",),
    "cli/generate": ("generate",),
    "cli/model_choice": ("data check", "data features", "data preview"),
    "cli/probe": ("probe",),
    "cli/report": ("report",),
    "cli/score": ("score",),
    "cli/sweep": ("sweep",),
    "cli/train": ("train",),
}


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) if isinstance(part, ast.Constant) else "X" for part in node.values)
    return " ".join(_text(child) for child in ast.iter_child_nodes(node))


def messages() -> Iterator[tuple[str, int, str]]:
    """File, line and text of every error that names an option or a command."""
    for file in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            is_error = isinstance(node, ast.Call) and re.search(r"(Error|Stopped|warning)$", ast.unparse(node.func))
            if is_error and "--" in (text := _text(node)):
                yield str(file.relative_to(SOURCE)), node.lineno, text


MESSAGES = list(messages())


def faults_of(place: str, text: str) -> list[str]:
    """What a message advises that does not exist."""
    out = []
    for words in re.findall(r"sightline ((?:[a-z]+ ?)+[^`;.]*)", text):
        verb, options = command_line(words.split())
        out += [f"{option} of {verb or words!r}" for option in options if not verb or option not in options_of(verb)]
    rest = re.sub(r"sightline ((?:[a-z]+ ?)+[^`;.]*)", "", text)
    known = next((verbs for start, verbs in REACHED_BY.items() if place.startswith(start)), tuple(COMMANDS))
    allowed = set().union(*(options_of(verb) for verb in known))
    return out + [option for option in OPTION.findall(rest) if option not in allowed]


def test_errors_name_only_options_that_a_verb_has() -> None:
    assert len(MESSAGES) > 60
    faults = [f"{place}:{line}: {fault}" for place, line, text in MESSAGES for fault in faults_of(place, text)]
    assert faults == []


def test_a_remedy_with_a_foreign_option_would_be_found() -> None:
    assert faults_of("assembly/train/x.py", "Count them with --idf FILE.") == ["--idf"]
    assert faults_of("assembly/train/x.py", "Call `sightline eval RUN --idf FILE`.") == ["--idf of 'eval'"]
    assert faults_of("metrics/caption.py", "`sightline score --idf FILE` does it.") == []
