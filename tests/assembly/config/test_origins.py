"""A part of the model has one origin: naming another drops what belonged to the first."""

import pytest

from sightline.assembly.config.resolving import resolve_config
from sightline.errors import ConfigError
from sightline.models.language import TokenizerConfig
from sightline.recipes.flickr8k_mobilenet_v2 import flickr8k_mobilenet_v2


def test_a_decoder_named_by_its_path_brings_its_own_tokenizer() -> None:
    assert isinstance(resolve_config(flickr8k_mobilenet_v2(), None, []).model.language.tokenizer, TokenizerConfig)  # type: ignore[union-attr]
    language = resolve_config(flickr8k_mobilenet_v2(), None, ["model.language.path=runs/caption_lm"]).model.language
    assert language is not None
    assert (language.path, language.config, language.tokenizer) == ("runs/caption_lm", None, None)


@pytest.mark.parametrize("first", [True, False])
def test_a_tokenizer_that_is_named_too_stays(first: bool) -> None:
    named = ["model.language.path=runs/caption_lm", "model.language.tokenizer=other"]
    language = resolve_config(flickr8k_mobilenet_v2(), None, named if first else named[::-1]).model.language
    assert language is not None
    assert (language.path, language.tokenizer) == ("runs/caption_lm", "other")


def test_a_decoder_that_exists_is_not_given_a_new_tokenizer() -> None:
    with pytest.raises(ConfigError, match="uses its own tokenizer"):
        resolve_config(flickr8k_mobilenet_v2(), None, ["model.language.path=runs/lm", "model.language.tokenizer={vocabulary: 512}"])
