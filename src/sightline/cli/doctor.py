"""`sightline doctor`: versions, devices, what is missing and how to get it."""

from typing import Annotated

import typer

from sightline.cli.app import app, emit


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Look at this installation: versions, devices, what is missing and how to get it. Exits with 2 when something is bad."""
    from sightline.runtime.doctor import examine

    checks = examine()
    good = all(check.state != "bad" for check in checks)
    if as_json:
        emit({"ok": good, "checks": [check.to_json() for check in checks]})
    else:
        from rich.console import Console
        from rich.table import Table

        table = Table()
        for column in ("", "found", "", "remedy"):
            table.add_column(column)
        colours = {"ok": "green", "missing": "yellow", "bad": "red"}
        for check in checks:
            table.add_row(check.name, check.found, f"[{colours[check.state]}]{check.state}[/]", check.remedy)
        Console().print(table)
    if not good:
        raise typer.Exit(2)
