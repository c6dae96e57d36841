"""A vision transformer: an image becomes a sequence of patches, and each patch looks at all others.

pixels [N, 3, height, width] -> patches [N, P, E] -> with a class token [N, 1 + P, E] -> blocks -> norm -> the same shape

N images    P patches    E width    H heads    A width of a head
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

Attend = Callable[..., tuple[Tensor, Tensor | None]]
"""An attention kernel of transformers' attention interface; `attend_plainly` is the definition of them all."""


class ViT(nn.Module):
    """Patch embedding, class token, learned positions, pre-norm blocks.

    Args:
        config: sizes and choices; see `sightline.models.scratch.shell.ScratchViTConfig`.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        num_patches = (config.image_size // config.patch_size) ** 2
        # One linear map of each patch's pixels: a convolution whose stride is its kernel.
        self.patches = nn.Conv2d(3, config.hidden_size, config.patch_size, config.patch_size)
        if config.patches_only:
            return
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.positions = nn.Parameter(torch.zeros(1, 1 + num_patches, config.hidden_size))
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(EncoderBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, config.norm_eps)

    def forward(self, pixels: Float[Tensor, "N 3 h w"], attend: Attend) -> tuple[Float[Tensor, "N T E"], list[Tensor]]:
        """Returns the output tokens and the states before and after each block."""
        x_NPE = self.patches(pixels).flatten(2).transpose(1, 2)
        if self.config.patches_only:
            return x_NPE, [x_NPE]
        x_NTE = torch.cat([self.class_token.expand(len(x_NPE), -1, -1), x_NPE], 1)
        x_NTE = self.dropout(x_NTE + self.positions)
        states = [x_NTE]
        for layer in self.layers:
            x_NTE = layer(x_NTE, attend)
            states.append(x_NTE)
        x_NTE = self.norm(x_NTE)
        return (x_NTE[:, :1] if self.config.output_tokens == "class" else x_NTE), states


class EncoderBlock(GradientCheckpointingLayer):
    """`x = x + attention(norm(x)); x = x + mlp(norm(x))`."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width = config.hidden_size
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width, config.norm_eps), nn.LayerNorm(width, config.norm_eps)
        self.attention = Attention(config)
        self.up_proj, self.down_proj = nn.Linear(width, config.intermediate_size), nn.Linear(config.intermediate_size, width)
        self.activation = ACT2FN[config.hidden_act]
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_NTE: Float[Tensor, "N T E"], attend: Attend) -> Float[Tensor, "N T E"]:
        x_NTE = x_NTE + self.dropout(self.attention(self.attention_norm(x_NTE), attend))
        hidden = self.activation(self.up_proj(self.mlp_norm(x_NTE)))
        return x_NTE + self.dropout(self.down_proj(hidden))


class Attention(nn.Module):
    """Every token reads from every token: `softmax(Q K^T scale) V` in each head, then one linear map over all heads."""

    is_causal = False

    def __init__(self, config: Any) -> None:
        super().__init__()
        width = config.hidden_size
        self.head_width = width // config.num_attention_heads
        self.scale = attention_scale(config)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.o_proj = nn.Linear(width, width)
        self.dropout_rate = config.dropout

    def forward(self, x_NTE: Float[Tensor, "N T E"], attend: Attend) -> Float[Tensor, "N T E"]:
        q, k, v = (
            linear(x_NTE).unflatten(-1, (-1, self.head_width)).transpose(1, 2) for linear in (self.q_proj, self.k_proj, self.v_proj)
        )  # each [N, H, T, A]
        rate = self.dropout_rate if self.training else 0.0
        read_NTHA, _ = attend(self, q, k, v, None, dropout=rate, scaling=self.scale)
        return self.o_proj(read_NTHA.flatten(2))


def attention_scale(config: Any) -> float:
    """Returns the factor of the attention scores: one over the root of a head's width.

    The published seemore divides by the root of the model's width (`attention_scale: model`), so its attention is nearly flat.
    """
    width = config.hidden_size if config.attention_scale == "model" else config.hidden_size // config.num_attention_heads
    return width**-0.5


def attend_plainly(
    module: nn.Module,
    q: Float[Tensor, "N H T A"],
    k: Float[Tensor, "N H U A"],
    v: Float[Tensor, "N H U A"],
    mask: Float[Tensor, "N 1 T U"] | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Float[Tensor, "N T H A"], Float[Tensor, "N H T U"]]:
    """Computes `softmax(q k^T scaling + mask) v`, transformers' `eager` attention; also returns the weights."""
    scores = q @ k.transpose(2, 3) * scaling
    if mask is not None:
        scores = scores + mask
    weights = F.softmax(scores, -1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(q.dtype)
    weights = F.dropout(weights, dropout, module.training)
    return (weights @ v).transpose(1, 2).contiguous(), weights
