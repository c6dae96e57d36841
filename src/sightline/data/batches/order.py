"""The order of an epoch as a pure function of (seed, epoch): no rank, no worker and no restart can change it.

Each data set of a mixture is an endless row of permutations from which an epoch takes its share, and the shares are mixed without
disturbing the order within a data set, so that shards are still read from front to back. Random numbers come from Philox streams
keyed by what they are for, so that nothing depends on how many were drawn before.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from sightline.errors import ConfigError
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


def mixture_order(
    sizes: Sequence[int], draws: Sequence[int], seed: int, epoch: int, windowed: Sequence[bool]
) -> Int[np.ndarray, " draws"]:
    """Unit numbers of an epoch over several sources.

    Source `i` is an endless sequence of permutations of its `sizes[i]` units; epoch `e` takes the elements
    `e * draws[i] .. (e + 1) * draws[i] - 1` of it. The sources' places in the epoch are drawn at random.

    Args:
        sizes: units of each source.
        draws: units that an epoch takes from each source.
        seed, epoch: key of everything random.
        windowed: sources whose permutations run over windows of shards.
    """
    labels = np.repeat(np.arange(len(sizes)), draws)
    if len(sizes) > 1:
        labels = keyed_generator(seed, epoch, "mixture").permutation(labels)
    out = np.empty(len(labels), dtype=np.int64)
    first = 0
    for number, (size, count) in enumerate(zip(sizes, draws, strict=True)):
        if count and not size:
            raise ConfigError(f"source {number} of data.mixture has nothing to draw from.")
        begin, parts = epoch * count, []
        while sum(map(len, parts)) < count:
            at = begin + sum(map(len, parts))
            cycle, place = divmod(at, size)
            parts.append(epoch_order(size, seed, cycle, windowed=windowed[number])[place:])
        own = np.concatenate(parts)[:count] if parts else np.zeros(0, dtype=np.int64)
        out[labels == number] = own + first
        first += size
    return out
