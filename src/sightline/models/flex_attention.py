"""FlexAttention for packed rows: an attention kernel of transformers that skips blocks of scores in which no query sees a key.

The kernel is registered in transformers' attention interface under the name `FLEX`. With a block mask it runs torch's
FlexAttention; with any other mask, or none, it is sdpa, so that generation and rows of one sample run as before.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from sightline.errors import ConfigError
from sightline.models.transformers_private import attention_kernel, set_attention_kernel, supports_flex

FLEX = "sightline_flex"
SMALLEST_HEAD = 16  # torch's kernel multiplies in tiles of 16 x 16


def attend_in_blocks(
    module: nn.Module,
    query: Float[Tensor, "B H T A"],
    key: Float[Tensor, "B G U A"],
    value: Float[Tensor, "B G U A"],
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "B T H A"], None]:
    """Computes attention with a block mask by FlexAttention, with other masks by sdpa; arguments as in transformers.

    Under autocast the products are computed in its dtype, as sdpa does.

    Raises:
        ConfigError: a block mask comes with dropout of attention weights, or with attention sinks.
    """
    if not isinstance(attention_mask, BlockMask):
        if softcap is not None:
            return _attend_capped(module, query, key, value, attention_mask, scaling, softcap), None
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs  # pyrefly: ignore
        )  # fmt: skip
    if dropout or kwargs.get("s_aux") is not None:
        raise ConfigError("flex attention has no dropout of attention weights and no sinks.", "Set runtime.attention=sdpa.")
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    out = _kernel(query.device.type)(
        query,
        key,
        value,
        score_mod=None if softcap is None else _capped(softcap),
        block_mask=attention_mask,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2).contiguous(), None


def _kernel(device: str) -> Callable[..., Tensor]:
    # Not compiled, FlexAttention makes all scores; within a compiled layer it is compiled with the layer.
    return flex_attention if device == "cpu" or torch.compiler.is_compiling() else _compiled()


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(flex_attention)


def _capped(softcap: float) -> Callable[..., Tensor]:
    return lambda score, row, head, query, key: softcap * torch.tanh(score / softcap)


def _attend_capped(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None, softcap: float
) -> Tensor:
    """Computes attention with capped scores, which sdpa has not: of Gemma2, outside of packed rows."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = softcap * torch.tanh(scores / softcap)
    if mask is None and query.shape[2] > 1 and getattr(module, "is_causal", True):
        mask = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).tril(scores.shape[3] - scores.shape[2])
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min) if mask.dtype == torch.bool else scores + mask
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
    return (weights @ value).transpose(1, 2).contiguous()


def why_not_flex(decoder: PreTrainedModel) -> str:
    """Returns why a decoder cannot run on FlexAttention, as the end of a sentence; empty if it can."""
    config = decoder.config.get_text_config(decoder=True)
    if not supports_flex(type(decoder)):
        return f"{type(decoder).__name__} does not support it"
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if width < SMALLEST_HEAD and decoder.device.type != "cpu":
        return f"its heads are {width} wide, less than {SMALLEST_HEAD}"
    if any(getattr(config, name, 0.0) for name in ("attention_dropout", "attn_pdrop", "attn_dropout", "dropout")):
        return "it has dropout of attention weights"
    return ""


@contextmanager
def attention_of(decoder: PreTrainedModel, kernel: str | None) -> Iterator[None]:
    """Runs a decoder on another attention kernel within the context; None changes nothing."""
    config = decoder.config.get_text_config(decoder=True)
    before = attention_kernel(config)
    if kernel is not None:
        set_attention_kernel(config, kernel)
    try:
        yield
    finally:
        set_attention_kernel(config, before)


AttentionInterface.register(FLEX, attend_in_blocks)
AttentionMaskInterface.register(FLEX, sdpa_mask)
