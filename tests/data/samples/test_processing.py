"""Which folders are models of Sightline's, and what is said when their settings are missing."""

import json
from pathlib import Path

import pytest

from sightline.data.samples.processing import is_ours, read_processing
from sightline.errors import StorageError


def test_a_model_folder_that_lost_its_settings_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sightline"}))
    assert is_ours(tmp_path)
    with pytest.raises(StorageError, match=r"has no sightline\.json, the file with prompt"):
        read_processing(tmp_path)


@pytest.mark.parametrize("text", [json.dumps({"model_type": "llava"}), "[]", "{"])
def test_other_folders_are_none_of_ours(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    assert not is_ours(tmp_path)
    assert not is_ours(tmp_path / "nothing")
