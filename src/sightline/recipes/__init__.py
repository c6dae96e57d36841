"""Recipes: one file each, names and numbers only. A recipe is a function that returns a `RunConfig`."""

from collections.abc import Callable

from sightline.assembly.schema import RunConfig
from sightline.recipes.caption_lm import caption_lm
from sightline.recipes.flickr8k_mobilenet_v2 import flickr8k_mobilenet_v2
from sightline.recipes.scenes_tiny import scenes_tiny

RECIPES: dict[str, Callable[[], RunConfig]] = {
    "caption_lm": caption_lm,
    "flickr8k_mobilenet_v2": flickr8k_mobilenet_v2,
    "scenes_tiny": scenes_tiny,
}
