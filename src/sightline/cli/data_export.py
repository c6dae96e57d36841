"""`sightline data export`: a dataset folder as a file for other programs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sightline.cli.app import emit
from sightline.cli.data import app
from sightline.errors import UsageError


@app.command("export")
def export_data(
    folder: Annotated[Path, typer.Argument(help="A dataset folder.")],
    out: Annotated[Path, typer.Option(help="The file to write; must not exist.")],
    format_name: Annotated[Literal["csv"], typer.Option("--format", help="csv: base64 images and captions, as seemore reads.")],
    split: Annotated[str | None, typer.Option(help="Export this split only.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Writes a dataset folder as one file for other programs.

    sightline data export sets/scenes --format csv --out inputs.csv
    """
    from sightline.data.dataset import open_dataset
    from sightline.data.prepare.csv_export import export_csv

    if out.exists():
        raise UsageError(f"{out} exists already; nothing is overwritten.", "Choose another --out, or remove it.")
    found = export_csv(open_dataset(folder), out, split) | {"format": format_name, "out": str(out)}
    if as_json:
        emit(found)
        return
    left_out = ", ".join(f"{reason} {count}" for reason, count in found["skipped"].items())
    typer.echo(f"{found['rows']} rows of {found['records']} records in {out}" + (f"; left out: {left_out}" if left_out else ""))
