"""`sightline data preview`: images and conversations as the model will see them, supervised tokens in colour."""

from pathlib import Path
from typing import Annotated

import typer

from sightline.cli.app import Plugins, Roots, emit, load_plugins
from sightline.cli.data import app
from sightline.cli.model_choice import ModelChoice, split_words
from sightline.errors import UsageError


@app.command()
def preview(
    folder_and_settings: Annotated[
        list[str], typer.Argument(metavar="DIR [KEY=VALUE]...", help="A dataset folder, and settings that differ.")
    ],
    out: Annotated[Path, typer.Option(help="The HTML page to write.")],
    config: Annotated[Path | None, typer.Option(help="YAML file of a run.")] = None,
    recipe: Annotated[str | None, typer.Option(help="A recipe, instead of or below --config.")] = None,
    run: Annotated[str | None, typer.Option(help="A run or a model folder, instead of --config.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of the records; that of the configuration by default.")] = None,
    stage: Annotated[str | None, typer.Option(help="Stage whose data settings hold; the first by default.")] = None,
    count: Annotated[int, typer.Option(min=1, max=1000, help="Records to draw.")] = 12,
    seed: Annotated[int, typer.Option(help="Seed for choosing the samples.")] = 0,
    ids: Annotated[list[str] | None, typer.Option("--id", help="A record to show, instead of a draw; may be given again.")] = None,
    root: Roots = None,
    plugin: Plugins = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show records as a model sees them: images after preparation and tiling, and every token with what is learned from it.

    sightline data preview flickr8k --run runs/flickr --out preview.html

    sightline data preview scenes --recipe scenes_tiny --split val --count 4 --out preview.html
    """
    load_plugins(plugin)
    folders, settings = split_words(folder_and_settings)
    if len(folders) != 1:
        raise UsageError(f"data preview shows one dataset folder, got {len(folders)}.")
    if not out.parent.is_dir():
        raise UsageError(f"{out.parent} is no folder to write {out.name} in.")
    choice = ModelChoice(config, recipe, run, tuple(settings))
    if not choice.is_given:
        raise UsageError("data preview needs to know the model.", "Give --config, --recipe or --run.")

    from sightline.assembly.inspect.preview import PreviewRequest
    from sightline.assembly.inspect.preview import preview as run_preview

    blueprint = choice.describe(folders)
    chosen = split or (blueprint.config.data.split if blueprint.config is not None else "train")
    request = PreviewRequest(folders[0], out, chosen, count, seed, stage, tuple(ids or ()))
    result = run_preview(request, blueprint)
    if as_json:
        emit(result)
    else:
        summary = f"{result['samples']} samples, {result['tokens']:,} tokens, {result['supervised']:,} of them supervised"
        typer.echo(f"{out}: {summary}" + (f"; {result['left_out']} left out" if result["left_out"] else ""))
