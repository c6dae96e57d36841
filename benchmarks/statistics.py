"""Statistics: how often intervals over seeds and items hold the truth, and how often equal arms seem to differ.

Scores are simulated and the true value is known. Items have skewed difficulties, as captions have; an arm's score on an item is the
item's difficulty, the seed's offset, and a normal deviation of the two together. The share of the seeds is that of the variance of
one seed's score. For the connectors of docs/results/connectors.md it is 0.78 on average and 0.95 for `mlp`. Arms that are compared
have the same true value.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from benchmarks.findings import Finding, fixed, say
from sightline.metrics.statistics import VarianceParts, variance_of_mean

ITEMS = (200, 1000)
SEEDS = (2, 3, 5, 10)
SHARES = (0.0, 0.5, 0.8, 0.95)
INTERACTION = 0.5  # share of an item's variance that changes with the seed
COMMON = 0.5  # share of a seed's variance that two arms with the same seed have in common, and of an item's that they do
COVERAGE, FALSE_ALARMS = 0.93, 0.07
_AT_ONCE = 1_000_000  # simulated values in memory at once: 8 MB

Scores = Float[np.ndarray, "M S N"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """How often."""
    parser.add_argument("--simulations", type=int, default=2000, help="of every cell (default 2000)")


@dataclass(frozen=True)
class Cell:
    """What is simulated together."""

    items: int
    seeds: int
    share: float

    @property
    def name(self) -> str:
        return f"n{self.items}_seeds{self.seeds}_share{self.share:g}"

    @property
    def seed_deviation(self) -> float:
        """Standard deviation of the offsets of the seeds, where a value's deviation over items is 1."""
        return float(np.sqrt(self.share / (1 - self.share) / self.items))


def run(options: argparse.Namespace) -> list[Finding]:
    """Coverage, false alarms and widths of every cell."""
    generator = np.random.default_rng(0)
    found = []
    for cell in [Cell(items, seeds, share) for share in SHARES for items in ITEMS for seeds in SEEDS]:
        say(f"  {cell.name}")
        found += simulate(cell, options.simulations, generator)
    return found


def simulate(cell: Cell, simulations: int, generator: np.random.Generator) -> list[Finding]:
    """Simulates one cell: a mean, and differences of arms with the same and with different seeds."""
    mean, items_only, same, different = ([] for _ in range(4))
    for count in _chunks(simulations, cell.items * cell.seeds):
        difficulty = _difficulty(generator, count, cell.items)
        offsets = generator.normal(size=(3, count, cell.seeds)) * cell.seed_deviation
        one = _scores(generator, difficulty, offsets[0])
        mean.append(_misses(one.mean(axis=-1), variance_of_mean(*_parts(one))))
        items_only.append(np.abs(one.mean(axis=(1, 2))) <= 1.96 * one.mean(axis=1).std(axis=-1, ddof=1) / np.sqrt(cell.items))
        first, second = (_scores(generator, _arm(generator, difficulty), _arm_offsets(offsets, arm)) for arm in (1, 2))
        same.append(_misses((first - second).mean(axis=-1), variance_of_mean(*_parts(first - second))))
        first, second = (_scores(generator, _arm(generator, difficulty), offsets[arm]) for arm in (1, 2))
        parts = [np.concatenate(both, axis=1) for both in zip(_parts(first), _parts(second), strict=True)]
        unpaired = variance_of_mean(parts[0], parts[1], (cell.seeds, cell.seeds))
        different.append(_misses((first.mean(axis=-1) - second.mean(axis=-1)), unpaired))
    outside, half_widths = (np.concatenate(each) for each in zip(*mean, strict=True))
    # of an interval from the true variance, as with endlessly many seeds
    ideal = 1.96 * np.sqrt(cell.seed_deviation**2 / cell.seeds + (1 - INTERACTION + INTERACTION / cell.seeds) / cell.items)
    return [
        fixed(f"coverage_{cell.name}", 1 - float(outside.mean()), "share of 95 % intervals that hold the truth", at_least=COVERAGE),
        fixed(f"items_only_{cell.name}", float(np.concatenate(items_only).mean()), "the same of intervals over items alone"),
        fixed(f"width_{cell.name}", float(np.median(half_widths)) / float(ideal), "median width over that from the true variance"),
        *(
            fixed(
                f"false_alarms_{kind}_seeds_{cell.name}",
                float(np.concatenate([outside for outside, _ in misses]).mean()),
                f"share of equal arms with {kind} seeds whose difference excludes 0",
                at_most=FALSE_ALARMS,
            )
            for kind, misses in (("same", same), ("different", different))
        ),
    ]


def _chunks(simulations: int, values: int) -> Iterator[int]:
    rows = max(1, _AT_ONCE // values)
    for done in range(0, simulations, rows):
        yield min(rows, simulations - done)


def _difficulty(generator: np.random.Generator, count: int, items: int) -> Float[np.ndarray, "M N"]:
    return (generator.exponential(size=(count, items)) - 1) * np.sqrt(1 - INTERACTION)


def _arm(generator: np.random.Generator, difficulty: Float[np.ndarray, "M N"]) -> Float[np.ndarray, "M N"]:
    own = _difficulty(generator, *difficulty.shape)
    return np.sqrt(COMMON) * difficulty + np.sqrt(1 - COMMON) * own


def _arm_offsets(offsets: Float[np.ndarray, "3 M S"], arm: int) -> Float[np.ndarray, "M S"]:
    return np.sqrt(COMMON) * offsets[0] + np.sqrt(1 - COMMON) * offsets[arm]


def _scores(generator: np.random.Generator, difficulty: Float[np.ndarray, "M N"], offsets: Float[np.ndarray, "M S"]) -> Scores:
    values = generator.normal(size=(*offsets.shape, difficulty.shape[1])) * np.sqrt(INTERACTION)
    return values + difficulty[:, None, :] + offsets[:, :, None]


def _parts(values: Scores) -> tuple[Float[np.ndarray, "M S"], Scores]:
    means = values.mean(axis=-1)
    return means, values - means[..., None]


def _misses(value_MS: Float[np.ndarray, "M S"], parts: VarianceParts) -> tuple[Float[np.ndarray, " M"], Float[np.ndarray, " M"]]:
    half_width = parts.half_width()
    return np.abs(value_MS.mean(axis=-1)) > half_width, half_width
