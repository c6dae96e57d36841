"""What every connector shares: folding of patches, shapes and counts, refusals, words of errors, saving."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from sightline.errors import ConfigError
from sightline.models import connectors as family
from sightline.models.connectors import CONNECTORS, Connector, ConnectorConfig, ConnectorShape
from sightline.models.connectors.c_abstractor import CAbstractorConfig
from sightline.models.connectors.h_reducer import HReducerConfig
from sightline.models.connectors.linear import LinearConfig
from sightline.models.connectors.moe import MoEConfig
from sightline.models.connectors.resampler import ResamplerConfig
from sightline.models.connectors.swiglu import SwiGLUConfig
from tests.builders import SIDE, vlm
from tests.models.connectors.helpers import SMALL
from tests.models.connectors.places import CROPS, SHAPE, WIDTH_OUT, assert_equal, embeddings, features, made

GRIDS = {"c_abstractor": (2, 2), "h_reducer": (4, 2), "resampler": (1, 5)}


def test_every_file_of_the_folder_is_a_kind_under_its_own_name() -> None:
    folder = Path(family.__path__[0])
    files = {file.stem for file in folder.glob("*.py")} - {"__init__", "base", "cost"}
    assert files == set(CONNECTORS) == set(SMALL)
    assert list(CONNECTORS) == sorted(CONNECTORS)
    assert all(config.model_fields["kind"].default == kind for kind, config in CONNECTORS.items())


@pytest.mark.parametrize("kind", CONNECTORS)
def test_shapes_and_token_counts_are_what_the_configuration_says(kind: str) -> None:
    connector = made(SMALL[kind])
    rows, columns = GRIDS.get(kind, (4, 8))
    assert connector.token_grid == (rows, columns)
    assert connector.tokens_per_crop == rows * columns
    out = connector(features(), embeddings)
    assert out.shape == (CROPS, rows * columns, WIDTH_OUT)
    assert connector(features(crops=0), embeddings).shape == (0, rows * columns, WIDTH_OUT)


@pytest.mark.parametrize("kind", CONNECTORS)
def test_crops_do_not_see_each_other(kind: str) -> None:
    connector, seen = made(SMALL[kind]), features()
    together = connector(seen, embeddings)
    for number in range(CROPS):
        assert_equal(connector(seen[number : number + 1], embeddings)[0], together[number])


@pytest.mark.parametrize("kind", CONNECTORS)
def test_every_parameter_has_a_gradient_and_features_pass_one_on(kind: str) -> None:
    connector, seen = made(SMALL[kind]), features().requires_grad_()
    connector(seen, embeddings).square().sum().backward()
    assert seen.grad is not None
    assert (seen.grad != 0).all(2).any()
    assert all(value.grad is not None and bool(value.grad.any()) for value in connector.parameters())


# Folding ----------------------------------------------------------------------------------------------------------------------


def test_a_block_is_four_neighbours_of_the_image_and_a_strip_four_of_the_scan() -> None:
    # Patch number p carries the value p: 4 rows of 8.
    numbers = torch.arange(32.0).view(1, 32, 1)
    shape = ConnectorShape(4, 8, 1, 2, 5)
    blocks = Connector(LinearConfig(shuffle=2), shape).merged(numbers)[0]
    assert blocks[0].tolist() == [0, 1, 8, 9]
    assert blocks[1].tolist() == [2, 3, 10, 11]
    assert blocks[4].tolist() == [16, 17, 24, 25]
    strips = Connector(LinearConfig(shuffle=2, merge="raster"), shape).merged(numbers)[0]
    assert strips[0].tolist() == [0, 1, 2, 3]
    assert strips[4].tolist() == [16, 17, 18, 19]
    assert blocks.shape == strips.shape == (8, 4)


def test_tinyvlms_strips_wrap_around_rows_of_14_and_its_blocks_do_not() -> None:
    numbers = torch.arange(196.0).view(1, 196, 1)
    shape = ConnectorShape(14, 14, 1, 2, 5)
    strips = Connector(SwiGLUConfig(shuffle=2, merge="raster", hidden=3), shape)
    blocks = Connector(SwiGLUConfig(shuffle=2, hidden=3), shape)
    assert strips.tokens_per_crop == blocks.tokens_per_crop == 49
    assert strips.token_grid == (1, 49)
    assert blocks.token_grid == (7, 7)
    assert strips.merged(numbers)[0, 3].tolist() == [12, 13, 14, 15]  # two rows of the image
    assert blocks.merged(numbers)[0, 6].tolist() == [12, 13, 26, 27]


@pytest.mark.parametrize(("rows", "columns", "factor"), [(4, 8, 2), (6, 3, 3), (8, 8, 4), (5, 7, 1)])
def test_blocks_are_those_of_torchs_pixel_unshuffle_in_our_order_of_channels(rows: int, columns: int, factor: int) -> None:
    width = 3
    seen = torch.randn(2, rows * columns, width)
    ours = Connector(LinearConfig(shuffle=factor), ConnectorShape(rows, columns, width, 4, 5)).merged(seen)
    theirs = torch.nn.functional.pixel_unshuffle(seen.transpose(1, 2).unflatten(2, (rows, columns)), factor)
    theirs = theirs.flatten(2).transpose(1, 2).unflatten(2, (width, factor**2)).transpose(2, 3).flatten(2)  # (c, dy, dx) there
    assert torch.equal(ours, theirs)


# Refusals ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "shape", "words"),
    [
        (LinearConfig(shuffle=3), SHAPE, "does not divide the encoder's grid of 4 x 8 patches. Possible here: 1, 2, 4"),
        (LinearConfig(shuffle=3, merge="raster"), SHAPE, "32 patches are not divisible by 9"),
        (HReducerConfig(reach=3), SHAPE, "does not divide the 8 patches of a row. Possible here: 1, 2, 4, 8"),
        (HReducerConfig(shuffle=2, merge="raster"), SHAPE, "needs a grid of patches; this model gives one row of 8"),
        (HReducerConfig(), ConnectorShape(1, 49, 6, 10, 23), "model.vision.drop_class_token=true"),
        (CAbstractorConfig(num_queries=4, shuffle=2, merge="raster"), SHAPE, "needs a grid of patches"),
        (CAbstractorConfig(num_queries=6), SHAPE, "is not a square that fits into 4 x 8. Possible here: 1, 4, 9, 16"),
        (CAbstractorConfig(num_queries=25), SHAPE, "is not a square that fits into 4 x 8"),
        (ResamplerConfig(heads=3), SHAPE, "does not divide the resampler's width of 10. Possible here: 1, 2, 5, 10"),
    ],
)
def test_a_connector_that_cannot_stand_there_is_refused(config: ConnectorConfig, shape: ConnectorShape, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Connector(config, shape)
    assert words in str(caught.value).replace("\n", " ")


def test_more_experts_per_token_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="top=5 is more than experts=4"):
        MoEConfig(top=5)


@pytest.mark.parametrize("kind", sorted(set(CONNECTORS) - {"align"}))
def test_words_of_patches_are_asked_of_align_alone(kind: str) -> None:
    with pytest.raises(ConfigError, match=f"only for the `align` connector; this run uses '{kind}'"):
        _ = made(SMALL[kind]).vocabulary_mixer


# Folders ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONNECTORS)
def test_a_saved_model_comes_back_with_its_connector_to_the_bit(kind: str, tmp_path: Path) -> None:
    config = {"h_reducer": HReducerConfig(reach=2), "resampler": ResamplerConfig(num_queries=4, depth=1, heads=4)}.get(
        kind, SMALL[kind]
    )
    model = vlm("siglip", "llama", config)
    with torch.no_grad():
        for value in model.connector.parameters():
            value.add_(torch.randn_like(value) * 0.1)
    pixels = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        before = model.get_image_features(pixels).pooler_output
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    assert again.connector.config == config
    with torch.no_grad():
        assert torch.equal(again.get_image_features(pixels).pooler_output, before)
