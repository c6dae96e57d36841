"""`sightline convert`: a model folder with pickled weights as one with safetensors."""

from pathlib import Path
from typing import Annotated

import typer

from sightline.cli.app import app, emit


@app.command()
def convert(
    folder: Annotated[Path, typer.Argument(help="A model folder with pytorch_model.bin, or with shards and their index.")],
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist.")],
    sha256: Annotated[str | None, typer.Option(help="Hash that the weights file must have.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Converts pickled weights to safetensors without running the code that a pickle may hold.

    Every tensor is compared with the original, bit by bit; configuration and tokenizer files are copied.

    sightline convert models/old --out models/new
    """
    from sightline.models.pickled import convert as run

    found = run(folder, out, sha256)
    if as_json:
        emit(found | {"out": str(out)})
        return
    typer.echo(f"{found['weights']} weights in {out}")
    for file in found["files"]:
        typer.echo(f"  {file['from']} (sha256 {file['from_sha256']}) -> {file['to']} (sha256 {file['sha256']})")
