"""The whole way on one machine in minutes, offline: make scenes, train, evaluate with the blind control, report.

Every step leaves its result in the folder and is not done twice: a demo that was stopped goes on where it was.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.assembly.config.resolving import resolve_config
from sightline.assembly.evaluate.evaluate import Evaluation
from sightline.assembly.evaluate.report import SEEN, report_run
from sightline.assembly.train.run import TrainResult, train
from sightline.data.prepare.run import PrepareOptions, prepare
from sightline.data.readers import SourceOptions
from sightline.evaluation.spec import EvalSpec
from sightline.recipes.scenes_tiny import scenes_tiny
from sightline.runtime.logs import logger

IMAGES = 8000
BATCH = 64


@dataclass(frozen=True)
class Demo:
    """What the demo found.

    Attributes:
        report: the HTML page.
        seen, blind: what it says of held-out images, with and without seeing them.
    """

    report: Path
    run: TrainResult
    seen: Evaluation
    blind: Evaluation

    def to_json(self) -> dict[str, Any]:
        return {
            "report": str(self.report),
            "run": self.run.to_json(),
            **{
                f"{info.name}{suffix}": found.scores[info.name].to_json()
                for info in self.seen.task.highlights
                for suffix, found in (("", self.seen), ("_blind", self.blind))
            },
        }


def demo(out: Path, arguments: Sequence[str]) -> Demo:
    """Runs the demo in `out`.

    Args:
        out: folder of everything.
        arguments: `key=value`, laid over the recipe `scenes_tiny`.
    """
    scenes = out / "scenes"
    if not (scenes / "dataset.json").exists():
        logger.info("1/3 drawing %d scenes", IMAGES)
        prepare(Path("-"), "scenes", PrepareOptions(out=scenes, source=SourceOptions(count=IMAGES, seed=0, level=1)))
    config = resolve_config(scenes_tiny(), None, [f"data.path={scenes}", *arguments])
    logger.info("2/3 training")
    run = train(config, out / "run")
    logger.info("3/3 captioning held-out images, with and without seeing them; writing the report")
    spec = EvalSpec(task="caption", data=str(scenes), split="test", batch_size=BATCH, max_new_tokens=24)
    report = out / "report.html"
    found = report_run(spec, str(out / "run"), ("blind",), report, config.recipe)
    return Demo(report, run, found[SEEN], found["blind"])
