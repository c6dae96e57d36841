"""docs/configuration.md is what the schema says, and has every key that a recipe sets."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from tools.configuration_page import PAGE, page, sections

from sightline.config import Config
from sightline.recipes import RECIPES, recipe_by_name

KEY = re.compile(r"^\| `([\w.\[\]]+)` \|", re.MULTILINE)


def keys_of(values: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """The keys of a configuration by their full names, those of free mappings left out."""
    for name, value in values.items():
        yield path + name
        if isinstance(value, Mapping) and name not in ("config", "normalise", "parts"):
            yield from keys_of(value, f"{path}{name}.")


def test_the_page_is_that_of_the_schema() -> None:
    assert PAGE.read_text("utf-8") == page(), "run python -m tools.configuration_page"


def test_every_key_of_the_recipes_is_on_the_page() -> None:
    known = set(KEY.findall(PAGE.read_text("utf-8"))) | {"model.connector.kind", "model.tiling.kind", "objective.kind"}
    for name in RECIPES:
        assert set(keys_of(recipe_by_name(name).model_dump(mode="json"))) - known == set(), name


def test_a_key_without_a_docstring_is_refused() -> None:
    class Section(Config):
        """A section."""

        key: int = 1

    with pytest.raises(ValueError, match=r"section\.key has no docstring"):
        list(sections(Section, "section.", ""))
