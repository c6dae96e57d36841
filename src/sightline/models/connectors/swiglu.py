"""`swiglu`: TinyVLM's gated projector."""

from typing import ClassVar, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.models.connectors.base import ConnectorConfig, ConnectorShape, Words


class SwiGLUConfig(ConnectorConfig):
    """`v = W_down (SiLU(W_gate f) * (W_up f))`, no biases, weights drawn by Xavier's uniform rule (TinyVLM).

    TinyVLM merges 196 patches of 768 to 49 tokens of 3072 and has a hidden width of 12288: 82,575,360 parameters. Its reported run
    merged strips in raster order (`shuffle=2, merge=raster`), its later code merges blocks (`shuffle=2`).

    Differs: the later code orders the channels of a block `(channel, row, column)`, here they are `(row, column, channel)` as in
    Idefics3. The initial distribution is the same; weights trained with that code need their columns permuted.
    """

    width_field: ClassVar[str] = "hidden"
    kind: Literal["swiglu"] = "swiglu"
    hidden: int | None = Field(default=None, ge=1)
    """Hidden width; by default 4 times the width of a merged token, as in TinyVLM (12288)."""

    def build(self, shape: ConnectorShape) -> nn.Module:
        return SwiGLU(shape.width_in, self.hidden or 4 * shape.width_in, shape.width_out)


class SwiGLU(nn.Module):
    """`v = W_down (SiLU(W_gate f) * (W_up f))`."""

    def __init__(self, width_in: int, hidden: int, width_out: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width_in, hidden, bias=False)
        self.up = nn.Linear(width_in, hidden, bias=False)
        self.down = nn.Linear(hidden, width_out, bias=False)
        for linear in (self.gate, self.up, self.down):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, features_NKF: Float[Tensor, "N K F"], words: Words) -> Float[Tensor, "N K D"]:
        return self.down(F.silu(self.gate(features_NKF)) * self.up(features_NKF))
