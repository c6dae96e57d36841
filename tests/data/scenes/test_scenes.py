"""Pictures of scenes: what is drawn is what is said, checked on the pixels by means that the generator does not use."""

import hashlib
import itertools
import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from sightline.data.scenes import Scene, captions, generate, make_scene, render
from sightline.data.scenes.drawing import letters
from sightline.data.scenes.outlines import UNIT, unit_outline
from sightline.data.scenes.world import COLORS, NUMBERS, WORDS, Stream
from sightline.errors import UsageError

SEED = 20


def pixels(scene: Scene, size: int = 64, noise: bool = True) -> np.ndarray:
    return np.asarray(render(scene, size, noise)).astype(int)


def touched(scene: Scene, size: int) -> np.ndarray:
    """Which pixels the things change, by comparing with the same picture without them."""
    empty = replace(scene, things=(), sign=None)
    return (pixels(scene, size, noise=False) != pixels(empty, size, noise=False)).any(2)


def frame(mask: np.ndarray) -> np.ndarray:
    """Left, top, right, bottom of the pixels in a mask, the borders of the last ones included."""
    rows, columns = np.nonzero(mask)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


def colored(picture: np.ndarray, name: str) -> np.ndarray:
    """Pixels near a named color, by distance in RGB; nothing else in a picture is that near to it."""
    return np.sqrt(((picture - np.array(COLORS[name])) ** 2).sum(2)) < 40


def color_names(picture: np.ndarray, count: int) -> list[str]:
    """The named colors that a picture has most of; smooth edges have specks of others (red fades to pink)."""
    return sorted(COLORS, key=lambda name: -colored(picture, name).sum())[:count]


def bulk(mask: np.ndarray) -> np.ndarray:
    """Left, top, right, bottom of most pixels in a mask, without specks."""
    places = np.nonzero(mask)[::-1]
    return np.array([np.percentile(axis, share) for share in (8, 92) for axis in places])


def parts(mask: np.ndarray) -> int:
    """Number of connected parts of a mask, diagonal neighbours included."""
    left = {(int(row), int(column)) for row, column in zip(*np.nonzero(mask), strict=True)}
    count = 0
    while left:
        count += 1
        edge = [left.pop()]
        while edge:
            row, column = edge.pop()
            near = set(itertools.product((row - 1, row, row + 1), (column - 1, column, column + 1))) & left
            left -= near
            edge += near
    return count


# Purity ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_scene_does_not_depend_on_count_offset_or_order(level: int) -> None:
    whole = list(generate(8, SEED, level))
    part = list(generate(3, SEED, level, offset=4))
    alone = render(make_scene(SEED, level, 6))
    assert [(record, image.tobytes()) for record, image in part] == [(r, i.tobytes()) for r, i in whole[4:7]]
    assert alone.tobytes() == whole[6][1].tobytes()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**64 - 1), level=st.sampled_from([1, 2, 3]), index=st.integers(0, 2**64 - 1))
def test_seed_level_and_index_each_change_the_scene_and_nothing_else_does(seed: int, level: int, index: int) -> None:
    scene = make_scene(seed, level, index)
    assert scene == make_scene(seed, level, index)
    assert scene.things != make_scene(seed ^ 1, level, index).things
    assert scene.things != make_scene(seed, level, index ^ 1).things
    assert scene.things != make_scene(seed, level % 3 + 1, index).things


def test_what_one_purpose_draws_never_moves_another() -> None:
    draws = [make_scene(SEED, 1, 0).draws(stream) for stream in Stream]
    assert len({tuple(each.below(1000) for _ in range(8)) for each in draws}) == len(Stream)


def test_draws_cover_their_range_evenly() -> None:
    draws = make_scene(SEED, 1, 0).draws(Stream.WORLD)
    counts = np.bincount([draws.below(7) for _ in range(7000)], minlength=7)
    assert ((counts - 1000) ** 2 / 1000).sum() < 22.5  # chi-square with 6 degrees of freedom, p = 0.001
    fractions = {draws.fraction(0.25, 0.252) for _ in range(300)}
    assert fractions == {k / 4096 for k in range(1024, 1033)}


def test_five_thousand_pictures_all_differ_even_without_their_grain() -> None:
    seen = {render(make_scene(SEED, 1, index), 32, noise=False).tobytes() for index in range(5000)}
    assert len(seen) == 5000


# Hashes taken on x86-64 Linux, numpy 2.4, Pillow 13. Pixels are whole-number arithmetic and hold wherever numpy runs.
GOLDEN = {
    (1, 0): ("1bda8c62626e6829", "697f12fb09a29aba"),
    (1, 123456): ("f2c4fabb736a952a", "3eebd8d1ca609a4f"),
    (2, 1): ("5af726f551ffea4b", "5c4ccfe1dfb77dc5"),
    (2, 7): ("b6131386f08f6f4c", "27cd44ae9bca914f"),
    (3, 2): ("1eb16d01f0e8d7f7", "8c913c374eb8cc27"),
    (3, 1099511627776): ("1391d04d87e905c0", "d39dac45ac1deb75"),
}


@pytest.mark.parametrize(("level", "index"), sorted(GOLDEN))
def test_scenes_and_pictures_are_those_of_the_first_release(level: int, index: int) -> None:
    scene = make_scene(SEED, level, index)
    described = hashlib.sha256(json.dumps(asdict(scene), sort_keys=True).encode()).hexdigest()[:16]
    drawn = hashlib.sha256(render(scene).tobytes()).hexdigest()[:16]
    assert (described, drawn) == GOLDEN[level, index]


# Drawing --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "level"), [(32, 1), (33, 2), (64, 3), (100, 3), (1024, 2)])
def test_any_size_from_32_on_shows_the_same_scene(size: int, level: int) -> None:
    scene = make_scene(SEED, level, 3)
    picture = render(scene, size)
    assert (picture.mode, picture.size) == ("RGB", (size, size))
    reference = frame(touched(scene, 512)) / 512
    np.testing.assert_allclose(frame(touched(scene, size)) / size, reference, atol=1.0 / size + 1 / 512)


def test_boxes_are_tight_around_the_pixels_that_a_thing_changes() -> None:
    for level, index in itertools.product((1, 2, 3), range(25)):
        scene = make_scene(SEED, level, index)
        for thing in (*scene.things, scene.sign):
            if thing is None:
                continue
            alone = replace(scene, things=(), sign=thing) if thing is scene.sign else replace(scene, things=(thing,), sign=None)
            # A tip is lost where it covers less than a sample of a pixel: at most one pixel at this size.
            np.testing.assert_allclose(frame(touched(alone, 256)), np.array(thing.box) * 256, atol=1.5)


def test_edges_are_those_of_another_rasteriser() -> None:
    """Pillow draws the same polygons at sixteen-fold size; its rounding of corners is a thirty-second of a pixel."""
    size, fine = 64, 16
    for index in range(40):
        (thing,) = make_scene(SEED, 1, index).things
        canvas = Image.new("L", (size * fine, size * fine))
        for number, contour in enumerate(unit_outline(thing.shape, thing.angle)[0]):
            places = [(thing.x + x * thing.radius / UNIT, thing.y + y * thing.radius / UNIT) for x, y in contour]
            corners = [(x * size * fine - 0.5, y * size * fine - 0.5) for x, y in places]
            ImageDraw.Draw(canvas).polygon(corners, fill=0 if number else 255)
        expected = np.asarray(canvas.reduce(fine)) / 255
        scene = make_scene(SEED, 1, index)
        plain = replace(scene, things=(replace(thing, rgb=(0, 0, 0)),), background=replace(scene.background, rgb=(160,) * 3))
        shade = pixels(replace(plain, background=replace(plain.background, across=0, down=0)), noise=False)[:, :, 0]
        difference = np.abs(1 - shade / 160 - expected)
        assert difference.max() < 0.2, (thing.shape, difference.max())  # 16 samples a pixel against 256
        assert difference.mean() < 0.002, (thing.shape, difference.mean())


def test_outlines_have_the_area_and_the_waist_of_their_names() -> None:
    """Area over the square of the outer radius, and inner over outer radius, by hand for each shape; a ring is open."""
    expected = {
        "circle": (math.pi, 1.0),
        "square": (2.0, math.sqrt(0.5)),
        "triangle": (0.75 * math.sqrt(3), 0.5),
        "star": (2.5 * math.sin(math.radians(36)), 0.5),
        "cross": ((4 * 0.72 - 0.72**2) / (1 + 0.36**2), 0.36 * math.sqrt(2) / math.sqrt(1 + 0.36**2)),
    }
    seen = set()
    for index in range(40):
        (thing,) = (scene := make_scene(SEED, 1, index)).things
        mask = touched(scene, 384)
        rows, columns = np.nonzero(mask)
        middle = rows.mean(), columns.mean()
        if not mask[round(middle[0]), round(middle[1])]:
            seen.add("ring")
            assert thing.shape == "ring"
            continue
        outer = np.sqrt((rows - middle[0]) ** 2 + (columns - middle[1]) ** 2).max()
        rows, columns = np.nonzero(~mask)
        inner = np.sqrt((rows - middle[0]) ** 2 + (columns - middle[1]) ** 2).min()
        found = mask.sum() / outer**2, inner / outer
        nearest = min(expected, key=lambda name: math.dist(expected[name], found))
        seen.add(nearest)
        assert nearest == thing.shape
        assert math.dist(expected[nearest], found) < 0.1
    assert len(seen) == 6


def test_the_inner_thing_lies_in_the_outer_one_and_in_the_hole_of_a_ring() -> None:
    found = set()
    for index in range(700):
        scene = make_scene(SEED, 2, index)
        outer, inner = scene.things
        if (outer.size, inner.size) == ("large", "small") and outer.box[0] < inner.box[0] and outer.box[2] > inner.box[2]:
            if not outer.box[1] < inner.box[1] < outer.box[3]:
                continue
            masks = [touched(replace(scene, things=(thing,)), 128) for thing in scene.things]
            assert (masks[0] & masks[1]).sum() == (0 if outer.shape == "ring" else masks[1].sum()), (outer, inner)
            found.add((outer.shape, inner.shape))
    assert len(found) > 25
    assert {outer for outer, _ in found} == {"circle", "cross", "ring", "square", "star", "triangle"}


def test_named_colors_are_far_apart_and_far_from_every_background() -> None:
    # Things vary by 10 in each channel (17 in all) and grain by 7: half of 85 leaves a color with its own name.
    assert min(math.dist(one, other) for one, other in itertools.combinations(COLORS.values(), 2)) > 85
    for index in range(300):
        corners = pixels(replace(make_scene(SEED, 1, index), things=()), 32, noise=False)[[0, 0, -1, -1], [0, -1, 0, -1]]
        for name, rgb in COLORS.items():
            assert np.sqrt(((corners - np.array(rgb)) ** 2).sum(1)).min() > 60, name


# Pictures and words ---------------------------------------------------------------------------------------------------------


def test_size_color_and_place_of_level_1_can_be_read_from_the_pixels() -> None:
    rows, columns = ("top", "", "bottom"), ("left", "", "right")
    for record, image in generate(150, SEED, 1):
        (name,) = color_names(picture := np.asarray(image).astype(int), 1)
        left, top, right, bottom = frame(colored(picture, name)) / 64
        size = "large" if max(right - left, bottom - top) > 0.275 else "small"
        place = f"{rows[int(1.5 * (top + bottom))]} {columns[int(1.5 * (left + right))]}".strip() or "center"
        (thing,) = record.meta["objects"]
        preposition = {"left": "on", "right": "on", "center": "in"}.get(place, "at")
        assert record.captions[0] == record.meta["canonical"] == f"a {size} {name} {thing['shape']} {preposition} the {place}"


def test_relations_of_level_2_can_be_read_from_the_pixels() -> None:
    words = {"left of": "to the left of", "above": "above", "inside": "inside"}
    checked = 0
    for record, image in generate(250, SEED, 2):
        first, second = record.meta["objects"]
        if first["color"] == second["color"]:
            continue
        picture = np.asarray(image).astype(int)
        assert sorted(color_names(picture, 2)) == sorted((first["color"], second["color"]))
        frames = [bulk(colored(picture, thing["color"])) for thing in (first, second)]
        (one, one_frame), (other, other_frame) = sorted(
            zip((first, second), frames, strict=True), key=lambda pair: pair[1][2] - pair[1][0]
        )
        if (one_frame[:2] > other_frame[:2]).all() and (one_frame[2:] < other_frame[2:]).all():
            relation = "inside"
        else:
            right, down = (other_frame - one_frame)[:2] + (other_frame - one_frame)[2:]
            relation = "left of" if abs(right) > abs(down) else "above"
            if (right if relation == "left of" else down) < 0:
                one, other = other, one
        name = "a {size} {color} {shape}"
        assert record.captions[0] == f"{name.format(**one)} {words[relation]} {name.format(**other)}"
        checked += 1
    assert checked > 200


def test_level_3_shows_as_many_things_as_it_tells_each_in_a_place_of_its_own() -> None:
    totals = set()
    for index in range(60):
        scene = make_scene(SEED, 3, index)
        mask = touched(scene, 96)
        totals.add(len(scene.things))
        assert parts(mask) == len(scene.things) + 1  # and the sign
    assert totals == {3, 4, 5, 6}


def test_a_sign_can_be_read_from_the_pixels() -> None:
    dots = {letter: letters(letter) for letter in sorted(set("".join((*WORDS, *NUMBERS))))}
    for one, other in itertools.combinations(dots, 2):
        assert (dots[one] != dots[other]).sum() >= 2, f"{one} and {other} look alike"
    for record, image in generate(80, SEED, 3):
        (box,) = [box.xyxy for box in record.boxes if box.label == "sign"]
        left, top, right, bottom = (round(64 * value) for value in box)
        ink = np.asarray(image).astype(int).sum(2)[top + 3 : bottom - 3, left + 3 : right - 3] < 3 * 128
        read = "".join(
            min(dots, key=lambda letter: (dots[letter] != ink[:, start : start + 5]).sum()) for start in range(0, ink.shape[1], 6)
        )
        assert read == record.meta["sign"]
        assert record.captions[0].endswith(f" and a sign that reads {read}")


def test_a_blind_guesser_hits_the_canonical_caption_in_less_than_one_of_a_hundred() -> None:
    told = [captions(make_scene(SEED, 1, index), 1)[0].text for index in range(5000)]
    counts = np.array(sorted(map(told.count, set(told)), reverse=True))
    assert counts[0] / 5000 < 0.01
    assert len(counts) > 850  # of 864


# Refusals -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"level": 4}, "level is 4"),
        ({"seed": -1}, "seed is -1"),
        ({"offset": -1}, "index is -1"),
        ({"count": -2}, "count is -2"),
        ({"size": 31}, "size is 31"),
        ({"size": 1025}, "size is 1025"),
        ({"level": 3, "size": 63}, "Choose 64 to 1024"),
        ({"num_captions": 0}, "0 captions"),
        ({"val": 0.6, "test": 0.5}, "val=0.6, test=0.5"),
        ({"novel": [("white", "star")]}, "no white star"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(arguments: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        list(generate(**{"count": 1, "seed": 0, "level": 1, **arguments}))
