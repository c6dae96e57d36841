"""`resampler`: a Perceiver whose learned queries attend to all patches, so that every crop gives the same number of tokens."""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.errors import ConfigError
from sightline.models.connectors.base import ConnectorConfig, ConnectorShape, Words


class ResamplerConfig(ConnectorConfig):
    """Flamingo's Perceiver Resampler (Alayrac et al. 2022, section 2.1 and figure 5), from learned queries `Q`:

        X = W_in f,   then `depth` times   Q += Attention(LN Q; [LN X, LN Q]),   Q += W_b relu(W_a LN Q)^2,   v = W_out LN Q.

    Keys and values are patches and queries together; only the norms have biases; the feed-forward part is 4 times as wide.

    Differs: no time embeddings (one image at a time); a linear map in and out, because encoder, resampler and decoder may have
    different widths.
    """

    width_field: ClassVar[str] = "width"
    width_step: ClassVar[str] = "heads"
    kind: Literal["resampler"] = "resampler"
    num_queries: int = Field(default=64, ge=1, le=4096)
    """Visual tokens per crop."""
    depth: int = Field(default=6, ge=1, le=64)
    """Layers of cross-attention and feed-forward."""
    heads: int = Field(default=16, ge=1)
    """Attention heads."""
    width: int | None = Field(default=None, ge=1)
    """Width of the queries; the decoder's by default."""

    def grid_out(self, shape: ConnectorShape) -> tuple[int, int]:
        return 1, self.num_queries

    def build(self, shape: ConnectorShape) -> nn.Module:
        width = self.width or shape.width_out
        if width % self.heads:
            near = [heads for heads in range(1, 65) if width % heads == 0]
            raise ConfigError(
                f"model.connector.heads={self.heads} does not divide the resampler's width of {width}.",
                f"Possible here: {', '.join(map(str, near))}; or set model.connector.width.",
            )
        return Resampler(shape.width_in, width, shape.width_out, self.num_queries, self.depth, self.heads)


class Resampler(nn.Module):
    """Learned queries that attend to the patches through `depth` layers."""

    def __init__(self, width_in: int, width: int, width_out: int, num_queries: int, depth: int, heads: int) -> None:
        super().__init__()
        self.w_in = nn.Linear(width_in, width, bias=False)
        self.queries = nn.Parameter(torch.empty(num_queries, width))
        nn.init.normal_(self.queries, std=0.02)
        self.layers = nn.ModuleList(_Layer(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.w_out = nn.Linear(width, width_out, bias=False)

    def forward(self, features_NKF: Float[Tensor, "N K F"], words: Words) -> Float[Tensor, "N R D"]:
        patches = self.w_in(features_NKF)
        queries = self.queries.expand(len(patches), -1, -1)
        for layer in self.layers:
            queries = layer(queries, patches)
        return self.w_out(self.norm(queries))


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_patches, self.norm_queries, self.norm_inner = (nn.LayerNorm(width) for _ in range(3))
        self.to_query, self.to_key, self.to_value, self.to_out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.w_a, self.w_b = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, queries: Float[Tensor, "N R W"], patches: Float[Tensor, "N K W"]) -> Float[Tensor, "N R W"]:
        normal = self.norm_queries(queries)
        seen = torch.cat([self.norm_patches(patches), normal], dim=1)
        query, key, value = (
            states.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for states in (self.to_query(normal), self.to_key(seen), self.to_value(seen))
        )
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        queries = queries + self.to_out(attended)
        return queries + self.w_b(F.relu(self.w_a(self.norm_inner(queries))).square())
