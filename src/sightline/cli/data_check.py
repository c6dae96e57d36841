"""`sightline data check`: is the data whole, what stands in it twice, and what will training make of it?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sightline.cli.app import Plugins, emit, load_plugins
from sightline.cli.data import app
from sightline.cli.model_choice import ModelChoice, split_words
from sightline.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console


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
        int | None, typer.Option(min=1, help="Pictures with a shorter side are bad; by default below 16 is odd.")
    ] = None,
    max_aspect: Annotated[
        float | None, typer.Option(min=1, help="Pictures that are longer for their width are bad; by default above 20 is odd.")
    ] = None,
    near: Annotated[
        int, typer.Option(min=-1, max=16, help="Bits of 64 by which pictures alike may differ; -1: same files only.")
    ] = 8,
    max_skipped: Annotated[float, typer.Option(min=0, max=1, help="Share of bad records above which the exit code is 3.")] = 0.01,
    gain: Annotated[
        str | None, typer.Option(metavar="RUN", help="A model that looks: list the texts that their pictures support least.")
    ] = None,
    features: Annotated[str | None, typer.Option(help="A feature store for --gain, instead of the pictures.")] = None,
    device: Annotated[str, typer.Option(help="Of --gain: auto, cpu, cuda, mps.")] = "auto",
    html: Annotated[Path | None, typer.Option(help="Write a page with pictures.")] = None,
    listing: Annotated[Path | None, typer.Option("--list", help="Write every fault as a line of this JSONL file.")] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes that decode; all cores by default.")] = None,
    plugin: Plugins = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check dataset folders: every record read, every picture decoded, everything counted.

      sightline data check flickr8k --against my_test_set --html check.html

      sightline data check flickr8k --gain runs/cal --html check.html --list low.jsonl

      sightline data check flickr8k --recipe flickr8k_mobilenet_v2 model.vision.path=... model.language.path=...

    With --gain it ranks every text by how much its picture raises its words, lowest first; --list writes all those below 0.
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
        emit(report)
    else:
        _print(report, html, listing)
    judge(report, max_skipped)


def _print(report: dict[str, Any], html: Path | None, listing: Path | None) -> None:
    """The report for people."""
    from rich.console import Console
    from rich.text import Text

    console = Console()
    bad = sum(report["skipped"].values())
    console.print(Text(f"{report['ok']:,} of {report['input']:,} records can be used, {bad:,} cannot.", style="bold"))
    console.print(Text("splits: " + ", ".join(f"{name} {count:,}" for name, count in report["splits"].items())))
    _counts(console, "cannot be used", report["skipped"])
    _counts(console, "odd pictures", report["odd"])
    for fault in report["bad"][:5]:
        console.print(
            Text(f"  {fault['id'] or 'record ' + str(fault['record'])}: {fault['reason']}: {fault['detail']}"), soft_wrap=True
        )
    _spreads(console, report)
    _duplicates(console, report["duplicates"])
    if "training" in report:
        _training(console, report["training"])
    if "gain" in report:
        _lowest(console, report["gain"])
    console.print()
    for text in report["warnings"]:
        console.print(Text(f"! {text}"), soft_wrap=True)
    if not report["warnings"]:
        console.print("Nothing to warn of.")
    for path in (html, listing):
        if path is not None:
            console.print(Text(str(path)), soft_wrap=True)


def _table(console: "Console", title: str, heads: list[str], rows: list[tuple[Any, ...]]) -> None:
    """A table with its first column to the left and numbers to the right; texts are shown as they are, not as markup."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, head in enumerate(heads):
        table.add_column(head, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*(Text(_written(cell)) for cell in row))
    console.print()
    console.print(Text(title, style="bold"), soft_wrap=True)
    console.print(table)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _written(cell: Any) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, int):
        return f"{cell:,}"
    return f"{cell:,.2f}" if isinstance(cell, float) else str(cell)


def _counts(console: "Console", title: str, counts: dict[str, int]) -> None:
    if counts:
        from rich.text import Text

        told = ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))
        console.print(Text(f"{title}: {told}"), soft_wrap=True)


def _spreads(console: "Console", report: dict[str, Any]) -> None:
    pictures, records = report["pictures"], report["records"]
    known = [
        *((name, pictures.get(name)) for name in ("width", "height", "aspect")),
        *((name.replace("_", " "), value) for name, value in records.items() if isinstance(value, dict) and "median" in value),
    ]
    rows = [(name, s["n"], s["min"], s["mean"], s["median"], s["p95"], s["max"]) for name, s in known if s is not None]
    _table(console, "Pictures and texts", ["", "number", "least", "mean", "median", "95 %", "most"], rows)
    labels = [
        (split, own["records"], own["distinct"], own["majority"], _percent(own["majority_share"]))
        for split, own in records.get("labels", {}).items()
    ]
    _table(console, "Answers", ["split", "questions", "different", "most frequent", "its share"], labels)


def _duplicates(console: "Console", found: dict[str, Any]) -> None:
    between = [
        (f"{p['b']} in {p['a']}", p["exact"], p["near_b"], _percent(p["share_b"]), t["records_b"], _percent(t["share_b"]))
        for p, t in zip(found["pictures"]["between"], found["texts"]["between"], strict=True)
    ]
    heads = ["", "same file", "alike", "of pictures", "same text", "of records"]
    _table(console, "Between splits and folders", heads, between)
    within = [
        (p["place"], p["pictures"], p["repeated"], p["near"], t["repeated"], r["in_records"] - r["repeated"])
        for p, t, r in zip(*(found[kind]["within"] for kind in ("pictures", "texts", "records")), strict=True)
    ]
    heads = ["", "pictures", "again", "alike", "texts again", "records again"]
    _table(console, "Within a split: pictures, those in several records, those like another, and so on", heads, within)


def _lowest(console: "Console", gain: dict[str, Any]) -> None:
    rows = [(line["id"], line["gain"], " ".join(line["detail"].split())[:70]) for line in gain["lowest"][:10]]
    title = f"Texts that their pictures support least, of {gain['texts']:,}: mean gain; median {gain['percentiles']['p50']:.2f}"
    _table(console, title, ["", "gain", "text"], rows)


def _training(console: "Console", training: dict[str, Any]) -> None:
    from rich.text import Text

    from sightline.data.samples.length_table import SampleTotals

    rows = [
        (
            name,
            own["conversations"],
            sum(own["skipped"].values()),
            own["tokens"] and own["tokens"]["mean"],
            own["longest"]["tokens"],
            own["max_tokens"],
            _percent(own["supervised_share"]),
            own["visual_tokens_per_image"] and own["visual_tokens_per_image"]["mean"],
            _percent(own["saved_by_sharing"]),
        )
        for name, own in training["rows"].items()
    ]
    heads = ["", "n", "out", "mean", "most", "limit", "learned", "visual", "shared"]
    title = "Conversations: number, left out, lengths in tokens, share supervised, visual tokens a picture, saved by sharing"
    _table(console, title, heads, rows)
    for name, own in training["rows"].items():
        _counts(console, f"left out of {name}", own["skipped"])
    stages = [
        (
            stage["name"],
            epoch["samples"],
            epoch["rows"],
            _percent(epoch["fill"]),
            epoch["steps_per_epoch"],
            stage["steps"],
            stage["epochs"],
            epoch["padded_over_packed"],
        )
        for stage in training["stages"]
        if (epoch := stage["epoch"]) is not None
    ]
    heads = ["stage", "samples", "rows", "full", "steps", "of the stage", "epochs", "padded"]
    _table(console, "An epoch: its steps and those of the stage; padded batches would take so many times the places", heads, stages)
    for stage in training["stages"]:
        if stage["data"] is not None:
            console.print(Text(f"stage {stage['name']}"))
            console.print(Text("\n".join(f"  {line}" for line in SampleTotals(**stage["data"]).lines())), soft_wrap=True)
