"""What a finished run ends with: its last and best validation, and the command to type next."""

import shlex
from pathlib import Path
from typing import Any

from sightline.assembly.config.locate import METRICS, check_metrics
from sightline.assembly.config.resolving import stage_plan
from sightline.assembly.config.schema import RunConfig
from sightline.assembly.config.sources import sources_of
from sightline.data.dataset import Dataset, open_dataset
from sightline.errors import SightlineError
from sightline.runtime.logs import readable_clock
from sightline.runtime.storage import read_json_lines
from sightline.training.console import described_values


def outcome_lines(config: RunConfig, run: Path, best_step: int | None) -> list[str]:
    """Returns the results of a finished run and the next command, as text.

    Args:
        config: of the run.
        run: its folder.
        best_step: step of the best checkpoint; None without a validation.
    """
    lines = read_json_lines(run / METRICS, check_metrics)
    steps = [line for line in lines if "loss" in line]
    checks = [line for line in lines if "validation_loss" in line]
    out = []
    if steps:
        seconds = sum(line.get("seconds", 0.0) for line in steps)
        out.append(f"trained: {steps[-1]['step']:,} steps in {readable_clock(seconds)}, loss {steps[-1]['loss']:.4f}")
    if checks:
        out.append(f"validation: {_described(checks[-1])}")
        best = next((line for line in checks if line["step"] == best_step), None)
        if best is not None and best is not checks[-1]:
            out.append(f"best validation: {_described(best)}")
    is_other = best_step is not None and bool(steps) and best_step != steps[-1]["step"]
    command = next_command(
        config, run, "best" if is_other and stage_plan(config, len(config.stages) - 1).train.best == "score" else ""
    )
    return [*out, f"next: {command}"]


def _described(line: dict[str, Any]) -> str:
    return f"{described_values(line)} (step {line['step']:,})"


def next_command(config: RunConfig, run: Path, checkpoint: str = "") -> str:
    """Returns the command that shows what a finished run can do, with and without the image where it sees one.

    Args:
        config: of the run.
        run: its folder.
        checkpoint: to use; "" for the last one.
    """
    data = stage_plan(config, len(config.stages) - 1).data
    which = ["--checkpoint", checkpoint] if checkpoint else []
    if not config.model.sees:
        return shlex.join(["sightline", "generate", str(run), "--prompt", "...", *which]).replace("'...'", '"..."')
    source = next(iter(sources_of(data)))
    split, kind = "val", "caption"
    try:
        dataset = open_dataset(source.path)
        split = _held_out(dataset, data.validation_split)
        kind = "retrieval" if config.model.dual is not None else _task(dataset, split)
    except SightlineError:
        pass  # the data has gone; the command names what it would be
    verb = ["report", str(run)] if kind == "caption" else ["eval", str(run), "--task", kind]
    features = ["--features", data.features] if data.features is not None else []
    return shlex.join(["sightline", *verb, "--data", source.path, "--split", split, *features, *which])


def _held_out(dataset: Dataset, validation: str | None) -> str:
    """Returns the split to evaluate on: one that was used for nothing, if there is one."""
    unused = [split for split in ("val", "test") if split in dataset.splits and split != validation]
    return unused[0] if unused else validation if validation in dataset.splits and validation else "train"


def _task(dataset: Dataset, split: str) -> str:
    record = next(iter(dataset.records(split)), None)
    return "vqa" if record is not None and not record.captions else "caption"
