"""A short training that a tracker follows, and what it should have stored."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sightline.assembly.config.resolving import resolve_config
from sightline.assembly.train.run import train
from sightline.cli import main
from sightline.recipes import recipe_by_name

SETTINGS = (
    *("train.steps=6", "train.warmup=2", "train.evaluate_every=3", "train.evaluate_samples=4", "train.checkpoint_every=0"),
    "runtime.threads=1",
)


@dataclass(frozen=True)
class Followed:
    """A finished run.

    Attributes:
        run: its folder.
        steps, validations: lines of `metrics.jsonl`.
        texts: by step, the texts of the first two samples by the id of their records.
        truths: a caption of each record.
    """

    run: Path
    steps: list[dict[str, Any]]
    validations: list[dict[str, Any]]
    texts: dict[int, dict[str, str]]
    truths: dict[str, str]


def followed(folder: Path, tracker: str) -> Followed:
    """Trains six steps on drawn scenes, with a validation after three and six, followed by a tracker."""
    data, run = folder / "scenes", folder / "run"
    with pytest.raises(SystemExit, match="0"):
        main(["data", "prepare", "-", "--format", "scenes", "--count", "40", "--out", str(data)])
    arguments = [*SETTINGS, f"data.path={data}", f"tracking.trackers=[{tracker}]", "tracking.project=scenes"]
    train(resolve_config(recipe_by_name("scenes_tiny"), None, arguments), run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    validations = [line for line in lines if line.get("event") == "evaluate"]
    records = [json.loads(line) for line in (data / "records.jsonl").read_text("utf-8").splitlines()]
    return Followed(
        run,
        [line for line in lines if "loss" in line],
        validations,
        {line["step"]: {made["id"]: made["text"] for made in line["generated"][:2]} for line in validations},
        {record["id"]: record["captions"][0] for record in records},
    )


def numbers(found: Followed) -> dict[str, dict[int, float]]:
    """What every tracker has: losses, learning rates and the norm of the gradient, by name and step."""
    out = {name: {line["step"]: line[name] for line in found.steps} for name in ("loss", "grad_norm")}
    for part in ("vision", "connector", "language"):
        out[f"lr/{part}"] = {line["step"]: line["lr"][part] for line in found.steps}
    out["validation_loss"] = {line["step"]: line["validation_loss"] for line in found.validations}
    assert [len(values) for values in out.values()] == [6, 6, 6, 6, 6, 2]
    return out
