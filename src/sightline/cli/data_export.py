"""`sightline data export`: a dataset folder as files for other programs."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sightline.cli.app import emit
from sightline.cli.data import app
from sightline.errors import UsageError


@app.command("export")
def export_data(
    folder: Annotated[Path, typer.Argument(help="A dataset folder.")],
    out: Annotated[Path, typer.Option(help="The file (csv) or folder to write; must not exist.")],
    format_name: Annotated[
        Literal["coco", "csv", "hf", "llava"],
        typer.Option(
            "--format",
            help="csv: base64 images and captions, as seemore reads; llava: conversations; coco: captions and boxes; "
            "hf: parquet with images, as the Hub and the datasets library read.",
        ),
    ],
    split: Annotated[str | None, typer.Option(help="Export this split only.")] = None,
    push_to: Annotated[
        str | None, typer.Option("--push", metavar="OWNER/NAME", help="hf: upload the folder as a private data set of the Hub.")
    ] = None,
    is_public: Annotated[bool, typer.Option("--public", help="With --push: anyone may read a new data set.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Writes a dataset folder for other programs; data prepare reads all of these formats back.

    sightline data export sets/scenes --format llava --out scenes-llava
    """
    from sightline.data.dataset import open_dataset
    from sightline.data.prepare.csv_export import export_csv
    from sightline.data.prepare.folder_export import export_folder, push

    if push_to is not None and format_name != "hf":
        raise UsageError(f"--push uploads format hf, not {format_name}.", "Use --format hf.")
    if out.exists():
        raise UsageError(f"{out} exists already; nothing is overwritten.", "Choose another --out, or remove it.")
    dataset = open_dataset(folder)
    found: dict[str, Any]
    found = export_csv(dataset, out, split) if format_name == "csv" else export_folder(format_name, dataset, out, split)
    found |= {"format": format_name, "out": str(out)}
    if push_to is not None:
        found["pushed"] = push(out, push_to, is_public)
    if as_json:
        emit(found)
        return
    rows = f"{found['rows']} rows of " if "rows" in found else ""
    typer.echo(f"{rows}{found['records']} records in {out}")
    for title in ("skipped", "dropped"):
        counts = found.get(title, {})
        if counts:
            typer.echo(f"  {title}: " + ", ".join(f"{name} {count}" for name, count in sorted(counts.items())))
    if push_to is not None:
        typer.echo(f"  uploaded: {found['pushed']}")
