"""Does a model look at the image? One function decides, for every task, table and report."""

from dataclasses import dataclass
from typing import Any, Literal

from sightline.metrics.statistics import Difference

LOOKS = "looks"
DOES_NOT_LOOK = "does not look"
NOT_ENOUGH_ITEMS = "not enough items to say"
NOT_ENOUGH_SEEDS = "not enough seeds to say"
NOT_CHECKED = "not checked"
VerdictName = Literal["looks", "does not look", "not enough items to say", "not checked"]

NOTHING_TO_LOSE = "the score with the image is 0, so it could not be lower without"
WORSE = "worse with the image than without"
MORE_SEEDS = "more training seeds are needed; there are enough items"
MORE_ITEMS = "more items are needed; more training seeds alone would not decide it"
NEGLIGIBLE = 0.05  # share of the score
MIN_ITEMS = 20
"""Fewer items (images) decide nothing: the bootstrap interval of a handful is too narrow, that of one item has no width."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a model looks at the image, and the difference that says so.

    Attributes:
        verdict: one of the four.
        control: what the score with the image was compared with, such as `blind` or `shuffled`; None where nothing was.
        difference: score with the image minus score of the control, with its interval; None where nothing was compared.
        command: what to run to check it; empty where it was checked.
        note: what the verdict alone does not tell; mostly empty.
    """

    verdict: VerdictName
    control: str | None
    difference: Difference | None
    command: str = ""
    note: str = ""

    @property
    def text(self) -> str:
        """What people read: the verdict, with seeds in place of items where seeds are what is missing."""
        return NOT_ENOUGH_SEEDS if self.note == MORE_SEEDS else self.verdict

    def to_json(self) -> dict[str, Any]:
        """Returns the value of `looks` in the JSON of `eval`; with `command` where nothing was checked, and `note`."""
        found = self.difference
        out: dict[str, Any] = {"verdict": self.verdict, "control": self.control}
        out |= {name: None if found is None else getattr(found, key) for name, key in _KEYS.items()}
        return out | ({"command": self.command} if self.command else {}) | ({"note": self.note} if self.note else {})

    def __str__(self) -> str:
        found = self.difference
        if found is None:
            why = f" ({self.note})" if self.note else ""
            return self.verdict + why + (f"; check it with: {self.command}" if self.command else "")
        interval = f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}] with the image minus {self.control}"
        if self.note == WORSE:
            return f"{self.note}: {interval}"
        return f"{self.text}: {interval}" + (f" ({self.note})" if self.note else "")


_KEYS = {"difference": "value", "low": "low", "high": "high"}


def verdict_of(
    difference: Difference | None,
    score: float,
    control: str | None = None,
    command: str = "",
    over_items: Difference | None = None,
    note: str = "",
) -> Verdict:
    """Decides whether a model looks at the image.

    - `looks`: the interval of the difference lies above 0.
    - `does not look`: it lies within 5 % of the score on either side of 0, ends included.
    - `not enough items to say`: neither, or the difference is of fewer than `MIN_ITEMS` items.
    - `not checked`: there is no difference, because no control of the same data and checkpoint is stored.

    A model that is clearly worse with the image than without it gets the third answer as well, with a note that says so. Of several
    training seeds the note says whether items or seeds are what is missing: seeds, if the items alone would decide.

    Args:
        difference: paired difference of the score with the image minus the control's, where higher scores are better.
        score: with the image.
        control: name of the control.
        command: what would compute the control, shown where there is none.
        over_items: the same difference with an interval over items alone, of several training seeds; else None.
        note: why nothing was checked, where that is known.
    """
    if difference is None:
        return Verdict(NOT_CHECKED, None, None, command, note)
    limit = NEGLIGIBLE * abs(score)
    if difference.n < MIN_ITEMS:
        count = f"{difference.n} items; a verdict needs at least {MIN_ITEMS}"
        return Verdict(NOT_ENOUGH_ITEMS, control, difference, note=count)
    if difference.low > 0:
        return Verdict(LOOKS, control, difference)
    if -limit <= difference.low and difference.high <= limit:
        return Verdict(DOES_NOT_LOOK, control, difference, note=NOTHING_TO_LOSE if score == 0 else "")
    if difference.high < 0:
        return Verdict(NOT_ENOUGH_ITEMS, control, difference, note=WORSE)
    if over_items is None:
        return Verdict(NOT_ENOUGH_ITEMS, control, difference)
    alone = verdict_of(over_items, score)
    is_decided = alone.verdict != NOT_ENOUGH_ITEMS or alone.note == WORSE
    return Verdict(NOT_ENOUGH_ITEMS, control, difference, note=MORE_SEEDS if is_decided else MORE_ITEMS)
