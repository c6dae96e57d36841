"""`words`: which words of the decoder the visual tokens of an ALIGN connector are mixtures of.

For a mixture p of V words: entropy `-sum p log p`, perplexity `exp(entropy)` (how many words it is spread over), the number of
words above 1e-6, the largest probability. Over all visual tokens: the mean mixture, its most used words, and how many of them it
takes to hold 99 % of the mass. AlignVLM reports 3.4K of 128K words in use (section 5.4); at a gain of 1 nearly all are.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from sightline.evaluation.probes.base import ProbedRecord
from sightline.models.connectors import Connector
from sightline.ops.vocabulary_attention import WordDistribution

TOP, THRESHOLD = 5, 1e-6
MOST_USED = 40


Mixture = tuple[tuple[str, float], ...]
"""The largest words of one visual token, with their probabilities."""


@dataclass(frozen=True)
class WordCrop:
    """One crop of an image.

    Attributes:
        grid: rows and columns of visual tokens; one row where they are no grid.
        mixtures: of each visual token, in raster order.
        entropies: of each mixture, in nats.
        pixels: as the encoder saw them, or None.
    """

    grid: tuple[int, int]
    mixtures: tuple[Mixture, ...]
    entropies: tuple[float, ...]
    pixels: "UInt8[np.ndarray, 'h w 3'] | None" = None


@dataclass(frozen=True)
class WordImage:
    """The crops of a record."""

    record_id: str
    crops: tuple[WordCrop, ...]

    def to_json(self) -> dict[str, Any]:
        crops = [
            {"grid": list(crop.grid), "words": [[[word, share] for word, share in mixture] for mixture in crop.mixtures]}
            for crop in self.crops
        ]
        return {"id": self.record_id, "crops": crops}


@dataclass(frozen=True)
class WordFindings:
    """Mixtures of the visual tokens of some records.

    Attributes:
        records, tokens, vocabulary: how many there are.
        entropy: mean over tokens, in nats.
        perplexity: `exp(entropy)`.
        above: mean number of words above the threshold in one token's mixture.
        largest: mean of the largest probability.
        used: words above the threshold in the mean mixture.
        for_99: fewest words that hold 99 % of the mean mixture.
        most_used: words of the largest mean probability, with it.
        values: of the connector, such as its gain.
        images: top words of each visual token of some records.
        skipped: records that could not be used, by reason.
    """

    records: int
    tokens: int
    vocabulary: int
    entropy: float
    perplexity: float
    above: float
    largest: float
    used: int
    for_99: int
    most_used: tuple[tuple[str, float], ...]
    values: dict[str, float]
    images: tuple[WordImage, ...]
    skipped: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        return {
            "what": "words",
            "records": self.records,
            "tokens": self.tokens,
            "vocabulary": self.vocabulary,
            **self.values,
            "entropy": self.entropy,
            "perplexity": self.perplexity,
            "words_above_threshold": self.above,
            "threshold": THRESHOLD,
            "mean_largest_probability": self.largest,
            "used_words": self.used,
            "words_for_99_percent": self.for_99,
            "most_used": [{"word": word, "share": share} for word, share in self.most_used],
            "images": [image.to_json() for image in self.images],
            "skipped": self.skipped,
        }

    def figures(self) -> dict[str, str]:
        most = ", ".join(f"{_readable(word)} {share:.1%}" for word, share in self.most_used[:8])
        skipped = {"skipped records": ", ".join(f"{reason} {count}" for reason, count in self.skipped.items())}
        return {
            "visual tokens": f"{self.tokens:,} of {self.records:,} records",
            **{name: f"{value:.3f}" for name, value in self.values.items()},
            "entropy": f"{self.entropy:.3f} nats",
            "perplexity": f"{self.perplexity:,.1f} of {self.vocabulary:,} words",
            f"words above {THRESHOLD:g}": f"{self.above:,.1f} a token",
            "largest probability": f"{self.largest:.4f} (mean over tokens)",
            "words in use": f"{self.used:,} above {THRESHOLD:g} in the mean mixture",
            "words for 99 % of the mass": f"{self.for_99:,}",
            "most used": most,
            **(skipped if self.skipped else {}),
        }


def probe_words(
    connector: Connector,
    seen: Iterable[ProbedRecord],
    text_of: Callable[[int], str],
    shown: int = 12,
    skipped: dict[str, int] | None = None,
) -> WordFindings:
    """Looks at the mixtures of all visual tokens of some records.

    Args:
        connector: of kind `align`.
        seen: the records.
        text_of: the text of a word by its id.
        shown: records whose visual tokens are kept one by one.
        skipped: records that were left out before, by reason.

    Raises:
        ConfigError: the connector mixes no words.
    """
    total = _Total()
    images: list[WordImage] = []
    for record in seen:
        found = distribution_of(connector, record)
        total.add(found)
        if len(images) < shown:
            images.append(_image(record, found, connector, text_of))
    mean_V = total.mean()
    order = mean_V.argsort(descending=True, stable=True)
    mass = mean_V[order].cumsum(0)
    return WordFindings(
        records=total.records,
        tokens=total.tokens,
        vocabulary=len(mean_V),
        entropy=total.entropy / max(total.tokens, 1),
        perplexity=float(np.exp(total.entropy / max(total.tokens, 1))),
        above=total.above / max(total.tokens, 1),
        largest=total.largest / max(total.tokens, 1),
        used=int((mean_V > THRESHOLD).sum()),
        for_99=int((mass < 0.99 * mass[-1]).sum()) + 1 if total.tokens else 0,
        most_used=tuple((text_of(int(word)), float(mean_V[word])) for word in order[:MOST_USED]) if total.tokens else (),
        values=connector.log_values(),
        images=tuple(images),
        skipped=skipped or {},
    )


def most_used_words(connector: Connector, seen: Iterable[ProbedRecord], count: int) -> list[int]:
    """Ids of the `count` words with the largest mean probability over all visual tokens of some records, largest first.

    Raises:
        ConfigError: the connector mixes no words.
    """
    total = _Total()
    for record in seen:
        total.add(distribution_of(connector, record))
    return total.mean().argsort(descending=True, stable=True)[:count].tolist()


def distribution_of(connector: Connector, record: ProbedRecord) -> WordDistribution:
    """The mixtures of a record's visual tokens, without a graph."""
    mixer = connector.vocabulary_mixer
    with torch.no_grad():
        found = mixer.distribution(connector.merged(record.features_NPE), TOP, THRESHOLD)
    return found if found.mean_V.is_cpu else replace(found, **{name: value.cpu() for name, value in vars(found).items()})


def _readable(word: str) -> str:
    """A word without the space before it; quoted where it is nothing else, or would steer a terminal."""
    bare = word.strip()
    return bare if bare and bare.isprintable() else repr(word)


class _Total:
    """Sums over visual tokens."""

    def __init__(self) -> None:
        self.records = self.tokens = 0
        self.entropy = self.above = self.largest = 0.0
        self._sum_V: torch.Tensor | None = None

    def add(self, found: WordDistribution) -> None:
        count = len(found.entropy_N)
        self.records += 1
        self.tokens += count
        self.entropy += float(found.entropy_N.double().sum())
        self.above += float(found.above_N.sum())
        self.largest += float(found.probability_NT[:, 0].double().sum())
        summed = found.mean_V.double() * count
        self._sum_V = summed if self._sum_V is None else self._sum_V + summed

    def mean(self) -> torch.Tensor:
        return torch.zeros(1, dtype=torch.float64) if self._sum_V is None else self._sum_V / max(self.tokens, 1)


def _image(record: ProbedRecord, found: WordDistribution, connector: Connector, text_of: Callable[[int], str]) -> WordImage:
    per_crop = connector.tokens_per_crop
    words, shares = found.word_NT.tolist(), found.probability_NT.tolist()
    named = [
        tuple((text_of(word), share) for word, share in zip(row, column, strict=True))
        for row, column in zip(words, shares, strict=True)
    ]
    crops = []
    for number in range(len(record.features_NPE)):
        own = slice(number * per_crop, (number + 1) * per_crop)
        pixels = None if record.pixels_NHWC is None else record.pixels_NHWC[number]
        crops.append(WordCrop(connector.token_grid, tuple(named[own]), tuple(found.entropy_N[own].tolist()), pixels))
    return WordImage(record.record_id, tuple(crops))
