"""Retrieval metrics from scores and positives; ties are shared, so that nobody gains from the order of the candidates.

Candidates with equal scores are taken in random order, and a metric is its expected value over these orders. A scorer that gives
every candidate the same score therefore has exactly the value of chance.
"""

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
    return recall_from_best(*best_positive(scores_QC, positives_QC), k)


def best_positive(
    scores_QC: Float[np.ndarray, "Q C"], positives_QC: Bool[np.ndarray, "Q C"]
) -> tuple[Int[np.ndarray, " Q"], Int[np.ndarray, " Q"], Int[np.ndarray, " Q"]]:
    """Returns what the rank of each query's best positive depends on.

    Returns:
        The number of candidates above it, of those that tie with it (itself included), and of positives among these.
    """
    best_Q = np.where(positives_QC, scores_QC, -np.inf).max(axis=1)
    tied_QC = scores_QC == best_Q[:, None]
    return (scores_QC > best_Q[:, None]).sum(1), tied_QC.sum(1), (tied_QC & positives_QC).sum(1)


def recall_from_best(
    above_Q: Int[np.ndarray, " Q"], tied_Q: Int[np.ndarray, " Q"], tied_positives_Q: Int[np.ndarray, " Q"], k: int
) -> Float[np.ndarray, " Q"]:
    """Returns the recall at `k` from the counts of `best_positive`.

    Of `t` tied candidates `p` are positive and `s = k - above` places are left: the recall is one minus the probability that none
    of the `s` drawn without replacement is positive.
    """
    places_Q = np.clip(k - above_Q, 0, tied_Q)
    none_Q = np.ones(len(above_Q))
    for drawn in range(k):
        left = tied_Q - drawn
        wrong = np.maximum(left - tied_positives_Q, 0)
        none_Q = np.where(drawn < places_Q, none_Q * wrong / np.maximum(left, 1), none_Q)
    return 1.0 - none_Q


def median_rank(above_Q: Int[np.ndarray, " Q"], tied_Q: Int[np.ndarray, " Q"], tied_positives_Q: Int[np.ndarray, " Q"]) -> float:
    """Returns the median over queries of the expected rank of the best positive, from 1.

    The first of `p` positives among `t` candidates in random order has the expected place `(t + 1) / (p + 1)`.
    """
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
