"""`sightline data check`: is the data whole, what stands in it twice, and what will training make of it?"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sightline.cli.app import Plugins, Roots, emit, load_plugins
from sightline.cli.data import app
from sightline.cli.model_choice import ModelChoice, split_words
from sightline.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from sightline.data.check.report import DataReport, TrainingFigures
    from sightline.reporting.check_tables import CheckTable


@app.command()
def check(
    folders_and_settings: Annotated[
        list[str] | None, typer.Argument(metavar="[DIR]... [KEY=VALUE]...", help="Dataset folders, and settings that differ.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of a run: also look at rows, lengths and packing.")] = None,
    recipe: Annotated[str | None, typer.Option(help="A recipe, instead of or below --config.")] = None,
    run: Annotated[str | None, typer.Option(help="A run or a model folder, instead of --config.")] = None,
    against: Annotated[
        list[Path] | None, typer.Option(help="A dataset folder that should share nothing with DIR; may be given again.")
    ] = None,
    check_hash: Annotated[bool, typer.Option("--check-hash", help="Compare every file with its stored hash.")] = False,
    min_side: Annotated[
        int | None, typer.Option(min=1, help="Images with a shorter side are bad; by default below 16 is odd.")
    ] = None,
    max_aspect: Annotated[
        float | None, typer.Option(min=1, help="Images that are longer for their width are bad; by default above 20 is odd.")
    ] = None,
    near: Annotated[
        int, typer.Option(min=-1, max=16, help="Bits of 64 by which images alike may differ; -1: same files only.")
    ] = 8,
    max_skipped: Annotated[float, typer.Option(min=0, max=1, help="Share of bad records above which the exit code is 3.")] = 0.01,
    gain: Annotated[
        str | None, typer.Option(metavar="RUN", help="A model that looks: list the texts that their images support least.")
    ] = None,
    features: Annotated[str | None, typer.Option(help="A feature store for --gain, instead of the images.")] = None,
    device: Annotated[str, typer.Option(help="Device for --gain: auto, cpu, cuda, mps.")] = "auto",
    html: Annotated[Path | None, typer.Option(help="Write a page with images.")] = None,
    listing: Annotated[Path | None, typer.Option("--list", help="Write every fault as a line of this JSONL file.")] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes that decode; all cores by default.")] = None,
    root: Roots = None,
    plugin: Plugins = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check dataset folders: every record read, every image decoded, everything counted.

      sightline data check flickr8k --against my_test_set --html check.html

      sightline data check flickr8k --gain runs/cal --html check.html --list low.jsonl

      sightline data check flickr8k --recipe flickr8k_mobilenet_v2 model.vision.path=... model.language.path=...

    With --gain it ranks every text by how much its image raises its words, lowest first; --list writes all those below 0.
    With a configuration it also says how long the rows are, what is left out and why, how full rows get and how many steps an
    epoch has. The exit code is 3 when too much is bad: more than --max-skipped of the records, or more conversations than the
    configuration's data.max_skipped.
    """
    load_plugins(plugin)
    folders, settings = split_words(folders_and_settings or [])
    choice = ModelChoice(config, recipe, run, tuple(settings))
    if not folders:
        folders = choice.folders()
    if features is not None and gain is None:
        raise UsageError("--features belongs to --gain, which is not given.")
    for path in (html, listing):
        if path is not None and not path.parent.is_dir():
            raise UsageError(f"{path.parent} is no folder to write {path.name} in.")

    from sightline.assembly.inspect.check import CheckRequest, check_data, judge
    from sightline.data.check import CheckOptions
    from sightline.runtime.workers import usable_cores

    options = CheckOptions(
        workers=usable_cores() if workers is None else workers,
        check_hash=check_hash,
        min_side=min_side,
        max_aspect=max_aspect,
        near_bits=None if near < 0 else near,
    )
    looks = None
    if gain is not None:
        from sightline.assembly.inspect.gain import GainRequest

        looks = GainRequest(gain, features, device)
    describe = choice.describe if choice.is_given else None
    report = check_data(CheckRequest(tuple(folders), options, tuple(against or ()), describe, html, listing, looks))
    if as_json:
        emit(report.to_json())
    else:
        _print(report, html, listing)
    judge(report, max_skipped)


def _print(report: "DataReport", html: Path | None, listing: Path | None) -> None:
    """The report for people."""
    from rich.console import Console
    from rich.text import Text

    from sightline.reporting import check_tables

    console, checked = Console(), report.checked
    usable = checked.input - checked.num_bad
    console.print(Text(f"{usable:,} of {checked.input:,} records can be used, {checked.num_bad:,} cannot.", style="bold"))
    console.print(Text("splits: " + ", ".join(f"{name} {count:,}" for name, count in checked.splits.items())))
    _counts(console, "cannot be used", checked.bad.counts)
    _counts(console, "odd images", checked.odd.counts)
    for fault in checked.bad.first[:5]:
        console.print(Text(f"  {fault.id or f'record {fault.location.record}'}: {fault.reason}: {fault.detail}"), soft_wrap=True)
    for make in (check_tables.spreads, check_tables.labels, check_tables.overlaps, check_tables.repeats):
        _table(console, make(report))
    if report.training is not None:
        _training(console, report.training)
    if report.gain is not None:
        _table(console, check_tables.lowest(report.gain, 10))
    console.print()
    for text in report.warnings:
        console.print(Text(f"! {text}"), soft_wrap=True)
    if not report.warnings:
        console.print("Nothing to warn of.")
    for path in (html, listing):
        if path is not None:
            console.print(Text(str(path)), soft_wrap=True)


def _training(console: "Console", training: "TrainingFigures") -> None:
    from rich.text import Text

    from sightline.reporting import check_tables

    conversations, epochs = check_tables.training_tables(training)
    _table(console, conversations)
    for name, own in training.rows.items():
        _counts(console, f"left out of {name}", own.skipped)
    _table(console, epochs)
    for stage in training.stages:
        if stage.data is not None:
            console.print(Text(f"stage {stage.name}"))
            console.print(Text("\n".join(f"  {line}" for line in stage.data.lines())), soft_wrap=True)


def _table(console: "Console", table: "CheckTable") -> None:
    """A table with its first column to the left and numbers to the right; texts are shown as they are, not as markup."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    if not table.rows:
        return
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, head in enumerate(table.heads):
        drawn.add_column(head, justify="left" if number == 0 else "right")
    for row in table.rows:
        drawn.add_row(*(Text(_written(cell)) for cell in row))
    console.print()
    console.print(Text(table.title, style="bold"), soft_wrap=True)
    console.print(drawn)


def _written(cell: Any) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, int):
        return f"{cell:,}"
    return f"{cell:,.2f}" if isinstance(cell, float) else str(cell)


def _counts(console: "Console", title: str, counts: Mapping[str, int]) -> None:
    if counts:
        from rich.text import Text

        listing = ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))
        console.print(Text(f"{title}: {listing}"), soft_wrap=True)
