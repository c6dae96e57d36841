"""Calls of the command in this process, its verbs and their options."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from sightline.cli import main
from sightline.cli.app import app


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Runs `sightline` in this process: exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


def verbs() -> Iterator[tuple[str, ...]]:
    """Every command and group by the words that call it."""

    def below(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        yield words
        for name, child in getattr(command, "commands", {}).items():
            yield from below(child, (*words, name))

    yield from below(typer.main.get_command(app), ())


VERBS = sorted(verbs())


COMMANDS: dict[str, Any] = {}
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")


def _collect(command: Any, words: tuple[str, ...]) -> None:
    COMMANDS[" ".join(words)] = command
    for name, child in getattr(command, "commands", {}).items():
        _collect(child, (*words, name))


_collect(typer.main.get_command(app), ())


def options_of(verb: str) -> set[str]:
    """The options of a command."""
    return {name for parameter in COMMANDS[verb].params for name in parameter.opts} | {"--help", "--debug"}


def command_line(words: list[str]) -> tuple[str, list[str]]:
    """The verb of `sightline WORDS`, and the options after it."""
    verb = next((" ".join(words[:size]) for size in (2, 1) if " ".join(words[:size]) in COMMANDS), "")
    return verb, [found for word in words for found in OPTION.findall(word)]
