"""`sightline eval`: predictions and scores of a model on a split, with or without a control."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sightline.cli.app import Plugins, Roots, app, emit, load_plugins
from sightline.errors import UsageError

if TYPE_CHECKING:
    from sightline.evaluation.spec import EvalSpec

PARAMETERS = {"num_beams": "beams"}  # fields of an evaluation whose option has another name


@app.command(name="eval")
def evaluate(
    context: typer.Context,
    run: Annotated[
        str | None,
        typer.Argument(help="A run, RUN@STAGE, a model folder, or a file of vectors; a --baseline with --features needs none."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="A task such as caption, vqa, retrieval, or a plug-in's MODULE:Class; see docs/evaluation.md."),
    ] = None,
    data: Annotated[str | None, typer.Option(help="A dataset folder.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="A YAML file with the settings of the evaluation; options that are given override it.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the dataset folder.")] = "val",
    control: Annotated[
        str | None,
        typer.Option(
            metavar="CONTROL",
            help="shuffled: another record's images; blind: a uniform image of the encoder's mean colour; grey: of middle grey; "
            "text: no image tokens; blur:SIGMA: the image blurred, SIGMA in pixels of a 336-pixel image.",
        ),
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="last, best, the name of a stage, or a step.")] = "last",
    fallback: Annotated[
        bool, typer.Option("--fallback", help="If the last checkpoint is damaged, use the newest whole one.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows per batch.")] = 16,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Evaluate only this many records, drawn at random with a fixed seed.")
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="Text beside the image, or a template with {question}; by default the task's, or that of training."),
    ] = None,
    baseline: Annotated[
        Literal["neighbours"] | None,
        typer.Option(help="neighbours: take the answers of the nearest training images, by the features of RUN or --features."),
    ] = None,
    neighbours: Annotated[
        int, typer.Option(min=1, help="Training images that agree on an answer; 1 takes that of the nearest.")
    ] = 30,
    neighbours_from: Annotated[
        str, typer.Option(metavar="DATA[:SPLIT]", help="Where the neighbours come from; or a split of the same data.")
    ] = "train",
    likelihood: Annotated[
        Literal["gain", "plain", "yes_no"] | None,
        typer.Option(
            help="Score the options of choice and yes_no instead of generating an answer, and the texts of composition and "
            "retrieval. gain: what the image adds to the log-probability of a text; plain: log-probability per byte; yes_no: ask "
            "about each text."
        ),
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(min=0.0, help="Weight of the log-probability without image in gain; chosen by default.")
    ] = None,
    alpha_from: Annotated[str, typer.Option(help="Split that alpha is chosen on.")] = "train",
    images: Annotated[int | None, typer.Option(min=1, help="retrieval: only this many images, drawn with --gallery-seed.")] = None,
    captions: Annotated[
        int | None,
        typer.Option(min=1, max=5, help="retrieval: this many captions of each image, drawn as well; the first five by default."),
    ] = None,
    gallery_seed: Annotated[int, typer.Option(min=0, help="retrieval: seed for choosing images and captions.")] = 0,
    scoring: Annotated[
        Literal["weighted", "mean", "published"] | None,
        typer.Option(help="ComAlign: weights chosen in training (default), the mean of the levels, or the authors' rule."),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of generated tokens; the task's by default.")
    ] = None,
    beams: Annotated[int, typer.Option(min=1, help="Beams; 1 is greedy.")] = 1,
    features: Annotated[str | None, typer.Option(help="A feature store to read instead of the images.")] = None,
    noise: Annotated[
        float | None,
        typer.Option(min=0.0, help="Add Gaussian noise to the visual features, of this many of their standard deviations."),
    ] = None,
    words: Annotated[
        int | None, typer.Option(min=1, help="Connector align: mix only this many words, those that it uses most on --words-from.")
    ] = None,
    words_from: Annotated[str, typer.Option(help="Split that the most used words are counted on.")] = "train",
    shots: Annotated[int, typer.Option(min=0, max=64, help="Examples before each question, with images and answers.")] = 0,
    shots_from: Annotated[
        str, typer.Option(metavar="DATA[:SPLIT]", help="Where the examples come from; or a split of the same data.")
    ] = "train",
    shots_seed: Annotated[int, typer.Option(min=0, help="Seed for choosing the examples.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder of the results; inside the run by default.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    resamples: Annotated[int, typer.Option(min=1, help="Bootstrap resamples of the intervals.")] = 1000,
    root: Roots = None,
    plugin: Plugins = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Evaluate a model on held-out records.

    Writes predictions.jsonl, scores.json and items.json (the scores of each record). An evaluation that was stopped continues
    with the same command. Compare with --control blind and --control shuffled before you believe a score.

      sightline eval runs/flickr --task caption --data flickr8k --split val --control blind

    torchrun shares the work among processes; the files are those of one process, byte for byte:

      torchrun --nproc_per_node 8 -m sightline eval runs/flickr --config eval.yaml
    """
    load_plugins(plugin)
    from sightline.assembly.evaluate.evaluate import evaluate as run_evaluation
    from sightline.assembly.evaluate.vectors import evaluate_vectors, is_vectors
    from sightline.evaluation.controls import checked_control
    from sightline.runtime.process_group import process_group, process_number
    from sightline.training.ranks import exchange_errors_named

    values = dict(
        task=task,
        data=data,
        split=split,
        control=None if control is None else checked_control(control),
        batch_size=batch_size,
        limit=limit,
        prompt=prompt,
        baseline=baseline,
        neighbours=neighbours,
        neighbours_from=neighbours_from,
        likelihood=likelihood,
        alpha=alpha,
        alpha_from=alpha_from,
        images=images,
        captions=captions,
        gallery_seed=gallery_seed,
        scoring=scoring,
        max_new_tokens=max_new_tokens,
        num_beams=beams,
        features=features,
        noise=noise,
        words=words,
        words_from=words_from,
        shots=shots,
        shots_from=shots_from,
        shots_seed=shots_seed,
        resamples=resamples,
    )
    spec = _spec(context, config, values)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    with exchange_errors_named(world), process_group():
        if run is not None and is_vectors(run):
            done = evaluate_vectors(spec, run, out)
        else:
            done = run_evaluation(spec, run, checkpoint, out, device, threads, fallback)
        if process_number() > 0:
            return
    if as_json:
        emit(done.to_json())
        return
    from rich.console import Console
    from rich.table import Table

    typer.echo(f"{done.verdict}")
    table = Table(title=f"{spec.task} on {spec.data} ({spec.split}{', ' + spec.control if spec.control else ''})")
    for column in ("score", "value", "95 % interval", "n", "unparsed"):
        table.add_column(column, justify="left" if column == "score" else "right")
    for name, score in done.scores.items():
        unparsed = "" if score.unparsed is None else f"{score.unparsed:.1%}"
        table.add_row(name, f"{score.value:.4f}", f"{score.low:.4f} .. {score.high:.4f}", str(score.n), unparsed)
    Console().print(table)
    typer.echo(f"prompt: {done.prompt or 'none'}")
    if done.likelihood is not None:
        typer.echo(f"likelihood: {', '.join(f'{name} {value}' for name, value in done.likelihood.to_json().items())}")
    if done.checkpoint is not None:
        typer.echo(f"checkpoint: step {done.checkpoint.saved.step} ({done.checkpoint.reason})")
    typer.echo(f"{done.folder}")


def _spec(context: typer.Context, config: Path | None, values: dict[str, Any]) -> "EvalSpec":
    """Returns the evaluation of the options, or that of a file with the options that were given."""
    from sightline.config import read_yaml, validate_tree
    from sightline.evaluation.spec import EvalSpec

    if config is None:
        missing = [f"--{name}" for name in ("task", "data") if values[name] is None]
        if missing:
            raise UsageError(f"eval needs {' and '.join(missing)}, or --config.", "See sightline eval --help.")
        return EvalSpec(**values)
    tree = read_yaml(config)
    for name, value in values.items():
        option = PARAMETERS.get(name, name)
        source = context.get_parameter_source(option)
        if source is not None and source.name == "COMMANDLINE":
            tree.data[name], tree.origins[(name,)] = value, f"option --{option.replace('_', '-')}"
    return validate_tree(EvalSpec, tree)
