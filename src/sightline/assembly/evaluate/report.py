"""The report of a run: what it learned over its steps, what it says of held-out pictures, and what it says without seeing them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sightline.assembly.config.locate import METRICS, run_of
from sightline.assembly.evaluate.evaluate import Evaluation, EvaluationRequest, evaluate
from sightline.data.dataset import Dataset, open_dataset
from sightline.errors import SkipLimitError
from sightline.evaluation.controls import Control
from sightline.evaluation.predict import Predicted
from sightline.evaluation.tasks import TASKS
from sightline.reporting.run_report import Curve, Panel, RunReport, write_run_report
from sightline.runtime import storage
from sightline.runtime.logs import logger

SEEN = "with the picture"
NOT_COMPARED = "not_compared"
SHOWN = 12  # pictures of each kind


def report_run(
    request: EvaluationRequest, controls: Sequence[Control], out: Path, title: str | None = None
) -> dict[str, Evaluation]:
    """Evaluates a run with its controls, taking what is already evaluated, and writes the page.

    Args:
        request: the evaluation; its own control is left aside.
        controls: what stands beside it.
        out: the page.
        title: of the page; the name of the run's folder by default.

    Returns:
        What was found, by condition, on the records that were answered under all.

    Raises:
        UsageError: see `evaluate`; or the model is no run of ours.
        BudgetError: no record was answered under all conditions.
    """
    asked: dict[str, Evaluation] = {SEEN: evaluate(replace(request, control=None))}
    asked |= {control: evaluate(replace(request, control=control)) for control in controls}
    found = on_common_records(asked)
    hidden: dict[str, Evaluation] = {control: found[control] for control in controls}
    run = run_of(request.model)
    write_run_report(out, report_of(title or run.name, run, open_dataset(request.data), found[SEEN], hidden))
    return found


def on_common_records(found: Mapping[str, Evaluation]) -> dict[str, Evaluation]:
    """The same evaluations, scored on the records that all of them answered, so that their scores can be compared.

    A record that another condition has no answer for (its picture cannot be exchanged, the one that it got is broken) is counted as
    skipped, under `not_compared`. What the folders of the evaluations hold stays as it is.

    Raises:
        BudgetError: no record was answered under all conditions.
    """
    answered = {name: {prediction.record_id for prediction in done.predicted.predictions} for name, done in found.items()}
    common = set.intersection(*answered.values())
    if not common:
        raise SkipLimitError(f"no record was answered under all of: {', '.join(found)}.", "Evaluate more records.")
    return {name: done if answered[name] == common else _only(done, common) for name, done in found.items()}


def _only(done: Evaluation, common: set[str]) -> Evaluation:
    predictions = [prediction for prediction in done.predicted.predictions if prediction.record_id in common]
    count = len(done.predicted.predictions) - len(predictions)
    logger.warning("%s: %d records have no answer to compare with and are left out", done.request.control or SEEN, count)
    predicted = Predicted(predictions, done.predicted.skipped | {NOT_COMPARED: count})
    scores = TASKS[done.request.task](done.request.resamples).score(done.records, predictions)
    return replace(done, predicted=predicted, scores=scores)


def report_of(title: str, run: Path, dataset: Dataset, seen: Evaluation, controls: dict[str, Evaluation]) -> RunReport:
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
