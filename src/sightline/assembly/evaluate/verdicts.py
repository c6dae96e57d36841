"""The verdict of an evaluation: its control, or the evaluation that it is a control of, as stored by an earlier command."""

import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sightline.errors import StorageError
from sightline.evaluation.controls import SHUFFLED, WITHOUT_IMAGE
from sightline.evaluation.looking import Items, verdict_of_items
from sightline.evaluation.predict import ITEMS, SCORES
from sightline.evaluation.spec import EvalSpec
from sightline.evaluation.tasks import ScoreInfo
from sightline.metrics.verdict import Verdict
from sightline.runtime import storage

_ELSEWHERE = ("control", "batch_size", "facts")  # settings that a score and its control may differ in
_OPTIONS = {"num_beams": "beams"}  # fields of an evaluation whose option has another name


def find_verdict(
    spec: EvalSpec, items: Items, settings: Mapping[str, Any], folder_of: Callable[[EvalSpec], Path], info: ScoreInfo, command: str
) -> Verdict:
    """Compares an evaluation with its control, whichever of them was made now.

    Args:
        spec, items, settings: of the evaluation that was made now.
        folder_of: where an evaluation is stored.
        info: the headline score.
        command: what makes a control, for the verdict `not checked`.
    """

    def found(control: str | None) -> Items | None:
        if control == spec.control:
            return items
        return _stored(folder_of(spec.model_copy(update={"control": control})), settings)

    seen = found(None)
    if seen is not None:
        order = sorted(WITHOUT_IMAGE, key=lambda control: control != spec.control)  # the control that was just made, first
        for control in order:
            if (other := found(control)) is not None:
                return verdict_of_items(seen, other, info, control, command, spec.resamples)
    return verdict_of_items(items, None, info, "", command)


def control_command(spec: EvalSpec, model: str | None, checkpoint: str) -> str:
    """Returns the command that makes what is missing: the control `shuffled` of an evaluation, or the evaluation of a control."""
    wanted = spec.model_copy(update={"control": None if spec.control in WITHOUT_IMAGE else SHUFFLED})
    words = [
        "sightline",
        "eval",
        *([model] if model is not None else []),
        "--task",
        spec.task,
        "--data",
        spec.data,
        "--split",
        spec.split,
    ]
    for name, field in EvalSpec.model_fields.items():
        value = getattr(wanted, name)
        if name not in ("task", "data", "split") and value != field.default:
            words += [f"--{_OPTIONS.get(name, name.replace('_', '-'))}", str(value)]
    return shlex.join([*words, *(["--checkpoint", checkpoint] if checkpoint != "last" else [])])


def _stored(folder: Path, settings: Mapping[str, Any]) -> Items | None:
    """Returns the items of a stored evaluation with the same settings; None where there is none, or it is damaged."""
    try:
        stored = storage.read_json(folder / SCORES)["settings"]
        items = storage.read_json(folder / ITEMS)
        is_same = _comparable(stored) == _comparable(json.loads(json.dumps(dict(settings))))
        return items if is_same and len(items["records"]) == len(items["image" if "image" in items else "picture"]) else None
    except (StorageError, KeyError, TypeError, AttributeError):
        return None


def _comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in _ELSEWHERE}
