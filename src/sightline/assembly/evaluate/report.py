"""The report of a run: what it learned over its steps, what it says of held-out pictures, and what it says without seeing them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sightline.assembly.config.locate import METRICS, check_metrics, run_of
from sightline.assembly.evaluate.evaluate import Evaluation, evaluate
from sightline.data.dataset import Dataset, open_dataset
from sightline.errors import SkipLimitError
from sightline.evaluation.controls import Control
from sightline.evaluation.predict import Predicted
from sightline.evaluation.spec import EvalSpec
from sightline.reporting.run_report import Curve, Panel, RunReport, write_run_report
from sightline.runtime import storage
from sightline.runtime.logs import logger

SEEN = "with the picture"
NOT_COMPARED = "not_compared"
SHOWN = 12  # pictures of each kind


def report_run(
    spec: EvalSpec,
    model: str,
    controls: Sequence[Control],
    out: Path,
    title: str | None = None,
    checkpoint: str = "last",
    device: str = "auto",
    threads: int | None = None,
    fallback: bool = False,
) -> dict[str, Evaluation]:
    """Evaluates a run with its controls, taking what is already evaluated, and writes the page.

    Args:
        spec: the evaluation; its own control is left aside.
        model, checkpoint, device, threads, fallback: see `evaluate`.
        controls: evaluations without the true image, shown next to the scores.
        out: the page.
        title: of the page; the name of the run's folder by default.

    Returns:
        What was found, by condition, on the records that were answered under all.

    Raises:
        UsageError: see `evaluate`; or the model is no run of ours.
        SkipLimitError: no record was answered under all conditions.
    """
    specs = {control or SEEN: spec.model_copy(update={"control": control}) for control in (None, *controls)}
    asked = {
        name: evaluate(own, model, checkpoint, device=device, threads=threads, fallback=fallback) for name, own in specs.items()
    }
    found = on_common_records(asked)
    hidden: dict[str, Evaluation] = {control: found[control] for control in controls}
    run = run_of(model)
    write_run_report(out, report_of(title or run.name, run, open_dataset(spec.data), found[SEEN], hidden))
    return found


def on_common_records(found: Mapping[str, Evaluation]) -> dict[str, Evaluation]:
    """The same evaluations, scored on the records that all of them answered, so that their scores can be compared.

    A record that another condition has no answer for (its picture cannot be exchanged, the one that it got is broken) is counted as
    skipped, under `not_compared`. What the folders of the evaluations hold stays as it is.

    Raises:
        SkipLimitError: no record was answered under all conditions.
    """
    answered = {name: {prediction.id for prediction in done.predicted.predictions} for name, done in found.items()}
    common = set.intersection(*answered.values())
    if not common:
        raise SkipLimitError(f"no record was answered under all of: {', '.join(found)}.", "Evaluate more records.")
    return {name: done if answered[name] == common else _only(done, common) for name, done in found.items()}


def _only(done: Evaluation, common: set[str]) -> Evaluation:
    predictions = [prediction for prediction in done.predicted.predictions if prediction.id in common]
    count = len(done.predicted.predictions) - len(predictions)
    logger.warning("%s: %d records have no answer to compare with and are left out", done.spec.control or SEEN, count)
    predicted = Predicted(predictions, done.predicted.skipped | {NOT_COMPARED: count})
    scores = done.task.score(done.queries, predictions)
    return replace(done, predicted=predicted, scores=scores)


def report_of(title: str, run: Path, dataset: Dataset, seen: Evaluation, controls: dict[str, Evaluation]) -> RunReport:
    """Gathers what a report of one run shows."""
    lines = storage.read_json_lines(run / METRICS, check_metrics)
    steps = [line for line in lines if "loss" in line]
    checks = [line for line in lines if "validation_loss" in line]
    task = seen.task
    text_of = {prediction.id: prediction.text for prediction in seen.predicted.predictions}
    hidden = {name: {p.id: p.text for p in done.predicted.predictions} for name, done in controls.items()}
    asked = [query for query in seen.queries if query.id in text_of]
    quality = seen.scores[task.headline.name].items
    is_right = next((seen.scores[info.name].items for info in task.highlights if info.is_share), None)
    panels = []
    for place in sorted(range(len(asked)), key=lambda place: -quality[place] if task.headline.higher_is_better else quality[place]):
        query = asked[place]
        panels.append(
            Panel(
                record_id=query.id,
                image=dataset.image_bytes(query.record, 0),
                truths=task.references(query)[:3],
                said=text_of[query.id],
                others={name: texts.get(query.id, "") for name, texts in hidden.items()},
                right=is_right is not None and is_right[place] == 1,
                value=quality[place],
            )
        )
    scores = {SEEN: seen.scores} | {name: done.scores for name, done in controls.items()}
    return RunReport(
        title=title,
        infos=task.scores,
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
            "split": seen.spec.split,
            "prompt": seen.prompt or "none",
            "records": str(len(asked)),
            "left out": ", ".join(f"{reason} {count}" for reason, count in seen.predicted.skipped.items()) or "none",
        },
    )
