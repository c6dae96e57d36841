"""The skip limit: how much of a data set may be skipped before a command stops.

A few broken records are normal in a large set; many mean that a path, a column or a download is wrong, and the result would be
useless.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from sightline.data.readers.base import Skip
from sightline.errors import DataError, SkipLimitError

GRACE = 200  # records before the share of skips is checked
MAX_IN_A_ROW = 100
EXAMPLES = 10


def reasons_text(skipped: Mapping[str, int], most: int = 5) -> str:
    """Returns `image_broken 3, too_long 1`, the most frequent reasons first."""
    return ", ".join(f"{reason} {count}" for reason, count in Counter(skipped).most_common(most))


def check_skip_limit(lost: int, total: int, share: float, what: str, remedy: str, setting: str = "--max-skipped") -> None:
    """Stops where too much of a data set cannot be used.

    Args:
        lost: number of things that were skipped.
        total: number of things, skipped ones included.
        share: largest share of them that may be skipped.
        what: what is wrong with them and why, such as "conversations of split 'train' cannot be trained on (too_long 3)".
        remedy: what to do about it.
        setting: option or configuration key that sets `share`.

    Raises:
        SkipLimitError: more than `share` of them were skipped.
    """
    if lost > share * total:
        raise SkipLimitError(f"{lost} of {total} {what}, {setting} allows a share of {share:g}.", remedy)


class SkipLimit:
    """Counts the records that `data prepare` keeps and skips, and raises an error when too many are skipped.

    While it runs it stops at 100 skips in a row, or when the share is exceeded beyond what chance explains (three standard
    deviations), from the 200th record on; at the end the share itself decides.

    Args:
        share: largest share of records that may be skipped.
        kept: returns the folder in which finished work stays; None where there is none to go on from.
    """

    def __init__(self, share: float, kept: Callable[[], Path | None]) -> None:
        self.share, self._kept = share, kept
        self.ok = 0
        self.skipped: Counter[str] = Counter()
        self._in_a_row = 0
        self._examples: list[Skip] = []

    @property
    def input(self) -> int:
        return self.ok + sum(self.skipped.values())

    def add(self, skip: Skip | None) -> None:
        """Counts one record, kept (None) or skipped.

        Raises:
            SkipLimitError: too many.
        """
        if skip is None:
            self.ok += 1
            self._in_a_row = 0
            return
        self.skipped[skip.reason] += 1
        self._in_a_row += 1
        if len(self._examples) < EXAMPLES:
            self._examples.append(skip)
        allowed = self.share * self.input
        is_over = sum(self.skipped.values()) > allowed + 3 * (allowed * (1 - self.share)) ** 0.5
        if self.share == 0 or (self.input >= GRACE and self.share < 1 and (is_over or self._in_a_row >= MAX_IN_A_ROW)):
            self._stop()

    def finish(self) -> None:
        """Checks the totals at the end.

        Raises:
            SkipLimitError: too many records were skipped, or none is left.
            DataError: the source has no records.
        """
        if self.input == 0:
            raise DataError("the source has no records.")
        if self.ok == 0 or (self.input >= GRACE and sum(self.skipped.values()) > self.share * self.input):
            self._stop()

    def _stop(self) -> None:
        lost = sum(self.skipped.values())
        examples = "".join(f"\n  {skip.where}: {skip.reason}: {skip.detail}" for skip in self._examples)
        ids = " Where ids repeat, --map id= numbers the rows." if self.skipped["duplicate_id"] else ""
        images = " Say where the images are: --images FOLDER, a zip or a tar." if self.skipped["image_missing"] else ""
        where = self._kept()
        kept = "" if where is None else f" Finished work is kept in {where}."
        raise SkipLimitError(
            f"{lost} of {self.input} records were skipped, --max-skipped allows a share of {self.share:g}: "
            f"{reasons_text(self.skipped)}.{examples}\n",
            f"Repair the source, or allow more with --max-skipped.{images}{ids}{kept}",
        )
