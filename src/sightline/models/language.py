"""Decoders: any causal language model of transformers, run on packed rows of embeddings.

Decoders differ in three things that are handled here: which output holds the hidden states, what the head does to them (bias,
soft cap, scale), and which attention mask each kind of layer needs when several samples share a row.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from sightline.config import Config
from sightline.errors import ConfigError
from sightline.models import loading
from sightline.models.flex_attention import FLEX
from sightline.models.transformers_private import attention_kernel, named_cache, positions_unsearched
from sightline.ops.load_balancing import load_balancing_loss, load_values, router_z_loss
from sightline.ops.masks import additive_mask, block_mask
from sightline.types import PADDING, Batch, Head, Hidden, Tokens

FULL, SLIDING = "full_attention", "sliding_attention"


class TokenizerConfig(Config):
    """A tokenizer trained on the texts of the training split."""

    kind: Literal["bpe", "characters"] = "bpe"
    """`bpe`: byte-level BPE, which encodes any text. `characters`: one token per character, as in seemore; characters that the
    training split lacks become the unknown token."""
    vocabulary: int = Field(default=4096, ge=8, le=262144)
    """Number of entries, special tokens included; of `characters` the maximum, of which the most frequent are kept."""
    lowercase: bool = False
    """Fold case before training and use."""

    @model_validator(mode="after")
    def _holds_all_bytes(self) -> "TokenizerConfig":
        if self.kind == "bpe" and self.vocabulary < 300:
            raise ValueError(f"vocabulary={self.vocabulary} must be at least 300 for kind 'bpe'")
        return self


class LanguageConfig(Config):
    """The decoder and its tokenizer."""

    path: str | None = None
    """Local folder, Hub id, or run of a transformers causal language model."""
    config: dict[str, Any] | None = None
    """Sizes of a decoder to train from scratch, with its `model_type`; instead of `path`."""
    tokenizer: TokenizerConfig | str | None = None
    """How to train a tokenizer, or the folder of an existing one; a decoder from `path` uses its own."""
    router_aux_loss_coef: float | None = Field(default=None, ge=0)
    """Coefficient of the load-balancing loss of a mixture-of-experts decoder in training. Default: the value in the decoder's own
    configuration; 0 turns the loss off."""
    router_z_loss_coef: float | None = Field(default=None, ge=0)
    """Coefficient of the router z-loss of a mixture-of-experts decoder in training. Default: the value in the decoder's own
    configuration, which those of transformers do not have."""

    @model_validator(mode="after")
    def _one_origin(self) -> "LanguageConfig":
        if (self.path is None) == (self.config is None):
            raise ValueError("give either 'path' or 'config'")
        if self.config is not None and self.tokenizer is None:
            raise ValueError("a decoder from 'config' needs a 'tokenizer'")
        if self.path is not None and isinstance(self.tokenizer, TokenizerConfig):
            raise ValueError("a decoder from 'path' uses its own tokenizer; leave 'tokenizer' out")
        return self


def build_decoder(config: LanguageConfig, vocabulary: int | None = None, attention: str = "sdpa") -> PreTrainedModel:
    """Loads the decoder, or builds one from sizes with `vocabulary` entries.

    Raises:
        ConfigError: the configuration is not a causal language model.
        StorageError: weights are missing.
    """
    if config.path is not None:
        found = _with_coefficients(loading.read_config(config.path), config)
        return loading.load(AutoModelForCausalLM, config.path, found, kernel_for(found, attention), LEFTOVERS)
    values = dict(config.config or {})
    if vocabulary is not None:
        values["vocab_size"] = vocabulary
    made = _with_coefficients(loading.config_from(values, "model.language.config"), config)
    try:
        return AutoModelForCausalLM.from_config(made, attn_implementation=kernel_for(made, attention), trust_remote_code=False)
    except ValueError as error:
        raise ConfigError(f"model.language.config: {loading.first_line(error)}") from error


def _with_coefficients(config: PreTrainedConfig, choice: LanguageConfig) -> PreTrainedConfig:
    """Sets the coefficients of the router losses, which are saved with the model."""
    for name in ("router_aux_loss_coef", "router_z_loss_coef"):
        coefficient = getattr(choice, name)
        if coefficient is None:
            continue
        if not hasattr(config, "router_aux_loss_coef"):
            raise ConfigError(
                f"model.language.{name}={coefficient}: a {config.model_type} decoder has no load-balancing loss.",
                "Leave the key out.",
            )
        setattr(config, name, coefficient)
    return config


def kernel_for(config: PreTrainedConfig, attention: str) -> str:
    """Returns the requested attention kernel, or `eager` for an architecture without sdpa (Gemma2 caps its attention scores).

    transformers 5.17 says that Gemma2 has sdpa, which ignores the cap.

    Raises:
        ConfigError: the configuration is not a causal language model.
    """
    architecture = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if not isinstance(architecture, type):
        raise ConfigError(f"{config.model_type!r} is not a causal language model that transformers can build.")
    if attention == "sdpa" and getattr(config, "attn_logit_softcapping", None):
        return "eager"
    return loading.supported_kernel(architecture, attention)


LEFTOVERS = (r"rotary_emb\.inv_freq$", r"attn\.(masked_)?bias$")  # buffers that old checkpoints stored like weights


def head_of(decoder: PreTrainedModel) -> Head:
    """Returns the decoder's head with everything it applies to a hidden state before the softmax."""
    output = decoder.get_output_embeddings()
    if not isinstance(output, nn.Linear):
        raise ConfigError(f"{type(decoder).__name__} has no linear head.", "Choose another decoder.")
    values = text_config(decoder).to_dict()
    scale = values.get("logit_scale") or 1.0  # Cohere multiplies
    if values.get("logits_scaling"):  # Granite divides
        scale = scale / values["logits_scaling"]
    return Head(output.weight, output.bias, values.get("final_logit_softcapping") or 0.0, float(scale))


def text_config(decoder: PreTrainedModel) -> PreTrainedConfig:
    """Returns the decoder's configuration; for a composite configuration its text part."""
    return decoder.config.get_text_config(decoder=True)


def check_decoder(decoder: PreTrainedModel) -> None:
    """Refuses a decoder that Sightline would train on wrong logits.

    Raises:
        ConfigError: the decoder does not accept `inputs_embeds`, is not causal, or its logits differ from those of `head_of` (an
            unknown scale or cap).
    """
    name = type(decoder).__name__
    ids = torch.arange(4, device=decoder.device)[None]
    head = head_of(decoder)
    with eval_mode(decoder):
        try:
            expected = decoder(input_ids=ids, use_cache=False).logits.float()
            states, shorter = (_unpacked_states(decoder, part) for part in (ids, ids[:, :3]))
        except Exception as error:  # another library's model may raise anything where it does not know an argument
            raise ConfigError(
                f"{name} does not run on inputs_embeds with position_ids: {loading.first_line(error)}", "Choose another decoder."
            ) from error
        logits = nn.functional.linear(states, head.weight_VD, head.bias_V).float() * head.scale
        logits = torch.tanh(logits / head.softcap) * head.softcap if head.softcap else logits
    if not _all_close(states[:, :3], shorter):
        raise ConfigError(
            f"{name} is not a causal decoder: a later token changes the output of an earlier one.", "Choose another decoder."
        )
    if not _all_close(logits, expected):
        raise ConfigError(
            f"the logits of {name} are not head(hidden state) with a known scale or soft cap.",
            "Choose another decoder, or add its scale to `head_of` in sightline/models/language.py.",
        )


def check_packable(decoder: PreTrainedModel) -> None:
    """Refuses packing for a decoder that would mix packed samples; checks the kinds of its layers and then runs it.

    Some decoders (such as BART's) accept a mask but number positions themselves, others ignore both, without any warning.

    Raises:
        ConfigError: the decoder mixes packed samples.
    """
    check_layers(text_config(decoder))
    # One sample of three tokens; then a prefix of two with two branches of two. The last branch is compared with its unpacked run.
    ids = torch.tensor([[0, 1, 2, 3, 1, 2, 0, 1, 3]], device=decoder.device)
    tokens = Tokens(
        ids_BT=ids,
        position_BT=torch.tensor([[0, 1, 2, 0, 1, 2, 3, 2, 3]], device=decoder.device),
        sample_BT=torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1]], device=decoder.device),
        branch_BT=torch.tensor([[0, 0, 0, PADDING, PADDING, 0, 0, 1, 1]], device=decoder.device),
        is_plain=False,
    )
    name = decoder.config.model_type
    with eval_mode(decoder):
        alone = _unpacked_states(decoder, ids[:, [3, 4, 7, 8]])
        try:
            together = decode(decoder, decoder.get_input_embeddings()(ids), tokens)[0]
        except Exception as error:  # as in `check_decoder`
            raise ConfigError(f"a {name} decoder does not run on packed rows: {loading.first_line(error)}", UNPACK_HINT) from error
    if not _all_close(together[:, 7:], alone[:, 2:]):
        raise ConfigError(f"a {name} decoder would mix packed samples.", UNPACK_HINT)


def _unpacked_states(decoder: PreTrainedModel, ids_BT: Tensor) -> Tensor:
    """Returns the hidden states of rows that hold one sample each."""
    position = torch.arange(ids_BT.shape[1], device=ids_BT.device).expand_as(ids_BT)
    zeros = torch.zeros_like(ids_BT)
    return decode(decoder, decoder.get_input_embeddings()(ids_BT), Tokens(ids_BT, position, zeros, zeros, is_plain=True))[0]


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Turns gradients, dropout and router noise off, and restores the mode of each submodule afterwards."""
    training = [part for part in module.modules() if part.training]
    noisy = [part for part in module.modules() if getattr(part, "noise_in_evaluation", False)]
    module.eval()
    try:
        for part in noisy:
            part.noise_in_evaluation = False  # pyrefly: ignore
        with torch.no_grad():
            yield
    finally:
        for part in noisy:
            part.noise_in_evaluation = True  # pyrefly: ignore
        for part in training:
            part.training = True


def _all_close(ours: Tensor, theirs: Tensor) -> bool:
    """Returns whether two tensors are equal up to bf16 rounding; mixed samples or a missing scale differ a hundred times more."""
    return bool((ours.float() - theirs.float()).abs().max() <= 1e-2 * theirs.float().abs().max())


def body(decoder: PreTrainedModel) -> nn.Module:
    """Returns the decoder without its head."""
    inner = decoder.base_model
    if inner is decoder:
        raise ConfigError(f"{type(decoder).__name__} has no base model apart from its head.", "Choose another decoder.")
    return inner


def decode(
    decoder: PreTrainedModel, embeddings_BTD: Float[Tensor, "B T D"], tokens: Tokens
) -> tuple[Float[Tensor, "B T D"], dict[str, Tensor], dict[str, Tensor]]:
    """Runs the decoder without its head on packed rows.

    Returns:
        Hidden states after the last norm; the decoder's auxiliary losses by name, times their coefficients: `decoder_balance` and
        `decoder_router_z` for a mixture of experts in training (see `router_coefficients`); and values for the log:
        `decoder_load_entropy` and `decoder_largest_load` (see `load_values`) beside such losses.

    Raises:
        ConfigError: a layer's attention cannot separate packed samples, or the router logits have an unknown shape.
    """
    coefficients = router_coefficients(decoder)
    with positions_unsearched() if tokens.is_plain else nullcontext():
        output = body(decoder)(
            inputs_embeds=embeddings_BTD,
            attention_mask=attention_masks(text_config(decoder), tokens, embeddings_BTD.dtype),
            position_ids=tokens.position_BT,
            use_cache=False,
            **({"output_router_logits": True} if coefficients else {}),
        )
    routers = (output.get("router_logits") or ()) if coefficients else ()  # empty if every layer is dense
    if not routers:
        return output.last_hidden_state, {}, {}
    losses = _router_losses(decoder, coefficients, routers, tokens)
    entropy, largest = load_values(routers, text_config(decoder).num_experts_per_tok, (tokens.sample_BT != PADDING).flatten())
    return output.last_hidden_state, losses, {"decoder_load_entropy": entropy, "decoder_largest_load": largest}


@dataclass(frozen=True)
class DecodedPrefix:
    """The first tokens of a row with their keys and values, which continuations need not compute again.

    Attributes:
        cache: keys and values of every layer.
        length: number of tokens.
        states_TD: hidden states after the last norm.
    """

    cache: Cache
    length: int
    states_TD: Float[Tensor, "T D"]


def decode_prefix(decoder: PreTrainedModel, embeddings_TD: Float[Tensor, "T D"]) -> DecodedPrefix:
    """Runs the decoder without its head on the beginning of a row and keeps the keys and values.

    Raises:
        ConfigError: a layer's attention cannot separate the branches that may follow (see `check_layers`).
    """
    check_layers(text_config(decoder))
    cache = DynamicCache()  # without a configuration no layer forgets what lies before its window; masks hide it
    position_1T = torch.arange(len(embeddings_TD), device=embeddings_TD.device)[None]
    output = body(decoder)(
        inputs_embeds=embeddings_TD[None], position_ids=position_1T, use_cache=True, **named_cache({"cache": cache})
    )
    return DecodedPrefix(cache, len(embeddings_TD), output.last_hidden_state[0])


def decode_branches(
    decoder: PreTrainedModel, prefix: DecodedPrefix, embeddings_TD: Float[Tensor, "T D"], lengths: Sequence[int]
) -> Float[Tensor, "T D"]:
    """Runs the decoder without its head on several continuations of one prefix, none of which sees another.

    Args:
        decoder: the model that `prefix` was decoded with.
        prefix: stays as it is.
        embeddings_TD: all continuations, one after the other.
        lengths: tokens of each.

    Returns:
        Hidden states after the last norm, those of `decode` on one packed row.
    """
    device = embeddings_TD.device
    branch_T = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(device)
    place_T = torch.cat([torch.arange(length) for length in lengths]).to(device)
    shared_P = torch.arange(prefix.length, device=device)
    position_1T = torch.cat([shared_P, prefix.length + place_T])[None]
    zeros = torch.zeros_like(position_1T)
    tokens = Tokens(zeros, position_1T, zeros, torch.cat([torch.full_like(shared_P, PADDING), branch_T])[None], is_plain=False)
    masks = attention_masks(text_config(decoder), tokens, embeddings_TD.dtype)
    assert masks is not None  # the row is not plain
    rows = slice(prefix.length, None)
    output = body(decoder)(
        inputs_embeds=embeddings_TD[None],
        attention_mask={kind: mask[:, :, rows] for kind, mask in masks.items()} if isinstance(masks, dict) else masks[:, :, rows],
        position_ids=position_1T[:, rows],
        use_cache=True,
        **named_cache({"cache": prefix.cache}),
    )
    prefix.cache.crop(-len(embeddings_TD))
    return output.last_hidden_state[0]


def router_coefficients(decoder: PreTrainedModel) -> dict[str, float]:
    """Returns the coefficients of the decoder's router losses that are not 0, by the name of the loss; none if they do not apply.

    They are `router_aux_loss_coef` (load balancing) and `router_z_loss_coef` of its configuration. They do not apply while the
    decoder is frozen (eval mode) or runs without gradients, nor for classes for which transformers computes no load-balancing loss
    (DeepSeek balances its experts by a bias).

    Differs: transformers adds the loss only if `output_router_logits` is set; here it is always added.
    """
    if not decoder.training or not torch.is_grad_enabled():
        return {}
    if "output_router_logits" not in inspect.signature(type(decoder).forward).parameters:
        return {}
    keys = {"decoder_balance": "router_aux_loss_coef", "decoder_router_z": "router_z_loss_coef"}
    found = {name: float(getattr(text_config(decoder), key, None) or 0.0) for name, key in keys.items()}
    return {name: value for name, value in found.items() if value}


def _router_losses(
    decoder: PreTrainedModel, coefficients: dict[str, float], routers: Sequence[Tensor], tokens: Tokens
) -> dict[str, Tensor]:
    num_tokens = tokens.ids_BT.numel()
    if any(logits.ndim != 2 or len(logits) != num_tokens for logits in routers):
        raise ConfigError(
            f"{type(decoder).__name__} has router logits of shape {tuple(routers[0].shape)} for {num_tokens} tokens; Sightline "
            "cannot compute a load-balancing loss from them.",
            "Set model.language.router_aux_loss_coef=0.",
        )
    counted = (tokens.sample_BT != PADDING).flatten()
    losses = {
        "decoder_balance": lambda: load_balancing_loss(routers, text_config(decoder).num_experts_per_tok, counted),
        "decoder_router_z": lambda: router_z_loss(routers, counted),
    }
    return {name: coefficient * losses[name]() for name, coefficient in coefficients.items()}


@contextmanager
def recorded_routers(decoder: PreTrainedModel) -> Iterator[list[tuple[Tensor, ...]]]:
    """Collects the router logits of each forward pass of a decoder: of each mixture `[tokens, experts]`, padding included.

    Stays empty for a decoder that has no routers or does not return their logits.
    """
    found: list[tuple[Tensor, ...]] = []
    if "output_router_logits" not in inspect.signature(type(decoder).forward).parameters:
        yield found
        return

    def ask(module: nn.Module, arguments: Any, keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return arguments, {**keywords, "output_router_logits": True}

    def keep(module: nn.Module, arguments: Any, output: Any) -> None:
        found.append(tuple(output.get("router_logits") or ()))

    hooks = [body(decoder).register_forward_pre_hook(ask, with_kwargs=True), body(decoder).register_forward_hook(keep)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def hidden_states(decoder: PreTrainedModel, embeddings_BTD: Float[Tensor, "B T D"], batch: Batch) -> Hidden:
    """Runs the decoder on rows of embeddings and selects the supervised slots; a slot of -1 gives zeros."""
    states_BTD, losses, values = decode(decoder, embeddings_BTD, batch.tokens)
    slot_S = batch.supervision.slot_S
    states_SD = states_BTD.flatten(0, 1).index_select(0, slot_S.clamp(min=0))  # see `splice` for why not [...]
    states_SD = torch.where(slot_S[:, None] >= 0, states_SD, torch.zeros_like(states_SD))
    return Hidden(states_SD, head_of(decoder), losses, values)


def attention_masks(
    config: PreTrainedConfig, tokens: Tokens, dtype: torch.dtype
) -> Tensor | BlockMask | dict[str, Tensor | BlockMask] | None:
    """Returns the attention mask for packed rows: one mask per kind of layer if the decoder has several kinds.

    Masks are dense, or block masks for the kernel `FLEX`.

    Rows that hold one sample each need no mask: transformers then uses the kernel's own causal attention (it reads the position
    ids, which rise by one along such a row, padding included).

    Raises:
        ConfigError: as in `check_layers`.
    """
    if tokens.is_plain:
        return None
    check_layers(config)
    kinds = layer_kinds(config)
    window = getattr(config, "sliding_window", None)

    def mask(window: int | None) -> Tensor | BlockMask:
        return block_mask(tokens, window) if attention_kernel(config) == FLEX else additive_mask(tokens, dtype, window)

    if not kinds:
        return mask(window)
    built = {FULL: mask(None)}
    if SLIDING in kinds:
        built[SLIDING] = mask(window)
    return built if SLIDING in kinds else built[FULL]


def layer_kinds(config: PreTrainedConfig) -> set[str]:
    """Returns the kinds of attention layers by transformers' names; empty if all layers are of one kind."""
    kinds = getattr(config, "layer_types", None) or getattr(config, "block_types", None)  # the latter in transformers 5.17
    return set(kinds or ()) - {"attention"}


def check_layers(config: PreTrainedConfig) -> None:
    """Refuses packed rows for layers whose attention mask cannot separate samples.

    Raises:
        ConfigError: the layer kind or the attention kernel does not support packed rows.
    """
    unsupported = sorted(layer_kinds(config) - {FULL, SLIDING})
    if unsupported:
        raise ConfigError(
            f"a {config.model_type} decoder has layers of kind {unsupported[0]!r}, which would mix packed samples.", UNPACK_HINT
        )
    if config.model_type in WITHOUT_POSITION_IDS:
        raise ConfigError(
            f"a {config.model_type} decoder takes no position_ids, so positions of packed samples cannot restart at 0.", UNPACK_HINT
        )
    kernel = attention_kernel(config)
    if kernel not in (None, *WITH_MASKS):
        raise ConfigError(
            f"the attention kernel {kernel!r} takes no mask, but packed rows need one.",
            f"Set runtime.attention=sdpa. {UNPACK_HINT}",
        )


UNPACK_HINT = "Set data.pack=false and data.share_prefix=false."
WITH_MASKS = ("eager", "sdpa", FLEX)
WITHOUT_POSITION_IDS = frozenset({"bloom", "mpt", "rwkv", "mamba", "mamba2", "falcon_mamba", "xlnet"})


def max_sequence_length(config: PreTrainedConfig) -> int:
    """Returns the decoder's maximum sequence length (`max_position_embeddings`), 2^20 if it has none."""
    return int(getattr(config, "max_position_embeddings", None) or 1 << 20)
