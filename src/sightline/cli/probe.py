"""`sightline probe`: is the model looking, and what does it make of what it sees?"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sightline.cli.app import Plugins, Roots, app, emit, load_plugins


@app.command()
def probe(
    run: Annotated[str, typer.Argument(help="A run, RUN@STAGE, or a model folder.")],
    data: Annotated[str, typer.Option(help="A dataset folder.")],
    what: Annotated[
        str,
        typer.Option(
            help="looking: the score under a ladder of blurs and without the image, and whether the model looks; "
            "aligned: whether visual tokens match the texts of their images, for example after stage 1; "
            "words: the words that each patch becomes a mixture of (connector align); "
            "experts: the load of each expert of a mixture-of-experts decoder, by image and text tokens; "
            "noise: how far noise on the features moves the connector's outputs; "
            "gain: how much the image raises each token of the texts, with their own and with exchanged images."
        ),
    ],
    split: Annotated[str, typer.Option(help="Split of the dataset folder.")] = "val",
    count: Annotated[int, typer.Option(min=1, help="Look at this many records, drawn at random with a fixed seed.")] = 200,
    shown: Annotated[int, typer.Option(min=0, help="Records that the page shows one by one.")] = 12,
    sigma: Annotated[
        list[float] | None,
        typer.Option(min=0.0, help="Size of the noise in standard deviations of the features; may be given several times."),
    ] = None,
    task: Annotated[str, typer.Option(help="looking: the task, as in eval.")] = "caption",
    prompt: Annotated[str | None, typer.Option(help="looking: text beside the image; see eval.")] = None,
    likelihood: Annotated[
        Literal["gain", "plain", "yes_no"] | None,
        typer.Option(help="looking: score candidates by likelihood instead of generating an answer; see eval."),
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(min=0.0, help="looking: weight of the log-probability without image in gain; chosen by default.")
    ] = None,
    floor: Annotated[
        str | None, typer.Option(metavar="RUN", help="looking: a run that was trained with shuffled images, shown beside it.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="looking: rows per batch.")] = 16,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="looking: maximum number of generated tokens; the task's by default.")
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="last, best, the name of a stage, or a step.")] = "last",
    features: Annotated[str | None, typer.Option(help="A feature store, instead of the images.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write an HTML page here.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    root: Roots = None,
    plugin: Plugins = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Inspect a model: whether it looks at the image, what its connector and its experts do, which words the image explains.

    sightline probe runs/cal --data flickr8k --what looking --task caption --out looking.html

    sightline probe runs/cal --data flickr8k --what gain --out gain.html

    sightline probe runs/align --data flickr8k --what words --out words.html

    sightline probe runs/align --data flickr8k --what noise --sigma 1 --sigma 3
    """
    load_plugins(plugin)
    from sightline.assembly.evaluate.probe import ProbeRequest, write_page
    from sightline.assembly.evaluate.probe import probe as run_probe
    from sightline.evaluation.probes.noise import SIGMAS

    request = ProbeRequest(
        model=run,
        data=data,
        what=what,
        split=split,
        checkpoint=checkpoint,
        count=count,
        shown=shown,
        sigmas=tuple(sigma or SIGMAS),
        features=features,
        device=device,
        threads=threads,
        task=task,
        prompt=prompt,
        likelihood=likelihood,
        alpha=alpha,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        floor=floor,
    )
    found = run_probe(request)
    if out is not None:
        write_page(found, request, out)
    if as_json:
        emit(found.to_json() | {"split": split, "data": data})
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{what} on {data} ({split})", show_header=False)
    for name, value in found.figures().items():
        table.add_row(name, value)
    Console().print(table)
    if out is not None:
        typer.echo(f"{out}")
