"""`sightline demo`: the whole way on one machine in minutes, offline."""

from pathlib import Path
from typing import Annotated

import typer

from sightline.cli.app import app, emit


@app.command()
def demo(
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the recipe that differ.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of everything that is made.")] = Path("runs/demo"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Make images, train a small model on them, caption held-out ones with and without seeing them, and write a report.

    Examples:

      sightline demo --out runs/demo

      sightline demo train.steps=200 --out runs/short
    """
    from sightline.studies.demo import demo as run_demo

    done = run_demo(out, settings or [])
    if as_json:
        emit(done.to_json())
        return
    typer.echo(f"{done.seen.verdict}")
    for info in done.seen.task.highlights:
        if info.is_share:
            seen, blind = done.seen.scores[info.name], done.blind.scores[info.name]
            typer.echo(f"{info.label}: {seen.value:.1%} of {seen.n} held-out images; {blind.value:.1%} without seeing them")
    typer.echo(f"report: {done.report}")
