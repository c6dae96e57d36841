"""`sightline doctor`: versions, devices, what is missing and how to get it."""

from typing import Annotated

import typer

from sightline.cli.app import app, emit


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Look at this installation: versions, devices, what is missing and how to get it. Exits with 2 when something is bad.

    Examples:

      sightline doctor

      sightline doctor --json

    The commands after the table install or set what is missing; each is one line to paste into a shell.
    """
    from sightline.runtime.doctor import examine

    checks = examine()
    good = all(check.state != "bad" for check in checks)
    if as_json:
        emit({"ok": good, "checks": [check.to_json() for check in checks]})
    else:
        from rich.console import Console
        from rich.table import Table

        table = Table()
        for column in ("", "found", ""):
            table.add_column(column)
        colours = {"ok": "green", "missing": "yellow", "bad": "red"}
        for check in checks:
            table.add_row(check.name, check.found, f"[{colours[check.state]}]{check.state}[/]")
        Console().print(table)
        for state, title in (("bad", "To repair:"), ("missing", "Optional:")):
            remedies = list(dict.fromkeys(check.remedy for check in checks if check.state == state and check.remedy))
            typer.echo("\n".join([title, *(f"  {remedy}" for remedy in remedies)]) if remedies else "", nl=bool(remedies))
    if not good:
        raise typer.Exit(2)
