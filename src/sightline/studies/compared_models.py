"""What a comparison shows of the models themselves: curves of training, costs, and the settings in which they differ."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from sightline.assembly.config.locate import CONFIG, METRICS, CheckpointChoice
from sightline.assembly.config.resolving import stored_config
from sightline.assembly.model.summary import EXAMPLE, folder_cost, short_flops
from sightline.errors import SightlineError
from sightline.reporting.comparison import Grid
from sightline.reporting.html import Column
from sightline.reporting.plots import LineSeries
from sightline.runtime import storage
from sightline.runtime.logs import logger

CURVES = {
    "training loss": "loss",
    "validation loss": "validation_loss",
    "learning rate, largest of all parts": "lr",
    "gradient norm": "grad_norm",
}


class ComparedModel(Protocol):
    """A model of a comparison: its name, its folder, and its run and checkpoint where it has them."""

    @property
    def name(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def run(self) -> Path | None: ...
    @property
    def choice(self) -> CheckpointChoice | None: ...


def _log(model: ComparedModel) -> list[Mapping[str, Any]]:
    """Lines of the training log up to the checkpoint; none of a model folder."""
    if model.run is None or model.choice is None or not (model.run / METRICS).exists():
        return []
    return [line for line in storage.read_json_lines(model.run / METRICS) if line.get("step", 0) <= model.choice.saved.step]


def curves_of(models: Sequence[ComparedModel]) -> dict[str, list[LineSeries]]:
    """Returns the curves of training by title; those that no model has are left out."""
    logs = {model.name: _log(model) for model in models}
    out: dict[str, list[LineSeries]] = {}
    for title, key in CURVES.items():
        for place, (name, lines) in enumerate(logs.items()):
            points = [(line["step"], _number(line[key])) for line in lines if key in line]
            if points:
                steps, values = zip(*points, strict=True)
                out.setdefault(title, []).append(LineSeries(name, steps, values, colour=place, is_marked=len(points) < 30))
    return out


def _number(value: Any) -> float:
    return max(map(float, value.values()), default=float("nan")) if isinstance(value, Mapping) else float(value)


def cost_grid(models: Sequence[ComparedModel], measured: Mapping[str, Mapping[str, float]]) -> Grid:
    """Returns parameters, operations, tokens and seconds of each model.

    Args:
        models: in order.
        measured: `answer_tokens` and `seconds_per_query` by model, where they are known.
    """
    content = {}
    for model in models:
        found: dict[str, Any] = dict(measured.get(model.name, {}))
        try:
            found |= folder_cost(model.source).to_json()
        except SightlineError as error:
            logger.info("the size of %s is not known: %s", model.name, error)
        lines = _log(model)
        if lines:
            for key in ("seconds", "tokens", "samples"):
                found[f"training_{key}"] = sum(line.get(key, 0) for line in lines)
        content[model.name] = found
    heads = [Column("model"), *(Column(title, "right") for title, _, _ in _COSTS)]
    rows = [[name, *(_shown(cost, path, form) for _, path, form in _COSTS)] for name, cost in content.items()]
    width, height = EXAMPLE
    note = (
        f"An image is one of {width} x {height} pixels. Operations are those of encoder and connector. "
        "Seconds are of the machine that trained or evaluated; empty where nothing was measured."
    )
    return Grid("cost", "Cost", heads, rows, note, content)


_COSTS = (
    ("parameters", ("parameters", "all"), "count"),
    ("vision", ("parameters", "vision"), "count"),
    ("connector", ("parameters", "connector"), "count"),
    ("language", ("parameters", "language"), "count"),
    ("operations of an image", ("image", "flops"), "flops"),
    ("visual tokens of an image", ("image", "tokens"), "count"),
    ("training, s", ("training_seconds",), "short"),
    ("training tokens", ("training_tokens",), "count"),
    ("tokens of an answer", ("answer_tokens",), "short"),
    ("evaluation of a query, s", ("seconds_per_query",), "short"),
)


def _shown(cost: Mapping[str, Any], path: Sequence[str], form: str) -> str:
    value: Any = cost
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    if value is None:
        return ""
    return short_flops(value) if form == "flops" else f"{value:,}" if form == "count" else f"{value:,.3g}"


def settings_grid(models: Sequence[ComparedModel]) -> Grid | None:
    """Returns the settings in which the runs differ; None for fewer than two runs."""
    settings = {}
    for model in models:
        if model.run is not None and (model.run / CONFIG).exists():
            config = stored_config(model.run)
            settings[model.name] = dict(_flat(json.loads(config.model_dump_json()), ""))
    if len(settings) < 2:
        return None
    keys = list(dict.fromkeys(key for own in settings.values() for key in own))
    every = {key: {name: own.get(key) for name, own in settings.items()} for key in keys}
    content = {key: values for key, values in every.items() if len({json.dumps(value) for value in values.values()}) > 1}
    rows = [[key, *("" if value is None else json.dumps(value) for value in values.values())] for key, values in content.items()]
    note = (
        "Settings in which the runs differ; empty where a run has no such setting." if rows else "The runs have the same settings."
    )
    return Grid("settings", "Settings", [Column("setting"), *map(Column, settings)], rows, note, content)


def _flat(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Values by dotted key; a stage is named, lists of plain values stay whole."""
    if isinstance(value, dict) and value:
        for name, part in value.items():
            yield from _flat(part, f"{key}.{name}" if key else name)
    elif isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        for number, part in enumerate(value):
            yield from _flat(part, f"{key}.{part.get('name', number)}")
    else:
        yield key, value
