"""The report of a run: what it learned over its steps, what it says of held-out pictures, and what it says without seeing them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sightline.assembly.evaluate import Evaluated, Request, evaluate
from sightline.assembly.locate import run_of
from sightline.assembly.train import METRICS
from sightline.data.dataset import Dataset, open_dataset
from sightline.evaluation.controls import Control
from sightline.reporting.run_report import Curve, Panel, RunReport, write_run_report
from sightline.runtime import storage

SEEN = "with the picture"
SHOWN = 12  # pictures of each kind


def report_run(request: Request, controls: Sequence[Control], out: Path, title: str | None = None) -> dict[str, Evaluated]:
    """Evaluates a run with its controls, taking what is already evaluated, and writes the page.

    Args:
        request: the evaluation; its own control is left aside.
        controls: what stands beside it.
        out: the page.
        title: of the page; the name of the run's folder by default.

    Returns:
        What was found, by condition.

    Raises:
        UsageError: see `evaluate`; or the model is no run of ours.
    """
    seen = evaluate(replace(request, control=None))
    hidden: dict[str, Evaluated] = {control: evaluate(replace(request, control=control)) for control in controls}
    run = run_of(request.model)
    write_run_report(out, report_of(title or run.name, run, open_dataset(request.data), seen, hidden))
    return {SEEN: seen, **hidden}


def report_of(title: str, run: Path, dataset: Dataset, seen: Evaluated, controls: dict[str, Evaluated]) -> RunReport:
    """Gathers what a report of one run shows."""
    lines = storage.read_json_lines(run / METRICS)
    steps = [line for line in lines if "loss" in line]
    checks = [line for line in lines if "validation_loss" in line]
    said = {prediction.record_id: prediction.text for prediction in seen.predicted.predictions}
    hidden = {name: {p.record_id: p.text for p in done.predicted.predictions} for name, done in controls.items()}
    asked = [record for record in seen.records if record.id in said]
    by_item = dict(zip([record.id for record in asked], seen.scores["exact"].items, strict=True))
    quality = dict(zip([record.id for record in asked], seen.scores["cider_d"].items, strict=True))
    panels = []
    for record in sorted(asked, key=lambda record: -quality[record.id]):
        panels.append(
            Panel(
                record_id=record.id,
                image=dataset.image_bytes(record, 0),
                truths=record.captions[:3],
                said=said[record.id],
                others={name: texts.get(record.id, "") for name, texts in hidden.items()},
                right=bool(by_item[record.id]),
                value=quality[record.id],
            )
        )
    scores = {SEEN: seen.scores} | {name: done.scores for name, done in controls.items()}
    return RunReport(
        title=title,
        curves=(
            Curve("training loss", [line["step"] for line in steps], [line["loss"] for line in steps]),
            Curve("validation loss", [line["step"] for line in checks], [line["validation_loss"] for line in checks]),
        ),
        scores={name: {key: score.to_json() for key, score in found.items()} for name, found in scores.items()},
        right=[panel for panel in panels if panel.right][:SHOWN] or panels[:SHOWN],
        wrong=[panel for panel in reversed(panels) if not panel.right][:SHOWN],
        facts={
            "run": str(run),
            "data": repr(dataset),
            "split": seen.request.split,
            "records": str(len(asked)),
            "left out": ", ".join(f"{reason} {count}" for reason, count in seen.predicted.skipped.items()) or "none",
        },
    )
