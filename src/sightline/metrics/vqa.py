"""Scores of short answers: VQA accuracy, exact match, ANLS, and ChartQA's relaxed accuracy.

Each metric maps one prediction and all accepted answers of an item to a number from 0 to 1; `score_answers` computes scores with
intervals. Answers are normalised as on the VQA and TextVQA challenge servers (EvalAI).

Differs: relaxed accuracy treats "nan" and "inf" as words, not numbers.
"""

import math
import re
from collections.abc import Callable, Sequence

from sightline.metrics.scores import score_of
from sightline.types import Score

SCORER = "answers 1"
MIN_VQA_ANSWERS = 4  # with fewer, leave-one-out cannot give a prediction the full score

_ANLS_THRESHOLD = 0.5
_RELAXED_TOLERANCE = 0.05

_NUMBER_WORDS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
    "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
_ARTICLES = frozenset(["a", "an", "the"])
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_STRAY_PERIOD = re.compile(r"\.(?!\d)")
_CONTRACTIONS_WRITTEN_RIGHT = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's "
    "how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've o'clock "
    "oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd "
    "someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's "
    "they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd "
    "where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll "
    "y'all'd've you'd you'd've you'll you're you've"
)


def _without_one_apostrophe(word: str) -> list[str]:
    return [word[:place] + word[place + 1 :] for place, character in enumerate(word) if character == "'"]


# adds a missing apostrophe to a contraction; one entry of the official table does the opposite, and is kept
_CONTRACTIONS = {wrong: right for right in _CONTRACTIONS_WRITTEN_RIGHT.split() for wrong in _without_one_apostrophe(right)} | {
    "somebody'd": "somebodyd"
}


def normalize_answer(answer: str) -> str:
    """Normalises an answer as the EvalAI server does.

    Changes to lower case; removes commas and question marks; separates a possessive 's; removes other punctuation next to a space
    and replaces it by a space elsewhere; removes full stops that no digit follows; writes number words up to ten as digits;
    removes articles; restores the apostrophes of contractions.
    """
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    spaced = text
    for sign in _PUNCTUATION:
        touches_space = f"{sign} " in text or f" {sign}" in text
        spaced = spaced.replace(sign, "" if touches_space else " ")
    words = (_NUMBER_WORDS.get(word, word) for word in _STRAY_PERIOD.sub("", spaced).split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Computes VQA accuracy (Antol et al. 2015): mean over leaving out each human answer of `min(1, matches in the rest / 3)`.

    Raises:
        ValueError: there are fewer than four answers, so that no prediction could reach 1.
    """
    if len(answers) < MIN_VQA_ANSWERS:
        raise ValueError(f"VQA accuracy needs at least {MIN_VQA_ANSWERS} human answers (ten is usual), not {len(answers)}")
    mine = normalize_answer(prediction)
    matches = sum(normalize_answer(answer) == mine for answer in answers)
    others = len(answers) - matches  # leaving out one of these keeps all matches
    return (matches * min(1.0, (matches - 1) / 3) + others * min(1.0, matches / 3)) / len(answers)


def vqa_accuracy_or_match(prediction: str, answers: Sequence[str]) -> float:
    """Computes VQA accuracy, or with fewer than four answers 1 if the normalised prediction is one of them, else 0."""
    if len(answers) >= MIN_VQA_ANSWERS:
        return vqa_accuracy(prediction, answers)
    return float(normalize_answer(prediction) in {normalize_answer(answer) for answer in answers})


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Returns 1 if the prediction equals one of the answers, ignoring case, spaces and one full stop at the end; else 0."""
    return float(_plain(prediction) in {_plain(answer) for answer in answers})


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()


def anls(prediction: str, answers: Sequence[str]) -> float:
    """Computes the normalised Levenshtein similarity of one item (Biten et al. 2019), as the DocVQA script does.

    `max_a (1 - distance(a, p) / max(|a|, |p|))`, and 0 where that is below 0.5. The distance is between lower-case texts with
    single spaces; the lengths are those of the texts as given.
    """
    mine = " ".join(prediction.lower().split())
    best = 0.0
    for answer in answers:
        length = max(len(answer.upper()), len(prediction.upper()))
        distance = edit_distance(" ".join(answer.lower().split()), mine)
        best = max(best, 1 - distance / length if length else 1.0)
    return best if best >= _ANLS_THRESHOLD else 0.0


def edit_distance(first: str, second: str) -> int:
    """Computes the Levenshtein distance: insertions, deletions and substitutions of characters."""
    if len(first) < len(second):
        first, second = second, first
    row = list(range(len(second) + 1))
    for number, character in enumerate(first, start=1):
        diagonal, row[0] = row[0], number
        for place, other in enumerate(second, start=1):
            diagonal, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, diagonal + (character != other))
    return row[-1]


def relaxed_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Computes ChartQA's relaxed accuracy (Masry et al. 2022): numbers may differ by 5 %, other answers must match except for case.

    A percent sign at the end divides by 100. An answer of 0 is compared as text.
    """
    return float(any(_relaxed(prediction.strip(), answer.strip()) for answer in answers))


def _relaxed(prediction: str, answer: str) -> bool:
    mine, theirs = _number(prediction), _number(answer)
    if mine is None or not theirs:
        return prediction.lower() == answer.lower()
    return abs(mine - theirs) / abs(theirs) <= _RELAXED_TOLERANCE


def _number(text: str) -> float | None:
    try:
        value = float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


# name of the metric on the command line -> name of its score, function
ANSWER_METRICS: dict[str, tuple[str, Callable[[str, Sequence[str]], float]]] = {
    "anls": ("anls", anls),
    "exact": ("exact_match", exact_match),
    "relaxed": ("relaxed_accuracy", relaxed_accuracy),
    "vqa": ("vqa_accuracy", vqa_accuracy),
}


def score_answers(
    predictions: Sequence[str],
    answers: Sequence[Sequence[str]],
    metrics: Sequence[str],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Score]:
    """Scores short answers.

    Args:
        predictions: one text per item.
        answers: accepted answers of each item.
        metrics: keys of `ANSWER_METRICS`.
        resamples: bootstrap resamples of the items for the 95 % intervals.
        seed: seed of the resampling.

    Raises:
        ValueError: the lengths differ, there is no item, an item has no answer (or too few for "vqa"), or a metric is unknown.
    """
    unknown = sorted(set(metrics) - set(ANSWER_METRICS))
    if unknown:
        raise ValueError(f"unknown answer metric {unknown[0]!r}; known are {', '.join(ANSWER_METRICS)}")
    if not predictions or len(predictions) != len(answers) or not all(answers):
        raise ValueError(f"{len(predictions)} predictions and {len(answers)} lists of answers; each item needs both")
    unparsed = sum(not normalize_answer(prediction) for prediction in predictions) / len(predictions)
    scores = {}
    for metric in metrics:
        name, function = ANSWER_METRICS[metric]
        items = [function(prediction, group) for prediction, group in zip(predictions, answers, strict=True)]
        scores[name] = score_of(name, items, SCORER, unparsed, resamples=resamples, seed=seed)
    return scores
