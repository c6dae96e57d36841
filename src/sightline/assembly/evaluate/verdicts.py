"""The verdict of an evaluation: its control, or the evaluation that it is a control of, as stored by an earlier command."""

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sightline.errors import StorageError
from sightline.evaluation.controls import SHUFFLED, WITHOUT_IMAGE
from sightline.evaluation.looking import Items, stored_items, verdict_of_items
from sightline.evaluation.predict import ITEMS, SCORES
from sightline.evaluation.spec import EvalSpec
from sightline.evaluation.tasks import ScoreInfo
from sightline.metrics.verdict import Verdict
from sightline.runtime import storage

_ELSEWHERE = ("control", "batch_size", "facts")  # settings that a score and its control may differ in
_ALIKE = ("task", "data", "split")  # settings without which an evaluation is about something else
_NAMES = {"records": "choice of records"}  # settings, for people
_OPTIONS = {"num_beams": "beams"}  # fields of an evaluation whose option has another name


def find_verdict(
    spec: EvalSpec,
    items: Items,
    settings: Mapping[str, Any],
    folders_of: Callable[[EvalSpec], Sequence[Path]],
    info: ScoreInfo,
    command: str,
) -> Verdict:
    """Compares an evaluation with its control, whichever of them was made now.

    Args:
        spec, items, settings: of the evaluation that was made now.
        folders_of: where an evaluation may be stored.
        info: the headline score.
        command: what makes a control, for the verdict `not checked`.
    """
    reasons: list[str] = []

    def found(control: str | None) -> Items | None:
        if control == spec.control:
            return items
        for folder in folders_of(spec.model_copy(update={"control": control})):
            stored = _stored(folder, control, settings, reasons)
            if stored is not None:
                return stored
        return None

    seen = found(None)
    if seen is not None:
        order = sorted(WITHOUT_IMAGE, key=lambda control: control != spec.control)  # the control that was just made, first
        for control in order:
            if (other := found(control)) is not None:
                return verdict_of_items(seen, other, info, control, command, spec.resamples)
    return verdict_of_items(items, None, info, "", command, note="; ".join(reasons[:3]))


def folders_beside(folder: Path) -> list[Path]:
    """Returns the other evaluations in the parent of a folder."""
    return [file.parent for file in sorted(folder.parent.glob(f"*/{SCORES}")) if file.parent != folder]


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


def _stored(folder: Path, control: str | None, settings: Mapping[str, Any], reasons: list[str]) -> Items | None:
    """Returns the items of a stored evaluation with the same settings under a control; None where there is none, or it is damaged.

    One with other settings is named in `reasons`.
    """
    try:
        stored = storage.read_json(folder / SCORES)["settings"]
        own = json.loads(json.dumps(dict(settings)))
        if stored["control"] != control or any(stored[name] != own[name] for name in _ALIKE):
            return None
    except (StorageError, KeyError, TypeError):
        return None
    names = [name for name in {**own, **stored} if name not in _ELSEWHERE and stored.get(name) != own.get(name)]
    if names:
        if "model" not in names:  # an evaluation of another model has nothing to do with this one
            reasons.append(_reason(folder, control, names, stored, own))
        return None
    items = stored_items(folder / ITEMS)
    if items is None:
        reasons.append(f"{folder / ITEMS} is damaged: repeat that evaluation")
    return items


def _reason(folder: Path, control: str | None, names: Sequence[str], stored: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """Says why an evaluation that is stored cannot be compared with."""
    kind = f"the control {control}" if control else "the evaluation with the image"
    both = [found.get("likelihood") or {} for found in (stored, own)]
    if list(names) == ["likelihood"] and all("alpha" in found for found in both):
        there, here = (found["alpha"] for found in both)
        return f"{kind} in {folder} has alpha {there}, this evaluation {here}: give both the same --alpha"
    return f"{kind} in {folder} has another {' and another '.join(_NAMES.get(name, name) for name in names)}"
