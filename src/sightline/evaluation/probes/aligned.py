"""`aligned`: is the connector's output aligned with the language of the decoder, and what of the encoder does it keep?

Every image is represented by the mean of its encoder outputs and by the mean of its visual tokens (connector outputs), its text by
the mean input embedding of its tokens.

- Own image: share of records whose text is likelier with their own image than with another record's. Chance is 50 %. It decides.
- Text neighbours: share of an image's nearest neighbours that are also its text's, before and after the connector.
- Neighbours kept: share of an image's nearest neighbours before the connector that it still has after it (arXiv 2509.11986).
- Modality gap: distance of the centres of images and texts, each of length 1 (Liang et al. 2022, arXiv 2203.02053).
- Effective rank of the visual tokens: exponential of the entropy of their normalised singular values (Roy & Vetterli 2007).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from sightline.metrics.statistics import Difference, Interval, Statistic, bootstrap, mean_of, paired_bootstrap
from sightline.metrics.student_t import two_sided_quantile
from sightline.metrics.verdict import MIN_ITEMS, NOT_ENOUGH_ITEMS

NEIGHBOURS = 10
GROUPS = 20  # that the jackknife of the rank leaves out in turn
MARGIN = 0.05  # around 50 %, within which a model counts as not aligned
ALIGNED, NOT_ALIGNED = "aligned", "not aligned"


@dataclass(frozen=True)
class Representations:
    """Features, visual tokens and texts of the records, in one order.

    Attributes:
        encoder: mean encoder output of its images.
        visual: mean visual token.
        text: mean input embedding of its text.
        tokens: some of its visual tokens.
        own, other: log-probability of its text with its own image and with another record's, where both could be computed.
    """

    encoder: Float[np.ndarray, "N E"]
    visual: Float[np.ndarray, "N D"]
    text: Float[np.ndarray, "N D"]
    tokens: Float[np.ndarray, "N M D"]
    own: Float[np.ndarray, " R"]
    other: Float[np.ndarray, " R"]


@dataclass(frozen=True)
class AlignedFindings:
    """Measures of alignment, with 95 % intervals over records.

    Attributes:
        records: number of records.
        own_image: share of records whose text is likelier with their own image.
        text_before, text_after: share of neighbours that image and text have in common, before and after the connector.
        text_gained: the second minus the first, paired.
        kept: share of neighbours before the connector that are neighbours after it.
        chance: what unrelated neighbours share.
        gap: modality gap, from 0 to 2.
        rank: effective rank of the visual tokens.
        skipped: records that could not be used, by reason.
    """

    records: int
    own_image: Interval | None
    text_before: Interval
    text_after: Interval
    text_gained: Difference
    kept: Interval
    chance: float
    gap: Interval
    rank: Interval
    skipped: Mapping[str, int]

    @property
    def verdict(self) -> str:
        """`aligned`, `not aligned`, or `not enough items to say`."""
        found = self.own_image
        if found is None or found.n < MIN_ITEMS:
            return NOT_ENOUGH_ITEMS
        if found.low > 0.5:
            return ALIGNED
        return NOT_ALIGNED if found.high <= 0.5 + MARGIN else NOT_ENOUGH_ITEMS

    def sentences(self) -> list[str]:
        """Returns the verdict and its reasons in words."""
        out = [self.verdict[0].upper() + self.verdict[1:]]
        if self.own_image is not None:
            share = _percent(self.own_image)
            out[0] += (
                f": a text is likelier with its own image than with another record's for {share} of the records; chance is 50 %"
            )
        if self.verdict == ALIGNED and self.text_gained.low > 0:
            out.append("the connector brings images together whose texts are alike")
        elif self.text_after.low <= self.chance:
            out.append("after the connector images are near each other whatever their texts say")
        if self.kept.low <= self.chance:
            out.append("the connector's outputs no longer tell images apart as the encoder does")
        if self.rank.high < 2:
            out.append("all visual tokens point the same way")
        return out

    def to_json(self) -> dict[str, Any]:
        names = ("own_image", "text_before", "text_after", "text_gained", "kept", "gap", "rank")
        return {
            "what": "aligned",
            "verdict": self.verdict,
            "sentence": "; ".join(self.sentences()) + ".",
            "records": self.records,
            "neighbours": NEIGHBOURS,
            "chance": self.chance,
            **{name: _json(getattr(self, name)) for name in names},
            "skipped": dict(self.skipped),
        }

    def figures(self) -> dict[str, str]:
        skipped = ", ".join(f"{reason} {count}" for reason, count in self.skipped.items())
        return {
            "verdict": "; ".join(self.sentences()) + ".",
            "own image (chance 50 %)": "not known" if self.own_image is None else _percent(self.own_image),
            f"text neighbours before the connector (chance {self.chance:.1%})": _percent(self.text_before),
            "text neighbours after the connector": _percent(self.text_after),
            "neighbours kept by the connector": _percent(self.kept),
            "modality gap (0 to 2)": f"{self.gap.value:.3f} [{self.gap.low:.3f}, {self.gap.high:.3f}]",
            "effective rank of the visual tokens": f"{self.rank.value:.1f} [{self.rank.low:.1f}, {self.rank.high:.1f}]",
            "records": f"{self.records:,}",
            **({"left out": skipped} if skipped else {}),
        }


def measure(found: Representations, skipped: Mapping[str, int] | None = None, resamples: int = 1000) -> AlignedFindings:
    """Computes all measures.

    Args:
        found: of at least three records.
        skipped: records that could not be used, by reason.
        resamples: of the bootstrap.
    """
    count = len(found.encoder)
    near = min(NEIGHBOURS, count - 2)
    before, after, text = (nearest(each, near) for each in (found.encoder, found.visual, found.text))
    shared = {
        name: _shared(*pair) for name, pair in (("before", (before, text)), ("after", (after, text)), ("kept", (before, after)))
    }
    statistics = {name: mean_of(values) for name, values in shared.items()}
    intervals = {name: bootstrap(statistic, count, resamples=resamples) for name, statistic in statistics.items()}
    own = np.heaviside(found.own - found.other, 0.5)
    return AlignedFindings(
        records=count,
        own_image=bootstrap(mean_of(own), len(own), resamples=resamples) if len(own) else None,
        text_before=intervals["before"],
        text_after=intervals["after"],
        text_gained=paired_bootstrap(statistics["after"], statistics["before"], count, resamples=resamples),
        kept=intervals["kept"],
        chance=near / (count - 1),
        gap=modality_gap(found.visual, found.text, resamples),
        rank=_rank_interval(found.tokens),
        skipped=skipped or {},
    )


def nearest(values_ND: Float[np.ndarray, "N D"], count: int) -> Int[np.ndarray, "N K"]:
    """Returns the indices of the nearest others of each row by cosine similarity."""
    unit = _unit(values_ND)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    return np.argsort(-similarity, axis=1, kind="stable")[:, :count]


def _shared(first: Int[np.ndarray, "N K"], second: Int[np.ndarray, "N K"]) -> list[float]:
    return [len(np.intersect1d(a, b)) / len(a) for a, b in zip(first, second, strict=True)]


def modality_gap(visual: Float[np.ndarray, "N D"], text: Float[np.ndarray, "N D"], resamples: int = 1000) -> Interval:
    """Returns the distance between the centres of the images and of the texts, all of length 1, with its interval."""
    images, texts = _unit(visual), _unit(text)
    width = images.shape[1]
    terms = np.concatenate([images - texts, np.ones((len(images), 1))], axis=1).T

    def of_sums(sums: Float[np.ndarray, "R K"]) -> Float[np.ndarray, " R"]:
        return np.linalg.norm(sums[:, :width] / sums[:, width:], axis=1)

    return bootstrap(Statistic(terms, of_sums), len(images), resamples=resamples)


def effective_rank(rows_MD: Float[np.ndarray, "M D"]) -> float:
    """Returns the effective rank of rows around their mean; 0 where all are equal up to rounding."""
    centred = rows_MD - rows_MD.mean(axis=0)
    values = np.linalg.svd(centred, compute_uv=False)
    if not values[0] > 1e-6 * np.linalg.norm(rows_MD, axis=1).max():
        return 0.0
    share = values[values > 0] / values.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def _rank_interval(tokens_NMD: Float[np.ndarray, "N M D"]) -> Interval:
    """Returns the effective rank with a jackknife interval over records; a bootstrap, which repeats records, would lower it."""
    count = len(tokens_NMD)
    groups = min(GROUPS, count)
    value = effective_rank(tokens_NMD.reshape(-1, tokens_NMD.shape[-1]))
    left_out = [np.delete(tokens_NMD, np.arange(group, count, groups), axis=0) for group in range(groups)]
    without = np.array([effective_rank(rest.reshape(-1, rest.shape[-1])) for rest in left_out])
    error = np.sqrt((groups - 1) / groups * np.square(without - without.mean()).sum())
    half = float(error * two_sided_quantile(0.05, groups - 1))
    return Interval(value, max(value - half, 0.0), value + half, count)


def _unit(values_ND: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
    return values_ND / np.maximum(np.linalg.norm(values_ND, axis=1, keepdims=True), 1e-12)


def _percent(found: Interval) -> str:
    return f"{found.value:.1%} [{found.low:.1%}, {found.high:.1%}]"


def _json(found: Interval | Difference | None) -> dict[str, Any] | None:
    return None if found is None else {"value": found.value, "low": found.low, "high": found.high, "n": found.n}
