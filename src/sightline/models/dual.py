"""Dual encoders: an image and a text encoder whose unit vectors are compared by their cosine.

A dual encoder is a whole CLIP, SigLIP or SigLIP2 of fixed resolution of transformers, or any vision encoder and any text encoder
(or decoder) joined by projection heads (`SightlineDualEncoder`). Both are saved as transformers folders with `get_image_features`
and `get_text_features`. `DualModel` gives both one interface: the parts `vision`, `text` and `projection`, and `embeddings`.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NoReturn, cast

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPOutput

from sightline.config import Config
from sightline.errors import ConfigError, UsageError
from sightline.models import loading, vision
from sightline.models.config_values import check_counts, check_normalisation, listed
from sightline.models.language import TokenizerConfig
from sightline.models.light_network import AlignmentConfig
from sightline.models.stored import StoredFeatures, StoredFeaturesConfig
from sightline.models.transformers_private import CustomModel, attention_kernel, mark_initialised, set_attention_kernel
from sightline.models.vision import EncoderOutputs, Layer, pooled_output
from sightline.ops.precision import read_at_once
from sightline.types import Batch, Embeddings, PairBatch, Texts, Visual

PARTS = ("vision", "text", "projection")
STOCK = ("clip", "siglip")  # model types; SigLIP2 of fixed resolution is a `siglip`
ALIGNED = "sightline_comalign"  # model type of a dual encoder with light networks
MAX_SCALE = 100.0  # largest inverse temperature of a model without a bias (Radford et al. 2021)
# What a folder may hold beside the text encoder: heads of language models, buffers, the other half of a composite.
LEFTOVERS = (
    r"^lm_head\.",
    r"^cls\.",
    r"^vision_model\.",
    r"projection",
    r"^logit_(scale|bias)$",
    r"position_ids$",
    r"rotary_emb\.inv_freq$",
)

Pooling = Literal["own", "mean", "last", "first"]


# Configuration ----------------------------------------------------------------------------------------------------------------


class TextConfig(Config):
    """The text encoder: a bidirectional encoder or a decoder without its head."""

    path: str | None = None
    """Local folder or Hub id of a transformers text model."""
    config: dict[str, Any] | None = None
    """Sizes of a text encoder to train from scratch, with its `model_type`; instead of `path`."""
    tokenizer: TokenizerConfig | str | None = None
    """How to train a tokenizer, or the folder of an existing one; an encoder from `path` uses its own."""
    pooling: Pooling = "mean"
    """Vector of a text: `mean` of its tokens, its `last` or `first` token, or the encoder's `own` pooled output."""

    @model_validator(mode="after")
    def _one_origin(self) -> "TextConfig":
        if (self.path is None) == (self.config is None):
            raise ValueError("give either 'path' or 'config'")
        if self.config is not None and self.tokenizer is None:
            raise ValueError("a text encoder from 'config' needs a 'tokenizer'")
        if self.path is not None and isinstance(self.tokenizer, TokenizerConfig):
            raise ValueError("a text encoder from 'path' uses its own tokenizer; leave 'tokenizer' out")
        return self


class DualConfig(Config):
    """A dual encoder: a whole one (`path`), or `model.vision` and `text` joined by projection heads."""

    path: str | None = None
    """Local folder, run or Hub id of a CLIP, a SigLIP, a SigLIP2 of fixed resolution, or a dual encoder of Sightline."""
    text: TextConfig | None = None
    """The text encoder, to be joined with `model.vision`."""
    pooling: Literal["own", "mean"] = "own"
    """Vector of an image: the encoder's `own` pooled output, or the `mean` of its tokens (of `model.vision.layer`)."""
    width: int = Field(default=256, ge=1, le=1 << 16)
    """Width of the space in which images and texts are compared."""
    projection: Literal["linear", "mlp"] = "linear"
    """Heads: one linear layer without bias as in CLIP, or layer norm, linear, GELU, dropout, linear."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of `mlp` heads."""
    temperature: float = Field(default=0.07, gt=0)
    """Temperature at the beginning; it is learned where `projection` trains, and never falls below 1/100 without a bias."""
    bias: float | None = None
    """Bias of the logits at the beginning (SigLIP: -10), for `pairwise_sigmoid`; without it the model has none."""
    alignment: AlignmentConfig | None = None
    """Light networks over the dual encoder that compare components of images and captions (ComAlign); the part `alignment`."""

    @model_validator(mode="after")
    def _one_origin(self) -> "DualConfig":
        if (self.path is None) == (self.text is None):
            raise ValueError("give either 'path' (a whole dual encoder) or 'text' (to be joined with model.vision)")
        return self


class SightlineDualConfig(PreTrainedConfig):
    """Everything needed to build a `SightlineDualEncoder` without weights.

    Args:
        vision_config, text_config: the encoders' own configurations.
        vision_layer, vision_width, vision_tokens: output of the vision encoder whose mean over tokens is the vector of an image,
            its width, and the number of tokens.
        text_pooling, text_width: how the vector of a text is made, and its width.
        projection_dim, projection, dropout: sizes and kind of the heads.
        logit_scale_init_value: logarithm of the inverse temperature at the beginning.
        logit_bias_init_value: bias of the logits at the beginning; None for a model without one.
        image_mean, image_std, rescale_factor: normalise `uint8` pixels for the vision encoder.
    """

    model_type = "sightline_dual"
    sub_configs: ClassVar = {"vision_config": AutoConfig, "text_config": AutoConfig}

    def __init__(
        self,
        vision_config: dict[str, Any] | PreTrainedConfig | None = None,
        text_config: dict[str, Any] | PreTrainedConfig | None = None,
        vision_layer: Layer = "pooled",
        vision_width: int = 1280,
        vision_tokens: int = 1,
        text_pooling: Pooling = "mean",
        text_width: int = 384,
        projection_dim: int = 256,
        projection: str = "linear",
        dropout: float = 0.0,
        logit_scale_init_value: float = math.log(1 / 0.07),
        logit_bias_init_value: float | None = None,
        image_mean: Iterable[float] = (0.5, 0.5, 0.5),
        image_std: Iterable[float] = (0.5, 0.5, 0.5),
        rescale_factor: float = 1 / 255,
        **kwargs: Any,
    ) -> None:
        image_mean, image_std = listed("image_mean", image_mean), listed("image_std", image_std)
        sizes = {"vision_width": vision_width, "vision_tokens": vision_tokens, "text_width": text_width}
        check_counts({**sizes, "projection_dim": projection_dim}, 1)
        check_normalisation(image_mean, image_std, rescale_factor)
        for name, value in (("dropout", dropout), ("logit_scale_init_value", logit_scale_init_value)):
            if type(value) not in (int, float) or not math.isfinite(value):
                raise ValueError(f"{name}={value!r} is no finite number")
        self.vision_config = _sub_config(vision_config, "mobilenet_v2")
        self.text_config = _sub_config(text_config, "bert")
        self.vision_layer, self.vision_width, self.vision_tokens = vision_layer, vision_width, vision_tokens
        self.text_pooling, self.text_width = text_pooling, text_width
        self.projection_dim, self.projection, self.dropout = projection_dim, projection, dropout
        self.logit_scale_init_value, self.logit_bias_init_value = logit_scale_init_value, logit_bias_init_value
        self.image_mean, self.image_std, self.rescale_factor = image_mean, image_std, rescale_factor
        kwargs.setdefault("tie_word_embeddings", False)
        parts = (self.vision_config, self.text_config)
        kernels = [attention_kernel(part) for part in parts]
        super().__init__(**kwargs)
        if attention_kernel(self) is None:  # the base class has just reset the kernels of existing parts
            for part, kernel in zip(parts, kernels, strict=True):
                set_attention_kernel(part, kernel)


def _sub_config(value: dict[str, Any] | PreTrainedConfig | None, default: str) -> PreTrainedConfig:
    if isinstance(value, PreTrainedConfig):
        return value
    values = dict(value or {})
    return AutoConfig.for_model(values.pop("model_type", default), **values)


def dual_config(config: PreTrainedConfig) -> PreTrainedConfig | None:
    """Returns the configuration if it is that of a dual encoder, else None.

    Raises:
        ConfigError: it is a SigLIP2 of variable resolution, whose images are no fixed grid.
    """
    if config.model_type == "siglip2":
        raise ConfigError(
            "a SigLIP2 of variable resolution (NaFlex) takes images of any shape, which Sightline does not prepare.",
            "Use a SigLIP2 of fixed resolution, such as google/siglip2-base-patch16-224.",
        )
    return config if config.model_type in (*STOCK, SightlineDualConfig.model_type, ALIGNED) else None


# Our own ----------------------------------------------------------------------------------------------------------------------


class Projection(nn.Module):
    """The heads of both encoders, and the scale and bias of the logits.

    Args:
        config: sizes and kind.
    """

    def __init__(self, config: SightlineDualConfig) -> None:
        super().__init__()
        self.image = _head(config, config.vision_width)
        self.text = _head(config, config.text_width)
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        bias = config.logit_bias_init_value
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(float(bias)))


def _head(config: SightlineDualConfig, width: int) -> nn.Module:
    out = config.projection_dim
    if config.projection == "linear":
        head = nn.Linear(width, out, bias=False)
        nn.init.normal_(head.weight, std=width**-0.5)  # as CLIP's
        return head
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, out), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(out, out, bias=False)
    )


class SightlineDualEncoder(CustomModel):
    """A vision and a text encoder with projection heads, as one transformers model.

    Args:
        config: the model's configuration.
        vision, text: existing encoders with their weights; missing ones are built from `config`.
    """

    config_class = SightlineDualConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities: ClassVar = ["image", "text"]
    supports_gradient_checkpointing = True

    def __init__(
        self, config: SightlineDualConfig, vision: PreTrainedModel | None = None, text: PreTrainedModel | None = None
    ) -> None:
        super().__init__(config)
        self.vision = vision if vision is not None else AutoModel.from_config(config.vision_config, trust_remote_code=False)
        self.text = text if text is not None else AutoModel.from_config(config.text_config, trust_remote_code=False)
        self.projection = Projection(config)
        if self.projection.logit_scale.device.type != "meta":
            mark_initialised(self)  # every part is initialised: given, or by its own constructor
        self.post_init()

    def init_missing(self, module: nn.Module) -> None:
        """Does nothing: a checkpoint that lacks a weight is refused."""

    def can_generate(self) -> bool:  # the base class is made for decoders
        return False

    def image_states(self, pixel_values: Float[Tensor, "N 3 h w"]) -> Float[Tensor, "N P E"]:
        """Returns the outputs of the vision encoder whose mean over P is projected."""
        return vision.encode(self.vision, pixel_values, self.config.vision_layer, 0)

    def text_states(self, ids_CT: Int[Tensor, "C T"], mask_CT: Int[Tensor, "C T"] | None = None) -> Float[Tensor, "C U"]:
        """Returns the pooled outputs of the text encoder."""
        mask_CT = torch.ones_like(ids_CT) if mask_CT is None else mask_CT
        output = self.text(input_ids=ids_CT, attention_mask=mask_CT)
        return pool_text(output, mask_CT, self.config.text_pooling, self.text)

    def get_image_features(self, pixel_values: Float[Tensor, "N 3 h w"], **kwargs: Any) -> BaseModelOutputWithPooling:
        """Returns the projected vectors of images as `pooler_output`; `pixel_values` are normalised."""
        states_NPE = self.image_states(pixel_values)
        return BaseModelOutputWithPooling(last_hidden_state=states_NPE, pooler_output=self.projection.image(states_NPE.mean(1)))

    def get_text_features(
        self, input_ids: Int[Tensor, "C T"], attention_mask: Int[Tensor, "C T"] | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Returns the projected vectors of texts as `pooler_output`."""
        return BaseModelOutputWithPooling(pooler_output=self.projection.text(self.text_states(input_ids, attention_mask)))

    def forward(
        self,
        input_ids: Int[Tensor, "C T"],
        pixel_values: Float[Tensor, "N 3 h w"],
        attention_mask: Int[Tensor, "C T"] | None = None,
        **kwargs: Any,
    ) -> CLIPOutput:
        """Compares all images with all texts, as CLIP does."""
        images = normalize(self.projection.image(self.image_states(pixel_values).mean(1)), dim=-1)
        texts = normalize(self.projection.text(self.text_states(input_ids, attention_mask)), dim=-1)
        logits = texts @ images.T * self.projection.logit_scale.exp()
        if self.projection.logit_bias is not None:
            logits = logits + self.projection.logit_bias
        return CLIPOutput(logits_per_image=logits.T, logits_per_text=logits, text_embeds=texts, image_embeds=images)


def pool_text(output: Any, mask_CT: Int[Tensor, "C T"], pooling: Pooling, encoder: nn.Module) -> Float[Tensor, "C U"]:
    """Returns one vector per text from the outputs of a text encoder; padding is on the right."""
    if pooling == "own":
        return pooled_output(output, encoder)
    states_CTU = output.last_hidden_state
    if pooling == "first":
        return states_CTU[:, 0]
    if pooling == "last":
        return states_CTU[torch.arange(len(mask_CT), device=mask_CT.device), mask_CT.sum(1) - 1]
    weight_CT = mask_CT.to(states_CTU.dtype)
    return torch.einsum("ctu,ct->cu", states_CTU, weight_CT) / weight_CT.sum(1, keepdim=True)


AutoConfig.register(SightlineDualConfig.model_type, SightlineDualConfig)
AutoModel.register(SightlineDualConfig, SightlineDualEncoder)


# One interface ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextLength:
    """How texts are cut and padded for a text encoder.

    Attributes:
        limit: largest number of tokens.
        is_fixed: pad every text to `limit` and attend to padding, as SigLIP was trained.
    """

    limit: int
    is_fixed: bool


class DualModel(nn.Module):
    """A dual encoder as a `SightModel`.

    Args:
        inner: a CLIP or SigLIP of transformers, or a `SightlineDualEncoder`.
        mean, std, rescale: normalise `uint8` pixels for the vision encoder.
        dual: the dual encoder within `inner`, where that has further parts (ComAlign).
    """

    takes_images = True
    tokens_per_crop = 0
    token_grid = (1, 1)
    connector = None

    def __init__(
        self,
        inner: PreTrainedModel,
        mean: Iterable[float] = (0.5,) * 3,
        std: Iterable[float] = (0.5,) * 3,
        rescale: float = 1 / 255,
        dual: PreTrainedModel | None = None,
    ) -> None:
        super().__init__()
        self.inner: Any = inner
        self.dual: Any = inner if dual is None else dual
        self.mean, self.std, self.rescale = tuple(mean), tuple(std), rescale
        self._is_stock = not isinstance(self.dual, SightlineDualEncoder)
        # The same modules again under the names of their parts, so that adapters find them.
        modules = dict(self.dual.named_children())
        names = ("vision_model", "text_model") if self._is_stock else ("vision", "text")
        self.vision, self.text = (cast(PreTrainedModel, modules[name]) for name in names)

    # Parts --------------------------------------------------------------------------------------------------------------

    def parts(self) -> dict[str, dict[str, nn.Parameter]]:
        """Returns the parameters of `vision`, `text` and `projection` (heads, scale and bias) by their full names."""
        modules = {"vision": self.vision, "text": self.text}
        part_of = {id(parameter): part for part, module in modules.items() for parameter in module.parameters()}
        parts: dict[str, dict[str, nn.Parameter]] = {part: {} for part in PARTS}
        for name, parameter in self.named_parameters():
            parts[part_of.get(id(parameter), "projection")][name] = parameter
        return parts

    def train(self, mode: bool = True) -> "DualModel":
        """Sets the mode as in torch, but keeps encoders without trainable parameters in eval mode (BatchNorm has statistics)."""
        super().train(mode)
        for module in (self.vision, self.text):
            if mode and not _trains(module):
                module.eval()
        return self

    def logit_scale(self) -> Float[Tensor, ""]:
        """Returns the inverse temperature; without a bias it is at most `MAX_SCALE`, and the parameter is clamped in training."""
        parameter = self._scalars().logit_scale
        if self._scalars().logit_bias is not None:
            return parameter.exp().reshape(())
        limit = math.log(MAX_SCALE)
        if self.training and parameter.requires_grad:
            parameter.data.clamp_(max=limit)  # as after each step in CLIP's training: the gradient stays
            return parameter.exp().reshape(())
        return parameter.clamp(max=limit).exp().reshape(())

    def logit_bias(self) -> Float[Tensor, ""] | None:
        """Returns the bias of the logits; None for a model without one (CLIP)."""
        bias = self._scalars().logit_bias
        return None if bias is None else bias.reshape(())

    def log_values(self) -> dict[str, float]:
        """Returns scale and bias for the log."""
        values = {"scale": self.logit_scale()}
        bias = self.logit_bias()
        return read_at_once(values if bias is None else {**values, "bias": bias})

    def _scalars(self) -> Any:
        return _Scalars(self.dual.logit_scale, getattr(self.dual, "logit_bias", None)) if self._is_stock else self.dual.projection

    # Vectors ------------------------------------------------------------------------------------------------------------

    @property
    def encoder_outputs(self) -> EncoderOutputs | None:
        """The vision encoder and what a feature store keeps of its outputs; None where it is an external table."""
        if self._is_stock:
            return EncoderOutputs(self.vision, "pooled", 0, (1, 1), int(self.vision.config.hidden_size))
        config = self.dual.config
        if isinstance(self.vision, StoredFeatures):
            grid = (self.vision.config.rows, self.vision.config.columns)
        else:
            grid = (1, 1) if config.vision_layer == "pooled" else (1, config.vision_tokens)
        return EncoderOutputs(self.vision, config.vision_layer, 0, grid, config.vision_width)

    @property
    def text_length(self) -> TextLength:
        """How texts are cut and padded: to the positions of the text encoder."""
        config = self.text.config
        limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 1 << 16
        return TextLength(int(limit), self._is_stock and self.dual.config.model_type == "siglip")

    def features(self, visual: Visual | PairBatch) -> Float[Tensor, "N P E"]:
        """Returns the outputs of the vision encoder before the projection: stored ones, or computed from pixels."""
        if visual.features_NPE is not None:
            return visual.features_NPE.to(self._scalars().logit_scale.dtype)
        assert visual.pixels_NHWC is not None
        pixels = vision.normalise(visual.pixels_NHWC, self.rescale, self.mean, self.std, self.dual.dtype)
        with _gradient(self.vision):
            if self._is_stock:
                return vision.encode(self.vision, pixels, "pooled", 0)
            return self.dual.image_states(pixels)

    def text_states(self, texts: Texts) -> Float[Tensor, "C U"]:
        """Returns the pooled outputs of the text encoder before the projection: stored ones, or computed from tokens."""
        if texts.states_CU is not None:
            return texts.states_CU.to(self._scalars().logit_scale.dtype)
        assert texts.ids_CT is not None
        with _gradient(self.text):
            if not self._is_stock:
                return self.dual.text_states(texts.ids_CT, texts.mask_CT)
            mask = None if self.text_length.is_fixed else texts.mask_CT
            return pooled_output(self.text(input_ids=texts.ids_CT, attention_mask=mask), self.text)

    def image_vectors(self, features_NPE: Float[Tensor, "N P E"]) -> Float[Tensor, "N W"]:
        """Returns unit vectors of images from the outputs of the vision encoder."""
        pooled_NE, head = features_NPE.mean(1), self.image_head
        return _unit(pooled_NE if head is None else head(pooled_NE))

    def text_vectors(self, states_CU: Float[Tensor, "C U"]) -> Float[Tensor, "C W"]:
        """Returns unit vectors of texts from the outputs of the text encoder."""
        head = self.text_head
        return _unit(states_CU if head is None else head(states_CU))

    @property
    def image_head(self) -> nn.Module | None:
        """Projects the vectors of images; None for an encoder without a projection (SigLIP)."""
        return getattr(self.dual, "visual_projection", None) if self._is_stock else self.dual.projection.image

    @property
    def text_head(self) -> nn.Module | None:
        """Projects the vectors of texts; None for an encoder without a projection (SigLIP)."""
        return getattr(self.dual, "text_projection", None) if self._is_stock else self.dual.projection.text

    def embeddings(self, batch: PairBatch) -> Embeddings:
        """Returns unit vectors of the images and texts of a batch, with scale and bias."""
        images, texts = self.image_vectors(self.features(batch)), self.text_vectors(self.text_states(batch.texts))
        return Embeddings(images, texts, self.logit_scale(), self.logit_bias())

    # What only generative models have -----------------------------------------------------------------------------------

    @property
    def language(self) -> NoReturn:
        raise _not_generative()

    def visual_tokens(self, features_NPE: Tensor) -> NoReturn:
        raise _not_generative()

    def hidden(self, batch: Batch) -> NoReturn:
        raise _not_generative()

    def generate(self, **arguments: Any) -> NoReturn:
        raise _not_generative()


@dataclass(frozen=True)
class _Scalars:
    logit_scale: nn.Parameter
    logit_bias: nn.Parameter | None


def pair_model(model: object) -> DualModel | None:
    """Returns the model if it is a dual encoder, else None."""
    return model if isinstance(model, DualModel) else None


def _not_generative() -> UsageError:
    return UsageError(
        "a dual encoder has no decoder; it compares images with texts.", "Use eval --task retrieval, or another model."
    )


def _unit(vectors: Tensor) -> Tensor:
    """Scales vectors to length 1, in float32 or wider whatever the autocast."""
    return normalize(vectors if vectors.dtype == torch.float64 else vectors.float(), dim=-1)


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


@contextmanager
def _gradient(module: nn.Module) -> Iterator[None]:
    """Builds no graph for a frozen encoder."""
    with torch.set_grad_enabled(torch.is_grad_enabled() and _trains(module)):
        yield


# Building and loading ---------------------------------------------------------------------------------------------------------


def text_encoder_config(choice: TextConfig, vocabulary: int) -> PreTrainedConfig:
    """Returns the configuration of a text encoder; a new one has `vocabulary` entries.

    Raises:
        ConfigError: there is no usable configuration.
    """
    if choice.path is None:
        config = loading.config_from({**(choice.config or {}), "vocab_size": vocabulary}, "model.dual.text.config")
    else:
        config = loading.read_config(choice.path).get_text_config()
    config.use_cache = False  # of a decoder: texts are encoded at once
    _kernel_for(config, "eager")
    return config


def build_text_encoder(choice: TextConfig, config: PreTrainedConfig, attention: str) -> PreTrainedModel:
    """Loads a text encoder, or builds one with random weights.

    Raises:
        StorageError: weights are missing or damaged.
    """
    kernel = _kernel_for(config, attention)
    if choice.path is None:
        return AutoModel.from_config(config, attn_implementation=kernel, trust_remote_code=False)
    return loading.load(AutoModel, choice.path, config, kernel, LEFTOVERS)


def load(path: str, attention: str = "sdpa") -> PreTrainedModel:
    """Loads a whole dual encoder with the checks of `loading.load`.

    Raises:
        ConfigError: the folder holds no dual encoder.
        StorageError: weights are missing or damaged.
    """
    config = loading.read_config(path)
    if dual_config(config) is None:
        raise ConfigError(
            f"{path!r} is a {config.model_type!r}, not a dual encoder that Sightline knows.",
            f"Use a {', '.join(STOCK)} or a dual encoder that Sightline trained.",
        )
    whole: Any = config.dual_config if config.model_type == ALIGNED else config
    for part in (whole.vision_config, whole.text_config):
        if not isinstance(part, StoredFeaturesConfig):
            set_attention_kernel(part, _kernel_for(whole if whole.model_type in STOCK else part, attention))
    return loading.load(AutoModel, path, config, None, LEFTOVERS)


def build_meta(config: PreTrainedConfig) -> PreTrainedModel:
    """Builds a dual encoder on the current device (the meta device) without weights."""
    return AutoModel.from_config(config, trust_remote_code=False)


def _kernel_for(config: PreTrainedConfig, attention: str) -> str:
    architecture = MODEL_MAPPING.get(type(config), None)
    if not isinstance(architecture, type):
        raise ConfigError(f"{config.model_type!r} is not a model that transformers can build without a head.")
    return loading.supported_kernel(architecture, attention)
