"""Class labels of the `datasets` library: stored as numbers, read as the names of their classes."""

from collections.abc import Callable, Mapping
from typing import Any

from sightline.data.readers.base import shown
from sightline.errors import RecordError

Row = dict[str, Any]


def named_labels(features: Mapping[str, Any]) -> "Callable[[Row], Row | RecordError]":
    """Returns a function that replaces the numbers of `ClassLabel` columns (also in lists) by names; -1 is no label.

    Args:
        features: column types as `Features.to_dict` writes them.
    """
    columns = {name: names for name, kind in features.items() if (names := _names(kind))}

    def named(row: Row) -> Row | RecordError:
        try:
            return {**row, **{name: _name(row[name], names, name) for name, names in columns.items() if name in row}}
        except RecordError as error:
            return error

    return named if columns else lambda row: row


def _names(kind: Any) -> list[str]:
    """Returns the class names of a column, empty when it is no class label."""
    if isinstance(kind, list):
        return _names(kind[0]) if kind else []
    if not isinstance(kind, Mapping):
        return []
    if kind.get("_type") == "ClassLabel":
        return [str(name) for name in kind.get("names") or ()]
    return _names(kind.get("feature"))


def _name(value: Any, names: list[str], column: str) -> Any:
    if isinstance(value, list):
        return [_name(item, names, column) for item in value]
    if value is None or value == -1 or isinstance(value, str):
        return None if value == -1 else value
    if not isinstance(value, int) or not 0 <= value < len(names):
        raise RecordError("bad_label", f"{column!r} has {len(names)} classes, got {shown(value)}")
    return names[value]
