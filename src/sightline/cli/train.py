"""`sightline train`: trains a recipe or a configuration file; goes on by itself when the run folder holds a checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from sightline.cli.app import Plugins, Roots, app, emit, load_plugins
from sightline.errors import UsageError


@app.command()
def train(
    recipe_and_settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE] [KEY=VALUE]...", help="A recipe's name (see `sightline recipes`) and settings that differ."
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings, instead of or over a recipe.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; a run in it goes on where it stopped.")] = None,
    allow_change: Annotated[
        str, typer.Option(metavar="KEY,KEY", help="Settings that may differ from those the run began with.")
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Measure a few steps, print length, time and memory, and write nothing.")
    ] = False,
    root: Roots = None,
    plugin: Plugins = None,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON object on stdout.")] = False,
) -> None:
    """Train a model.

    Examples:

      sightline train scenes_tiny data.path=scenes --out runs/scenes

      sightline train --config runs/scenes/config.yaml train.seed=1 --out runs/scenes_1

      sightline train scenes_tiny data.path=scenes --dry-run

      torchrun --nproc_per_node 8 -m sightline train llava15 data.path=D --out runs/llava

    The resolved settings are written to OUT/config.yaml. A run that is killed goes on from its last checkpoint with the same
    command, bit for bit; SIGTERM saves first and exits with 75.
    """
    if out is None and not dry_run:
        raise UsageError("train needs --out.", "For example --out runs/first")
    load_plugins(plugin)
    from sightline.assembly.config.resolving import resolve_config
    from sightline.recipes import RECIPES

    words = recipe_and_settings or []
    names, arguments = [word for word in words if "=" not in word], [word for word in words if "=" in word]
    if len(names) > 1:
        raise UsageError(f"train takes one recipe, got {', '.join(names)}.", "Settings have the form key=value.")
    if not names and config is None:
        raise UsageError("train needs a recipe or --config.", f"Recipes: {', '.join(RECIPES)}.")
    base = None
    if names:
        from sightline.recipes import recipe_by_name

        base = recipe_by_name(names[0])
    settings = resolve_config(base, config, arguments)

    if dry_run:
        from sightline.assembly.train.dry_run import dry_run as estimate

        found = estimate(settings)
        emit(found.to_json()) if as_json else typer.echo("\n".join(found.lines()))
        return
    assert out is not None
    from sightline.assembly.train.outcome import outcome_lines
    from sightline.assembly.train.run import train as run_training

    result = run_training(settings, out, [key for key in allow_change.split(",") if key])
    if as_json:
        emit(result.to_json())
    else:
        typer.echo("\n".join(outcome_lines(settings, result.run, result.best_step)))
        typer.echo(f"{result.run}: step {result.step}, model in {result.checkpoint / 'model'}")
