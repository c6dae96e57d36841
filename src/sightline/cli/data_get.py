"""`sightline data get`: downloads a published data set."""

from pathlib import Path
from typing import Annotated

import typer

from sightline.cli.app import emit
from sightline.cli.data import app
from sightline.errors import UsageError
from sightline.runtime.optional import require


@app.command("get")
def get_data(
    name: Annotated[str | None, typer.Argument(help="A data set; see --list.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for its files; files that are there are kept and verified.")] = None,
    accept: Annotated[
        bool, typer.Option("--accept-licence", "--accept-license", help="You have read the licence and accept it.")
    ] = False,
    lock: Annotated[Path | None, typer.Option(help="A NAME.lock.json whose hashes must be met.")] = None,
    tries: Annotated[int, typer.Option(help="Attempts in a row that may fail.", min=1)] = 4,
    allow_network: Annotated[list[str] | None, typer.Option(help="CIDR of a private network to reach.")] = None,
    listing: Annotated[bool, typer.Option("--list", help="List the data sets with their sizes and licences.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Downloads a published data set, resumes where it was stopped, and verifies every file.

    sightline data get coco-val2017 --accept-licence --out data/coco
    """
    from sightline.data.download import DownloadOptions, parse_networks
    from sightline.data.download.catalogue import PUBLISHED

    if listing:
        _list(as_json)
        return
    if name is None or out is None:
        raise UsageError("data get needs a NAME and --out.", f"Data sets are {', '.join(PUBLISHED)}; see --list.")
    require("httpx", "data", "data get")
    from sightline.data.download.get import find
    from sightline.data.download.get import get as run

    options = DownloadOptions(tries=tries, allowed=parse_networks(allow_network or ()))
    found = run(name, out, accept, options, lock)
    if as_json:
        emit(found | {"out": str(out)})
        return
    for file, entry in found["files"].items():
        typer.echo(f"{out / file}: {entry['size']:,} bytes, sha256 {entry['sha256']} ({entry['hash_from']})")
    typer.echo(f"licence: {found['licence']} ({found['terms']})")
    chosen = find(name)
    if chosen.note:
        typer.echo(chosen.note)
    if chosen.read:
        typer.echo(f"next: sightline data prepare {chosen.read.replace('OUT', str(out))} --out sets/{name}")


def _list(as_json: bool) -> None:
    from sightline.data.download.catalogue import PUBLISHED

    sizes = {name: sum(file.size for file in found.files) for name, found in PUBLISHED.items()}
    if as_json:
        emit(
            {
                name: {"about": f.about, "licence": f.licence, "terms": f.terms, "bytes": sizes[name]}
                for name, f in PUBLISHED.items()
            }
        )
        return
    for name, found in PUBLISHED.items():
        size = f"{sizes[name] / 1e9:.1f} GB; " if sizes[name] else ""
        typer.echo(f"{name}\n  {found.about}\n  {size}licence: {found.licence}\n  {found.terms}")
