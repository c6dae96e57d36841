"""Controls do what they say: blind shows nothing of the image, shuffled gives every record another one's."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.data.dataset import Dataset
from sightline.data.images.preparation import ImagePreparation
from sightline.data.images.tilings import WholeConfig
from sightline.errors import UsageError
from sightline.evaluation.controls import BlindPixelLoader, exchange_images
from sightline.types import ImageInfo, Record
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
