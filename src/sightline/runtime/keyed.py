"""Random generators keyed by their purpose (Philox streams), so that no draw depends on earlier draws."""

import hashlib
from collections.abc import Callable

import numpy as np


def keyed_generator(*key: int | str) -> np.random.Generator:
    """Returns the random generator of a key: equal keys give equal streams, different keys independent ones."""
    digest = hashlib.sha256("\0".join(map(str, key)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def derangement(num: int, alike: Callable[[int, int], bool], generator: np.random.Generator) -> list[int] | None:
    """Draws a permutation that maps no index to one that is alike: a random permutation, repaired by swaps.

    Args:
        num: number of indices.
        alike: whether an index must not be mapped to another; every index is alike to itself.
        generator: source of random numbers.

    Returns:
        The image of each index; None where the repair fails.
    """
    partner = generator.permutation(num).tolist()
    for index in range(num):
        if not alike(index, partner[index]):
            continue
        for other in generator.permutation(num).tolist():
            if not alike(index, partner[other]) and not alike(other, partner[index]):
                partner[index], partner[other] = partner[other], partner[index]
                break
        else:
            return None
    return partner
