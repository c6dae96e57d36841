"""One surface, one meaning: features are what enters the connector and visual tokens what leaves it, for every class of models."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sightline.errors import RecordError
from sightline.models import composites
from sightline.models.stock import StockModel
from sightline.models.surface import SightModel
from sightline.models.text import TextModel
from sightline.types import Visual
from tests.builders import SIDE, decoder, pictures, vlm
from tests.composites import stock

NOWHERE = torch.zeros(0, dtype=torch.long)
MEAN = STD = (0.5, 0.5, 0.5)


def visual(seed: int, count: int) -> Visual:
    return Visual(torch.from_numpy(pictures(seed, count)), None, NOWHERE, NOWHERE)


def through(connector: nn.Module, call: Any) -> tuple[Tensor, Tensor]:
    """What entered and what left a connector while transformers' own code ran."""
    seen: list[tuple[Tensor, Tensor]] = []
    hook = connector.register_forward_hook(lambda _, arguments, output: seen.append((arguments[0], output)))
    with torch.no_grad():
        call()
    hook.remove()
    ((entered, left),) = seen
    return entered, left


def check_meaning(model: SightModel, crops: Visual, entered: Tensor, left: Tensor) -> None:
    with torch.no_grad():
        features = model.features(crops)
        tokens = model.visual_tokens(features)
    assert torch.equal(features, entered)
    assert torch.equal(tokens[: len(left) * left.shape[1]], left.flatten(0, 1))
    assert model.takes_images
    assert left.shape[1] == model.tokens_per_crop == model.token_grid[0] * model.token_grid[1]


@pytest.mark.parametrize("kind", ["idefics3", "llava", "llava_next", "smolvlm"])
def test_features_of_a_stock_model_enter_its_own_connector(kind: str) -> None:
    inner = stock(kind)
    model = StockModel(inner, MEAN, STD, 1 / 255, (SIDE, SIDE))
    crops = visual(3, 3)  # to LLaVA-NeXT an image of one tile is two tiles and the whole
    assert crops.pixels_NHWC is not None
    pixels = model.normalise(crops.pixels_NHWC)
    sizes: dict[str, Any] = {"image_sizes": torch.tensor([[SIDE, SIDE]])} if kind == "llava_next" else {}
    given = pixels if kind == "llava" else pixels[None]
    entered, left = through(composites.connector_of(inner), lambda: inner.get_image_features(pixel_values=given, **sizes))
    check_meaning(model, crops, entered, left)
    assert model.connector is None
    assert model.inner is model.language is inner


def test_features_of_our_model_enter_its_connector() -> None:
    model = vlm(num_separators=1)
    crops = visual(4, 2)
    assert crops.pixels_NHWC is not None
    ids = torch.full((1, 2 * model.tokens_per_crop), model.config.image_token_id)
    pixels = model.normalise(crops.pixels_NHWC)
    entered, left = through(model.connector, lambda: model(input_ids=ids, pixel_values=pixels))
    check_meaning(model, crops, entered, left)
    with torch.no_grad():
        assert torch.equal(model.visual_tokens(model.features(crops))[-1:], model.separators)
        stored = Visual(None, model.features(crops), NOWHERE, NOWHERE)
        assert torch.equal(model.features(stored), entered)
    outputs = model.encoder_outputs
    assert entered.shape[1:] == (outputs.grid[0] * outputs.grid[1], outputs.width)
    assert model.inner is model


def test_a_decoder_alone_takes_no_images() -> None:
    model: SightModel = TextModel(decoder("llama"))
    assert (model.takes_images, model.tokens_per_crop, model.connector, model.encoder_outputs) == (False, 0, None, None)
    with pytest.raises(RecordError, match="cannot take images"):
        model.features(visual(1, 1))
    ids = torch.arange(5)[None]
    settings = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(model.generate(input_ids=ids, **settings), model.inner.generate(input_ids=ids, **settings))  # pyrefly: ignore
