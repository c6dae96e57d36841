"""The order of samples in an epoch: a pure function of (seed, epoch), independent of ranks, workers and restarts.

Each data set of a mixture is an endless sequence of permutations, of which an epoch takes its share. The shares are interleaved
without changing the order within a data set, so shards are still read sequentially. Random numbers come from Philox streams keyed
by their purpose, so no draw depends on earlier draws.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from sightline.errors import ConfigError
from sightline.runtime.keyed import keyed_generator

# Consecutive samples per block, and blocks per window: 16,384 samples are shuffled at a time while files are read sequentially.
BLOCK, WINDOW = 1024, 16


def epoch_order(
    num: int, seed: int, epoch: int, windowed: bool = False, block: int = BLOCK, window: int = WINDOW
) -> Int[np.ndarray, " num"]:
    """Returns the numbers below `num` in the order of an epoch.

    Args:
        num: number of samples.
        seed, epoch: key of the order.
        windowed: for data in shards: shuffle blocks of consecutive samples, then shuffle within windows of `window` blocks, instead
            of permuting everything.
        block: consecutive samples per block.
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
    """Returns the sample indices of an epoch over several sources.

    Source `i` is an endless sequence of permutations of its `sizes[i]` samples; epoch `e` takes the elements
    `e * draws[i] .. (e + 1) * draws[i] - 1` of it. The positions of the sources in the epoch are random.

    Args:
        sizes: samples of each source.
        draws: samples that an epoch takes from each source.
        seed, epoch: key of all random numbers.
        windowed: whether each source is shuffled within windows.

    Raises:
        ConfigError: a source is to be drawn from but has no samples.
    """
    labels = np.repeat(np.arange(len(sizes)), draws)
    if len(sizes) > 1:
        labels = keyed_generator(seed, epoch, "mixture").permutation(labels)
    out = np.empty(len(labels), dtype=np.int64)
    first = 0
    for number, (size, count) in enumerate(zip(sizes, draws, strict=True)):
        if count and not size:
            raise ConfigError(f"source {number} of data.mixture has no samples to draw from.")
        begin, parts = epoch * count, []
        while sum(map(len, parts)) < count:
            at = begin + sum(map(len, parts))
            cycle, offset = divmod(at, size)
            parts.append(epoch_order(size, seed, cycle, windowed=windowed[number])[offset:])
        chosen = np.concatenate(parts)[:count] if parts else np.zeros(0, dtype=np.int64)
        out[labels == number] = chosen + first
        first += size
    return out
