"""Retrieval metrics from scores and positives; ties are shared, so that nobody gains from the order of the candidates.

Candidates with equal scores are taken in random order, and a metric is its expected value over these orders. A scorer that gives
every candidate the same score therefore has exactly the value of chance.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

KS = (1, 5, 10)


def recall_at(scores_QC: Float[np.ndarray, "Q C"], positives_QC: Bool[np.ndarray, "Q C"], k: int) -> Float[np.ndarray, " Q"]:
    """Returns for each query the probability that at least one positive is among its first `k` candidates.

    Args:
        scores_QC: higher is better.
        positives_QC: which candidates are right; at least one per query.
        k: length of the list.
    """
    return recall_from_best(best_positive(scores_QC, positives_QC), k)


def best_positive(scores_QC: Float[np.ndarray, "Q C"], positives_QC: Bool[np.ndarray, "Q C"]) -> Int[np.ndarray, "3 Q"]:
    """Returns what the rank of each query's best positive depends on.

    Returns:
        The number of candidates above it, of those that tie with it (itself included), and of positives among these.
    """
    best_Q = np.where(positives_QC, scores_QC, -np.inf).max(axis=1)
    tied_QC = scores_QC == best_Q[:, None]
    return np.stack([(scores_QC > best_Q[:, None]).sum(1), tied_QC.sum(1), (tied_QC & positives_QC).sum(1)])


def recall_from_best(counts_3Q: Int[np.ndarray, "3 Q"], k: int) -> Float[np.ndarray, " Q"]:
    """Returns the recall at `k` from the counts of `best_positive`.

    Of `t` tied candidates `p` are positive and `s = k - above` places are left: the recall is one minus the probability that none
    of the `s` drawn without replacement is positive.
    """
    above_Q, tied_Q, tied_positives_Q = counts_3Q
    places_Q = np.clip(k - above_Q, 0, tied_Q)
    none_Q = np.ones(len(above_Q))
    for drawn in range(k):
        left = tied_Q - drawn
        wrong = np.maximum(left - tied_positives_Q, 0)
        none_Q = np.where(drawn < places_Q, none_Q * wrong / np.maximum(left, 1), none_Q)
    return 1.0 - none_Q


def median_rank(counts_3Q: Int[np.ndarray, "3 Q"]) -> float:
    """Returns the median over queries of the expected rank of the best positive, from 1.

    The first of `p` positives among `t` candidates in random order has the expected place `(t + 1) / (p + 1)`.
    """
    above_Q, tied_Q, tied_positives_Q = counts_3Q
    return float(np.median(above_Q + (tied_Q + 1) / (tied_positives_Q + 1)))


def precision_at_r(
    scores_QC: Float[np.ndarray, "Q C"], positives_QC: Bool[np.ndarray, "Q C"]
) -> tuple[Float[np.ndarray, " Q"], Float[np.ndarray, " Q"]]:
    """Returns R-Precision and mAP@R of each query, with R its number of positives (Musgrave et al. 2020)."""
    found = [_precision_of(scores, positives) for scores, positives in zip(scores_QC, positives_QC, strict=True)]
    return np.array([precision for precision, _ in found]), np.array([average for _, average in found])


def _precision_of(scores: Float[np.ndarray, " C"], positives: Bool[np.ndarray, " C"]) -> tuple[float, float]:
    """Returns both values of a query, expected over the orders of tied candidates.

    A place of a tie of `t` candidates, `p` of them positive, holds a positive with probability `p / t`; given that, each other
    place of the tie holds one with probability `(p - 1) / (t - 1)`.
    """
    number = int(positives.sum())
    head = np.partition(scores, -number)[-number]  # the score of place R
    chosen = scores >= head
    values, group = np.unique(-scores[chosen], return_inverse=True)
    ties = np.bincount(group, minlength=len(values))
    right = np.bincount(group, positives[chosen].astype(float), minlength=len(values))
    precision = average = above = 0.0
    place = 0
    for tied, positive in zip(ties.tolist(), right.tolist(), strict=True):
        for earlier in range(min(tied, number - place)):
            share, other = positive / tied, (positive - 1) / (tied - 1) if tied > 1 else 0.0
            precision += share
            average += share * (1 + above + earlier * other) / (place + earlier + 1)
        place, above = place + tied, above + positive
        if place >= number:
            break
    return precision / number, average / number


# Galleries --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RankedImage:
    """Where the right candidates of an image and of its captions stand.

    Attributes:
        image: of the image's best caption: candidates above it, those that tie with it, and right ones among these.
        precision, average: R-Precision and mAP@R of the image's captions.
        captions: the counts of `image` for each caption, whose candidates are the images.
    """

    image: tuple[int, int, int]
    precision: float
    average: float
    captions: tuple[tuple[int, int, int], ...]

    def to_scores(self) -> tuple[float, ...]:
        """Returns all numbers in a row, as `predictions.jsonl` keeps them."""
        return (*map(float, self.image), self.precision, self.average, *(float(n) for counts in self.captions for n in counts))

    @classmethod
    def from_scores(cls, scores: Sequence[float]) -> "RankedImage":
        """Reads what `to_scores` made."""
        counts = [tuple(map(int, scores[at : at + 3])) for at in range(5, len(scores), 3)]
        first, second, third = map(int, scores[:3])
        return cls((first, second, third), scores[3], scores[4], tuple((a, b, c) for a, b, c in counts))


class Gallery:
    """Images and texts that are ranked against each other.

    Args:
        image_scores, text_scores: return the scores of some images with all texts `[n, C]`, and of some texts with all images
            `[n, N]`; higher is better. They are compared as float32, so that equal pairs have equal scores.
        image_N, text_C: identity of each image, and of the image that each text describes.
    """

    def __init__(
        self,
        image_scores: Callable[[Sequence[int]], np.ndarray],
        text_scores: Callable[[Sequence[int]], np.ndarray],
        image_N: Int[np.ndarray, " N"],
        text_C: Int[np.ndarray, " C"],
    ) -> None:
        self.image_scores, self.text_scores = image_scores, text_scores
        self.image_N, self.text_C = image_N, text_C

    @classmethod
    def of_vectors(
        cls,
        image_NW: Float[np.ndarray, "N W"],
        text_CW: Float[np.ndarray, "C W"],
        image_N: Int[np.ndarray, " N"],
        text_C: Int[np.ndarray, " C"],
    ) -> "Gallery":
        """Ranks by the cosine of vectors, computed in float64; their length does not matter."""
        images, texts = _unit(image_NW), _unit(text_CW)
        return cls(lambda chosen: images[list(chosen)] @ texts.T, lambda chosen: texts[list(chosen)] @ images.T, image_N, text_C)

    @classmethod
    def of_scores(
        cls, scores_NC: Float[np.ndarray, "N C"], image_N: Int[np.ndarray, " N"], text_C: Int[np.ndarray, " C"]
    ) -> "Gallery":
        """Ranks by the given score of each image with each text."""
        return cls(lambda chosen: scores_NC[list(chosen)], lambda chosen: scores_NC.T[list(chosen)], image_N, text_C)

    def ranked(self, images: Sequence[int], texts: Sequence[Sequence[int]]) -> list[RankedImage]:
        """Ranks all texts for some images and all images for their captions; memory grows with the images of one call.

        Args:
            images: indices.
            texts: for each image the indices of its captions.
        """
        scores = self.image_scores(images).astype(np.float32)
        right = self.text_C[None] == self.image_N[list(images), None]
        best = best_positive(scores, right).T.tolist()
        precision, average = precision_at_r(scores, right)
        flat = [text for own in texts for text in own]
        scores = self.text_scores(flat).astype(np.float32)
        of_text = best_positive(scores, self.image_N[None] == self.text_C[flat, None]).T.tolist()
        counts = iter([(above, tied, same) for above, tied, same in of_text])
        return [
            RankedImage((a, b, c), float(precision[row]), float(average[row]), tuple(next(counts) for _ in own))
            for row, ((a, b, c), own) in enumerate(zip(best, texts, strict=True))
        ]


def _unit(vectors: Float[np.ndarray, "N W"]) -> Float[np.ndarray, "N W"]:
    values = vectors.astype(np.float64)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
