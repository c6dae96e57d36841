"""Exports a trained model, and refuses where the exported folder does not compute what the run computes."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from sightline.assembly.config.locate import CheckpointChoice
from sightline.assembly.evaluate.opened import open_model
from sightline.assembly.model.build import write_model
from sightline.assembly.model.bundle import ModelBundle
from sightline.assembly.model.processor import PROCESSOR, SightlineProcessor
from sightline.data.images.tilings import TILINGS
from sightline.errors import NumericsError, UsageError
from sightline.export.remote_code import auto_map, write_code
from sightline.models.connectors import CONNECTORS
from sightline.runtime import storage
from sightline.runtime.device import process_settings_restored
from sightline.types import IMAGE

CONFIG = "config.json"
TOLERANCE = 1e-5  # of fp32 logits, relative to the largest


@dataclass(frozen=True)
class Export:
    """An exported folder.

    Attributes:
        folder: its place.
        checkpoint: the checkpoint of a run that was exported; None for a model folder.
        difference: largest difference of a logit from the run's, relative to the largest logit.
        num_logits: how many were compared.
    """

    folder: Path
    checkpoint: CheckpointChoice | None
    difference: float
    num_logits: int

    def to_json(self) -> dict[str, Any]:
        """Returns the object that `export --json` prints."""
        found = {"folder": str(self.folder), "format": "remote-code", "difference": self.difference, "logits": self.num_logits}
        return found | ({"checkpoint": self.checkpoint.to_json()} if self.checkpoint is not None else {})


@process_settings_restored()
def export_remote_code(model: str, out: Path, checkpoint: str = "last", fallback: bool = False) -> Export:
    """Writes a model folder that transformers opens with `trust_remote_code=True` where Sightline is not installed.

    Its code is a copy of the modules of this package that the model and its processor need. The folder is opened through that copy
    before it gets its name, and its inputs and logits are compared with those of the run (fp32, on the CPU).

    Args:
        model: a run, RUN@STAGE, or a model folder.
        out: the new folder.
        checkpoint: of a run: `last`, `best`, the name of a stage, or a step.
        fallback: where the last checkpoint of a run is damaged, export the newest that is not.

    Raises:
        UsageError: the model is not one of Sightline's vision-language models, takes no images, or is made of a plug-in.
        NumericsError: inputs or logits differ from the run's.
        StorageError: `out` exists, the disk refuses, or the weights are damaged.
    """
    opened = open_model(model, checkpoint, device="cpu", fallback=fallback)
    opened.runtime.apply()
    bundle, choice = opened.bundle, opened.checkpoint
    _check(bundle, model)
    with storage.atomic_dir(out) as folder:
        write_model(bundle, folder)
        write_code(folder)
        for name in (CONFIG, PROCESSOR):
            storage.write_json(folder / name, json.loads((folder / name).read_text("utf-8")) | {"auto_map": auto_map()})
        inputs = _inputs(SightlineProcessor.of(bundle))
        logits = _logits(bundle.inner, inputs)
        del opened, bundle  # two copies of a large model may not fit into memory
        difference = _compare(folder, inputs, logits)
    return Export(out, choice, difference, logits.numel())


def _check(bundle: ModelBundle, name: str) -> None:
    connector, processing = bundle.model.connector, bundle.processing
    if connector is None:
        raise UsageError(f"{name} is no vision-language model of Sightline's.", "transformers opens its folder as it is.")
    if processing.preparation is None:
        raise UsageError(f"{name} was trained on an external table of features and takes no images.", "Choose another model.")
    for kind, known in ((connector.config.kind, CONNECTORS), (processing.tiling.kind, TILINGS)):
        if kind not in known:
            raise UsageError(f"{kind!r} is code of a plug-in, which the folder would lack.", "Choose a model without plug-ins.")


def _inputs(processor: Any) -> dict[str, torch.Tensor]:
    """Returns the inputs of two texts: one about two images of noise, which differ in shape, and one without an image."""
    sizes = ((120, 90), (64, 200))
    images = [
        Image.fromarray(np.random.default_rng(place).integers(0, 256, (*size, 3), np.uint8)) for place, size in enumerate(sizes)
    ]
    texts = [f"{IMAGE}{IMAGE} What is this? 0, 1, 2.", "Who?"]
    return dict(processor(images=images, text=texts, padding=True, return_tensors="pt"))


def _logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**inputs, use_cache=False).logits[inputs["attention_mask"].bool()].float()


def _compare(folder: Path, inputs: dict[str, torch.Tensor], logits: torch.Tensor) -> float:
    """Returns the largest relative difference of the logits that the folder's own code computes.

    Raises:
        NumericsError: its processor gives other inputs, or its logits differ by more than rounding.
    """
    classes = {
        name: get_class_from_dynamic_module(auto_map()[name], str(folder), local_files_only=True)
        for name in ("AutoModelForImageTextToText", "AutoProcessor")
    }
    theirs = _inputs(classes["AutoProcessor"].from_pretrained(folder))
    if theirs.keys() != inputs.keys() or any(not torch.equal(theirs[name], inputs[name]) for name in inputs):
        raise NumericsError("the processor of the exported folder gives other inputs than the run's; nothing was exported.")
    found = _logits(classes["AutoModelForImageTextToText"].from_pretrained(folder, dtype=torch.float32), inputs)
    difference = float((found - logits).abs().max() / logits.abs().max())
    if not difference <= TOLERANCE:
        raise NumericsError(
            f"the logits of the exported folder differ from the run's by {difference:.2g} of the largest; nothing was exported.",
            "Please report this with the versions that `sightline doctor` prints.",
        )
    return difference
