"""Random numbers keyed by what they are for, so that nothing depends on how many were drawn before (Philox streams)."""

import hashlib
from collections.abc import Callable

import numpy as np


def keyed_generator(*key: int | str) -> np.random.Generator:
    """A random generator that belongs to a key: equal keys give equal streams, any other key an independent one."""
    digest = hashlib.sha256("\0".join(map(str, key)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def derangement(num: int, alike: Callable[[int, int], bool], generator: np.random.Generator) -> list[int] | None:
    """A permutation that sends no place to one that is alike: a random one, repaired by exchanges; None where that fails.

    Args:
        num: number of places.
        alike: whether two places must not be exchanged; each place is alike to itself.
        generator: draws it.
    """
    partner = generator.permutation(num).tolist()
    for place in range(num):
        if not alike(place, partner[place]):
            continue
        for other in generator.permutation(num).tolist():
            if not alike(place, partner[other]) and not alike(other, partner[place]):
                partner[place], partner[other] = partner[other], partner[place]
                break
        else:
            return None
    return partner
