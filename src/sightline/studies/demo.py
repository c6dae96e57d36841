"""The whole way on one machine in minutes, offline: make scenes, train, evaluate with the blind control, report.

Every step leaves its result in the folder and is not done twice: a demo that was stopped goes on where it was.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.assembly.config.schema import RunConfig
from sightline.assembly.evaluate.evaluate import Evaluation, EvaluationRequest
from sightline.assembly.evaluate.report import SEEN, report_run
from sightline.assembly.train.run import TrainResult, train
from sightline.data.prepare.run import PrepareOptions, prepare
from sightline.data.readers import SourceOptions
from sightline.runtime.logs import logger

PICTURES = 8000
BATCH = 64


@dataclass(frozen=True)
class Demo:
    """What the demo found.

    Attributes:
        report: the HTML page.
        exact, exact_blind: share of held-out pictures whose caption is exactly right, with and without the picture.
    """

    report: Path
    run: TrainResult
    seen: Evaluation
    blind: Evaluation

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
        logger.info("1/3 drawing %d scenes", PICTURES)
        prepare(Path("-"), "scenes", PrepareOptions(out=scenes, source=SourceOptions(count=PICTURES, seed=0, level=1)))
    config = resolve(recipe, [f"data.path={scenes}", *arguments])
    logger.info("2/3 training")
    run = train(config, out / "run")
    logger.info("3/3 captioning held-out pictures, with and without seeing them; writing the report")
    request = EvaluationRequest(
        model=str(out / "run"), task="caption", data=str(scenes), split="test", batch_size=BATCH, max_new_tokens=24
    )
    report = out / "report.html"
    found = report_run(request, ("blind",), report, recipe.recipe)
    return Demo(report, run, found[SEEN], found["blind"])
