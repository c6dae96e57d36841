"""Recipes: one file each, with names and numbers only. A recipe is a function that returns a `RunConfig`."""

import difflib
from collections.abc import Callable

from sightline.assembly.config.schema import RunConfig
from sightline.errors import UsageError
from sightline.recipes.alignvlm import alignvlm
from sightline.recipes.alignvlm_low_resource import alignvlm_low_resource
from sightline.recipes.alignvlm_smolvlm import alignvlm_smolvlm
from sightline.recipes.caption_lm import caption_lm
from sightline.recipes.clip import clip, negclip, siglip
from sightline.recipes.comalign import comalign
from sightline.recipes.flickr8k_dual import flickr8k_dual
from sightline.recipes.flickr8k_mobilenet_v2 import flickr8k_mobilenet_v2
from sightline.recipes.llava15 import llava15
from sightline.recipes.llava15_cal import llava15_cal
from sightline.recipes.llava_next import llava_next
from sightline.recipes.llava_next_cal import llava_next_cal
from sightline.recipes.nanovlm import nanovlm
from sightline.recipes.scenes_tiny import scenes_tiny
from sightline.recipes.scratch_flickr8k import scratch_flickr8k
from sightline.recipes.seemoe import seemoe
from sightline.recipes.seemoe_frozen import seemoe_frozen
from sightline.recipes.seemore import seemore
from sightline.recipes.tinyvlm import tinyvlm
from sightline.recipes.tinyvlm_instruct import tinyvlm_instruct

RECIPES: dict[str, Callable[[], RunConfig]] = {
    "alignvlm": alignvlm,
    "alignvlm_low_resource": alignvlm_low_resource,
    "alignvlm_smolvlm": alignvlm_smolvlm,
    "caption_lm": caption_lm,
    "clip": clip,
    "comalign": comalign,
    "flickr8k_dual": flickr8k_dual,
    "flickr8k_mobilenet_v2": flickr8k_mobilenet_v2,
    "llava15": llava15,
    "llava15_cal": llava15_cal,
    "llava_next": llava_next,
    "llava_next_cal": llava_next_cal,
    "nanovlm": nanovlm,
    "negclip": negclip,
    "scenes_tiny": scenes_tiny,
    "scratch_flickr8k": scratch_flickr8k,
    "seemoe": seemoe,
    "seemoe_frozen": seemoe_frozen,
    "seemore": seemore,
    "siglip": siglip,
    "tinyvlm": tinyvlm,
    "tinyvlm_instruct": tinyvlm_instruct,
}


def recipe_by_name(name: str) -> RunConfig:
    """Gives a recipe's configuration.

    Raises:
        UsageError: there is none of this name.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(RECIPES)}."
        raise UsageError(f"no recipe {name!r}.", hint)
    return RECIPES[name]()
