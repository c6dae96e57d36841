"""`sightline sweep`: many runs of one file, made in the order of their worth, evaluated and compared."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sightline.cli.app import Plugins, Roots, app, emit, load_plugins
from sightline.errors import UsageError

if TYPE_CHECKING:
    from sightline.studies.spec import Sweep


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="The sweep file, or one that comes with Sightline: studies/NAME.yaml.")],
    out: Annotated[Path | None, typer.Option(help="Folder of all runs and of the report.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of every run, over those of the file and under the arms'."),
    ] = None,
    only: Annotated[str | None, typer.Option(metavar="PATTERN", help="Only runs named so, as align* or *-s0,mlp-s1.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many of them.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs that are made at the same time, each in a process.")] = 1,
    show: Annotated[bool, typer.Option("--list", help="Only say which runs there are.")] = False,
    report: Annotated[bool, typer.Option("--report", help="Make no run, only the report of those that are done.")] = False,
    no_report: Annotated[bool, typer.Option("--no-report", help="Make no report at the end.")] = False,
    root: Roots = None,
    plugin: Plugins = None,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON object on stdout.")] = False,
) -> None:
    """Make the runs of a sweep file and compare them.

      sightline sweep studies/connectors.yaml --out sweeps/connectors --set data.path=sets/flickr8k

    Each run is a run folder in OUT/runs. What is finished is not made again: the same command goes on after a stop, a crash or a
    change of the list. A run that fails is noted and the others go on. OUT/report.html compares what is there, report.md,
    report.json, scores.csv and items.csv hold the same.
    """
    if out is None and not show:
        raise UsageError("sweep needs --out.", "For example --out sweeps/first")
    load_plugins(plugin)
    from sightline.studies.spec import read_sweep

    planned = read_sweep(file, settings or [])
    if show:
        _list(planned, only, limit, as_json)
        return
    assert out is not None
    from sightline.studies import sweep as studies

    runs = planned.chosen(only, limit)
    outcomes: list[studies.Outcome] = []
    if not report:
        studies.check_data(runs)
        studies.refuse_others(runs, out)
        studies.write_note(planned, settings or [], out)
        if jobs > 1:
            studies.share(_same_command(file, out, settings or [], plugin or [], only, limit), min(jobs, len(runs)))
        outcomes = studies.make_runs(runs, out)
    result: dict[str, object] = {"out": str(out), "runs": [outcome.to_json() for outcome in outcomes]}
    if not no_report:
        from sightline.studies.sweep_report import write_report

        result |= write_report(planned, out)
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    if as_json:
        emit(result)
    else:
        for outcome in failed:
            typer.echo(f"{outcome.name} failed: {outcome.error}")
        if "report" in result:
            typer.echo(str(result["report"]))
    if failed:
        raise typer.Exit(1)


def _same_command(file: Path, out: Path, settings: list[str], plugins: list[str], only: str | None, limit: int | None) -> list[str]:
    """This command as one of several workers."""
    words = ["sweep", str(file), "--out", str(out), "--no-report"]
    words += [word for setting in settings for word in ("--set", setting)]
    words += [word for name in plugins for word in ("--plugin", name)]
    return words + (["--only", only] if only else []) + (["--limit", str(limit)] if limit else [])


def _list(planned: "Sweep", only: str | None, limit: int | None, as_json: bool) -> None:
    runs = planned.chosen(only, limit)
    if as_json:
        emit({"runs": [{"run": run.name, "arm": run.arm, "seed": run.seed, "cell": dict(run.cell)} for run in runs]})
        return
    for run in runs:
        typer.echo(f"{run.name}  ({', '.join(asked.key for asked in run.asked)})")
