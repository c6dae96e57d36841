"""Generation settings of a decoder's folder: kept where they can be saved, whatever the folder holds."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sightline.assembly.config.schema import RunConfig
from sightline.assembly.model.build import Processing, build_from_config, read_model, write_model
from tests.assembly.helpers import run_config


def with_settings(folder: Path, settings: dict[str, Any], sees: bool) -> RunConfig:
    """A configuration whose decoder comes with these generation settings."""
    config = run_config()
    assert config.model.language is not None
    shutil.copytree(str(config.model.language.path), folder)
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | settings), "utf-8")
    language = config.model.language.model_copy(update={"path": str(folder)})
    changes = {"language": language} if sees else {"language": language, "vision": None}
    return config.model_copy(update={"model": config.model.model_copy(update=changes)})


@pytest.mark.parametrize("sees", [True, False], ids=["sees", "text"])
@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"temperature": 0.9, "top_p": 0.6, "max_length": 4096, "pad_token_id": -1}, ()),  # as Vicuna's
        ({"do_sample": False, "top_k": 4, "min_p": 0.1, "typical_p": 0.5, "eta_cutoff": 0.1, "epsilon_cutoff": 0.1}, ()),
        ({"length_penalty": 2.0, "early_stopping": True}, ()),
        ({"do_sample": True, "temperature": 0.9, "top_p": 0.6}, ("do_sample", "temperature", "top_p")),
        ({"num_beams": 4, "length_penalty": 2.0}, ("num_beams", "length_penalty")),
        ({"repetition_penalty": 1.2, "top_k": 4}, ("repetition_penalty",)),
    ],
)
def test_settings_without_effect_do_not_keep_a_model_from_being_saved(
    tmp_path: Path, settings: dict[str, Any], kept: tuple[str, ...], sees: bool
) -> None:
    bundle = build_from_config(with_settings(tmp_path / "decoder", settings, sees), Processing(max_tokens=120), None)
    (tmp_path / "model").mkdir()
    write_model(bundle, tmp_path / "model")
    saved = read_model(tmp_path / "model").inner.generation_config
    assert saved is not None
    for name in settings:
        value = getattr(saved, name)
        assert (value == settings[name]) is (name in kept or not settings[name]), (name, value)
    assert (saved.max_length, saved.pad_token_id, saved.eos_token_id) == (None, bundle.pad_id, [2])
