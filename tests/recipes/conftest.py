"""Data sets that stand for those of the recipes."""

from pathlib import Path

import pytest

from tests.recipes.local import captions_folder, instructions_folder


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    captions_folder(folder)
    for number, name in enumerate(("instructions", "documents", "charts", "long")):
        instructions_folder(folder, name, 10 * number)
    return folder
