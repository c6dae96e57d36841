"""`noise`: how far Gaussian noise on the visual features moves what the connector makes of them.

AlignVLM (section 5.5) reports the cosine distance between clean and noisy outputs alone. A connector whose outputs are all alike
moves little whatever it is given; so the distance is also given in units of the distance between different patches.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from sightline.data.dataset import Dataset
from sightline.data.images.pixels import VisualInputLoader, VisualInputs
from sightline.evaluation.probes.base import ProbedRecord
from sightline.runtime.keyed import keyed_generator
from sightline.types import Record

SIGMAS = (0.25, 0.5, 1.0, 2.0, 3.0)


def add_noise(features_NPE: Float[Tensor, "N P E"], sigma: float, key: str) -> Float[Tensor, "N P E"]:
    """Features plus Gaussian noise of `sigma` times their own standard deviation (over all patches and channels of the record).

    The noise belongs to `key`: the same record gets the same noise on any machine, and at any sigma the same up to its size.
    """
    drawn = torch.from_numpy(keyed_generator("feature noise", key).standard_normal(features_NPE.shape))
    scale = sigma * features_NPE.float().std(correction=0)
    return features_NPE + (drawn.to(features_NPE.device, torch.float32) * scale).to(features_NPE.dtype)


class NoisyFeatureLoader:
    """The features of images with noise, as `add_noise` draws it, for an evaluation.

    Args:
        visual_loader: gives pixels or features.
        sigma: of the noise, in units of the features' standard deviation.
        encode: from prepared crops to features, float32; needed where `images` gives pixels.
    """

    def __init__(
        self,
        visual_loader: VisualInputLoader,
        sigma: float,
        encode: Callable[[UInt8[np.ndarray, "N h w 3"]], Float[np.ndarray, "N P E"]] | None = None,
    ) -> None:
        self.visual_loader, self.sigma, self.encode = visual_loader, sigma, encode

    def load(self, dataset: Dataset, record: Record) -> VisualInputs:
        """Returns noisy features of a record's images."""
        inputs = self.visual_loader.load(dataset, record)
        features = inputs.features
        if features is None:
            assert inputs.pixels is not None
            assert self.encode is not None
            features = self.encode(inputs.pixels)
        noisy = add_noise(torch.from_numpy(np.array(features, dtype=np.float32)), self.sigma, record.id)
        return VisualInputs(features=noisy.numpy())


@dataclass(frozen=True)
class NoiseRow:
    """What noise of one size does.

    Attributes:
        sigma: in units of the features' standard deviation.
        moved: mean cosine distance between clean and noisy output of a patch.
        relative: `moved` in units of the mean cosine distance between different patches.
    """

    sigma: float
    moved: float
    relative: float


@dataclass(frozen=True)
class NoiseFindings:
    """The effect of noise on a connector's outputs.

    Attributes:
        records, tokens: how many were looked at.
        between: mean cosine distance between the clean outputs of two different patches, of any two records.
        rows: one per sigma.
        skipped: records that could not be used, by reason.
    """

    records: int
    tokens: int
    between: float
    rows: tuple[NoiseRow, ...]
    skipped: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        return {
            "what": "noise",
            "records": self.records,
            "tokens": self.tokens,
            "distance_between_patches": self.between,
            "noise": [{"sigma": row.sigma, "distance": row.moved, "relative": row.relative} for row in self.rows],
            "skipped": self.skipped,
        }

    def figures(self) -> dict[str, str]:
        return {
            "visual tokens": f"{self.tokens:,} of {self.records:,} records",
            "between patches": f"{self.between:.5f} (mean cosine distance)",
            **{f"sigma {row.sigma:g}": f"{row.moved:.5f}, {row.relative:.3f} of that" for row in self.rows},
        }


def probe_noise(
    visual_tokens: Callable[[Float[Tensor, "N P E"]], Float[Tensor, "X D"]],
    seen: Iterable[ProbedRecord],
    sigmas: Sequence[float] = SIGMAS,
    skipped: dict[str, int] | None = None,
) -> NoiseFindings:
    """Runs the connector on clean and on noisy features.

    Args:
        visual_tokens: from features to the connector's outputs, one after the other.
        seen: the records.
        sigmas: sizes of the noise, in units of the features' standard deviation.
        skipped: records that were left out before, by reason.
    """
    moved = [0.0] * len(sigmas)
    direction_D: Tensor | None = None
    records = tokens = 0
    for record in seen:
        with torch.no_grad():
            clean_KD = _directions(visual_tokens(record.features_NPE))
            for place, sigma in enumerate(sigmas):
                noisy = add_noise(record.features_NPE, sigma, record.record_id)
                moved[place] += float((1 - (clean_KD * _directions(visual_tokens(noisy))).sum(1)).sum())
        direction_D = clean_KD.sum(0) if direction_D is None else direction_D + clean_KD.sum(0)
        records, tokens = records + 1, tokens + len(clean_KD)
    between = mean_distance(direction_D, tokens) if direction_D is not None else 0.0
    rows = [
        NoiseRow(sigma, total / max(tokens, 1), total / max(tokens, 1) / between if between > 0 else 0.0)
        for sigma, total in zip(sigmas, moved, strict=True)
    ]
    return NoiseFindings(records, tokens, between, tuple(rows), skipped or {})


def _directions(tokens_XD: Float[Tensor, "X D"]) -> Float[Tensor, "X D"]:
    """Unit vectors in float64; a token of zeros stays zero."""
    return torch.nn.functional.normalize(tokens_XD.double(), dim=1)


def mean_distance(sum_D: Float[Tensor, " D"], count: int) -> float:
    """Mean cosine distance over all pairs of n = `count` unit vectors, from their sum alone: `1 - (|sum|^2 - n) / (n (n - 1))`."""
    return 1 - (float(sum_D @ sum_D) - count) / (count * (count - 1)) if count > 1 else 0.0
