"""Stages name parts that the model has; an unknown name is refused before anything is loaded."""

import pytest

from sightline.assembly.config.resolving import resolve_config
from sightline.errors import ConfigError
from sightline.recipes.caption_lm import caption_lm
from sightline.recipes.flickr8k_mobilenet_v2 import flickr8k_mobilenet_v2


def test_an_unknown_part_is_refused_with_the_parts_of_the_model() -> None:
    with pytest.raises(ConfigError, match="stage 'instruct': the model has no part 'conector'; it has vision, connector, language"):
        resolve_config(flickr8k_mobilenet_v2(), None, ["stages.instruct.parts.conector=train"])


def test_a_decoder_alone_has_one_part_and_the_message_says_what_is_missing() -> None:
    name = caption_lm().stages[0].name
    with pytest.raises(ConfigError, match=r"no part 'connector'; it has language\. An encoder and a connector need model\.vision"):
        resolve_config(caption_lm(), None, [f"stages.{name}.parts.connector=train"])
