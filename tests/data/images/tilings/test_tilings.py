"""Tilings keep their promise: what they state of an image's size is what its crops are."""

import itertools
import math
import re
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sightline.assembly.config.schema import ModelConfig
from sightline.config import Tree, read_yaml, to_yaml, validate_tree
from sightline.data.images.preparation import ImagePreparation
from sightline.data.images.tilings import TILINGS, AnyResConfig, CoverConfig, SplitConfig, TilingConfig, WholeConfig
from sightline.data.images.tilings.anyres import GRIDS, best_grid
from sightline.data.images.tilings.cover import best_cover, coverage
from sightline.errors import ConfigError
from sightline.types import IMAGE

SIDE = 12
PREPARATION = ImagePreparation(resize=(SIDE, SIDE))
CASES: list[TilingConfig] = [
    AnyResConfig(),
    AnyResConfig(grids="up_to_6x6"),
    AnyResConfig(grids="up_to_6x6", max_tiles=9),
    AnyResConfig(grids=((1, 1), (2, 5))),
    CoverConfig(),
    CoverConfig(max_tiles=4, with_global=True),
    SplitConfig(),
    SplitConfig(longest_edge=37),
    SplitConfig(longest_edge=SIDE),
    SplitConfig(splits=False),
    WholeConfig(),
]
FITTED = [tiling.fitted(SIDE, SIDE) for tiling in CASES]

sizes = st.tuples(st.integers(1, 150), st.integers(1, 150)).filter(lambda size: max(size) <= 60 * min(size))
grids = st.tuples(st.integers(2, 4), st.integers(2, 4))


def picture(width: int, height: int) -> Image.Image:
    """An image in which every pixel tells where it is."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([across, down, 255 - across], axis=-1).astype(np.uint8))


@pytest.mark.parametrize("tiling", FITTED, ids=repr)
@given(size=sizes, grid=grids)
@settings(max_examples=60, deadline=None)
def test_a_layout_states_what_the_crops_are(tiling: TilingConfig, size: tuple[int, int], grid: tuple[int, int]) -> None:
    layout = tiling.layout(*size, grid)
    per_crop = grid[0] * grid[1]
    assert layout.num_crops == len(tiling.crops(picture(*size), PREPARATION))
    assert layout.text.count(IMAGE) == len(layout.slots)
    assert sum(layout.slots) == len(layout.visual_index) == layout.num_tokens
    assert layout.visual_index.max() < layout.num_crops * per_crop
    assert layout.visual_index.min() >= -tiling.num_separators
    uses = Counter(layout.visual_index.tolist())
    assert all(count == 1 for source, count in uses.items() if source >= 0)
    if not isinstance(tiling, AnyResConfig):  # nothing but padding is ever left out
        assert len(uses) == layout.num_crops * per_crop
    between = set(re.findall("<[^<>]+>", layout.text)) - {IMAGE}
    assert between <= set(tiling.tokens)


@pytest.mark.parametrize("tiling", FITTED, ids=repr)
@given(size=sizes)
@settings(max_examples=25, deadline=None)
def test_crops_are_squares_of_bytes_and_the_same_every_time(tiling: TilingConfig, size: tuple[int, int]) -> None:
    crops = tiling.crops(picture(*size), PREPARATION)
    assert crops.dtype == np.uint8
    assert crops.shape[1:] == (SIDE, SIDE, 3)
    np.testing.assert_array_equal(crops, tiling.crops(picture(*size), PREPARATION))


@pytest.mark.parametrize("tiling", FITTED, ids=repr)
def test_nobody_can_change_a_layout_that_is_kept(tiling: TilingConfig) -> None:
    layout = tiling.layout(50, 40, (2, 2))
    with pytest.raises(ValueError, match="read-only"):
        layout.visual_index[0] = 7
    np.testing.assert_array_equal(tiling.layout(50, 40, (2, 2)).visual_index, layout.visual_index)


def test_tilings_with_other_settings_have_other_keys() -> None:
    assert len({tiling.key() for tiling in [*CASES, *FITTED]}) == len({repr(tiling) for tiling in [*CASES, *FITTED]})


# anyres -----------------------------------------------------------------------------------------------------------------------


def test_anyres_of_a_wide_image_by_hand() -> None:
    """40 x 20 pixels in tiles of 12: the grid 1 x 2 (24 x 12) keeps 288 pixels, 2 x 2 keeps as many and wastes more."""
    layout = AnyResConfig(tile=12).layout(40, 20, (2, 2))
    base, first, second = range(4), [4, 5, 8, 9], [6, 7, 10, 11]
    assert layout.num_crops == 3
    assert layout.visual_index.tolist() == [*base, *first, -1, *second, -1]


def test_anyres_cuts_off_what_shows_padding_alone() -> None:
    """100 x 20 pixels in 1 x 3 tiles fill 36 x 7.2 of 36 x 12 pixels: 1.8 of 3 rows of tokens, so the middle one stays."""
    layout = AnyResConfig(tile=12, grids=((1, 3),)).layout(100, 20, (3, 3))
    assert layout.visual_index.tolist() == [*range(9), 12, 13, 14, 21, 22, 23, 30, 31, 32, -1]


def brute_force_tokens(width: int, height: int, grid: tuple[int, int], tiles: tuple[int, int]) -> int:
    """Token count from LLaVA-NeXT's definition, in exact fractions: centred image, equal cuts on both sides."""
    rows, columns = tiles[0] * grid[0], tiles[1] * grid[1]
    scale = min(Fraction(columns, width), Fraction(rows, height))
    seen_rows, seen_columns = math.floor(height * scale), math.floor(width * scale)
    rows -= 2 * ((rows - seen_rows) // 2)
    columns -= 2 * ((columns - seen_columns) // 2)
    return grid[0] * grid[1] + rows * (columns + 1)


@given(size=sizes, grid=grids)
@settings(max_examples=300, deadline=None)
def test_anyres_counts_tokens_as_its_definition_in_fractions(size: tuple[int, int], grid: tuple[int, int]) -> None:
    tiling = AnyResConfig(tile=SIDE, grids="up_to_6x6")
    tiles = best_grid(*size, tiling.choices, SIDE)
    assert tiling.layout(*size, grid).num_tokens == brute_force_tokens(*size, grid, tiles)


def test_a_limit_of_tiles_leaves_out_the_larger_grids() -> None:
    assert AnyResConfig(grids="up_to_6x6", max_tiles=9).choices == tuple(g for g in GRIDS["up_to_6x6"] if g[0] * g[1] <= 9)
    assert len(GRIDS["up_to_6x6"]) == 36
    with pytest.raises(ConfigError, match="leaves no grid"):
        AnyResConfig(grids=((2, 2),), max_tiles=3).fitted(SIDE, SIDE)


def test_a_image_that_is_smaller_than_a_tile_is_not_cut() -> None:
    assert best_grid(10, 10, GRIDS["up_to_6x6"], SIDE) == (1, 1)


def test_anyres_refuses_tokens_without_rows_and_columns() -> None:
    AnyResConfig().check_grid((3, 3))
    with pytest.raises(ConfigError, match="64 tokens without rows and columns"):
        AnyResConfig().check_grid((1, 64))


# cover ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((10, 10), (1, 1)),  # 1x1, 2x2 and 3x3 are all covered; the smallest holds it
        ((13, 13), (2, 2)),
        ((300, 300), (3, 3)),  # none holds it: the largest
        ((240, 120), (2, 4)),  # 1x2 and 2x4 have its shape
        ((24, 12), (1, 2)),
        ((90, 10), (1, 9)),
        ((10, 1000), (9, 1)),
        ((120, 80), (2, 3)),
    ],
)
def test_cover_takes_the_grid_of_the_images_shape(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert best_cover(*size, 9, SIDE) == expected


@given(size=sizes, max_tiles=st.integers(1, 12))
@settings(max_examples=200, deadline=None)
def test_no_other_grid_is_covered_better(size: tuple[int, int], max_tiles: int) -> None:
    def covered(rows: int, columns: int) -> Fraction:
        scale = min(Fraction(columns, size[0]), Fraction(rows, size[1]))
        return scale * size[0] * scale * size[1] / (rows * columns)

    best = best_cover(*size, max_tiles, SIDE)
    assert coverage(*size, *best) == covered(*best)
    pairs = [pair for pair in itertools.product(range(1, max_tiles + 1), repeat=2) if pair[0] * pair[1] <= max_tiles]
    assert best in pairs
    assert covered(*best) == max(covered(*pair) for pair in pairs)


def test_the_tiles_of_a_cover_put_together_are_the_stretched_image() -> None:
    tiling, image = CoverConfig(tile=SIDE, with_global=True), picture(120, 80)
    crops = tiling.crops(image, PREPARATION)
    whole = np.asarray(image.resize((3 * SIDE, 2 * SIDE), Image.Resampling.BICUBIC))
    for number, (row, column) in enumerate(itertools.product(range(2), range(3))):
        np.testing.assert_array_equal(crops[number], whole[row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE])
    np.testing.assert_array_equal(crops[6], np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)))
    assert tiling.layout(120, 80, (2, 2)).num_crops == 7
    assert tiling.layout(10, 10, (2, 2)).num_crops == 1  # an image of one tile is not seen twice
    assert CoverConfig(tile=SIDE).layout(120, 80, (2, 2)).num_crops == 6


# split ------------------------------------------------------------------------------------------------------------------------


def test_split_by_hand() -> None:
    layout = SplitConfig(tile=12, longest_edge=24).layout(100, 40, (2, 2))
    assert layout.text == (
        f"<fake_token_around_image><row_1_col_1>{IMAGE}<fake_token_around_image><row_1_col_2>{IMAGE}\n"
        f"\n<fake_token_around_image><global-img>{IMAGE}<fake_token_around_image>"
    )
    assert layout.slots == (4, 4, 4)
    assert layout.visual_index.tolist() == list(range(12))


def test_split_names_the_tokens_it_may_need() -> None:
    assert SplitConfig(tile=12, splits=False).tokens == ("<fake_token_around_image>", "<global-img>")
    assert SplitConfig(tile=12, longest_edge=12).tokens == ("<fake_token_around_image>", "<global-img>")
    assert len(SplitConfig(tile=12).tokens) == 2 + 4 * 4
    assert "<row_4_col_4>" in SplitConfig(tile=12).tokens


# Configuration ----------------------------------------------------------------------------------------------------------------


def test_every_tiling_is_in_the_registry_under_its_kind() -> None:
    assert {kind: tiling.model_fields["kind"].default for kind, tiling in TILINGS.items()} == {kind: kind for kind in TILINGS}
    assert list(TILINGS) == sorted(TILINGS)


@pytest.mark.parametrize("tiling", [*CASES, *FITTED], ids=repr)
def test_a_tiling_survives_its_configuration_file(tiling: TilingConfig, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("config") / "model.yaml"
    file.write_text(to_yaml(ModelConfig.model_validate({"tiling": tiling})))
    assert validate_tree(ModelConfig, read_yaml(file)).tiling == tiling


@pytest.mark.parametrize("kind", ["anyres", "cover", "split"])
def test_a_tiling_refuses_an_encoder_that_it_cannot_cut_for(kind: str) -> None:
    tiling = TILINGS[kind]()
    with pytest.raises(ConfigError, match="cuts squares, this encoder takes 12 x 16"):
        tiling.fitted(12, 16)
    with pytest.raises(ConfigError, match=r"tile=24, but the encoder takes 12 x 12"):
        tiling.model_copy(update={"tile": 24}).fitted(12, 12)
    with pytest.raises(ConfigError, match="tile size is not known"):
        tiling.layout(30, 40, (2, 2))


@pytest.mark.parametrize(
    ("section", "fault"),
    [
        ({"kind": "any_res"}, "did you mean 'anyres'"),
        ({"kind": "anyres", "grids": "6x6"}, "model.tiling.grids|tiling.grids"),
        ({"kind": "anyres", "grids": [[0, 1]]}, "grids"),
        ({"kind": "cover", "max_tiles": 0}, "max_tiles"),
        ({"kind": "split", "longest_edge": 100000}, "longest_edge"),
        ({"kind": "split", "longest": 100}, "did you mean 'longest_edge'"),
    ],
)
def test_a_wrong_section_is_refused_with_its_key(section: dict[str, object], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        validate_tree(ModelConfig, Tree({"tiling": section}))
