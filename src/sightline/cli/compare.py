"""`sightline compare`: several models on the same questions, with and without their images, as one report."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sightline.cli.app import Plugins, Roots, app, emit, load_plugins
from sightline.errors import UsageError


@app.command()
def compare(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Runs, RUN@STAGE, model folders or Hub ids; NAME=MODEL names one. NAME=RUN,RUN or NAME=runs/x-s*: the runs of "
            "several training seeds, averaged.",
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder of the report and of new evaluations.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="Task, as in eval; may be given again, as --data.")] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="A dataset folder; by default what is stored with the models is compared.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the dataset folder.")] = "val",
    baseline: Annotated[
        Literal["neighbours"] | None,
        typer.Option(help="neighbours: also compare answers of the nearest training images, by the features of the first model."),
    ] = None,
    features: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STORE",
            help="A feature store for models without an encoder, or NAME=STORE for one model; may be given again.",
        ),
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(
            help="Control to run too, shuffled and blind by default; ladder: all of probe --what looking; none. May be given again."
        ),
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="A score to compare; the task's headline by default; may be given again.")
    ] = None,
    against: Annotated[str, typer.Option(metavar="NAME", help="Compare all others with this one, instead of every pair.")] = "",
    checkpoint: Annotated[str, typer.Option(help="last, best, the name of a stage, or a step.")] = "last",
    fallback: Annotated[
        bool, typer.Option("--fallback", help="If the last checkpoint of a run is damaged, use the newest whole one.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows per batch.")] = 16,
    limit: Annotated[int | None, typer.Option(min=1, help="Only this many records, drawn at random with a fixed seed.")] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Text beside the image; by default the task's, or that of each model's training.")
    ] = None,
    likelihood: Annotated[
        Literal["gain", "plain", "yes_no"] | None,
        typer.Option(help="Score candidates by likelihood instead of generating an answer; see eval."),
    ] = None,
    images: Annotated[int | None, typer.Option(min=1, help="retrieval: only this many images; see eval.")] = None,
    captions: Annotated[int | None, typer.Option(min=1, max=5, help="retrieval: captions of each image; see eval.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of generated tokens; the task's by default.")
    ] = None,
    beams: Annotated[int, typer.Option(min=1, help="Beams; 1 is greedy.")] = 1,
    title: Annotated[str, typer.Option(help="Title of the report.")] = "",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    root: Roots = None,
    plugin: Plugins = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare models: which is better, by how much, how sure that is, and which looks at the image.

      sightline compare runs/mlp runs/align --task caption --data flickr8k --out compared

    Writes OUT/report.html (one file, works offline), report.md, report.json, scores.csv and items.csv. Evaluations that are stored
    for the same weights, data and options are not computed again, so the same command continues after a stop.
    """
    if out is None:
        raise UsageError("compare needs --out.", "For example --out compared")
    load_plugins(plugin)
    from sightline.evaluation.spec import EvalSpec
    from sightline.studies.compare import CONTROLS, ComparisonOptions
    from sightline.studies.compare import compare as run_comparison

    if task and not data:
        raise UsageError("--task needs --data.", "Name a dataset folder.")
    options = ComparisonOptions(
        baselines=() if baseline is None else (baseline,),
        controls=CONTROLS if control is None else _controls(control),
        metrics=tuple(metric or ()),
        against=against,
        checkpoint=checkpoint,
        device=device,
        threads=threads,
        fallback=fallback,
        features=tuple(features or ()),
        title=title,
    )
    asked = [
        EvalSpec(
            task=own,
            data=folder,
            split=split,
            batch_size=batch_size,
            limit=limit,
            prompt=prompt,
            likelihood=likelihood,
            images=images,
            captions=captions,
            max_new_tokens=max_new_tokens,
            num_beams=beams,
        )
        for own, folder in _questions(task or ["caption"], data or [])
    ]
    done = run_comparison(models, asked, out, options)
    if as_json:
        emit(done.to_json())
        return
    for sentence in done.sentences():
        typer.echo(sentence)
    typer.echo(f"report: {done.page}")


def _controls(names: list[str]) -> tuple[str, ...]:
    from sightline.evaluation.controls import checked_control
    from sightline.evaluation.probes.looking import LADDER

    known: dict[str, tuple[str, ...]] = {"none": (), "ladder": LADDER}
    found = [control for name in names for control in (known[name] if name in known else (checked_control(name),))]
    return tuple(dict.fromkeys(found))


def _questions(tasks: list[str], folders: list[str]) -> list[tuple[str, str]]:
    """Tasks with their data: one by one, or all with the only one."""
    if len(tasks) == len(folders) or not folders:
        return list(zip(tasks, folders, strict=False))
    if len(tasks) > 1 and len(folders) > 1:
        raise UsageError(
            f"{len(tasks)} --task and {len(folders)} --data do not go together.", "Give as many of each, or one of either."
        )
    return [(task, folder) for task in tasks for folder in folders]
