"""The order of an epoch as a pure function of (seed, epoch): no rank, no worker and no restart can change it.

Random numbers come from Philox streams keyed by what they are for, so that nothing depends on how many were drawn before.
"""

import hashlib
from collections.abc import Callable

import numpy as np
from jaxtyping import Int

# Consecutive units per block, and blocks per window: 16,384 units are mixed at a time while files are read front to back.
BLOCK, WINDOW = 1024, 16


def keyed_generator(*key: int | str) -> np.random.Generator:
    """A random generator that belongs to a key: equal keys give equal streams, any other key an independent one."""
    digest = hashlib.sha256("\0".join(map(str, key)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def epoch_order(
    num: int, seed: int, epoch: int, windowed: bool = False, block: int = BLOCK, window: int = WINDOW
) -> Int[np.ndarray, " num"]:
    """Each number below `num` once, in the order of this epoch.

    Args:
        num: how many there are.
        seed, epoch: key of the order.
        windowed: for data read from shards: shuffle blocks of consecutive numbers, then mix `window` neighbouring blocks, instead
            of a permutation of everything.
        block: consecutive numbers per block.
        window: blocks per window.
    """
    generator = keyed_generator("order", seed, epoch)
    if not windowed:
        return generator.permutation(num).astype(np.int64)
    blocks = [np.arange(at, min(at + block, num), dtype=np.int64) for at in range(0, num, block)]
    shuffled = [blocks[index] for index in generator.permutation(len(blocks))]
    windows = [np.concatenate(shuffled[at : at + window]) for at in range(0, len(shuffled), window)]
    return np.concatenate([generator.permutation(part) for part in windows]) if windows else np.zeros(0, dtype=np.int64)


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
