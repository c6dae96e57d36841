"""Chooses the weights of several scores of the same candidates by recall."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float

from sightline.metrics.retrieval import best_positive, recall_from_best

STEPS = 5  # weights are multiples of 1 / STEPS: 56 combinations of four scores


def choose_weights(scores_SQC: Float[np.ndarray, "S Q C"], positives_QC: Bool[np.ndarray, "Q C"]) -> tuple[list[float], float]:
    """Returns weights that sum to 1, and their mean recall at 1.

    All combinations of multiples of 0.2 are tried. Of those with the same recall at 1 the one with the highest recall at 5 is
    taken, then the most even one, then the one with more weight on the earlier scores.

    Args:
        scores_SQC: higher is better.
        positives_QC: which candidates are right; at least one per query.
    """
    best: tuple[tuple[float, ...], list[float]] | None = None
    for parts in _compositions(STEPS, len(scores_SQC)):
        weights = [part / STEPS for part in parts]
        counts = best_positive(np.tensordot(weights, scores_SQC, 1), positives_QC)
        recalls = [float(recall_from_best(counts, k).mean()) for k in (1, 5)]
        rank = (*recalls, -sum(part * part for part in parts), *parts)
        if best is None or rank > best[0]:
            best = rank, weights
    assert best is not None
    return best[1], best[0][0]


def _compositions(total: int, count: int) -> Iterator[tuple[int, ...]]:
    """Yields all tuples of `count` numbers from 0 that sum to `total`."""
    if count == 1:
        yield (total,)
        return
    for first in range(total + 1):
        for rest in _compositions(total - first, count - 1):
            yield (first, *rest)
