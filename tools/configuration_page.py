"""Writes docs/configuration.md, the page of every configuration key, from the schema.

    python -m tools.configuration_page [--check]

`--check` writes nothing and fails if the page is not that of the schema.
"""

import json
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

from sightline.assembly.config.schema import RunConfig
from sightline.config import Config
from sightline.registry import KindRegistry

PAGE = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"
HEADER = """\
# Configuration: every key

This page lists all keys of a run with their defaults. A recipe, a `--config` file and `KEY=VALUE` arguments set them:

    sightline train RECIPE train.lr=1e-3 model.connector.kind=align stages.align.train.steps=100 --out RUN
    sightline recipes show RECIPE > mine.yaml      # a complete configuration to edit
    sightline train --config mine.yaml --out RUN

`NAME` stands for the name of a stage, `PART` for a part of the model, and `[]` for the entries of a list. The page is made from the
schema by `python -m tools.configuration_page`.
"""
NAMES = {bool: "true, false", int: "integer", float: "number", str: "text", Any: "any value"}
LISTED = {"stages": ".NAME"}  # stages are also addressed by their names


def page() -> str:
    """Returns the text of the page."""
    return "\n\n".join([HEADER.rstrip(), *sections(RunConfig, "", "")]) + "\n"


def sections(model: type[Config], path: str, heading: str, left_out: Collection[str] = ()) -> Iterator[str]:
    """Yields the table of a section's keys, then those of the sections in it."""
    rows, nested = [], []
    for name, field in model.model_fields.items():
        if name in left_out:
            continue
        key = path + (field.alias or name)
        kinds = next((entry for entry in field.metadata if isinstance(entry, KindRegistry)), None)
        inside = [] if kinds else list(configs(field.annotation, LISTED.get(key, "[]")))
        if kinds:
            nested += list(of_kinds(kinds, key))
        for suffix, section in inside:
            nested += list(sections(section, key + suffix + ".", f"{'###' if path else '##'} `{key + suffix}`"))
        meaning = field.description or summary(kinds.base if kinds else inside[0][1] if inside else None, key)
        rows.append(f"| `{key}` | {cell(values(field, kinds))} | {default(field)} | {cell(meaning)} |")
    if heading:
        yield f"{heading}\n\n{summary(model, heading)}"
    if rows:
        yield "\n".join(["| key | values | default | meaning |", "|---|---|---|---|", *rows])
    yield from nested


def of_kinds(kinds: KindRegistry[Any], key: str) -> Iterator[str]:
    """Yields the keys that all kinds have, then those of each kind."""
    if kinds.base.model_fields:
        yield from sections(kinds.base, key + ".", f"### `{key}`: all kinds")
    for kind, model in kinds.items():
        yield from sections(model, key + ".", f"### `{key}.kind={kind}`", {"kind", *kinds.base.model_fields})


def configs(annotation: Any, index: str) -> Iterator[tuple[str, type[Config]]]:
    """Yields the sections in an annotation, with what stands between the key and theirs."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        yield "", annotation
    suffix = {tuple: index, dict: ".PART"}.get(get_origin(annotation), "")  # pyrefly: ignore
    for part in get_args(annotation):
        yield from ((suffix + rest, section) for rest, section in configs(part, index))


def values(field: FieldInfo, kinds: KindRegistry[Any] | None) -> str:
    """Describes what a key may be."""
    return "a section; kinds: " + ", ".join(f"`{kind}`" for kind in kinds) if kinds else described(field.annotation)


def described(annotation: Any) -> str:
    """Describes an annotation in words."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return described(parts[0])
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin in (Union, UnionType):
        return " or ".join(described(part) for part in parts if part is not type(None))
    if origin is tuple:
        return "list of " + " and ".join(described(part) for part in parts if part is not ...)
    if origin is list:
        return f"list of {described(parts[0])}"
    if origin is dict:
        return "mapping" if parts[1] is Any else f"mapping to {described(parts[1])}"
    return NAMES.get(annotation, "a section")


def default(field: FieldInfo) -> str:
    """Returns the default as it is written in YAML; nothing for a key without one."""
    value = field.get_default(call_default_factory=True) if not field.is_required() else PydanticUndefined  # pyrefly: ignore
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, Config):
        return f"`kind: {value.kind}`" if hasattr(value, "kind") else ""
    if value is None:
        return "none"
    return f"`{value}`" if isinstance(value, str) and value else f"`{json.dumps(to_jsonable_python(value))}`"


def summary(model: type[Config] | None, key: str) -> str:
    """Returns the first paragraph of a section's docstring.

    Raises:
        ValueError: there is none.
    """
    if not (text := " ".join(((model and model.__doc__) or "").split("\n\n")[0].split())):
        raise ValueError(f"{key} has no docstring in the schema")
    return text.removesuffix(":")


def cell(text: str) -> str:
    """Returns a text as a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    if "--check" not in sys.argv:
        PAGE.write_text(page(), "utf-8")
    elif PAGE.read_text("utf-8") != page():
        sys.exit(f"{PAGE.name} is out of date; run python -m tools.configuration_page.")
