"""Small models of `models/scratch`, for tests."""

from typing import Any

import torch
from transformers import PreTrainedModel

from sightline.models.language import LanguageConfig, build_decoder

SIZES: dict[str, Any] = {
    "model_type": "sightline_decoder",
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
MOE: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "router_noise": True, "shared_expert_size": 16}
LLAMA_LIKE: dict[str, Any] = {
    "positions": "rotary",
    "norm": "rms_norm",
    "hidden_act": "silu",
    "gated": True,
    "bias": False,
    "tie_word_embeddings": True,
}
VARIANTS: dict[str, dict[str, Any]] = {"dense": {}, "moe": MOE, "llama_like_moe": MOE | LLAMA_LIKE}


def scratch_decoder(seed: int = 5, **changes: Any) -> PreTrainedModel:
    """A new decoder in eval mode, with biases and norms off their 0 and 1."""
    torch.manual_seed(seed)
    model = build_decoder(LanguageConfig(config=SIZES | changes, tokenizer="here"))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()
