"""Evaluations that are stored: whether one answers a question, so that it need not be asked again."""

import json
from pathlib import Path
from typing import Any

from sightline.data.dataset import open_dataset
from sightline.errors import StorageError
from sightline.evaluation.predict import ITEMS, SCORES
from sightline.evaluation.spec import EvalSpec
from sightline.runtime import storage


def is_stored(spec: EvalSpec, folder: Path, weights: str) -> bool:
    """Tells whether a folder holds a finished evaluation of these weights on the same data with the same options.

    A data set that was moved is the same one. An evaluation whose files are damaged is none.
    """
    try:
        stored, _ = storage.read_json(folder / SCORES), storage.read_json(folder / ITEMS)
        settings = stored.get("settings", {})
        if settings.get("model") != weights or settings.get("data") != open_dataset(spec.data).fingerprint:
            return False
        return is_same({**stored["spec"], "data": spec.data}, spec)
    except (StorageError, AttributeError, KeyError, TypeError):
        return False


def is_same(stored: Any, spec: EvalSpec) -> bool:
    """Tells whether stored options are those of `spec`; options that an older version lacked have their defaults."""
    try:
        return EvalSpec.model_validate_json(json.dumps(stored)) == spec
    except ValueError:
        return False
