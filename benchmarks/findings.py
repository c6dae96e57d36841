"""What a benchmark finds: ratios by name, each with what it means and, where there is one, the aim that it is held against.

A finding is printed as a line of a table, or with `--json` as `{"low", "median", "high"}` under its name.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.measure import Ratio


@dataclass(frozen=True)
class Finding:
    """One figure.

    Attributes:
        name: key in the JSON, unique over all benchmarks.
        ratio: lowest, median and highest over the repeats; a count or a share that does not vary is `Ratio.of([value])`.
        meaning: for people, without the name.
        at_least, at_most: the aim; held against the median.
    """

    name: str
    ratio: Ratio
    meaning: str
    at_least: float | None = None
    at_most: float | None = None

    @property
    def aim(self) -> str:
        """The aim for people; empty where there is none."""
        bounds = (("at least", self.at_least), ("at most", self.at_most))
        return " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)

    @property
    def is_met(self) -> bool:
        """Whether the median keeps to the aim; true where there is none."""
        low, high = self.at_least, self.at_most
        return (low is None or self.ratio.median >= low) and (high is None or self.ratio.median <= high)


def fixed(name: str, value: float, meaning: str, at_least: float | None = None, at_most: float | None = None) -> Finding:
    """A figure that does not vary, such as a count of tokens."""
    return Finding(name, Ratio.of([value]), meaning, at_least, at_most)


def print_table(findings: Sequence[Finding]) -> None:
    """One line per finding: name, median (lowest to highest), aim, meaning."""
    width = max(len(found.name) for found in findings)
    values = [str(found.ratio) if found.ratio.low != found.ratio.high else f"{found.ratio.median:.4g}" for found in findings]
    for found, value in zip(findings, values, strict=True):
        aim = f"  [{found.aim}: {'met' if found.is_met else 'MISSED'}]" if found.aim else ""
        print(f"{found.name:{width}}  {value:>{max(map(len, values))}}  {found.meaning}{aim}")


def say(text: str) -> None:
    """What is being done, on stderr."""
    print(text, file=sys.stderr, flush=True)
