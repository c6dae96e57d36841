"""Retrieval metrics against counting over all orders of tied candidates, and by hand."""

from itertools import permutations

import numpy as np
import pytest

from sightline.metrics.retrieval import Gallery, RankedImage, best_positive, median_rank, precision_at_r, recall_at


def over_all_orders(scores: list[float], positives: list[bool], k: int) -> tuple[float, float, float]:
    """Recall at k, R-Precision and mAP@R as means over every order that sorts the scores."""
    orders = [
        order
        for order in permutations(range(len(scores)))
        if all(scores[a] >= scores[b] for a, b in zip(order, order[1:]))  # noqa: B905, RUF007
    ]
    number = sum(positives)
    found = []
    for order in orders:
        hits = [positives[index] for index in order]
        average = sum(sum(hits[: at + 1]) / (at + 1) for at in range(number) if hits[at]) / number
        found.append((float(any(hits[:k])), sum(hits[:number]) / number, average))
    recall, precision, mean = (float(np.mean(column)) for column in zip(*found, strict=True))
    return recall, precision, mean


@pytest.mark.parametrize("seed", range(12))
def test_ties_are_shared_as_over_all_orders(seed: int) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 3, 6).astype(float)  # many ties
    positives = np.zeros(6, dtype=bool)
    positives[generator.permutation(6)[: 1 + seed % 4]] = True
    precision, average = precision_at_r(scores[None], positives[None])
    for k in (1, 2, 4):
        expected = over_all_orders(scores.tolist(), positives.tolist(), k)
        assert recall_at(scores[None], positives[None], k)[0] == pytest.approx(expected[0])
        assert (precision[0], average[0]) == pytest.approx(expected[1:])


def test_ranks_by_hand() -> None:
    scores = np.array([[3.0, 2.0, 1.0, 0.0], [0.0, 5.0, 5.0, 1.0]])
    positives = np.array([[False, True, False, True], [False, False, True, False]])
    counts = best_positive(scores, positives)
    assert counts.tolist() == [[1, 0], [1, 2], [1, 1]]
    assert recall_at(scores, positives, 1).tolist() == [0.0, 0.5]
    assert recall_at(scores, positives, 2).tolist() == [1.0, 1.0]
    assert median_rank(counts) == pytest.approx((2 + 1.5) / 2)


@pytest.mark.parametrize("k", [1, 5, 10])
def test_a_constant_scorer_scores_exactly_chance(k: int) -> None:
    images, per_image, width = 40, 5, 3
    owner = np.repeat(np.arange(images), per_image)
    gallery = Gallery.of_vectors(np.ones((images, width)), np.ones((images * per_image, width)), np.arange(images), owner)
    ranked = gallery.ranked(range(images), np.arange(images * per_image).reshape(images, per_image).tolist())
    from sightline.metrics.retrieval import recall_from_best

    image = np.array([found.image for found in ranked]).T
    text = np.array([counts for found in ranked for counts in found.captions]).T
    total = images * per_image
    none = np.prod([(total - per_image - drawn) / (total - drawn) for drawn in range(k)])
    assert recall_from_best(image, k) == pytest.approx(np.full(images, 1 - none))
    assert recall_from_best(text, k) == pytest.approx(np.full(total, k / images))
    assert np.mean([found.precision for found in ranked]) == pytest.approx(per_image / total)


def test_a_gallery_ranks_by_cosine_and_images_that_are_there_twice_are_both_right() -> None:
    image = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])  # the third is the first again
    text = np.array([[1.0, 0.1], [0.2, 1.0]])
    gallery = Gallery.of_vectors(image, text, np.array([7, 8, 7]), np.array([7, 8]))
    first, second, third = gallery.ranked([0, 1, 2], [[0], [1], []])
    assert (first.image, second.image, third.image) == ((0, 1, 1), (0, 1, 1), (0, 1, 1))
    assert first.captions == ((0, 2, 2),)
    assert RankedImage.from_scores(first.to_scores()) == first
