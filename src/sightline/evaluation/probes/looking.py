"""`looking`: what is left of a score when the image is blurred, taken away or exchanged, and whether the model looks.

A ladder of controls is held against the answers with the image, item by item: paired differences, and the share of answers that
stay the same. Counterfactual texts are held against true ones: how often a model prefers the true text with the image, minus how
often it does without. A ladder of blurs and the share of answers that never change: arXiv 2606.06890; texts that contradict the
image: arXiv 2601.04897.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sightline.evaluation.controls import BLURS, GREY, SHUFFLED, TEXT, WITHOUT_IMAGE, sigma_of
from sightline.evaluation.looking import Items, image_difference, verdict_of_items
from sightline.evaluation.tasks import Query, ScoreInfo
from sightline.metrics.statistics import Difference, Interval, bootstrap, mean_by_cluster, paired_bootstrap
from sightline.metrics.verdict import DOES_NOT_LOOK, LOOKS, NOT_ENOUGH_ITEMS, WORSE, Verdict
from sightline.types import Prediction, Score

LADDER = (*BLURS, GREY, SHUFFLED, TEXT)
FLOOR = "floor"  # of a ladder: another model, which was trained with shuffled images
_HEADS = {
    LOOKS: "It looks",
    DOES_NOT_LOOK: "It does not look",
    NOT_ENOUGH_ITEMS: "Not enough items to say whether it looks",
}
CONTROL_WORDS = {"shuffled": "another record's image", "blind": "a uniform image", "grey": "a grey image", "text": "no image"}


@dataclass(frozen=True)
class Condition:
    """The answers of a model with its images, or under one control.

    Attributes:
        score: the headline score.
        items: as in `items.json`.
        answers: normalised answers by query; equal ones say the same.
    """

    score: Score
    items: Items
    answers: Mapping[str, str]


@dataclass(frozen=True)
class LadderStep:
    """One control of a ladder.

    Attributes:
        control: its name, or `floor`.
        score: the headline score under it; None where it could not be asked.
        difference: score with the image minus score under it, paired by item, positive where the image helps.
        unchanged: share of items whose answer is that with the image.
        missing: why it could not be asked.
    """

    control: str
    score: Score | None = None
    difference: Difference | None = None
    unchanged: Interval | None = None
    missing: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "control": self.control,
            **({} if self.score is None else self.score.to_json()),
            "difference": _json(self.difference),
            "unchanged": _json(self.unchanged),
            **({"missing": self.missing} if self.missing else {}),
        }


@dataclass(frozen=True)
class Preference:
    """How often the true text is more likely than the same with one word exchanged.

    Attributes:
        kind: `colour`, `count`, `object`, `place`, or `all`.
        texts: number of pairs.
        with_image, without_image: shares of pairs; a tie counts a half.
        difference: the first minus the second, paired; `n` is the number of images.
    """

    kind: str
    texts: int
    with_image: Interval
    without_image: Interval
    difference: Difference

    def to_json(self) -> dict[str, Any]:
        parts = {"with_image": self.with_image, "without_image": self.without_image, "difference": self.difference}
        return {"kind": self.kind, "texts": self.texts} | {name: _json(value) for name, value in parts.items()}


@dataclass(frozen=True)
class Flip:
    """An item whose answer the image changes.

    Attributes:
        id: of the query.
        image: its first image as a small file; None where it is not at hand.
        truths: right answers.
        answers: by condition, `image` first.
        gain: its score with the image minus that under the control of the verdict.
    """

    id: str
    image: bytes | None
    truths: tuple[str, ...]
    answers: Mapping[str, str]
    gain: float

    def to_json(self) -> dict[str, Any]:
        return {"id": self.id, "truths": list(self.truths), "answers": dict(self.answers), "gain": self.gain}


@dataclass(frozen=True)
class LookingFindings:
    """Whether a model looks at the image in a task.

    Attributes:
        task: its name.
        info: the headline score.
        seen: that score with the image.
        ladder: one step for each control.
        never_changes: share of items whose answer is the same with the image and under every control.
        verdict: from the first of the controls without image that could be asked.
        preferences: for each kind of counterfactual, and for all of them.
        flips: items to look at.
        skipped: records that could not be used with the image, by reason.
    """

    task: str
    info: ScoreInfo
    seen: Score
    ladder: tuple[LadderStep, ...]
    never_changes: Interval | None
    verdict: Verdict
    preferences: tuple[Preference, ...]
    flips: tuple[Flip, ...]
    skipped: Mapping[str, int]

    def step(self, control: str) -> LadderStep | None:
        """Returns the step of a control, or None if it was not evaluated."""
        return next((step for step in self.ladder if step.control == control and step.score is not None), None)

    @property
    def half_blur(self) -> float | None:
        """The smallest blur of the ladder that costs half of what the control of the verdict costs; None where none does."""
        total = self.verdict.difference
        if self.verdict.verdict != LOOKS or total is None:
            return None
        for step in self.ladder:
            sigma = sigma_of(step.control)
            if sigma is not None and step.difference is not None and step.difference.value >= total.value / 2:
                return sigma
        return None

    def sentence(self) -> str:
        """Returns the verdict with its uncertainty in one sentence."""
        verdict, found = self.verdict, self.verdict.difference
        if found is None:
            return f"{verdict}."
        than = CONTROL_WORDS.get(verdict.control or "", verdict.control)
        head = "It is worse with the image than without" if verdict.note == WORSE else _HEADS[verdict.verdict]
        head += f" ({verdict.note})" if verdict.note not in ("", WORSE) else ""
        parts = [f"{head}: {self.info.label} {found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}] with the image minus {than}"]
        if self.half_blur is not None:
            parts.append(f"a blur of {self.half_blur:g} pixels costs half of that")
        if self.never_changes is not None:
            never = self.never_changes
            parts.append(f"{never.value:.0%} [{never.low:.0%}, {never.high:.0%}] of the answers never change")
        floor = self.step(FLOOR)
        if floor is not None and floor.difference is not None:
            above = floor.difference
            parts.append(
                f"{above.value:+.3f} [{above.low:+.3f}, {above.high:+.3f}] against a model that was trained without its images"
            )
        return "; ".join(parts) + "."

    def to_json(self) -> dict[str, Any]:
        return {
            "what": "looking",
            "task": self.task,
            "score": self.info.name,
            "looks": self.verdict.to_json(),
            "sentence": self.sentence(),
            "with_image": self.seen.to_json(),
            "ladder": [step.to_json() for step in self.ladder],
            "never_changes": _json(self.never_changes),
            "half_blur": self.half_blur,
            "counterfactual": [preference.to_json() for preference in self.preferences],
            "flips": [flip.to_json() for flip in self.flips],
            "skipped": dict(self.skipped),
        }

    def figures(self) -> dict[str, str]:
        out = {"verdict": self.sentence(), f"{self.info.label} with the image": _text(self.seen)}
        for step in self.ladder:
            if step.score is None or step.difference is None:
                out[step.control] = step.missing or "nothing to compare"
            else:
                same = "" if step.unchanged is None else f", {step.unchanged.value:.0%} of the answers unchanged"
                out[step.control] = f"{_text(step.score)}, image minus this {_signed(step.difference)}{same}"
        for preference in self.preferences:
            out[f"true text preferred, {preference.kind}"] = (
                f"{preference.with_image.value:.0%} with and {preference.without_image.value:.0%} without the image, "
                f"difference {_signed(preference.difference)} on {preference.texts} texts"
            )
        return out


def answers_of(queries: Sequence[Query], predictions: Sequence[Prediction]) -> dict[str, str]:
    """Returns answers by query as they are compared.

    They are texts without case and surplus spaces, the most likely candidates, or of retrieval the ranks.
    """
    asked = {query.id: query for query in queries}
    return {found.id: _answer(asked[found.id], found) for found in predictions}


def _answer(query: Query, found: Prediction) -> str:
    if found.scores is None:
        return " ".join(found.text.casefold().split())
    if query.form == "embed":
        return " ".join(f"{value:g}" for value in found.scores)
    return query.candidates[int(np.argmax(found.scores))]


def ladder_step(control: str, seen: Condition, other: Condition, info: ScoreInfo, resamples: int = 1000) -> LadderStep:
    """Compares the answers under a control with those with the image, on the items that both have."""
    difference = image_difference(seen.items, other.items, info, resamples)
    same = {key: float(answer == other.answers[key]) for key, answer in seen.answers.items() if key in other.answers}
    return LadderStep(control, other.score, difference, _share(same, seen.items, resamples))


def looking(
    task: str,
    info: ScoreInfo,
    seen: Condition,
    controls: Mapping[str, Condition],
    missing: Mapping[str, str],
    preferences: Sequence[Preference] = (),
    flips: Sequence[Flip] = (),
    skipped: Mapping[str, int] | None = None,
    resamples: int = 1000,
) -> LookingFindings:
    """Puts the findings together.

    Args:
        task: its name.
        info: the headline score.
        seen: with the image.
        controls: by name, in the order of the ladder; `floor` is another model with its images.
        missing: controls that could not be asked, with the reason.
        preferences, flips, skipped: as in `LookingFindings`.
        resamples: of the bootstrap.
    """
    name = verdict_control(controls)
    verdict = verdict_of_items(seen.items, None if name is None else controls[name].items, info, name or "", resamples=resamples)
    own = [condition.answers for control, condition in controls.items() if control != FLOOR]
    shared = [key for key in seen.answers if all(key in answers for answers in own)]
    never = {key: float(all(answers[key] == seen.answers[key] for answers in own)) for key in shared}
    steps = {control: ladder_step(control, seen, condition, info, resamples) for control, condition in controls.items()}
    steps |= {control: LadderStep(control, missing=reason) for control, reason in missing.items()}
    order = [control for control in LADDER if control in steps] + [control for control in steps if control not in LADDER]
    return LookingFindings(
        task=task,
        info=info,
        seen=seen.score,
        ladder=tuple(steps[control] for control in order),
        never_changes=_share(never, seen.items, resamples) if own else None,
        verdict=verdict,
        preferences=tuple(preferences),
        flips=tuple(flips),
        skipped=skipped or {},
    )


def verdict_control(controls: Mapping[str, Any]) -> str | None:
    """Returns the control that decides the verdict; None where none of those without image is there."""
    return next((control for control in WITHOUT_IMAGE if control in controls), None)


def preference(
    kind: str, with_image: Sequence[float], without_image: Sequence[float], images: Sequence[str], resamples: int = 1000
) -> Preference:
    """Compares how often a true text is preferred with and without the image.

    Args:
        kind: of the counterfactuals.
        with_image, without_image: log-probability of the true text minus that of the false one, pair by pair.
        images: the image of each pair; pairs of one image are drawn together.
        resamples: of the bootstrap.
    """
    numbers: dict[str, int] = {}
    cluster = np.array([numbers.setdefault(image, len(numbers)) for image in images])
    shares = [np.heaviside(np.asarray(margins, dtype=float), 0.5) for margins in (with_image, without_image)]
    (first, count), (second, _) = (mean_by_cluster(share, cluster) for share in shares)
    return Preference(
        kind=kind,
        texts=len(images),
        with_image=bootstrap(first, count, resamples=resamples),
        without_image=bootstrap(second, count, resamples=resamples),
        difference=paired_bootstrap(first, second, count, resamples=resamples),
    )


def _share(values: Mapping[str, float], items: Items, resamples: int) -> Interval | None:
    """Returns the mean of values by query with its interval over images."""
    images = dict(zip(items["records"], items["image"], strict=True))
    numbers: dict[str, int] = {}
    kept = [(value, numbers.setdefault(images[key], len(numbers))) for key, value in values.items() if key in images]
    if not kept:
        return None
    statistic, count = mean_by_cluster([value for value, _ in kept], np.array([cluster for _, cluster in kept]))
    return bootstrap(statistic, count, resamples=resamples)


def _json(value: Interval | Difference | None) -> dict[str, Any] | None:
    return None if value is None else {"value": value.value, "low": value.low, "high": value.high, "n": value.n}


def _text(score: Score) -> str:
    return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"


def _signed(found: Difference) -> str:
    return f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
