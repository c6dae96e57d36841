"""Copies look alike, different images do not, and no pair is missed or told twice."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from sightline.data.check.perceptual_hash import ALIKE, NEAR_BITS, look, near_pairs, similarity
from sightline.data.images.opener import open_image
from tests.data.broken_images import photo
from tests.data.check.planted import jpeg, scene


def distance(a: int, b: int) -> int:
    return (a ^ b).bit_count()


def alike(a: Image.Image, b: Image.Image) -> float:
    thumbnails = [np.frombuffer(look(image).thumbnail, np.uint8)[None] for image in (a, b)]
    return float(similarity(*thumbnails)[0])


def test_the_hash_is_that_of_the_cosine_transform() -> None:
    image = photo(32, 32)  # 32 x 32: nothing is shrunk
    pixels = np.asarray(image, dtype=np.float64)
    grey = 0.299 * pixels[..., 0] + 0.587 * pixels[..., 1] + 0.114 * pixels[..., 2]
    waves = [
        sum(
            grey[y, x] * math.cos(math.pi * (2 * y + 1) * v / 64) * math.cos(math.pi * (2 * x + 1) * u / 64)
            for y in range(32)
            for x in range(32)
        )
        for v in range(1, 9)
        for u in range(1, 9)
    ]
    middle = sorted(waves)[31:33]
    expected = sum(1 << place for place, wave in enumerate(waves) if wave > sum(middle) / 2)
    assert look(image).hash == expected
    assert look(image).hash.bit_count() == 32


COPIES = {
    "jpeg of quality 30": lambda image: open_image(jpeg(image, 30)),
    "three quarters of the size": lambda image: image.resize((72, 72), Image.Resampling.BICUBIC),
    "twice the size": lambda image: image.resize((192, 192), Image.Resampling.LANCZOS),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "grey": lambda image: image.convert("L").convert("RGB"),
}


@pytest.mark.parametrize("copy", COPIES)
def test_copies_are_near_and_alike(copy: str) -> None:
    for index in range(12):
        image = scene(index)
        changed = COPIES[copy](image)
        assert distance(look(image).hash, look(changed).hash) <= NEAR_BITS
        assert alike(image, changed) > ALIKE


def test_different_images_are_not() -> None:
    looks = [look(scene(index)) for index in range(60)]
    hashes = np.array([found.hash for found in looks], dtype=np.uint64)
    thumbnails = np.stack([np.frombuffer(found.thumbnail, np.uint8) for found in looks])
    pairs = [(int(a), int(b)) for i, j in near_pairs(hashes, NEAR_BITS) for a, b in zip(i, j, strict=True)]
    assert [pair for pair in pairs if similarity(thumbnails[[pair[0]]], thumbnails[[pair[1]]])[0] > ALIKE] == []


def test_the_same_shape_in_another_colour_is_not_alike_though_its_hash_may_be() -> None:
    shape = np.zeros((64, 64), bool)
    shape[40:60, 30:50] = True
    blue, black = np.full((64, 64, 3), 230, np.uint8), np.full((64, 64, 3), 230, np.uint8)
    blue[shape], black[shape] = (40, 60, 220), (15, 15, 15)
    first, second = Image.fromarray(blue), Image.fromarray(black)
    assert distance(look(first).hash, look(second).hash) <= NEAR_BITS
    assert alike(first, second) < ALIKE


def test_images_of_one_colour_are_flat_and_alike_to_none() -> None:
    plain = Image.new("RGB", (50, 40), (200, 30, 30))
    assert look(plain).is_flat
    assert not look(scene(0)).is_flat
    assert alike(plain, plain) == 0


@given(st.integers(0, 2**32 - 1))
def test_likeness_of_coloured_noise_is_the_correlation_of_centred_pixels(seed: int) -> None:
    generator = np.random.default_rng(seed)
    a = generator.integers(0, 256, (1, 768), dtype=np.uint8)
    b = np.clip(a + generator.normal(0, 25, a.shape), 0, 255).astype(np.uint8)
    centred = [(own.reshape(256, 3) - own.reshape(256, 3).astype(np.float64).mean(0)) for own in (a, b)]
    expected = np.corrcoef(centred[0].ravel(), centred[1].ravel())[0, 1]
    channels = [np.corrcoef(centred[0][:, c], centred[1][:, c])[0, 1] for c in range(3)]
    if min(channels) > 0.91:
        assert similarity(a, b)[0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("max_bits", [0, 1, 8, 16])
def test_near_pairs_are_those_of_comparing_everything_each_once(max_bits: int) -> None:
    generator = np.random.default_rng(max_bits)
    base = generator.integers(0, 2**64, 300, dtype=np.uint64)
    flips = [sum(1 << int(bit) for bit in generator.choice(64, size=number % 20, replace=False)) for number in range(300)]
    hashes = np.concatenate([base, base ^ np.array(flips, dtype=np.uint64), base[:20]])
    expected = {
        (i, j)
        for i in range(len(hashes))
        for j in range(i + 1, len(hashes))
        if distance(int(hashes[i]), int(hashes[j])) <= max_bits
    }
    found = [(int(a), int(b)) for i, j in near_pairs(hashes, max_bits) for a, b in zip(i, j, strict=True)]
    assert len(found) == len(set(found))
    assert set(found) == expected
    assert len(expected) > 30


def test_no_images_make_no_pairs() -> None:
    assert list(near_pairs(np.zeros(0, np.uint64), 8)) == []
    assert list(near_pairs(np.zeros(1, np.uint64), 8)) == []
