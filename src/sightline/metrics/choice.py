"""Reads which option, or which of yes and no, an answer means, and scores yes/no answers.

An answer that cannot be read counts as wrong and is reported as unparsed; it is never guessed.
"""

import math
import re
from collections.abc import Sequence
from string import ascii_uppercase

import numpy as np

from sightline.metrics.scores import score_of, score_of_ratio
from sightline.metrics.statistics import Statistic
from sightline.metrics.vqa import normalize_answer
from sightline.types import Score

SCORER = "choice 1"
YES_NO_SCORER = "yes_no 1"

_LETTER_ALONE = re.compile(r"\(?([A-Za-z])\)?[.:,)]?\Z")
_LETTER_FIRST = re.compile(r"(?:\(([A-Z])\)|([A-Z])[.:)](?=\s|\Z))")
_LETTER_NAMED = re.compile(r"(?i:answer|option|choice)(?: is)?:?\s*\(?([A-Z])\)?(?![A-Za-z'])")
_WORD = re.compile(r"[a-z']+")
_MEANING = {"yes": True, "true": True, "no": False, "false": False}


def parse_choice(text: str, options: Sequence[str]) -> int | None:
    """Returns the index of the option that an answer names, or None where it names none or several.

    In this order: the text is one of the options; it is a letter, or begins with one as `B.`, `B)`, `B:` or `(B)`; it says `answer
    B`, `answer is B` or `option B`; exactly one option occurs in it as whole words, not counting options that are part of a longer
    one that occurs. Case, punctuation and articles are ignored as in VQA accuracy.
    """
    mine = normalize_answer(text)
    known = [normalize_answer(option) for option in options]
    equal = [index for index, option in enumerate(known) if option and option == mine]
    if len(equal) == 1:
        return equal[0]
    letter = _LETTER_ALONE.match(text.strip()) or _LETTER_FIRST.match(text.strip()) or _LETTER_NAMED.search(text)
    if letter is not None:
        index = ascii_uppercase.index(next(group for group in letter.groups() if group is not None).upper())
        return index if index < len(options) else None
    found = [index for index, option in enumerate(known) if option and f" {option} " in f" {mine} "]
    widest = [i for i in found if not any(i != j and f" {known[i]} " in f" {known[j]} " for j in found)]
    return widest[0] if len(widest) == 1 else None


def parse_yes_no(text: str) -> bool | None:
    """Returns what an answer says: True for yes or true, False for no or false, None where it says neither or both.

    The first word decides where it is one of these; otherwise the answer must contain words of one kind only.
    """
    words = _WORD.findall(text.lower())
    if words and words[0] in _MEANING:
        return _MEANING[words[0]]
    found = {_MEANING[word] for word in words if word in _MEANING}
    return found.pop() if len(found) == 1 else None


def score_choices(
    chosen: Sequence[int | None], right: Sequence[int], *, scorer: str = SCORER, resamples: int = 1000, seed: int = 0
) -> dict[str, Score]:
    """Computes the share of right choices; None (unparsed) is wrong."""
    hits = [float(mine == answer) for mine, answer in zip(chosen, right, strict=True)]
    unparsed = sum(mine is None for mine in chosen) / len(chosen)
    return {"accuracy": score_of("accuracy", hits, scorer, unparsed, resamples=resamples, seed=seed)}


def score_yes_no(said: Sequence[bool | None], right: Sequence[bool], *, resamples: int = 1000, seed: int = 0) -> dict[str, Score]:
    """Computes accuracy, precision, recall and F1 of "yes", and the share of "yes" answers (POPE, Li et al. 2023).

    An unparsed answer is wrong: neither a yes nor a right no. A ratio without any "yes" (said, or right) is 0.
    """
    accuracy = score_choices(said, right, scorer=YES_NO_SCORER, resamples=resamples, seed=seed)["accuracy"]
    yes = np.array([mine is True for mine in said], dtype=float)
    true = np.array(right, dtype=float)
    terms = np.stack([yes * true, yes, true])
    ratios = {
        "precision": lambda sums: _ratio(sums[:, 0], sums[:, 1]),
        "recall": lambda sums: _ratio(sums[:, 0], sums[:, 2]),
        "f1": lambda sums: _ratio(2 * sums[:, 0], sums[:, 1] + sums[:, 2]),
    }
    scores = {"accuracy": accuracy}
    for name, of_sums in ratios.items():
        statistic = Statistic(terms, of_sums)
        scores[name] = score_of_ratio(name, statistic, YES_NO_SCORER, accuracy.unparsed, resamples, seed)
    scores["yes_share"] = score_of("yes_share", yes.tolist(), YES_NO_SCORER, accuracy.unparsed, resamples=resamples, seed=seed)
    return scores


def highest(values: Sequence[float]) -> int | None:
    """Returns the index of the highest value, or None where several are highest or one is not a number."""
    best = [index for index, value in enumerate(values) if value == max(values)]
    return best[0] if len(best) == 1 and not any(math.isnan(value) for value in values) else None


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)
