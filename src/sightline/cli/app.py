"""The `sightline` command: verbs are registered here, imported when they run, and every error becomes one line and a code.

The environment is prepared before torch can load: `OMP_WAIT_POLICY=passive`, because spinning OpenMP threads make a training
step 14 times slower when anything else uses a core.
"""

import inspect
import json
import os
import platform
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer

from sightline import __version__
from sightline.errors import SightlineError, UsageError
from sightline.runtime import logs

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

_UsageFault = typer.BadParameter.__bases__[0]  # click's UsageError, wherever this version of typer takes click from

PROGRAMS = ("python", "sightline", "torchrun")  # an example in the help begins with one of them

app = typer.Typer(
    name="sightline",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


MAX_PIXELS = "Largest image, in pixels (width times height); 51,000,000 by default, as photos of 50 megapixels have."


def _versions(wanted: bool) -> None:
    if not wanted:
        return
    found = {"python": platform.python_version()}
    for name in ("torch", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    typer.echo(f"sightline {__version__} ({', '.join(f'{name} {number}' for name, number in found.items())})")
    raise typer.Exit


@app.callback()
def sightline(
    wanted: Annotated[
        bool,
        typer.Option("--version", callback=_versions, is_eager=True, help="Show the version and those of torch and transformers."),
    ] = False,
) -> None:
    """Train, measure and compare how vision is aligned to language.

    Examples:

      sightline demo

      sightline doctor

      sightline recipes

      sightline train scenes_tiny data.path=scenes --out runs/scenes

      sightline --install-completion

    The last one teaches your shell (bash, zsh, fish) to complete commands and options. --debug shows the traceback of an error.
    """


def wrap_help(group: typer.Typer) -> None:
    """Joins the lines of each paragraph of the help, so that it wraps to the terminal; an example keeps its line.

    A paragraph is an example if it begins with the name of a program.
    """
    for info in [*group.registered_commands, *([group.registered_callback] if group.registered_callback else [])]:
        if info.callback is not None:
            info.help = wrapped_help(info.callback.__doc__ or "")
    for inner in group.registered_groups:
        if inner.typer_instance is not None:
            wrap_help(inner.typer_instance)


def wrapped_help(text: str) -> str:
    """Returns a docstring with one line for each paragraph, examples indented."""
    paragraphs = [" ".join(paragraph.split()) for paragraph in inspect.cleandoc(text).split("\n\n")]
    return "\n\n".join(f"  {line}" if line.split(" ")[0] in PROGRAMS else line for line in paragraphs)


def emit(value: dict[str, Any]) -> None:
    """Prints the one JSON object that `--json` promises."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()


Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        metavar="FILE.py|MODULE",
        help="Code of yours that settings and models may then name, as MODULE:Class; may be given again.",
    ),
]


def _trust(context: typer.Context, folders: list[Path]) -> list[Path]:
    """Adds folders to those that paths and links in data and model folders may lead to, for this command and its workers.

    Raises:
        UsageError: one is no folder.
    """
    from sightline.runtime.storage import TRUSTED

    for folder in folders or ():
        if not folder.is_dir() or os.pathsep in str(folder):
            raise UsageError(f"--root {folder} is not a folder.", "Give the folder that files may lie in.")
    if folders:
        before = os.environ.get(TRUSTED, "")
        context.call_on_close(lambda: os.environ.update({TRUSTED: before}))  # the next command in this process trusts nothing more
        os.environ[TRUSTED] = os.pathsep.join([*filter(None, [before]), *(os.path.abspath(folder) for folder in folders)])
    return folders


Roots = Annotated[
    list[Path] | None,
    typer.Option(
        "--root",
        metavar="DIR",
        callback=_trust,
        help="A folder you trust: absolute paths and links in data and model folders may lead into it; may be given again.",
    ),
]


def load_plugins(names: list[str] | None) -> None:
    """Loads what `--plugin` names; plug-ins of a command before, in the same process, are no longer valid.

    Raises:
        UsageError: one cannot be imported.
    """
    from sightline.runtime import plugins

    plugins.forget()
    for name in names or []:
        plugins.load(name)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command and exits with its code: 0 ok, 2 usage, 3 data, 4 numerics, 5 storage, 6 distributed, 75 stopped."""
    logs.configure()
    warnings.filterwarnings("ignore", module=r"PIL\.")  # torn EXIF, odd tags: what touches the pixels is checked by the opener
    debug = "--debug" in (sys.argv[1:] if arguments is None else arguments)
    if debug:
        (sys.argv if arguments is None else arguments).remove("--debug")
    try:
        code = app(arguments, standalone_mode=False)
    except SightlineError as error:
        if debug:
            raise
        sys.stderr.write(f"error[{error.code}]: {error}\n")
        sys.exit(error.exit_code)
    except _UsageFault as error:
        if error.format_message():  # empty when the help was printed instead
            sys.stderr.write(f"error[usage]: {error.format_message()} See --help.\n")
        sys.exit(2)
    except typer.Exit as error:
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("error[stopped]: interrupted\n")
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)
