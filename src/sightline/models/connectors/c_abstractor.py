"""`c_abstractor`: Honeybee's abstractor, which reduces the grid by convolutions and keeps the spatial order."""

from math import isqrt
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.errors import ConfigError
from sightline.models.connectors.base import ConnectorConfig, ConnectorShape, Words, need_grid


class CAbstractorConfig(ConnectorConfig):
    """Honeybee's C-Abstractor (Cha et al. 2024, section 3.2): `depth` residual blocks, average pooling, `depth` blocks, an MLP.

        x = f + position,   x = blocks(x),   x = pool(x) to sqrt(M) x sqrt(M),   x = blocks(x),   v = W_b silu(W_a x + a) + b

    A block is RegNet's bottleneck with squeeze-and-excitation, as Honeybee takes it from timm:
    `silu(shortcut(x) + N(C1(SE(silu(N(D3(silu(N(C1 x)))))))))` with 1 x 1 convolutions C1, a depthwise 3 x 3 convolution D3, layer
    norm N over channels, and `SE(x) = x sigmoid(S2 silu(S1 mean_hw x))` through a quarter of the block's input channels. The
    shortcut is `N(C1 x)` where the width changes, else x. Convolutions have no bias, S1 and S2 do.

    Differs: written with torch alone; no learned tokens after the image (Honeybee's `num_eos_tokens`, 0 in its own recipes).
    """

    width_field: ClassVar[str] = "hidden"
    kind: Literal["c_abstractor"] = "c_abstractor"
    num_queries: int = Field(default=144, ge=1, le=4096)
    """Visual tokens per crop; a square number."""
    depth: int = Field(default=3, ge=1, le=32)
    """Residual blocks before the pooling, and the same number after it."""
    hidden: int = Field(default=1024, ge=4)
    """Channels of the blocks."""
    mlp_depth: int = Field(default=2, ge=1, le=8)
    """Affine maps in the final MLP."""

    def grid_out(self, shape: ConnectorShape) -> tuple[int, int]:
        need_grid("c_abstractor", shape)
        side = isqrt(self.num_queries)
        if side * side != self.num_queries or side > min(shape.rows, shape.columns):
            near = [n * n for n in range(1, min(shape.rows, shape.columns) + 1)]
            raise ConfigError(
                f"model.connector.num_queries={self.num_queries} is not a square that fits into {shape.rows} x {shape.columns}.",
                f"Possible here: {', '.join(map(str, near[-6:]))} (and smaller squares).",
            )
        return side, side

    def build(self, shape: ConnectorShape) -> nn.Module:
        return CAbstractor(self, shape)


class CAbstractor(nn.Module):
    """Residual blocks, pooling, residual blocks, MLP."""

    def __init__(self, config: CAbstractorConfig, shape: ConnectorShape) -> None:
        super().__init__()
        self.grid, self.side = (shape.rows, shape.columns), isqrt(config.num_queries)
        self.position = nn.Parameter(torch.empty(shape.num_tokens, shape.width_in))
        nn.init.trunc_normal_(self.position, std=0.02)
        widths = [shape.width_in] + [config.hidden] * (2 * config.depth - 1)
        blocks = [_Block(width, config.hidden) for width in widths]
        self.before, self.after = nn.Sequential(*blocks[: config.depth]), nn.Sequential(*blocks[config.depth :])
        ends = [config.hidden] + [shape.width_out] * (config.mlp_depth - 1)
        self.linears = nn.ModuleList(nn.Linear(width, shape.width_out) for width in ends)

    def forward(self, features_NKF: Float[Tensor, "N K F"], words: Words) -> Float[Tensor, "N R D"]:
        map_NFhw = (features_NKF + self.position).transpose(1, 2).unflatten(2, self.grid)
        reduced = self.after(F.adaptive_avg_pool2d(self.before(map_NFhw), self.side))
        states = self.linears[0](reduced.flatten(2).transpose(1, 2))
        for linear in list(self.linears)[1:]:
            states = linear(F.silu(states))
        return states


class _Block(nn.Module):
    """RegNet's bottleneck: bottle ratio 1, one channel per group, squeeze ratio 1/4."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(width_in, width, 1, bias=False)
        self.spread = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.squeeze, self.excite = (
            nn.Linear(width, max(1, round(width_in / 4))),
            nn.Linear(max(1, round(width_in / 4)), width),
        )
        self.leave = nn.Conv2d(width, width, 1, bias=False)
        self.norms = nn.ModuleList(nn.LayerNorm(width, 1e-6) for _ in range(3))
        is_same = width_in == width
        self.shortcut = None if is_same else nn.Conv2d(width_in, width, 1, bias=False)
        self.shortcut_norm = None if is_same else nn.LayerNorm(width, 1e-6)

    def forward(self, x: Float[Tensor, "N C h w"]) -> Float[Tensor, "N W h w"]:
        states = F.silu(_over_channels(self.norms[0], self.enter(x)))
        states = F.silu(_over_channels(self.norms[1], self.spread(states)))
        scale = torch.sigmoid(self.excite(F.silu(self.squeeze(states.mean((2, 3))))))
        states = _over_channels(self.norms[2], self.leave(states * scale[:, :, None, None]))
        if self.shortcut is not None and self.shortcut_norm is not None:
            x = _over_channels(self.shortcut_norm, self.shortcut(x))
        return F.silu(states + x)


def _over_channels(norm: nn.Module, x: Float[Tensor, "N C h w"]) -> Float[Tensor, "N C h w"]:
    return norm(x.movedim(1, 3)).movedim(3, 1)
