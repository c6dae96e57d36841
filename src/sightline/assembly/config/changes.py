"""Differences between two configurations of a run, and which of them a resumed run may have."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sightline.assembly.config.schema import RunConfig

# Keys that may differ in a resumed run: they affect speed, logging and what is kept, not what is computed.
HARMLESS = (
    ("data", "keep_pixels"),
    ("data", "workers"),
    ("data", "worker_timeout"),
    ("runtime",),
    ("tracking",),
    ("train", "checkpoint_every"),
    ("train", "keep"),
)


def differences(before: RunConfig, now: RunConfig) -> dict[tuple[str, ...], tuple[Any, Any]]:
    """Returns the keys whose values differ between two configurations, with both values."""
    old, new = (json.loads(config.model_dump_json()) for config in (before, now))
    return {key: (left, right) for key, left, right in _walk(old, new, ())}


def describe_changes(changed: Mapping[tuple[str, ...], tuple[Any, Any]]) -> str:
    """Returns key, old and new value of each difference, for a message."""
    return "; ".join(f"{'.'.join(key)}: {old!r} -> {new!r}" for key, (old, new) in changed.items())


def _walk(old: Any, new: Any, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [item for key in sorted(set(old) | set(new)) for item in _walk(old.get(key), new.get(key), (*path, key))]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [item for index in range(len(old)) for item in _walk(old[index], new[index], (*path, str(index)))]
    return [] if old == new else [(path, old, new)]


def may_differ(key: tuple[str, ...], allow_change: Sequence[str] = ()) -> bool:
    """Tells whether a resumed run may have another value of a key: it is harmless, or explicitly allowed."""
    plain = tuple(part for part in key if not part.isdecimal())
    stage_free = plain[1:] if plain[:1] == ("stages",) else plain
    named = [tuple(text.split(".")) for text in allow_change]
    return any(stage_free[: len(part)] == part or key[: len(part)] == part for part in (*HARMLESS, *named))
