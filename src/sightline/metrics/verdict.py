"""Does a model look at the image? One function decides, for every task, table and report."""

from dataclasses import dataclass
from typing import Any, Literal

from sightline.metrics.statistics import Difference

LOOKS = "looks"
DOES_NOT_LOOK = "does not look"
NOT_ENOUGH_ITEMS = "not enough items to say"
NOT_CHECKED = "not checked"
VerdictName = Literal["looks", "does not look", "not enough items to say", "not checked"]

NEGLIGIBLE = 0.05  # share of the score


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a model looks at the image, and the difference that says so.

    Attributes:
        verdict: one of the four.
        control: what the score with the image was compared with, such as `blind` or `shuffled`; None where nothing was.
        difference: score with the image minus score of the control, with its interval; None where nothing was compared.
        command: what to run to check it; empty where it was checked.
    """

    verdict: VerdictName
    control: str | None
    difference: Difference | None
    command: str = ""

    def to_json(self) -> dict[str, Any]:
        """Returns the value of `looks` in the JSON of `eval`; with `command` where nothing was checked."""
        found = self.difference
        out: dict[str, Any] = {"verdict": self.verdict, "control": self.control}
        out |= {name: None if found is None else getattr(found, key) for name, key in _KEYS.items()}
        return out | ({"command": self.command} if self.command else {})

    def __str__(self) -> str:
        found = self.difference
        if found is None:
            return f"{self.verdict}; check it with: {self.command}" if self.command else self.verdict
        return f"{self.verdict}: {found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}] with the image minus {self.control}"


_KEYS = {"difference": "value", "low": "low", "high": "high"}


def verdict_of(difference: Difference | None, score: float, control: str | None = None, command: str = "") -> Verdict:
    """Decides whether a model looks at the image.

    - `looks`: the interval of the difference lies above 0.
    - `does not look`: it lies within 5 % of the score on either side of 0, ends included.
    - `not enough items to say`: neither.
    - `not checked`: there is no difference, because no control of the same data and checkpoint is stored.

    A model that is clearly worse with the image than without it gets the third answer as well; its difference shows why.

    Args:
        difference: paired difference of the score with the image minus the control's, where higher scores are better.
        score: with the image.
        control: name of the control.
        command: what would compute the control, shown where there is none.
    """
    if difference is None:
        return Verdict(NOT_CHECKED, None, None, command)
    limit = NEGLIGIBLE * abs(score)
    if difference.low > 0:
        return Verdict(LOOKS, control, difference)
    is_negligible = -limit <= difference.low and difference.high <= limit
    return Verdict(DOES_NOT_LOOK if is_negligible else NOT_ENOUGH_ITEMS, control, difference)
