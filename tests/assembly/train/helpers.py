"""Data of small runs."""

from pathlib import Path

import pytest

from sightline.cli import main


def prepared_scenes(folder: Path, count: int, *options: str) -> Path:
    """Makes a data set of drawn scenes of level 1."""
    arguments = ["-", "--format", "scenes", "--count", count, "--seed", "3", "--level", "1", "--out", folder, "--workers", "0"]
    with pytest.raises(SystemExit) as caught:
        main(["data", "prepare", *map(str, arguments), *options])
    assert not caught.value.code
    return folder
