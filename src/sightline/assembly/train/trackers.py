"""Sends losses, rates and sample texts with their images to TensorBoard, MLflow, W&B or Trackio, through accelerate's trackers."""

import importlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image

from sightline.assembly.config.schema import RunConfig
from sightline.errors import UsageError
from sightline.runtime.optional import require

IMAGE_SIDE = 336  # longest side of a stored image in pixels


@dataclass(frozen=True)
class TrackedSample:
    """A text that was generated in validation.

    Attributes:
        id: of the record.
        text: what the model generated.
        truth: a reference text; "" where there is none.
        image: what the model saw; None without an image.
    """

    id: str
    text: str
    truth: str
    image: Image.Image | None

    @property
    def name(self) -> str:
        """The id as the name of a file."""
        return re.sub(r"[^\w.-]+", "_", self.id)


def check_trackers(names: Sequence[str]) -> None:
    """Checks that the packages of trackers are installed.

    Raises:
        UsageError: one is not.
    """
    for name in names:
        require(name, name, f"tracking.trackers=[{name}]")


class Trackers:
    """The trackers of a run; they are started before the first value, so that a run that fails earlier leaves nothing there."""

    def __init__(self, accelerator: Accelerator, config: RunConfig) -> None:
        self._accelerator, self._config = accelerator, config
        self._is_started = False

    def start(self) -> None:
        """Starts the trackers, once.

        Raises:
            UsageError: one of them cannot be started.
        """
        names = self._config.tracking.trackers
        if self._is_started or not names:
            return
        try:
            self._accelerator.init_trackers(self._config.tracking.project, config=flat_settings(self._config))
        except Exception as error:  # each service has its own classes
            reason = " ".join(str(error).split())
            raise UsageError(
                f"tracking.trackers=[{', '.join(names)}] cannot be started: {type(error).__name__}: {reason}",
                "Set up the service, or leave it out: tracking.trackers=[]",
            ) from error
        self._is_started = True

    def write(self, line: Mapping[str, Any]) -> None:
        """Sends the numbers of a line of `metrics.jsonl`; those of a mapping as `KEY/NAME`."""
        if self._is_started:
            self._accelerator.log(numbers_of(line), step=line["step"])

    def write_samples(self, step: int, samples: Sequence[TrackedSample]) -> None:
        """Sends generated texts with their images."""
        if samples and self._is_started and self._accelerator.is_main_process:
            for name in self._config.tracking.trackers:
                _WRITERS[name](self._accelerator.get_tracker(name), step, samples)

    def close(self) -> None:
        """Ends the trackers."""
        if self._is_started:
            self._accelerator.end_training()


def numbers_of(line: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers of a line of the log, without its step."""
    out: dict[str, float] = {}
    for key, value in line.items():
        for name, number in value.items() if isinstance(value, Mapping) else [("", value)]:
            if isinstance(number, int | float) and key != "step":
                out[f"{key}/{name}" if name else key] = number
    return out


def flat_settings(config: RunConfig) -> dict[str, str | int | float]:
    """Returns every setting under its full key; what is no number or text is written as JSON."""
    out: dict[str, str | int | float] = {}

    def add(value: Any, key: str) -> None:
        if isinstance(value, dict) and value:
            for name, inner in value.items():
                add(inner, f"{key}.{name}" if key else name)
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            for number, item in enumerate(value):
                add(item, f"{key}.{item.get('name', number)}")
        else:
            out[key] = value if isinstance(value, str | int | float) else json.dumps(value)

    add(json.loads(config.model_dump_json()), "")
    return out


# Samples, which accelerate has no common form for -----------------------------------------------------------------------------


def _caption(sample: TrackedSample) -> str:
    return f"{sample.text} (true: {sample.truth})" if sample.truth else sample.text


def _to_tensorboard(tracker: Any, step: int, samples: Sequence[TrackedSample]) -> None:
    for sample in samples:
        if sample.image is not None:
            tracker.writer.add_image(f"generated/{sample.name}", np.asarray(sample.image), step, dataformats="HWC")
        tracker.writer.add_text(f"generated/{sample.name}", _caption(sample), step)
    tracker.writer.flush()


def _to_mlflow(tracker: Any, step: int, samples: Sequence[TrackedSample]) -> None:
    mlflow = importlib.import_module("mlflow")
    folder = f"generated/step-{step:08}"
    for sample in samples:
        if sample.image is not None:
            mlflow.log_image(sample.image, f"{folder}/{sample.name}.png")
    texts = [{"id": sample.id, "text": sample.text, "truth": sample.truth} for sample in samples]
    mlflow.log_dict({"generated": texts}, f"{folder}/texts.json")


def _to_wandb(tracker: Any, step: int, samples: Sequence[TrackedSample]) -> None:
    wandb = importlib.import_module("wandb")
    seen = [wandb.Image(sample.image, caption=_caption(sample)) for sample in samples if sample.image is not None]
    texts = {f"generated/{sample.name}": sample.text for sample in samples}
    tracker.run.log(texts | ({"generated": seen} if seen else {}), step=step)


def _to_trackio(tracker: Any, step: int, samples: Sequence[TrackedSample]) -> None:
    trackio = importlib.import_module("trackio")
    seen = {
        f"generated/{sample.name}": trackio.Image(sample.image, caption=_caption(sample))
        if sample.image is not None
        else sample.text
        for sample in samples
    }
    tracker.run.log(seen, step=step)


_WRITERS: dict[str, Callable[[Any, int, Sequence[TrackedSample]], None]] = {
    "mlflow": _to_mlflow,
    "tensorboard": _to_tensorboard,
    "trackio": _to_trackio,
    "wandb": _to_wandb,
}
