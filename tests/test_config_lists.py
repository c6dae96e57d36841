"""Lists of named items: `stages.words=null` takes one out, and what stood behind it keeps its origin."""

import pytest

from sightline.config import Tree, apply_overrides
from sightline.errors import ConfigError


def tree() -> Tree:
    data = {"stages": [{"name": "words"}, {"name": "align", "train": {"lr": 1.0}}, {"name": "instruct"}]}
    return Tree(
        data, {("stages", 0): "file:1", ("stages", 1, "train", "lr"): "file:2", ("stages", 2): "file:3", ("seed",): "file:4"}
    )


def test_null_takes_an_item_out_and_the_others_keep_their_origins() -> None:
    changed = apply_overrides(tree(), ["stages.words=null", "stages.instruct.train.steps=3"])
    assert [stage["name"] for stage in changed.data["stages"]] == ["align", "instruct"]
    assert changed.data["stages"][1]["train"] == {"steps": 3}
    assert changed.origin(("stages", 0, "train", "lr")) == "file:2"
    assert changed.origin(("stages", 1, "name")) == "file:3"
    assert changed.origin(("stages", 1, "train", "steps")) == "argument stages.instruct.train.steps=3"
    assert changed.origin(("seed",)) == "file:4"


def test_an_item_that_is_not_there_cannot_be_taken_out() -> None:
    with pytest.raises(ConfigError, match="no item 'lora'; it has words, align, instruct"):
        apply_overrides(tree(), ["stages.lora=null"])
