"""`sightline export`: a trained model in a form that other programs read."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sightline.cli.app import Plugins, app, emit, load_plugins


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="A run, RUN@STAGE, or a model folder.")],
    form: Annotated[
        Literal["remote-code"],
        typer.Option("--format", help="remote-code: a folder for trust_remote_code=True, where Sightline is not installed."),
    ],
    out: Annotated[Path, typer.Option(help="The new folder.")],
    checkpoint: Annotated[str, typer.Option(help="last, best, the name of a stage, or a step.")] = "last",
    fallback: Annotated[
        bool, typer.Option("--fallback", help="If the last checkpoint is damaged, use the newest whole one.")
    ] = False,
    plugin: Plugins = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Export a model for other programs; refuses when logits differ from the run's.

    sightline export runs/flickr --format remote-code --out flickr-model
    """
    load_plugins(plugin)
    from sightline.assembly.evaluate.export import export_remote_code

    done = export_remote_code(run, out, checkpoint, fallback)
    if as_json:
        emit(done.to_json())
        return
    if done.checkpoint is not None:
        typer.echo(f"checkpoint: step {done.checkpoint.saved.step} ({done.checkpoint.reason})")
    typer.echo(f"compared: {done.num_logits} logits, largest relative difference {done.difference:.1e}")
    typer.echo(f"{done.folder}")
