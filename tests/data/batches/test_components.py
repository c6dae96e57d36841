"""Boxes and phrases of records: cells, records' boxes by score, what an encoder sees of them, random controls, crops."""

import numpy as np
import pytest
from PIL import Image

from sightline.data.batches.components import ComponentRules, phrase_table
from sightline.data.images.boxes import CELLS, LARGE_CELLS, boxes_of, region_of
from sightline.data.images.preparation import ImagePreparation
from sightline.data.images.tilings import BoxTilingConfig
from sightline.types import Box, Components, Entity, ImageInfo, Record, Relation

TEXT = "a brown dog runs behind the blue car"
RECORD = Record(
    id="1",
    images=("a.png",),
    image_info=(ImageInfo("00" * 32, 200, 100),),
    captions=(TEXT,),
    boxes=(
        Box("car", (0.5, 0.2, 0.9, 0.6), 0.8),
        Box("dog", (0.1, 0.5, 0.3, 0.7), 0.9),
        Box("tree", (0.0, 0.0, 0.2, 1.0), 0.5),
    ),
    components=(Components(TEXT, (Entity("brown dog"), Entity("blue car")), (Relation("brown dog", "runs behind", "blue car"),)),),
)


def test_boxes_of_records_come_by_score_and_pairs_by_product() -> None:
    found = boxes_of(RECORD, "record", 2, 3)
    np.testing.assert_allclose(found[:2], [RECORD.boxes[1].xyxy, RECORD.boxes[0].xyxy])
    np.testing.assert_allclose(found[2], [0.1, 0.2, 0.9, 0.7], rtol=1e-6)  # the union of both
    assert not found[3:].any()  # two boxes make one pair
    three = boxes_of(RECORD, "record", 3, 3)
    np.testing.assert_allclose(three[3:], [[0.1, 0.2, 0.9, 0.7], [0, 0, 0.3, 1], [0, 0, 0.9, 1]], rtol=1e-6)  # .72, .45, .40


def test_an_encoder_that_crops_the_centre_sees_a_part_of_a_box() -> None:
    """Of 200 x 100 pixels it sees the middle 100 x 100: fractions 0.25 to 0.75 of the width."""
    view = ImagePreparation(resize=32, crop=(32, 32))
    assert view.view((200, 100)) == pytest.approx((0.25, 0, 0.75, 1))
    found = boxes_of(RECORD, "record", 3, 0, view)
    np.testing.assert_allclose(found[1], [0.5, 0.2, 1.0, 0.6], atol=1e-6)
    np.testing.assert_allclose(found[0], [0.0, 0.5, 0.1, 0.7], atol=1e-6)
    assert not found[2].any()  # the tree lies outside
    padded = ImagePreparation(resize=(32, 32), pad=True)
    assert padded.view((200, 100)) == pytest.approx((0, -0.5, 1, 1.5))
    np.testing.assert_allclose(boxes_of(RECORD, "record", 1, 0, padded)[0], [0.1, 0.5, 0.3, 0.6], atol=1e-6)
    squashed = ImagePreparation(resize=(32, 32))
    assert squashed.view((200, 100)) == pytest.approx((0, 0, 1, 1))


def test_cells_are_the_same_and_random_boxes_belong_to_the_image() -> None:
    np.testing.assert_allclose(boxes_of(RECORD, "cells", 9, 4)[:9], CELLS[:9], rtol=1e-6)
    for table in (CELLS, LARGE_CELLS):
        assert len(table) == 10
        assert ((table >= 0) & (table <= 1)).all()
        assert (table[:, :2] < table[:, 2:]).all()
    one, again = boxes_of(RECORD, "random", 10, 10), boxes_of(RECORD, "random", 10, 10)
    other = boxes_of(Record(id="2", images=("b.png",), captions=("x",)), "random", 10, 10)
    assert (one == again).all()
    assert not (one == other).any(axis=1).all()
    assert ((one >= 0) & (one <= 1)).all()
    assert (one[:, :2] < one[:, 2:]).all()


def test_phrases_are_those_of_the_text_and_random_ones_have_as_many_words() -> None:
    rules = ComponentRules(3, 2, "cells", "record", "a photo of {}")
    assert rules.phrases_of(RECORD, TEXT) == (
        "a photo of brown dog",
        "a photo of blue car",
        "",
        "a photo of brown dog runs behind blue car",
        "",
    )
    assert rules.phrases_of(RECORD, "another") == ("",) * 5
    random = ComponentRules(3, 2, "cells", "random").phrases_of(RECORD, TEXT)
    assert [len(phrase.split()) for phrase in random] == [2, 2, 0, 6, 0]
    assert all(phrase in TEXT for phrase in random)
    phrases, index = phrase_table([("dog", "", "car"), ("car", "dog", "")])
    assert phrases == ["dog", "car"]
    assert index.tolist() == [[0, -1, 1], [1, 0, -1]]


def test_crops_are_the_image_and_its_boxes() -> None:
    pixels = np.zeros((100, 200, 3), dtype=np.uint8)
    pixels[20:60, 100:180] = 200  # the car
    image = Image.fromarray(pixels)
    preparation = ImagePreparation(resize=(8, 8))
    tiling = BoxTilingConfig(boxes="record", entities=2, relations=2).for_record(RECORD)
    crops = tiling.crops(image, preparation)
    assert crops.shape == (5, 8, 8, 3)
    assert (crops[0] == preparation.prepare(image)).all()
    assert (crops[2] == 200).all()
    assert not crops[1].any()
    assert not crops[4].any()  # padding
    assert tiling.layout(200, 100, (1, 1)).num_crops == 5
    grey = region_of(image, RECORD.boxes[0].xyxy, "grey")
    assert grey.size == image.size
    assert grey.getpixel((0, 0)) == (128, 128, 128)
    assert grey.getpixel((140, 40)) == (200, 200, 200)
    moved = Record(id="3", images=("a.png",), image_info=RECORD.image_info, captions=("x",), boxes=RECORD.boxes[1:])
    key = tiling.image_key("00" * 32, RECORD)
    assert key != tiling.image_key("00" * 32, moved)
    assert BoxTilingConfig().image_key("00" * 32, moved) == "00" * 32
