"""The report of a run: what it learned over its steps, what it says of held-out images, and what it says without seeing them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sightline.assembly.config.locate import METRICS, check_metrics, run_of
from sightline.assembly.evaluate.evaluate import Evaluation, evaluate
from sightline.assembly.evaluate.opened import OpenedModel, open_model
from sightline.data.dataset import Dataset, open_dataset
from sightline.errors import SkipLimitError
from sightline.evaluation.controls import WITHOUT_IMAGE, Control
from sightline.evaluation.looking import image_difference, verdict_of_items
from sightline.evaluation.predict import Predicted
from sightline.evaluation.spec import EvalSpec
from sightline.metrics.statistics import Difference
from sightline.metrics.verdict import Verdict
from sightline.reporting.run_report import Curve, Panel, RunReport, write_run_report
from sightline.runtime import storage
from sightline.runtime.logs import logger
from sightline.types import Score

SEEN = "with the image"
NOT_COMPARED = "not_compared"
SHOWN = 12  # images of each kind


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
    opened: OpenedModel | None = None,
) -> dict[str, Evaluation]:
    """Evaluates a run with its controls, taking what is already evaluated, and writes the page.

    Args:
        spec: the evaluation; its own control is left aside.
        model, checkpoint, device, threads, fallback: see `evaluate`.
        controls: evaluations without the true image, shown next to the scores.
        out: the page.
        title: of the page; the name of the run's folder by default.
        opened: the model, where it is open already with the same arguments.

    Returns:
        What was found, by condition, on the records that were answered under all.

    Raises:
        UsageError: see `evaluate`; or the model is no run of ours.
        SkipLimitError: no record was answered under all conditions.
    """
    specs = {control or SEEN: spec.model_copy(update={"control": control}) for control in (None, *controls)}
    opened = opened or open_model(model, checkpoint, spec.features, device, threads, fallback)
    asked = {name: evaluate(own, model, checkpoint, device=device, threads=threads, opened=opened) for name, own in specs.items()}
    found = on_common_records(asked)
    hidden: dict[str, Evaluation] = {control: found[control] for control in controls}
    run = run_of(model)
    verdict = _verdict(found[SEEN], hidden)
    found[SEEN] = replace(found[SEEN], verdict=verdict)
    write_run_report(out, report_of(title or run.name, run, open_dataset(spec.data), found[SEEN], hidden))
    return found


def _verdict(seen: Evaluation, hidden: Mapping[str, Evaluation]) -> Verdict:
    """Returns the verdict on the records of the report, from the control that a verdict prefers of those that it shows."""
    control = next((name for name in WITHOUT_IMAGE if name in hidden), None)
    if control is None:
        return seen.verdict
    items = hidden[control].items_json()
    return verdict_of_items(seen.items_json(), items, seen.task.headline, control, resamples=seen.spec.resamples)


def on_common_records(found: Mapping[str, Evaluation]) -> dict[str, Evaluation]:
    """The same evaluations, scored on the records that all of them answered, so that their scores can be compared.

    A record that another condition has no answer for (its image cannot be exchanged, the one that it got is broken) is counted as
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
    text_of = _texts(seen)
    hidden = {name: _texts(done) for name, done in controls.items()}
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
        expert_curves=tuple(
            Curve(title, [line["step"] for line in steps if key in line], [line[key] for line in steps if key in line])
            for key, title in (
                ("decoder_load_entropy", "entropy of the load"),
                ("decoder_largest_load", "largest load of an expert"),
            )
        ),
        scores={name: {key: score.to_json() for key, score in found.items()} for name, found in scores.items()},
        rates=_rates(steps),
        norms=(Curve("gradient norm", *_points(steps, "grad_norm")),),
        borders=_borders(steps),
        verdict=seen.verdict,
        differences={name: _differences(seen, done) for name, done in controls.items()},
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


def _texts(done: Evaluation) -> dict[str, str]:
    """Returns the answers by query as people read them."""
    found = {prediction.id: prediction for prediction in done.predicted.predictions}
    return {query.id: done.task.shown(query, found[query.id]) for query in done.queries if query.id in found}


def default_task(opened: OpenedModel) -> str:
    """Returns the task of a report where none is named: `retrieval` of a dual encoder, `caption` of any other model."""
    return "caption" if opened.bundle.pairs is None else "retrieval"


def _differences(seen: Evaluation, control: Evaluation) -> dict[str, Difference]:
    """Returns the paired difference of each score that is a mean over records: with the image minus under a control."""
    found, items = seen.items_json(), control.items_json()
    means = [info for info in seen.task.scores if info.name in seen.scores and _is_mean(seen.scores[info.name])]
    differences = {info.name: image_difference(found, items, info, seen.spec.resamples) for info in means}
    return {name: difference for name, difference in differences.items() if difference is not None}


def _is_mean(score: Score) -> bool:
    return bool(score.items) and math.isclose(sum(score.items) / score.n, score.value, rel_tol=1e-9, abs_tol=1e-12)


# Course of training -----------------------------------------------------------------------------------------------------------


def _points(lines: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    known = [line for line in lines if isinstance(line.get(name), int | float)]
    return [line["step"] for line in known], [float(line[name]) for line in known]


def _rates(lines: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """Returns the learning rate of each part; parts with the same one share a curve."""
    known = [line for line in lines if isinstance(line.get("lr"), dict)]
    parts = dict.fromkeys(part for line in known for part in line["lr"])
    curves: dict[tuple[tuple[int, float], ...], list[str]] = {}
    for part in parts:
        points = tuple((line["step"], line["lr"][part]) for line in known if part in line["lr"])
        curves.setdefault(points, []).append(part)
    return [Curve(", ".join(names), [step for step, _ in points], [rate for _, rate in points]) for points, names in curves.items()]


def _borders(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the name and first step of each stage; empty for a run of one stage."""
    first: dict[str, float] = {}
    for line in lines:
        if isinstance(line.get("stage"), str):
            first.setdefault(line["stage"], line["step"])
    return first if len(first) > 1 else {}
