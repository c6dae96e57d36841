"""The whole way on one machine in minutes, offline: make scenes, train, evaluate with the blind control, report.

Every step leaves its result in the folder and is not done twice: a demo that was stopped goes on where it was.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sightline.assembly.evaluate import Evaluated, Request, evaluate
from sightline.assembly.schema import RunConfig
from sightline.assembly.train import METRICS, Result, train
from sightline.data.dataset import Dataset, open_dataset
from sightline.data.prepare import PrepareOptions, prepare
from sightline.data.sources import SourceOptions
from sightline.reporting.run_report import Curve, Panel, RunReport, write_run_report
from sightline.runtime import storage
from sightline.runtime.logs import logger

PICTURES = 5000
SHOWN = 12  # pictures of each kind in the report
BATCH = 64


@dataclass(frozen=True)
class Demo:
    """What the demo found.

    Attributes:
        report: the HTML page.
        exact, exact_blind: share of held-out pictures whose caption is exactly right, with and without the picture.
    """

    report: Path
    run: Result
    seen: Evaluated
    blind: Evaluated

    def to_json(self) -> dict[str, Any]:
        return {
            "report": str(self.report),
            "run": self.run.to_json(),
            "exact": self.seen.scores["exact"].to_json(),
            "exact_blind": self.blind.scores["exact"].to_json(),
            "cider_d": self.seen.scores["cider_d"].to_json(),
            "cider_d_blind": self.blind.scores["cider_d"].to_json(),
        }


def demo(recipe: RunConfig, out: Path, resolve: Callable[[RunConfig, list[str]], RunConfig], arguments: list[str]) -> Demo:
    """Runs the demo in `out`.

    Args:
        recipe: what is trained.
        out: folder of everything.
        resolve: lays arguments over the recipe.
        arguments: `key=value`.
    """
    scenes = out / "scenes"
    if not (scenes / "dataset.json").exists():
        logger.info("1/4 drawing %d scenes", PICTURES)
        prepare(Path("-"), "scenes", PrepareOptions(out=scenes, source=SourceOptions(count=PICTURES, seed=0, level=1)))
    config = resolve(recipe, [f"data.path={scenes}", *arguments])
    logger.info("2/4 training")
    run = train(config, out / "run")
    logger.info("3/4 captioning held-out pictures, with and without seeing them")
    request = Request(model=str(out / "run"), task="caption", data=str(scenes), split="test", batch_size=BATCH, max_new_tokens=24)
    seen = evaluate(request)
    blind = evaluate(replace(request, control="blind"))
    logger.info("4/4 writing the report")
    report = out / "report.html"
    write_run_report(report, report_of(config, out / "run", open_dataset(scenes), seen, {"blind": blind}))
    return Demo(report, run, seen, blind)


def report_of(config: RunConfig, run: Path, dataset: Dataset, seen: Evaluated, controls: dict[str, Evaluated]) -> RunReport:
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
    scores = {"with the picture": seen.scores} | {name: done.scores for name, done in controls.items()}
    return RunReport(
        title=config.recipe,
        curves=(
            Curve("training loss", [line["step"] for line in steps], [line["loss"] for line in steps]),
            Curve("validation loss", [line["step"] for line in checks], [line["validation_loss"] for line in checks]),
        ),
        scores={name: {key: score.to_json() for key, score in found.items()} for name, found in scores.items()},
        right=[panel for panel in panels if panel.right][:SHOWN] or panels[:SHOWN],
        wrong=[panel for panel in reversed(panels) if not panel.right][:SHOWN],
        facts={"run": str(run), "data": repr(dataset), "split": seen.request.split, "records": str(len(asked))},
    )
