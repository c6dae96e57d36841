"""`sightline report`: one page about a run, with its controls."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sightline.cli.app import Plugins, Roots, app, emit, load_plugins


@app.command()
def report(
    run: Annotated[str, typer.Argument(help="A run, or RUN@STAGE.")],
    data: Annotated[str, typer.Option(help="A dataset folder.")],
    task: Annotated[str | None, typer.Option(help="Task, as in eval; by default caption, or retrieval for a dual encoder.")] = None,
    split: Annotated[str, typer.Option(help="Its split.")] = "val",
    control: Annotated[
        list[str] | None,
        typer.Option(metavar="CONTROL", help="Shown beside it; blind and shuffled by default; may be given again; see eval."),
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="last, best, the name of a stage, or a step.")] = "last",
    fallback: Annotated[
        bool, typer.Option("--fallback", help="If the last checkpoint is damaged, use the newest whole one.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows per batch.")] = 16,
    limit: Annotated[int | None, typer.Option(min=1, help="Only this many records, drawn at random with a fixed seed.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Text beside the image; see eval.")] = None,
    likelihood: Annotated[
        Literal["gain", "plain", "yes_no"] | None,
        typer.Option(help="Score candidates by likelihood instead of generating an answer; see eval."),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of generated tokens; the task's by default.")
    ] = None,
    images: Annotated[int | None, typer.Option(min=1, help="retrieval: only this many images; see eval.")] = None,
    captions: Annotated[int | None, typer.Option(min=1, max=5, help="retrieval: captions of each image; see eval.")] = None,
    features: Annotated[str | None, typer.Option(help="A feature store to read instead of the images.")] = None,
    out: Annotated[Path | None, typer.Option(help="The page; RUN/report.html by default.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    root: Roots = None,
    plugin: Plugins = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write a page about a run: curves, scores beside their controls, images where its answers are best and worst.

    What `sightline eval` has already answered with the same settings is not computed again.

      sightline report runs/flickr --data flickr8k --split val
    """
    load_plugins(plugin)
    from sightline.assembly.config.locate import run_of
    from sightline.assembly.evaluate.opened import open_model
    from sightline.assembly.evaluate.report import default_task, report_run
    from sightline.evaluation.controls import BLIND, SHUFFLED, checked_control
    from sightline.evaluation.spec import EvalSpec

    page = out or run_of(run) / "report.html"
    opened = open_model(run, checkpoint, features, device, threads, fallback)
    spec = EvalSpec(
        task=task or default_task(opened),
        data=data,
        split=split,
        batch_size=batch_size,
        limit=limit,
        prompt=prompt,
        likelihood=likelihood,
        max_new_tokens=max_new_tokens,
        images=images,
        captions=captions,
        features=features,
    )
    controls = list(dict.fromkeys(map(checked_control, control or (BLIND, SHUFFLED))))
    found = report_run(spec, run, controls, page, checkpoint=checkpoint, device=device, threads=threads, opened=opened)
    if as_json:
        emit({"report": str(page), **{name: done.to_json() for name, done in found.items()}})
        return
    typer.echo(f"{next(iter(found.values())).verdict}")
    for name, done in found.items():
        headline = done.task.headline
        score = done.scores[headline.name]
        typer.echo(f"{name}: {headline.label} {score.value:.3f} ({score.low:.3f} to {score.high:.3f}) on {score.n} records")
    typer.echo(f"report: {page}")
