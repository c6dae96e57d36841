"""`mlp`: affine maps with a GELU between them."""

from itertools import pairwise
from typing import ClassVar, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from sightline.models.connectors.base import ConnectorConfig, ConnectorShape, Words


class MLPConfig(ConnectorConfig):
    """`v = W2 gelu(W1 f + b1) + b2` (LLaVA-1.5's `mlp2x_gelu`, Liu et al. 2024, section 3.2)."""

    width_field: ClassVar[str] = "hidden"
    kind: Literal["mlp"] = "mlp"
    depth: int = Field(default=2, ge=2, le=8)
    """Number of affine maps."""
    hidden: int | None = Field(default=None, ge=1)
    """Width between them; the decoder's width by default, as in LLaVA-1.5."""
    bias: bool = True
    """Use biases."""

    def build(self, shape: ConnectorShape) -> nn.Module:
        return MLP(shape.width_in, self.hidden or shape.width_out, shape.width_out, self.depth, self.bias)


class MLP(nn.Module):
    """`depth` affine maps, exact GELU between them."""

    def __init__(self, width_in: int, hidden: int, width_out: int, depth: int, bias: bool) -> None:
        super().__init__()
        widths = [width_in, *[hidden] * (depth - 1), width_out]
        self.linears = nn.ModuleList(nn.Linear(a, b, bias) for a, b in pairwise(widths))
        self.activation = nn.GELU()

    def forward(self, features_NKF: Float[Tensor, "N K F"], words: Words) -> Float[Tensor, "N K D"]:
        states = self.linears[0](features_NKF)
        for linear in list(self.linears)[1:]:
            states = linear(self.activation(states))
        return states
