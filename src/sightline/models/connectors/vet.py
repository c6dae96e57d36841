"""`vet`: Ovis' visual embedding table, a learned vocabulary for images."""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from sightline.models.connectors.base import ConnectorConfig, ConnectorShape, Words
from sightline.ops.vocabulary_attention import OuterNorm, vocabulary_attention, vocabulary_attention_reference


class VETConfig(ConnectorConfig):
    """`v = softmax(W f) E` with a learned table E of `rows` visual words (Ovis, Lu et al. 2024, equations 2 and 3).

    With `W = W2 W1` and the decoder's own embeddings as E it is `align` without norms: ALIGN is a low-rank VET over an existing
    vocabulary. Rows of E are drawn from N(0, 1) as in Ovis' code.

    Differs: the paper's formula has no norm over the visual words; Ovis' code has one, with gain and shift per word (`norm`).
    Indicator tokens around an image are left to the template. Ovis' straight-through and Gumbel variants are left out.
    """

    width_field: ClassVar[str] = "rows"
    kind: Literal["vet"] = "vet"
    rows: int = Field(default=16384, ge=2)
    """Number of visual words; the default is that of Ovis' code."""
    norm: bool = False
    """Normalise the scores over the visual words, as Ovis' code does."""
    compute: Literal["fused", "plain"] = "fused"
    """Compute in chunks, or with the full `[tokens, rows]` tensor; both give the same value."""

    def build(self, shape: ConnectorShape) -> nn.Module:
        return VET(self, shape)


class VET(nn.Module):
    """`v = softmax(W f) E`."""

    def __init__(self, config: VETConfig, shape: ConnectorShape) -> None:
        super().__init__()
        self.config = config
        self.w = nn.Linear(shape.width_in, config.rows, bias=False)
        self.table = nn.Embedding(config.rows, shape.width_out)
        if config.norm:
            self.gain = nn.Parameter(torch.ones(config.rows))
            self.shift = nn.Parameter(torch.zeros(config.rows))

    def forward(self, features_NKF: Float[Tensor, "N K F"], words: Words) -> Float[Tensor, "N K D"]:
        norm = OuterNorm(self.gain, self.shift) if self.config.norm else None
        mix = vocabulary_attention if self.config.compute == "fused" else vocabulary_attention_reference
        mixed = mix(features_NKF.flatten(0, 1), self.w.weight, self.table.weight, norm)
        return mixed.unflatten(0, features_NKF.shape[:2])
