"""`sightline data ...`: everything that makes, checks, shows or exports a dataset folder."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sightline.cli.app import MAX_PIXELS, Roots, emit
from sightline.errors import DataError

app = typer.Typer(name="data", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Make, check, show and export dataset folders.

    Examples:

      sightline data prepare photos --format flickr8k --out sets/flickr8k

      sightline data check sets/flickr8k --html check.html

      sightline data preview sets/flickr8k --run runs/flickr --out preview.html
    """


@app.command()
def prepare(
    source: Annotated[str, typer.Argument(help="File or folder to read; - for a generator.")],
    out: Annotated[Path, typer.Option(help="Dataset folder to write; must not exist.")],
    format_name: Annotated[
        str | None, typer.Option("--format", help="How to read it; without it the likely formats are named. See docs/data.md.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder, zip or tar that image names are relative to.")] = None,
    split: Annotated[list[str] | None, typer.Option(help="NAME=SHARE: hold out a share of the train records.")] = None,
    by: Annotated[Literal["id", "image"], typer.Option(help="What a split goes by; image keeps an image in one.")] = "id",
    group: Annotated[
        Literal["image", "none"] | None,
        typer.Option(
            help="image: one record for all captions of an image, as caption formats do by themselves; none: one per row."
        ),
    ] = None,
    sample: Annotated[int | None, typer.Option(help="Take this many records at random.", min=1)] = None,
    mapping: Annotated[list[str] | None, typer.Option("--map", help="FIELD=KEY: the source's key for a field.")] = None,
    subset: Annotated[str, typer.Option(help="hf: configuration of the data set.")] = "",
    revision: Annotated[str, typer.Option(help="hf: commit, tag or branch on the Hub.")] = "",
    text_only: Annotated[bool, typer.Option("--text-only", help="Leave the images out and keep the text.")] = False,
    without_images: Annotated[
        bool, typer.Option("--without-images", help="Keep the names of images and look for no files.")
    ] = False,
    workers: Annotated[int | None, typer.Option(help="Processes that decode; all cores by default.", min=0)] = None,
    seed: Annotated[int, typer.Option(help="Seed of splits, samples and generators.")] = 0,
    count: Annotated[int, typer.Option(help="Images that a generator makes.", min=1)] = 1000,
    level: Annotated[int, typer.Option(help="scenes: 1 one thing, 2 two with a relation, 3 many.", min=1, max=3)] = 1,
    size: Annotated[int, typer.Option(help="scenes: side of the images in pixels.")] = 64,
    questions: Annotated[bool, typer.Option(help="scenes: questions instead of captions.")] = False,
    novel: Annotated[bool, typer.Option(help="scenes: keep four pairs of color and shape for a split of that name.")] = False,
    characters: Annotated[int, typer.Option(help="text: maximum length of a piece of the file.", min=1)] = 256,
    max_skipped: Annotated[float, typer.Option(help="Share of records that may be skipped.", min=0, max=1)] = 0.01,
    max_pixels: Annotated[int | None, typer.Option(help=MAX_PIXELS, min=1, max=89_478_485)] = None,
    root: Roots = None,
    shards: Annotated[str | None, typer.Option(help="Write tar shards of this size, e.g. 500M, not image files.")] = None,
    connections: Annotated[int, typer.Option(help="urls: requests at a time.", min=1, max=1024)] = 64,
    per_host: Annotated[int, typer.Option(help="urls: requests at a time to one host.", min=1)] = 4,
    tries: Annotated[int, typer.Option(help="urls: requests for one URL where the trouble may pass.", min=1)] = 4,
    url_seconds: Annotated[float, typer.Option(help="urls: time for one request and its redirects.")] = 30.0,
    allow_network: Annotated[list[str] | None, typer.Option(help="urls: CIDR of a private network to reach.")] = None,
    licence: Annotated[str, typer.Option("--licence", "--license", help="Licence of the data, for dataset.json.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Make a dataset folder from any source; every image is decoded once, and every record is accounted for.

    Examples:

      sightline data prepare photos --format flickr8k --split tune=0.1 --by image --out sets/flickr8k

      sightline data prepare captions_val2017.json --format coco --images val2017 --out sets/coco

      sightline data prepare table.csv --format csv --map image=file --map caption=title --images pictures --out sets/mine

      sightline data prepare - --format scenes --count 4000 --out sets/scenes
    """
    from sightline.data.download import DownloadOptions, parse_networks
    from sightline.data.images.opener import DEFAULT_LIMITS, ImageLimits
    from sightline.data.prepare.run import PrepareOptions
    from sightline.data.prepare.run import prepare as run
    from sightline.data.prepare.shards import parse_size
    from sightline.data.prepare.splitting import SplitRule, parse_shares
    from sightline.data.readers import SourceOptions
    from sightline.data.readers.base import parse_mapping
    from sightline.runtime.hub import find_local
    from sightline.runtime.workers import usable_cores

    if format_name is None:
        from sightline.data.readers.guess import format_needed

        raise format_needed(Path(source))
    options = PrepareOptions(
        out=out,
        source=SourceOptions(
            images=images,
            mapping=parse_mapping(mapping or ()),
            subset=subset,
            revision=revision,
            text_only=text_only,
            without_images=without_images,
            seed=seed,
            count=count,
            level=level,
            size=size,
            questions=questions,
            novel=novel,
            characters=characters,
        ),
        split=SplitRule(parse_shares(split or ()), by, seed),
        sample=sample,
        group=group,
        workers=usable_cores() if workers is None else workers,
        max_skipped=max_skipped,
        shards=None if shards is None else parse_size(shards),
        licence=licence,
        limits=DEFAULT_LIMITS if max_pixels is None else ImageLimits(max_pixels=max_pixels),
        download=DownloadOptions(connections, per_host, tries, url_seconds, allowed=parse_networks(allow_network or ())),
    )
    if format_name == "hf":
        find_local(source, "data set", DataError)  # before Path() makes a Hub id of "./name"
    summary = run(Path(source), format_name, options)
    names = ("input", "ok", "skipped", "splits", "images", "ignored", "ignored_names", "notes", "fingerprint")
    result = {name: summary[name] for name in names}
    result["out"] = str(out)
    if as_json:
        emit(result)
    else:
        _print_prepared(result)


def _print_prepared(result: dict[str, Any]) -> None:
    lines = [f"{result['ok']} of {result['input']} records in {result['out']}, {result['images']} images"]
    for title, counts in (("splits", "splits"), ("skipped", "skipped"), ("not used", "ignored"), ("repaired", "notes")):
        if result[counts]:
            lines.append(f"  {title}: " + ", ".join(f"{name} {count}" for name, count in result[counts].items()))
    for reason, names in result["ignored_names"].items():
        more = result["ignored"][reason] - len(names)
        lines.append(f"  {reason}: " + ", ".join(names) + (f" and {more} more" if more else ""))
    if result["skipped"]:
        lines.append(f"  each skipped record is a line of {Path(result['out']) / 'skipped.jsonl'}")
    sys.stdout.write("\n".join(lines) + "\n")
