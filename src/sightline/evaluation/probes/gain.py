"""`gain`: how much the image raises the logit of each supervised token of a text, for own and for foreign images.

The gain is the number that CAL weighs tokens by: `z(t_s | image, t_<s) - z(t_s | t_<s)`. Summed up here: percentiles, by which
a clamp is chosen; the words that owe most and least to the image; and how well a text's mean gain tells its own image from
another record's, which says whether the gain can find texts that do not belong to their images.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)
WORDS, LEAST_TIMES = 12, 3  # words of each end, and how often one must occur to be listed
_WORD = re.compile(r"\w")


@dataclass(frozen=True)
class TextGain:
    """The gain of one text of a record.

    Attributes:
        record_id: of the record.
        text: the conversation's number in the record (a caption).
        pieces: what each supervised token stands for.
        gains: gain of each of them; NaN where nothing but the image precedes the token.
    """

    record_id: str
    text: int
    pieces: tuple[str, ...]
    gains: tuple[float, ...]

    @property
    def known(self) -> list[float]:
        """The gains that there are."""
        return [gain for gain in self.gains if gain == gain]

    @property
    def mean(self) -> float:
        """Mean gain of the text's tokens, the number that it is ranked by; 0 where no token has one."""
        known = self.known
        return sum(known) / len(known) if known else 0.0

    @property
    def said(self) -> str:
        """The text itself."""
        return "".join(self.pieces).strip()

    def words(self) -> list[tuple[str, float]]:
        """Words of the text with the mean gain of their tokens: a token that begins with a space begins a word."""
        groups: list[tuple[str, list[float]]] = []
        for piece, gain in zip(self.pieces, self.gains, strict=True):
            if not groups or piece[:1].isspace() or not _WORD.search(piece) or not _WORD.search(groups[-1][0]):
                groups.append(("", []))
            groups[-1] = (groups[-1][0] + piece, groups[-1][1] + ([gain] if gain == gain else []))
        return [(word.strip().casefold(), sum(own) / len(own)) for word, own in groups if own and _WORD.search(word)]

    @property
    def tokens(self) -> list[tuple[str, float | None]]:
        """Each piece with its gain, rounded; None where there is none."""
        return [(piece, round(gain, 4) if gain == gain else None) for piece, gain in zip(self.pieces, self.gains, strict=True)]

    def to_json(self) -> dict[str, Any]:
        return {"id": self.record_id, "text": self.text, "mean": self.mean, "tokens": [list(token) for token in self.tokens]}


@dataclass(frozen=True)
class GainExample:
    """A record to be shown: its image as a file, its own texts, and a text of another record that was asked of this image."""

    record_id: str
    image: bytes | None
    own: tuple[TextGain, ...]
    foreign: tuple[TextGain, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.record_id,
            "own": [text.to_json() for text in self.own],
            "foreign": [text.to_json() for text in self.foreign],
        }


@dataclass(frozen=True)
class GainFindings:
    """Gains of the texts of some records.

    Attributes:
        own: texts with their own images.
        foreign: the same texts with images of other records, in the same order as far as these could be opened.
        shown: records to look at.
        skipped: records that could not be used, by reason.
    """

    own: tuple[TextGain, ...]
    foreign: tuple[TextGain, ...]
    shown: tuple[GainExample, ...]
    skipped: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        most, least = self.words()
        return {
            "what": "gain",
            "records": len({text.record_id for text in self.own}),
            "texts": len(self.own),
            "own": summary(self.own),
            "foreign": summary(self.foreign),
            "separation": separation(self.own, self.foreign),
            "higher_with_own": higher_with_own(self.own, self.foreign),
            "words": [{"word": word, "gain": gain, "times": times} for word, gain, times in (*most, *least)],
            "images": [shown.to_json() for shown in self.shown],
            "skipped": dict(self.skipped),
        }

    def figures(self) -> dict[str, str]:
        own, foreign = summary(self.own), summary(self.foreign)
        skipped = ", ".join(f"{reason} {count}" for reason, count in self.skipped.items())
        return {
            "texts": f"{len(self.own):,} of {len({text.record_id for text in self.own}):,} records, {own['tokens']:,} tokens",
            "mean gain of a token": f"{own['mean']:.3f}, with foreign images {foreign['mean']:.3f}",
            "median": f"{round(own['percentiles']['p50'], 3) + 0.0:.3f}",
            "90th percentile": f"{own['percentiles']['p90']:.3f} (a clamp for this model: objective.high)",
            "tokens above 1": f"{own['share_above_1']:.1%}, above 5 {own['share_above_5']:.1%}",
            "tells own from foreign": f"{separation(self.own, self.foreign):.3f} (area under ROC; 0.5 is chance)",
            "higher with own image": f"{higher_with_own(self.own, self.foreign):.1%} of the texts",
            **({"skipped records": skipped} if skipped else {}),
        }

    def words(self) -> tuple[list[tuple[str, float, int]], list[tuple[str, float, int]]]:
        """The most visual words, highest mean gain first, and the least visual ones, lowest first; with how often they occur."""
        found: dict[str, list[float]] = {}
        for text in self.own:
            for word, gain in text.words():
                found.setdefault(word, []).append(gain)
        rows = [(word, sum(gains) / len(gains), len(gains)) for word, gains in found.items() if len(gains) >= LEAST_TIMES]
        rows.sort(key=lambda row: (-row[1], row[0]))
        size = min(WORDS, len(rows) // 2)
        return rows[:size], rows[::-1][:size]

    def tiles(self) -> dict[str, str]:
        """The few numbers that stand at the head of a page."""
        marks = self.marks()
        return {
            "texts": f"{len(self.own):,}",
            "median gain": f"{round(marks['median'], 2) + 0.0:.2f}",
            "90th percentile": f"{marks['90 %']:.2f}",
            "tells own from foreign": f"{separation(self.own, self.foreign):.3f}",
            "higher with own image": f"{higher_with_own(self.own, self.foreign):.0%}",
        }

    def marks(self) -> dict[str, float]:
        """Percentiles of the tokens' gain with their own images, to be marked in a histogram."""
        found = summary(self.own)["percentiles"]
        return {"median": found["p50"], "90 %": found["p90"]}


def summary(texts: Sequence[TextGain]) -> dict[str, Any]:
    """Number, mean and percentiles of the tokens' gain, and the shares above 1 and 5, the published clamp."""
    known = np.array([gain for text in texts for gain in text.known])
    return {
        "tokens": len(known),
        "mean": float(known.mean()) if len(known) else 0.0,
        "percentiles": percentiles(known, PERCENTILES),
        "share_above_1": float((known > 1).mean()) if len(known) else 0.0,
        "share_above_5": float((known > 5).mean()) if len(known) else 0.0,
    }


def percentiles(gains: Iterable[float], shares: Sequence[float]) -> dict[str, float]:
    """Percentiles of the tokens' gain, by which a clamp for a small model is chosen (the paper's 5 is near its 90th)."""
    known = np.fromiter(gains, dtype=np.float64)
    return {f"p{share:g}": float(np.percentile(known, share)) if len(known) else 0.0 for share in shares}


def separation(true: Sequence[TextGain], noisy: Sequence[TextGain]) -> float:
    """Returns the chance that a text with its own image has a higher mean gain than another with a foreign one (ROC area)."""
    own, foreign = np.array([text.mean for text in true]), np.sort([text.mean for text in noisy])
    if not len(own) or not len(foreign):
        return 0.5
    below, up_to = (np.searchsorted(foreign, own, side=side) for side in ("left", "right"))
    return float((below + up_to).mean() / (2 * len(foreign)))  # equal means count half


def higher_with_own(true: Sequence[TextGain], noisy: Sequence[TextGain]) -> float:
    """Returns the share of texts with a higher mean gain with their own image than with the foreign one; ties count half."""
    other = {(text.record_id, text.text): text.mean for text in noisy}
    pairs = [(text.mean, other[key]) for text in true if (key := (text.record_id, text.text)) in other]
    if not pairs:
        return 0.5
    return sum(0.5 * ((own > foreign) + (own >= foreign)) for own, foreign in pairs) / len(pairs)
