"""`experts`: how many tokens each expert of each layer gets, of images and of text.

For the load `f` of X experts (shares of all choices, which add up to 1) the entropy `-sum f log f / log X` is 1 when all are used
equally and 0 when one gets everything. The distance between two loads is half the sum of their absolute differences: the share of
choices that would have to change.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

KINDS = ("image", "text")


@dataclass(frozen=True)
class LayerLoad:
    """Loads of one mixture.

    Attributes:
        layer: its number among the mixtures of the decoder.
        load: share of choices by expert, for each kind of token and for `all`.
    """

    layer: int
    load: dict[str, tuple[float, ...]]

    def entropy(self, kind: str) -> float:
        """Returns the normalised entropy of a load."""
        shares = self.load[kind]
        return -sum(share * math.log(share) for share in shares if share > 0) / math.log(len(shares))

    @property
    def distance(self) -> float:
        """Distance between the loads of image and text tokens."""
        return sum(abs(a - b) for a, b in zip(self.load["image"], self.load["text"], strict=True)) / 2


@dataclass(frozen=True)
class ExpertFindings:
    """Loads of all mixtures of a decoder.

    Attributes:
        records: how many were looked at.
        tokens: tokens of each kind.
        per_token: experts that each token passes through.
        layers: loads by layer.
        skipped: records that could not be used, by reason.
    """

    records: int
    tokens: dict[str, int]
    per_token: int
    layers: tuple[LayerLoad, ...]
    skipped: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        layers = [
            {
                "layer": one.layer,
                "load": {kind: list(shares) for kind, shares in one.load.items()},
                "entropy": {kind: one.entropy(kind) for kind in one.load},
                "image_text_distance": one.distance,
            }
            for one in self.layers
        ]
        found = {"what": "experts", "records": self.records, "tokens": self.tokens, "experts_per_token": self.per_token}
        return {**found, "layers": layers, "skipped": self.skipped}

    def figures(self) -> dict[str, str]:
        number = len(self.layers[0].load["all"])
        out = {
            "tokens": ", ".join(f"{count:,} {kind}" for kind, count in self.tokens.items()) + f" of {self.records:,} records",
            "mixtures": f"{len(self.layers)} layers of {number} experts, {self.per_token} per token",
        }
        for kind in ("all", *KINDS):
            values = [one.entropy(kind) for one in self.layers]
            out[f"entropy of the load, {kind}"] = f"{np.mean(values):.3f} (lowest layer {min(values):.3f}; 1 is equal use)"
        largest = max((max(one.load["all"]), one.layer) for one in self.layers)
        out["largest load"] = f"{largest[0]:.1%} in layer {largest[1]} ({1 / number:.1%} is equal use)"
        out["distance between image and text"] = f"{np.mean([one.distance for one in self.layers]):.3f} (mean over layers)"
        if self.skipped:
            out["skipped records"] = ", ".join(f"{reason} {count}" for reason, count in self.skipped.items())
        return out


def expert_findings(
    choices_LKX: Float[np.ndarray, "L K X"], tokens: dict[str, int], records: int, per_token: int, skipped: dict[str, int]
) -> ExpertFindings:
    """Returns the findings for counts of choices.

    Args:
        choices_LKX: of each layer, kind of token (in the order of `KINDS`) and expert.
        tokens: number of tokens of each kind.
        records: number of records.
        per_token: experts per token.
        skipped: records that were left out, by reason.
    """

    def shares(counts: np.ndarray) -> tuple[float, ...]:
        return tuple((counts / max(counts.sum(), 1)).tolist())

    layers = tuple(
        LayerLoad(number, {"all": shares(layer.sum(0)), **{kind: shares(layer[place]) for place, kind in enumerate(KINDS)}})
        for number, layer in enumerate(choices_LKX)
    )
    return ExpertFindings(records, tokens, per_token, layers, skipped)
