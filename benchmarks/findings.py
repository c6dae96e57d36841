"""Results of a benchmark: named ratios, each with its meaning and, if there is one, its aim.

A finding is printed as a line of a table, or with `--json` as `{"low", "median", "high"}` under its name.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.measure import Ratio


@dataclass(frozen=True)
class Finding:
    """One result.

    Attributes:
        name: key in the JSON, unique over all benchmarks.
        ratio: lowest, median and highest over the repeats; a constant such as a count is `Ratio.of([value])`.
        meaning: description for people, without the name.
        at_least, at_most: aim for the median.
    """

    name: str
    ratio: Ratio
    meaning: str
    at_least: float | None = None
    at_most: float | None = None

    @property
    def aim(self) -> str:
        """Returns the aim as text; empty if there is none."""
        bounds = (("at least", self.at_least), ("at most", self.at_most))
        return " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)

    @property
    def is_met(self) -> bool:
        """Returns whether the median meets the aim; True if there is none."""
        low, high = self.at_least, self.at_most
        return (low is None or self.ratio.median >= low) and (high is None or self.ratio.median <= high)


def fixed(name: str, value: float, meaning: str, at_least: float | None = None, at_most: float | None = None) -> Finding:
    """Returns a result that does not vary, such as a count of tokens."""
    return Finding(name, Ratio.of([value]), meaning, at_least, at_most)


def print_table(findings: Sequence[Finding]) -> None:
    """Prints one line per result: name, median (lowest to highest), aim, meaning."""
    width = max(len(found.name) for found in findings)
    values = [str(found.ratio) if found.ratio.low != found.ratio.high else f"{found.ratio.median:.4g}" for found in findings]
    for found, value in zip(findings, values, strict=True):
        aim = f"  [{found.aim}: {'met' if found.is_met else 'MISSED'}]" if found.aim else ""
        print(f"{found.name:{width}}  {value:>{max(map(len, values))}}  {found.meaning}{aim}")


def say(text: str) -> None:
    """Prints progress on stderr."""
    print(text, file=sys.stderr, flush=True)
