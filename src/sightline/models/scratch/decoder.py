"""A decoder: each token looks at the tokens before it, and its last state predicts the next token.

ids [B, T] -> embeddings [B, T, D] (visual tokens take their places here) -> blocks -> norm -> head -> logits [B, T, V]

B rows    T tokens    D width    H heads    A width of a head    V vocabulary    N = B T    X experts
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from sightline.models.scratch.moe import FeedForward, SparseMoE
from sightline.models.scratch.vit import Attend, attention_scale

Rotation = tuple[Float[Tensor, "B T A"], Float[Tensor, "B T A"]]
"""Cosine and sine of each position's angles."""


class Decoder(nn.Module):
    """Token embedding, learned or rotary positions, blocks, and a last norm; the head stands apart.

    Args:
        config: sizes and choices; see `sightline.models.scratch.shell.ScratchDecoderConfig`.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        is_learned = config.positions == "learned"
        self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size) if is_learned else None
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(DecoderBlock(config, number) for number in range(config.num_hidden_layers))
        self.norm = build_norm(config)

    def forward(
        self,
        x_BTD: Float[Tensor, "B T D"],
        position_BT: Int[Tensor, "B T"],
        mask: Tensor | None,
        cache: Any,
        attend: Attend,
    ) -> tuple[Float[Tensor, "B T D"], list[Tensor], list[Tensor]]:
        """Runs the blocks on embeddings.

        Args:
            x_BTD: embeddings of tokens and visual tokens, without positions.
            position_BT: of each token in its sample.
            mask: is added to the attention scores; None: the kernel hides later tokens by itself.
            cache: keys and values of earlier tokens, of type `transformers.Cache`, or None.
            attend: attention kernel.

        Returns:
            The states after the last norm, those before and after each block, and the router logits of each mixture.
        """
        config = self.config
        rotation = None
        if self.positions is None:
            rotation = rotation_of(position_BT, config.hidden_size // config.num_attention_heads, config.rope_theta, x_BTD.dtype)
        else:
            x_BTD = x_BTD + self.positions(position_BT)
        x_BTD = self.dropout(x_BTD)
        states, routers = [x_BTD], []
        for layer in self.layers:
            x_BTD, logits_NX = layer(x_BTD, rotation, mask, cache, attend)
            states.append(x_BTD)
            if logits_NX is not None:
                routers.append(logits_NX)
        if config.skip_norm_in_generation and cache is not None:
            return x_BTD, states, routers
        return self.norm(x_BTD), states, routers


class DecoderBlock(GradientCheckpointingLayer):
    """`x = x + attention(norm(x)); x = x + feed_forward(norm(x))`.

    Args:
        config: sizes and choices; see `sightline.models.scratch.shell.ScratchDecoderConfig`.
        number: of this block, the key of its entry in the cache.
    """

    def __init__(self, config: Any, number: int) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = build_norm(config), build_norm(config)
        self.attention = CausalAttention(config, number)
        self.mlp = SparseMoE(config) if config.num_experts > 1 else FeedForward(config, config.intermediate_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x_BTD: Float[Tensor, "B T D"], rotation: Rotation | None, mask: Tensor | None, cache: Any, attend: Attend
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "N X"] | None]:
        """Returns the states after the block, and the logits of its router if it has one."""
        x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), rotation, mask, cache, attend))
        out = self.mlp(self.mlp_norm(x_BTD))
        out_BTD, logits_NX = out if isinstance(out, tuple) else (out, None)
        return x_BTD + self.dropout(out_BTD), logits_NX


class CausalAttention(nn.Module):
    """`softmax(Q K^T scale + mask) V` in each head; the mask hides later tokens and other samples of the row."""

    is_causal = True

    def __init__(self, config: Any, number: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.number, self.head_width = number, width // config.num_attention_heads
        self.scale = attention_scale(config)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.o_proj = nn.Linear(width, width, bias=config.bias)
        self.dropout_rate = config.dropout

    def forward(
        self, x_BTD: Float[Tensor, "B T D"], rotation: Rotation | None, mask: Tensor | None, cache: Any, attend: Attend
    ) -> Float[Tensor, "B T D"]:
        """Reads from earlier tokens: those of `x_BTD`, and those whose keys and values an earlier call left in the cache."""
        q, k, v = (
            linear(x_BTD).unflatten(-1, (-1, self.head_width)).transpose(1, 2) for linear in (self.q_proj, self.k_proj, self.v_proj)
        )  # each [B, H, T, A]
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        if cache is not None:
            k, v = cache.update(k, v, self.number)
        rate = self.dropout_rate if self.training else 0.0
        read_BTHA, _ = attend(self, q, k, v, mask, dropout=rate, scaling=self.scale)
        return self.o_proj(read_BTHA.flatten(2))


def build_norm(config: Any) -> nn.Module:
    """Returns a LayerNorm, or an RMSNorm, which neither centres nor shifts."""
    norm = nn.RMSNorm if config.norm == "rms_norm" else nn.LayerNorm
    return norm(config.hidden_size, eps=config.norm_eps)


def rotation_of(position_BT: Int[Tensor, "B T"], head_width: int, theta: float, dtype: torch.dtype) -> Rotation:
    """Returns the angles of rotary positions (Su et al. 2021): pair i of a head turns by `position * theta^(-2i / A)`."""
    frequency = theta ** -(torch.arange(0, head_width, 2, device=position_BT.device, dtype=torch.float32) / head_width)
    angle_BTA = (position_BT[..., None].float() * frequency).repeat(1, 1, 2)
    return angle_BTA.cos().to(dtype), angle_BTA.sin().to(dtype)


def rotate(x: Float[Tensor, "B H T A"], rotation: Rotation) -> Float[Tensor, "B H T A"]:
    """Turns each pair `(x_i, x_{i + A/2})` by its angle."""
    cos, sin = (each[:, None] for each in rotation)
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin
