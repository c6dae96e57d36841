"""`model.compat=seemore` sets the published faults, each of which can be set back."""

from pathlib import Path

import pytest

from sightline.assembly.config.resolving import resolve_config, stage_plan
from sightline.config import to_yaml
from sightline.errors import ConfigError
from sightline.recipes import RECIPES

FAULTS = {"attention_scale": "model", "noise_in_evaluation": True, "skip_norm_in_generation": True}


def test_it_sets_all_faults_and_an_argument_sets_one_back(tmp_path: Path) -> None:
    base = RECIPES["seemoe"]()
    plain = resolve_config(base, None, [])
    assert plain == base
    faulty = resolve_config(base, None, ["model.compat=seemore"])
    assert faulty.model.language is not None
    assert faulty.model.vision is not None
    assert faulty.model.language.config == (base.model.language.config if base.model.language else {}) | FAULTS
    assert (faulty.model.vision.config or {})["attention_scale"] == "model"
    assert stage_plan(faulty, 0).data.supervise == "with_padding"
    one = resolve_config(
        base, None, ["model.language.config.attention_scale=head", "model.compat=seemore", "data.supervise=assistant"]
    )
    assert one.model.language is not None
    assert (one.model.language.config or {})["attention_scale"] == "head"
    assert (one.model.language.config or {})["noise_in_evaluation"] is True
    assert one.data.supervise == "assistant"
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(one))
    assert resolve_config(None, file, []) == one  # as a run is resumed or repeated


def test_it_is_refused_where_nothing_is_from_scratch() -> None:
    with pytest.raises(ConfigError, match=r"model\.compat=seemore: neither encoder nor decoder is one of `sightline_vit`"):
        resolve_config(RECIPES["scenes_tiny"](), None, ["model.compat=seemore"])
    with pytest.raises(ConfigError, match=r"model\.compat"):
        resolve_config(RECIPES["seemore"](), None, ["model.compat=seeless"])
