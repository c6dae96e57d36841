"""The order of an epoch as a pure function of (seed, epoch): no rank, no worker and no restart can change it.

Random numbers come from Philox streams keyed by what they are for, so that nothing depends on how many were drawn before.
"""

import numpy as np
from jaxtyping import Int

from sightline.runtime.keyed import keyed_generator

# Consecutive units per block, and blocks per window: 16,384 units are mixed at a time while files are read front to back.
BLOCK, WINDOW = 1024, 16


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
