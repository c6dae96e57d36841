"""`linear`: one affine map from encoder width to decoder width."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from sightline.models.connectors.base import ConnectorConfig, ConnectorShape, Words


class LinearConfig(ConnectorConfig):
    """`v = W f + b` (LLaVA, Liu et al. 2023, section 4.1)."""

    kind: Literal["linear"] = "linear"
    bias: bool = True
    """Use a bias. nanoVLM's projector is `linear` without bias after a pixel shuffle of 2."""

    def build(self, shape: ConnectorShape) -> nn.Module:
        return Linear(shape.width_in, shape.width_out, self.bias)


class Linear(nn.Module):
    """`v = W f + b`."""

    def __init__(self, width_in: int, width_out: int, bias: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(width_in, width_out, bias)

    def forward(self, features_NKF: Float[Tensor, "N K F"], words: Words) -> Float[Tensor, "N K D"]:
        return self.linear(features_NKF)
