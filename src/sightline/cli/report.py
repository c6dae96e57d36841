"""`sightline report`: one page about a run, with its controls."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sightline.cli.app import app, emit


class ReportControl(StrEnum):
    """Controls that stand beside a run."""

    blind = "blind"
    shuffled = "shuffled"


@app.command()
def report(
    run: Annotated[str, typer.Argument(help="A run, or RUN@STAGE.")],
    data: Annotated[str, typer.Option(help="A dataset folder.")],
    split: Annotated[str, typer.Option(help="Its split.")] = "val",
    control: Annotated[
        list[ReportControl] | None, typer.Option(help="Shown beside it; both by default; may be given again.")
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="last, best, the name of a stage, or a step.")] = "last",
    batch_size: Annotated[int, typer.Option(min=1, help="Rows per batch.")] = 16,
    limit: Annotated[int | None, typer.Option(min=1, help="Only this many records, drawn at random with a fixed seed.")] = None,
    features: Annotated[str | None, typer.Option(help="A feature store to read instead of the pictures.")] = None,
    out: Annotated[Path | None, typer.Option(help="The page; RUN/report.html by default.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write a page about a run: curves, scores beside their controls, pictures where its captions are best and worst.

    What `sightline eval` has already answered with the same settings is not computed again.

      sightline report runs/flickr --data flickr8k --split val
    """
    from sightline.assembly.config.locate import run_of
    from sightline.assembly.evaluate.evaluate import EvaluationRequest
    from sightline.assembly.evaluate.report import report_run

    page = out or run_of(run) / "report.html"
    request = EvaluationRequest(
        model=run,
        task="caption",
        data=data,
        split=split,
        checkpoint=checkpoint,
        batch_size=batch_size,
        limit=limit,
        features=features,
        device=device,
        threads=threads,
    )
    found = report_run(request, [shown.value for shown in dict.fromkeys(control or ReportControl)], page)
    if as_json:
        emit({"report": str(page), **{name: done.to_json() for name, done in found.items()}})
        return
    for name, done in found.items():
        score = done.scores["cider_d"]
        typer.echo(f"{name}: CIDEr-D {score.value:.3f} ({score.low:.3f} to {score.high:.3f}) on {score.n} records")
    typer.echo(f"report: {page}")
