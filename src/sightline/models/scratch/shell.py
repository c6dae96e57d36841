"""The transformers models around `vit` and `decoder`: configuration, initial weights, attention kernels, cache, folders."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, initialization
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutput, MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput, can_return_tuple

from sightline.models.scratch.decoder import Decoder
from sightline.models.scratch.moe import Experts
from sightline.models.scratch.vit import Attend, ViT, attend_plainly
from sightline.models.transformers_private import CACHE_NAME, CustomModel, attention_kernel, named_cache
from sightline.ops.load_balancing import load_balancing_loss, router_z_loss


class ScratchViTConfig(PreTrainedConfig):
    """Sizes of a `ViT`.

    Args:
        image_size, patch_size: sides in pixels.
        hidden_size, intermediate_size, num_hidden_layers, num_attention_heads: as everywhere in transformers.
        hidden_act: activation of the MLPs; seemore's is `gelu`, seeMoE's `relu`.
        dropout: after embeddings, attention weights, attention and MLP.
        norm_eps: of the LayerNorms.
        output_tokens: `all` (class token and patches) or the `class` token alone, as in seemore.
        patches_only: give the embedded patches, without class token, positions and blocks, as Fuyu does.
        attention_scale: divide attention scores by the root of the width of a `head`, or of the `model` as the published code does.
        initializer_range: standard deviation of initial weights.
    """

    model_type = "sightline_vit"

    def __init__(
        self,
        image_size: int = 96,
        patch_size: int = 16,
        hidden_size: int = 512,
        intermediate_size: int = 2048,
        num_hidden_layers: int = 3,
        num_attention_heads: int = 8,
        hidden_act: str = "gelu",
        dropout: float = 0.0,
        norm_eps: float = 1e-5,
        output_tokens: str = "all",
        patches_only: bool = False,
        attention_scale: str = "head",
        initializer_range: float = 0.02,
        **kwargs: Any,
    ) -> None:
        self.image_size, self.patch_size = image_size, patch_size
        self.hidden_size, self.intermediate_size = hidden_size, intermediate_size
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.hidden_act, self.dropout, self.norm_eps = hidden_act, dropout, norm_eps
        self.output_tokens, self.patches_only = output_tokens, patches_only
        self.attention_scale, self.initializer_range = attention_scale, initializer_range
        super().__init__(**kwargs)
        _check_heads(hidden_size, num_attention_heads)
        _check_choice("output_tokens", output_tokens, ("all", "class"))
        _check_choice("attention_scale", attention_scale, ("head", "model"))
        if image_size % patch_size:
            raise ValueError(f"image_size={image_size} is not a multiple of patch_size={patch_size}")


class ScratchDecoderConfig(PreTrainedConfig):
    """Sizes of a `Decoder`.

    Args:
        vocab_size, hidden_size, num_hidden_layers, num_attention_heads, max_position_embeddings: as everywhere in transformers.
        intermediate_size: hidden width of a feed-forward layer, and of each expert.
        positions: `learned` or `rotary` (with base `rope_theta`).
        norm, norm_eps: `layer_norm` or `rms_norm`.
        hidden_act, gated: of the feed-forward layers; `silu` with `gated` is SwiGLU.
        bias: biases of feed-forward layers, routers, attention output, and of an untied head.
        dropout: after embeddings, attention weights, attention and feed-forward.
        num_experts: of each feed-forward layer; 1 is a dense layer.
        num_experts_per_tok: experts that a token passes through.
        shared_expert_size: hidden width of an expert that every token uses; 0 for none.
        router_noise: learned noise on the router's logits in training.
        router_aux_loss_coef, router_z_loss_coef: coefficients of the load-balancing loss and of the router z-loss.
        experts_kernel: `grouped`, or `loop`, its definition; `auto` is grouped on a GPU. The loop also takes
            tensors that the grouped kernel cannot take.
        attention_scale, noise_in_evaluation, skip_norm_in_generation: `model`, True and True are what the published code does.
        initializer_range: standard deviation of initial weights.
    """

    model_type = "sightline_decoder"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]  # noqa: RUF012 (transformers' own form)

    def __init__(
        self,
        vocab_size: int = 512,
        hidden_size: int = 128,
        intermediate_size: int = 512,
        num_hidden_layers: int = 8,
        num_attention_heads: int = 8,
        max_position_embeddings: int = 1000,
        positions: str = "learned",
        rope_theta: float = 10000.0,
        norm: str = "layer_norm",
        norm_eps: float = 1e-5,
        hidden_act: str = "relu",
        gated: bool = False,
        bias: bool = True,
        dropout: float = 0.0,
        num_experts: int = 1,
        num_experts_per_tok: int = 2,
        shared_expert_size: int = 0,
        router_noise: bool = False,
        router_aux_loss_coef: float = 0.01,
        router_z_loss_coef: float = 0.001,
        experts_kernel: str = "auto",
        attention_scale: str = "head",
        noise_in_evaluation: bool = False,
        skip_norm_in_generation: bool = False,
        initializer_range: float = 0.02,
        use_cache: bool = True,
        tie_word_embeddings: bool = False,
        **kwargs: Any,
    ) -> None:
        self.vocab_size, self.hidden_size, self.intermediate_size = vocab_size, hidden_size, intermediate_size
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.max_position_embeddings, self.positions, self.rope_theta = max_position_embeddings, positions, rope_theta
        self.norm, self.norm_eps, self.hidden_act, self.gated, self.bias = norm, norm_eps, hidden_act, gated, bias
        self.dropout = dropout
        self.num_experts, self.num_experts_per_tok = num_experts, num_experts_per_tok
        self.shared_expert_size, self.router_noise = shared_expert_size, router_noise
        self.router_aux_loss_coef, self.router_z_loss_coef = router_aux_loss_coef, router_z_loss_coef
        self.experts_kernel = experts_kernel
        self.attention_scale, self.noise_in_evaluation = attention_scale, noise_in_evaluation
        self.skip_norm_in_generation, self.initializer_range = skip_norm_in_generation, initializer_range
        self.use_cache = use_cache
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)  # pyrefly: ignore
        _check_heads(hidden_size, num_attention_heads)
        _check_choice("positions", positions, ("learned", "rotary"))
        _check_choice("norm", norm, ("layer_norm", "rms_norm"))
        _check_choice("experts_kernel", experts_kernel, ("auto", "grouped", "loop"))
        _check_choice("attention_scale", attention_scale, ("head", "model"))
        if 1 < num_experts < num_experts_per_tok:
            raise ValueError(f"num_experts_per_tok={num_experts_per_tok} is more than num_experts={num_experts}")


def _check_heads(width: int, heads: int) -> None:
    if width % heads:
        raise ValueError(f"hidden_size={width} is not a multiple of num_attention_heads={heads}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(choices)}")


class ScratchModel(CustomModel):
    """Base of the shells: initial weights, and the attention kernel that the configuration names."""

    supports_gradient_checkpointing = True
    layer_names = ("DecoderBlock", "EncoderBlock")

    def init_missing(self, module: nn.Module) -> None:
        """Initialises a module: matrices, embeddings and positions from a normal distribution, biases 0, norms 1."""
        normal = [module.weight] if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding) else []
        zero = [module.bias] if isinstance(module, nn.Linear | nn.Conv2d | nn.LayerNorm) else []
        if isinstance(module, Experts):
            normal, zero = [module.up_proj, module.down_proj, module.gate_proj], [module.up_bias, module.down_bias]
        if isinstance(module, ViT) and not module.config.patches_only:
            normal, zero = [module.positions], [module.class_token]
        if isinstance(module, nn.LayerNorm | nn.RMSNorm):
            initialization.ones_(module.weight)
        for parameter in normal:
            if parameter is not None:
                initialization.normal_(parameter, std=self.config.initializer_range)
        for parameter in zero:
            if parameter is not None:
                initialization.zeros_(parameter)

    @property
    def attend(self) -> Attend:
        return ALL_ATTENTION_FUNCTIONS.get_interface(attention_kernel(self.config) or "eager", attend_plainly)


class ScratchViTModel(ScratchModel):
    """`ViT` as a vision encoder of transformers."""

    config_class = ScratchViTConfig
    main_input_name = "pixel_values"
    input_modalities = ["image"]  # noqa: RUF012 (transformers' own form)

    def __init__(self, config: ScratchViTConfig) -> None:
        super().__init__(config)
        self.network = ViT(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.network.patches

    @can_return_tuple
    def forward(
        self, pixel_values: Float[Tensor, "N 3 h w"], output_hidden_states: bool | None = None, **kwargs: Any
    ) -> BaseModelOutput:
        """Returns the output tokens, and with `output_hidden_states` the states before and after each block."""
        tokens, states = self.network(pixel_values.to(self.dtype), self.attend)
        return BaseModelOutput(last_hidden_state=tokens, hidden_states=tuple(states) if output_hidden_states else None)


class ScratchDecoderModel(ScratchModel):
    """`Decoder` without its head."""

    config_class = ScratchDecoderConfig
    base_model_prefix = "model"

    def __init__(self, config: ScratchDecoderConfig) -> None:
        super().__init__(config)
        self.network = Decoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.network.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.network.embedding = value  # pyrefly: ignore

    def get_decoder(self) -> nn.Module:
        return self

    @can_return_tuple
    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "B T"] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Float[Tensor, "B T D"] | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_router_logits: bool | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> MoeModelOutputWithPast:
        """Returns hidden states with the contract of a transformers decoder.

        Args:
            attention_mask: 1 for tokens and 0 for padding, `[B, T]`, or an additive mask `[B, 1, T, U]` for packed rows.
            past_key_values, cache: keys and values of earlier tokens, under the name before or since transformers 5.24.
            output_router_logits: also return the logits of each router, `[B T, X]`.

        Raises:
            ValueError: not exactly one of ids and embeddings is given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.network.embedding(input_ids)
        store: Cache | None = named_cache({"cache": cache, "past_key_values": past_key_values}).get(CACHE_NAME)
        wants_cache = self.config.use_cache if use_cache is None else use_cache
        if store is None and wants_cache and not (self.training and torch.is_grad_enabled()):
            store = DynamicCache(config=self.config)
        if position_ids is None:
            first = 0 if store is None else store.get_seq_length()
            position_ids = torch.arange(first, first + inputs_embeds.shape[1], device=inputs_embeds.device)[None]
        # The cache is the fourth parameter; its name depends on the version of transformers.
        mask = create_causal_mask(self.config, inputs_embeds, attention_mask, store, position_ids)  # pyrefly: ignore
        position_ids = position_ids.expand(inputs_embeds.shape[:2])
        last, states, routers = self.network(inputs_embeds, position_ids, mask, store, self.attend)
        return MoeModelOutputWithPast(
            last_hidden_state=last,
            hidden_states=tuple(states) if output_hidden_states else None,
            router_logits=tuple(routers) if output_router_logits else None,
            **{CACHE_NAME: store},  # pyrefly: ignore
        )


class ScratchForCausalLM(ScratchModel):
    """`Decoder` with its head as a causal language model of transformers."""

    config_class = ScratchDecoderConfig
    base_model_prefix = "model"
    _tied_weights_keys = {"lm_head.weight": "model.network.embedding.weight"}  # noqa: RUF012 (transformers' own form)

    def __init__(self, config: ScratchDecoderConfig) -> None:
        super().__init__(config)
        self.model = ScratchDecoderModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.bias and not config.tie_word_embeddings)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_decoder(self) -> nn.Module:
        return self.model

    @can_return_tuple
    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "B T"] | None = None,
        inputs_embeds: Float[Tensor, "B T D"] | None = None,
        labels: Int[Tensor, "B T"] | None = None,
        logits_to_keep: int | Tensor = 0,
        output_router_logits: bool | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        """Returns logits, and with `labels` the loss; with `output_router_logits` the router losses are added to it.

        Other arguments are those of `ScratchDecoderModel`. Sightline's own training does not call this: its objectives compute the
        loss from hidden states.
        """
        output = self.model(
            input_ids,
            attention_mask,
            position_ids,
            inputs_embeds=inputs_embeds,
            output_router_logits=output_router_logits,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(output.last_hidden_state[:, kept])
        loss = None if labels is None else self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        balance = None
        if output.router_logits:
            counted_BT = torch.ones(output.last_hidden_state.shape[:2], dtype=torch.bool, device=logits.device)
            if attention_mask is not None and attention_mask.ndim == 2:
                counted_BT = attention_mask[:, -counted_BT.shape[1] :].bool()
            counted_N, config = counted_BT.flatten(), self.config
            balance = load_balancing_loss(output.router_logits, config.num_experts_per_tok, counted_N)
            z_loss = router_z_loss(output.router_logits, counted_N)
            if loss is not None:
                loss = loss + config.router_aux_loss_coef * balance + config.router_z_loss_coef * z_loss
        return MoeCausalLMOutputWithPast(
            loss=loss,
            aux_loss=balance,
            logits=logits,
            hidden_states=output.hidden_states,
            router_logits=output.router_logits,
            **{CACHE_NAME: output.get(CACHE_NAME)},
        )


AutoConfig.register(ScratchViTConfig.model_type, ScratchViTConfig)
AutoModel.register(ScratchViTConfig, ScratchViTModel)
AutoConfig.register(ScratchDecoderConfig.model_type, ScratchDecoderConfig)
AutoModel.register(ScratchDecoderConfig, ScratchDecoderModel)
AutoModelForCausalLM.register(ScratchDecoderConfig, ScratchForCausalLM)
