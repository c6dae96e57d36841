"""What `data check` announces about every stage of every recipe is what training logs when it begins that stage."""

import re
from pathlib import Path
from typing import Any

import pytest

from sightline.assembly.inspect.check import CheckRequest, check_data
from sightline.assembly.inspect.rows import folders_of
from sightline.assembly.model.blueprint import config_blueprint
from sightline.data.check import CheckOptions
from sightline.recipes import RECIPES
from tests.recipes.local import DUALS, Ran, run_of

NUMBER = r"([\d,]+)"
STAGE = re.compile(r"stage \d+ of \d+ \((\w+)\)")
DATA = re.compile(rf"  data +{NUMBER} samples, {NUMBER} tokens.*, {NUMBER} supervised")
LENGTH = re.compile(rf"  length +{NUMBER} steps, {NUMBER} per epoch")


def logged(ran: Ran) -> dict[str, dict[str, Any]]:
    """The figures of each stage by its name, read from the log of training."""
    out: dict[str, dict[str, Any]] = {}
    figures: dict[str, Any] = {}
    for line in ran.log:
        if found := STAGE.fullmatch(line):
            figures = out[found[1]] = {"skipped": {}}
        elif found := DATA.fullmatch(line):
            figures |= dict(zip(("samples", "tokens", "supervised"), map(whole, found.groups()), strict=True))
        elif found := LENGTH.match(line):
            figures |= dict(zip(("steps", "steps_per_epoch"), map(whole, found.groups()), strict=True))
        elif line.startswith("  left out "):
            reasons = line.split("conversations: ")[1].split(", ")
            figures["skipped"] = {reason: whole(count) for reason, count in (item.rsplit(" ", 1) for item in reasons)}
    return out


def whole(digits: str) -> int:
    return int(digits.replace(",", ""))


def announced(ran: Ran) -> dict[str, dict[str, Any]]:
    """The same figures, from the report of `data check`."""
    blueprint = config_blueprint(ran.config)
    options = CheckOptions(workers=0, near_bits=None)
    report = check_data(CheckRequest(folders_of(ran.config), options, describe=lambda folders: blueprint)).to_json()
    return {
        stage["name"]: {key: stage["data"][key] for key in ("samples", "tokens", "supervised", "skipped")}
        | {"steps": stage["steps"], "steps_per_epoch": stage["epoch"]["steps_per_epoch"]}
        for stage in report["training"]["stages"]
    }


@pytest.mark.parametrize("name", sorted(RECIPES.keys() - DUALS.keys()))
def test_the_check_announces_what_training_logs(name: str, root: Path) -> None:
    ran = run_of(name, root)
    told = announced(ran)
    assert list(told) == [stage.name for stage in ran.config.stages]
    assert told == logged(ran)
    for stage in told.values():
        assert set(stage["skipped"]) == {"placeholder_in_text"}
        assert 0 < stage["supervised"] < stage["tokens"]
