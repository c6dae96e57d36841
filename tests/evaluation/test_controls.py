"""Controls do what they say: blind shows nothing of the image, shuffled gives every record another one's."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter

from sightline.data.dataset import Dataset
from sightline.data.images.preparation import ImagePreparation
from sightline.data.images.tilings import WholeConfig
from sightline.errors import UsageError
from sightline.evaluation.controls import (
    BlindPixelLoader,
    blurred,
    canonical_control,
    checked_control,
    exchange_images,
    pixel_loader_of,
    without_images,
)
from sightline.evaluation.spec import EvalSpec
from sightline.evaluation.tasks import Query
from sightline.types import ImageInfo, Message, Part, Record
from tests.data.check.planted import folder, png, record, scene
from tests.data.kinds import SPLIT_TILING

PREPARATION = ImagePreparation(resize=(8, 8), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def shown(name: str, *pictures: str) -> Record:
    infos = tuple(ImageInfo(picture, 10 + number, 20) for number, picture in enumerate(pictures))
    return Record(name, tuple(f"{name}-{picture}.png" for picture in pictures), infos, captions=(f"what {name} shows",))


def hashes(record: Record) -> tuple[str, ...]:
    return tuple(info.sha256 for info in record.image_info)


PICTURES = st.lists(st.lists(st.sampled_from("abcdef"), max_size=2), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(PICTURES, st.integers(0, 5))
def test_records_get_others_images_and_as_few_as_possible_are_left_out(drawn: list[list[str]], seed: int) -> None:
    records = [shown(f"r{number}", *pictures) for number, pictures in enumerate(drawn)]
    most = {}  # records of each number of images that can take part
    for count in (1, 2):
        keys = [hashes(record) for record in records if len(record.images) == count]
        often = max(Counter(keys).values(), default=0)
        most[count] = len(keys) - max(0, 2 * often - len(keys))
    if any(record.images for record in records) and not sum(most.values()):
        with pytest.raises(UsageError, match="Evaluate more records"):
            exchange_images(records, seed)
        return
    out = exchange_images(records, seed)
    assert out == exchange_images(records, seed)
    by_id = {record.id: record for record in records}
    for after in out:
        before = by_id[after.id]
        assert (after.captions, len(after.images)) == (before.captions, len(before.images))
        if before.images:
            assert hashes(after) != hashes(before)
            giver = next(record for record in records if record.images == after.images)  # its files and its sizes go together
            assert giver.image_info == after.image_info
        else:
            assert after == before
    kept = {record.id for record in out}
    assert [record.id for record in out] == [record.id for record in records if record.id in kept]
    assert kept >= {record.id for record in records if not record.images}
    for count in (1, 2):
        given = sorted(record.images for record in out if len(record.images) == count)
        assert len(given) == most[count]
        assert given == sorted(record.images for record in records if len(record.images) == count and record.id in kept)


def test_a_record_without_a_partner_does_not_change_who_gets_whose() -> None:
    records = [shown(f"r{number}", f"p{number}") for number in range(9)]
    with_odd = [*records[:4], shown("odd", "a", "b"), *records[4:]]
    assert exchange_images(with_odd) == exchange_images(records)


def test_the_seed_decides_who_gets_whose() -> None:
    records = [shown(f"r{number}", f"p{number}") for number in range(40)]
    orders = [[record.images for record in exchange_images(records, seed)] for seed in (0, 1)]
    assert orders[0] != orders[1]
    # A random permutation and no rotation: steps to the partner differ.
    steps = {(int(images[0].split("-")[0][1:]) - number) % 40 for number, images in enumerate(orders[0])}
    assert len(steps) > 15


def test_images_without_hashes_are_told_apart_by_name() -> None:
    bare = [Record(f"r{n}", (name,), captions=("x",)) for n, name in enumerate(("a", "a", "b", "b"))]
    assert [record.images for record in exchange_images(bare)] == [("b",), ("b",), ("a",), ("a",)]


@pytest.mark.parametrize("tiling", [WholeConfig(), SPLIT_TILING])
def test_the_blind_image_depends_on_the_size_alone_and_is_the_mean_colour(tmp_path: Path, tiling: WholeConfig) -> None:
    rows = [record("a", "a.png"), record("b", "b.png"), record("wide", "wide.png")]
    pictures = {"a.png": scene(0, 64), "b.png": scene(1, 64), "wide.png": scene(2, 64).resize((64, 20))}
    dataset = Dataset(folder(tmp_path / "set", rows, {name: png(image) for name, image in pictures.items()}))
    for file in (tmp_path / "set").rglob("*.png"):
        file.unlink()  # nothing is opened
    blind = BlindPixelLoader(PREPARATION, tiling)
    first, second, wide = (blind.load(dataset, dataset.record(index)).pixels for index in range(3))
    assert first is not None
    assert second is not None
    assert wide is not None
    assert np.array_equal(first, second)
    for stack, size in ((first, (64, 64)), (wide, (64, 20))):
        assert len(stack) == tiling.layout(*size, (2, 2)).num_crops
        normal = (stack * PREPARATION.rescale - np.array(PREPARATION.mean)) / np.array(PREPARATION.std)
        assert np.abs(normal).max() < 0.5 / 255 / min(PREPARATION.std) + 1e-6


def test_grey_is_the_same_colour_for_every_encoder(tmp_path: Path) -> None:
    dataset = Dataset(folder(tmp_path / "set", [record("a", "a.png")], {"a.png": png(scene(0, 64))}))
    for preparation in (PREPARATION, ImagePreparation(resize=(8, 8), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))):
        pixels = pixel_loader_of("grey", preparation, WholeConfig()).load(dataset, dataset.record(0)).pixels
        assert pixels is not None
        assert (pixels == 128).all()


@pytest.mark.parametrize(("width", "height", "sigma"), [(336, 336, 8.0), (168, 210, 8.0), (672, 700, 2.0), (64, 64, 32.0)])
def test_a_blur_is_a_gaussian_scaled_to_the_shorter_side(width: int, height: int, sigma: float) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(pixels).resize((width // 8, height // 8)).resize((width, height), Image.Resampling.NEAREST))
    own = np.asarray(blurred(Image.fromarray(pixels), sigma), dtype=float)
    scaled = sigma * min(width, height) / 336
    theirs = gaussian_filter(pixels.astype(float), (scaled, scaled, 0), mode="nearest", truncate=6)
    assert np.abs(own - theirs).mean() < 1.0  # of 255; Pillow's three box blurs
    assert np.abs(own - theirs).max() < 8
    other = gaussian_filter(pixels.astype(float), (scaled * 1.5, scaled * 1.5, 0), mode="nearest", truncate=6)
    assert np.abs(own - other).mean() > 2 * np.abs(own - theirs).mean()


def test_a_model_sees_the_blurred_image_after_its_own_preparation(tmp_path: Path) -> None:
    image = scene(3, 64)
    dataset = Dataset(folder(tmp_path / "set", [record("a", "a.png")], {"a.png": png(image)}))
    seen = pixel_loader_of("blur:8", PREPARATION, SPLIT_TILING).load(dataset, dataset.record(0)).pixels
    by_hand = SPLIT_TILING.crops(image.convert("RGB").filter(ImageFilter.GaussianBlur(8 * 64 / 336)), PREPARATION)
    assert seen is not None
    assert np.array_equal(seen, by_hand)
    plain = SPLIT_TILING.crops(image.convert("RGB"), PREPARATION)
    assert not np.array_equal(seen, plain)


@pytest.mark.parametrize(
    ("text", "name"), [("blind", "blind"), ("blur:8", "blur:8"), ("blur:08.0", "blur:8"), ("blur:0.5", "blur:0.5")]
)
def test_a_control_has_one_name(text: str, name: str) -> None:
    assert canonical_control(text) == name
    assert EvalSpec(data="x", control=text).control == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "schuffled",
            "unknown value \"schuffled\"; did you mean 'shuffled'? (known: shuffled, blind, grey, text, blur:SIGMA)",
        ),
        ("blur:much", "SIGMA is a number of pixels"),
        ("blur:0", "SIGMA lies above 0"),
        ("blur:nan", "SIGMA lies above 0"),
        ("blur:1001", "at most 1000 pixels"),
    ],
)
def test_another_control_is_an_error_that_names_those_that_exist(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        checked_control(text)


def test_without_images_a_query_keeps_its_text_alone() -> None:
    turn = Message("user", (Part("before "), Part(), Part("after")))
    [bare] = without_images([Query("q", shown("r", "a"), (turn,))])
    assert (bare.record.images, bare.record.image_info, bare.record.captions) == ((), (), ("what r shows",))
    assert bare.messages == (Message("user", (Part("before "), Part("after"))),)
