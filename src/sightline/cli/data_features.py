"""`sightline data features`: a frozen encoder's outputs computed once, or a table of features imported."""

import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sightline.cli.app import Plugins, Roots, emit, load_plugins
from sightline.cli.data import app
from sightline.errors import UsageError


@app.command()
def features(
    data_and_settings: Annotated[
        list[str], typer.Argument(metavar="DIR... [KEY=VALUE]...", help="Dataset folders, and settings that differ.")
    ],
    out: Annotated[Path, typer.Option(help="The feature store to write.")],
    config: Annotated[Path | None, typer.Option(help="YAML file of a run: its encoder is used.")] = None,
    recipe: Annotated[str | None, typer.Option(help="A recipe: its encoder is used.")] = None,
    run: Annotated[str | None, typer.Option(help="A run, RUN@STAGE or model folder: its encoder is used.")] = None,
    split: Annotated[list[str] | None, typer.Option(help="Splits to encode; all by default.")] = None,
    dtype: Annotated[Literal["bf16", "fp16", "fp32", "int8"], typer.Option(help="How numbers are stored.")] = "fp16",
    batch_size: Annotated[int, typer.Option(min=1, help="Crops per batch of the encoder.")] = 32,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes that decode; by device.")] = None,
    max_skipped: Annotated[float, typer.Option(min=0, max=1, help="Share of images that may be skipped.")] = 0.01,
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"] | None, typer.Option(help="Where the encoder runs.")] = None,
    external: Annotated[Path | None, typer.Option(help="Import this table (.npz, .npy, .h5) instead of encoding.")] = None,
    names: Annotated[str | None, typer.Option(help="external: key of the names; for .npy a file of names.")] = None,
    values: Annotated[str | None, typer.Option(help="external: key of the features.")] = None,
    scale: Annotated[str | None, typer.Option(help="external: key of a factor, one for all or one per row.")] = None,
    power: Annotated[float, typer.Option(help="external: raise values to this power, after the factor.")] = 1.0,
    root: Roots = None,
    plugin: Plugins = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Encode the images of data sets once, for training and evaluation to read (data.features=OUT).

      sightline data features sets/flickr8k --recipe flickr8k_mobilenet_v2 model.vision.path=models/mobilenet --out sets/features

      sightline data features sets/pairs --external table.npz --names names --values feat --out sets/features

    The size is stated first. A work that was stopped goes on where it was; the same command on a finished store does nothing.
    """
    load_plugins(plugin)
    from sightline.data.dataset import open_dataset

    folders = [word for word in data_and_settings if "=" not in word or Path(word).is_dir()]
    settings = [word for word in data_and_settings if word not in folders]
    if not folders:
        raise UsageError("data features needs a dataset folder.", "See sightline data features --help.")
    datasets = tuple(open_dataset(folder) for folder in folders)
    begin = time.perf_counter()
    if external is not None:
        if settings or config or recipe or run:
            raise UsageError("--external imports a table: --config, --recipe, --run and settings have no part in it.")
        from sightline.data.features.tables import TableKeys, import_table

        summary = import_table(
            datasets, tuple(split or ()), external, TableKeys(names, values, scale, power), out, dtype, max_skipped
        )
    else:
        if names or values or scale or power != 1.0:
            raise UsageError("--names, --values, --scale and --power describe a table.", "Name it with --external FILE.")
        from sightline.assembly.encode.features import EncodingRequest, encode_dataset
        from sightline.runtime.workers import usable_cores

        eye, runtime = _encoder(config, recipe, run, settings, device)
        default_workers = 1 if runtime.device == "cpu" else usable_cores()
        request = EncodingRequest(
            datasets=datasets,
            out=out,
            splits=tuple(split or ()),
            dtype=dtype,
            batch_size=batch_size,
            workers=default_workers if workers is None else workers,
            max_skipped=max_skipped,
        )
        summary = encode_dataset(eye, request, runtime)
    names_told = ("kind", "key", "dtype", "shape", "input", "ok", "skipped", "rows", "bytes")
    result = {name: summary[name] for name in names_told} | {"seconds": round(time.perf_counter() - begin, 2), "out": str(out)}
    if as_json:
        emit(result)
    else:
        _print_stored(result)


def _encoder(config: Path | None, recipe: str | None, run: str | None, settings: list[str], device: str | None) -> Any:
    """The encoder that was asked for, and where it runs."""
    from sightline.assembly.config.resolving import resolve_config
    from sightline.assembly.encode.features import feature_encoder_of_config, feature_encoder_of_run
    from sightline.runtime.device import choose_runtime

    if run is not None:
        if config or recipe or settings:
            raise UsageError("--run takes the encoder of a run as it is.", "Leave --config, --recipe and settings out.")
        return feature_encoder_of_run(run), choose_runtime(device or "auto", "auto", None)
    if config is None and recipe is None:
        raise UsageError("data features needs an encoder.", "Give --config FILE, --recipe NAME or --run RUN, or --external FILE.")
    base = None
    if recipe is not None:
        from sightline.recipes import recipe_by_name

        base = recipe_by_name(recipe)
    resolved = resolve_config(base, config, settings)
    wanted = resolved.runtime
    runtime = choose_runtime(device or wanted.device, wanted.dtype, wanted.threads, wanted.deterministic)
    return feature_encoder_of_config(resolved), runtime


def _print_stored(result: dict[str, Any]) -> None:
    from sightline.data.features.store import format_bytes

    patches, width = result["shape"]
    lines = [
        f"{result['ok']} of {result['input']} images in {result['out']}: {result['rows']} x {patches} tokens x {width} in "
        f"{result['dtype']}, {format_bytes(result['bytes'])}, {result['seconds']:g} s"
    ]
    if result["skipped"]:
        lines.append("  skipped: " + ", ".join(f"{name} {count}" for name, count in result["skipped"].items()))
        lines.append(f"  each skipped image is a line of {Path(result['out']) / 'skipped.jsonl'}")
    lines.append(f"  use it: data.features={result['out']}")
    sys.stdout.write("\n".join(lines) + "\n")
