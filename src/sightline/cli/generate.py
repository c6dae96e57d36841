"""`sightline generate`: one answer about one or several images."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from sightline.cli.app import MAX_PIXELS, Plugins, Roots, app, emit, load_plugins


@app.command()
def generate(
    run: Annotated[str, typer.Argument(help="A run, RUN@STAGE, or a model folder.")],
    image: Annotated[list[Path] | None, typer.Option(help="An image; may be given several times.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Text beside the images; the one of training by default.")] = None,
    checkpoint: Annotated[str, typer.Option(help="last, best, the name of a stage, or a step.")] = "last",
    fallback: Annotated[
        bool, typer.Option("--fallback", help="If the last checkpoint is damaged, use the newest whole one.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum number of generated tokens.")] = 64,
    beams: Annotated[int, typer.Option(min=1, help="Beams; 1 is greedy.")] = 1,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy decoding; above 0 samples.")] = 0.0,
    top_p: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Sample among the likeliest tokens of this total probability.")
    ] = 1.0,
    repetition_penalty: Annotated[float, typer.Option(min=1.0, help="Above 1 makes repeating less likely.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of sampling.")] = 0,
    max_pixels: Annotated[int | None, typer.Option(help=MAX_PIXELS, min=1, max=89_478_485)] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    root: Roots = None,
    plugin: Plugins = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Generate a caption of an image, or an answer about it.

    sightline generate runs/flickr --image photo.jpg
    """
    load_plugins(plugin)
    import torch

    from sightline.assembly.evaluate.chat import ChatModel
    from sightline.data.images.opener import DEFAULT_LIMITS, ImageLimits
    from sightline.generation.decode import DecodingConfig

    speaker = ChatModel.open(run, checkpoint, device, fallback=fallback)
    torch.manual_seed(seed)
    decoding = DecodingConfig(
        max_new_tokens=max_new_tokens,
        num_beams=beams,
        do_sample=temperature > 0,
        temperature=temperature or 1.0,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
    )
    images = image or []
    limits = DEFAULT_LIMITS if max_pixels is None else ImageLimits(max_pixels=max_pixels)
    message = speaker.opening(len(images), prompt)

    def show(piece: str) -> None:
        sys.stdout.write(piece)
        sys.stdout.flush()

    streams = not as_json and beams == 1
    answer = speaker.answer((message,) if message.content else (), images, decoding, show if streams else None, limits)
    if as_json:
        used = speaker.model.checkpoint
        emit(answer.to_json() | ({"checkpoint": used.to_json()} if used is not None else {}))
    elif streams:
        typer.echo("")
    else:
        typer.echo(answer.text)
