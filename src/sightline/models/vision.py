"""Vision encoders: any transformers vision model that turns an image into a grid of tokens.

ViT models (SigLIP, SigLIP2 of fixed resolution, CLIP, DINOv2, ViT) give `[N, P, E]` with or without leading class or register
tokens; CNN models (MobileNetV2) give a map `[N, E, h, w]` whose cells are the tokens. Of a composite checkpoint (a complete CLIP or
SigLIP) the vision half is used.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from sightline.config import Config
from sightline.errors import ConfigError
from sightline.models import loading

Layer = Literal["last", "pooled"] | int
"""Output of an encoder: `last` (the final tokens), `pooled` (its own pooled vector as one token), or a hidden state by index."""

# What a vision encoder's checkpoint may hold besides the encoder: the text half of a composite, pooling heads, classifiers.
LEFTOVERS = (r"^text_model\.", r"projection", r"^logit_(scale|bias)$", r"^(vision_model\.)?head\.", r"classifier", r"^pooler\.")


class VisionConfig(Config):
    """The encoder and which of its outputs become visual tokens."""

    path: str | None = None
    """Local folder or Hub id of a transformers vision model."""
    config: dict[str, Any] | None = None
    """Sizes of an encoder to train from scratch, with its `model_type`; instead of `path`."""
    external: str | None = None
    """A feature store made from an external table, instead of an encoder; the model then takes stored features and no pixels."""
    layer: Literal["last"] | int = "last"
    """`last`: the final output, after its norm if the model has one; or an index of hidden states (LLaVA-1.5: -2)."""
    drop_class_token: bool = True
    """Leave out class and register tokens."""
    normalise: dict[str, list[float]] = Field(default_factory=dict)
    """`mean` and `std` for an encoder from `config`; an encoder from `path` uses those in its folder."""

    @model_validator(mode="after")
    def _one_origin(self) -> "VisionConfig":
        if [self.path, self.config, self.external].count(None) != 2:
            raise ValueError("give one of 'path', 'config' and 'external'")
        return self


@dataclass(frozen=True)
class EncoderShape:
    """Output shape of an encoder: a grid of `rows x columns` patches of `width`, after `prefix` class or register tokens."""

    rows: int
    columns: int
    width: int
    prefix: int

    def kept(self, drop_class_token: bool) -> tuple[int, tuple[int, int]]:
        """Returns how many leading tokens are removed, and the grid of the rest; if class tokens are kept, there is no grid."""
        drop = self.prefix if drop_class_token else 0
        if drop == self.prefix:
            return drop, (self.rows, self.columns)
        return drop, (1, self.rows * self.columns + self.prefix - drop)


@dataclass(frozen=True)
class EncoderOutputs:
    """An encoder and which of its outputs a connector takes.

    Attributes:
        encoder: the module.
        layer: which output is used.
        drop: number of leading tokens (class and register tokens) that are removed.
        grid: rows and columns of the tokens of a crop that are kept.
        width: of a token.
    """

    encoder: PreTrainedModel
    layer: Layer
    drop: int
    grid: tuple[int, int]
    width: int


def build_encoder(config: VisionConfig, attention: str = "sdpa") -> PreTrainedModel:
    """Loads the encoder, or builds one from sizes.

    Raises:
        ConfigError: the configuration is not a vision model.
        StorageError: weights are missing.
    """
    half = encoder_config(config)
    if config.path is None:
        return from_config(half, attention)
    return loading.load(AutoModel, config.path, half, kernel_for(half, attention), LEFTOVERS)


def encoder_config(config: VisionConfig) -> PreTrainedConfig:
    """Returns the encoder's own configuration; for a composite checkpoint that of its vision half.

    Raises:
        ConfigError: there is no usable configuration.
    """
    if config.path is None:
        return loading.config_from(config.config or {}, "model.vision.config")
    checkpoint_config = loading.read_config(config.path)
    return (
        checkpoint_config.vision_config
        if isinstance(getattr(checkpoint_config, "vision_config", None), PreTrainedConfig)
        else checkpoint_config
    )


def from_config(config: PreTrainedConfig, attention: str) -> PreTrainedModel:
    """Builds an encoder with random weights."""
    return AutoModel.from_config(config, attn_implementation=kernel_for(config, attention), trust_remote_code=False)


def kernel_for(config: PreTrainedConfig, attention: str) -> str:
    """Returns the requested attention kernel, or `eager` for an architecture without it (CNNs have no attention)."""
    architecture = MODEL_MAPPING.get(type(config), None)
    if not isinstance(architecture, type):
        raise ConfigError(f"{config.model_type!r} is not a vision model that transformers can build.")
    return loading.supported_kernel(architecture, attention)


def strip_labels(config: PreTrainedConfig) -> PreTrainedConfig:
    """Removes the class names of an ImageNet head, which would fill every saved configuration."""
    if (config.num_labels or 0) > 2:
        config.num_labels = 2
    return config


def probe_shape(encoder: PreTrainedModel, image_size: tuple[int, int], layer: Literal["last"] | int) -> EncoderShape:
    """Runs one grey image through the encoder and returns the shape of its output.

    Args:
        encoder: the model.
        image_size: height and width of prepared images.
        layer: as in `VisionConfig`.

    Raises:
        ConfigError: the output is not a grid of tokens.
    """
    height, width = image_size
    parameter = next(encoder.parameters())
    image = torch.zeros(1, 3, height, width, dtype=parameter.dtype, device=parameter.device)
    was_training = encoder.training
    encoder.eval()
    with torch.no_grad():
        output = raw_output(encoder, image, layer)
    encoder.train(was_training)
    if output.ndim == 4:
        return EncoderShape(output.shape[2], output.shape[3], output.shape[1], 0)
    if output.ndim == 3 and output.shape[1] == 1:  # a class token alone
        return EncoderShape(1, 1, output.shape[2], 0)
    patch = getattr(encoder.config, "patch_size", None)
    if output.ndim != 3 or not isinstance(patch, int):
        raise ConfigError(f"{type(encoder).__name__} gives {tuple(output.shape)}, which is not a grid of visual tokens.")
    rows, columns = height // patch, width // patch
    prefix = output.shape[1] - rows * columns
    if prefix < 0:
        raise ConfigError(f"{type(encoder).__name__} gives {output.shape[1]} tokens for a grid of {rows} x {columns} patches.")
    return EncoderShape(rows, columns, output.shape[2], prefix)


def normalise(
    pixels_NHWC: UInt8[Tensor, "N h w 3"],
    rescale: float,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "N 3 h w"]:
    """Rescales and normalises prepared pixels on their device, as the encoder's processor does."""
    device = pixels_NHWC.device
    # In place and one image row at a time: broadcasting over a last axis of 3 takes half as long again on a CPU.
    width = pixels_NHWC.shape[2]
    offset, divisor = torch.tensor(list(mean) * width, device=device), torch.tensor(list(std) * width, device=device)
    values = pixels_NHWC.flatten(2).to(torch.float32)
    values.mul_(torch.tensor(rescale, device=device)).sub_(offset).div_(divisor)
    return values.view(pixels_NHWC.shape).to(dtype).permute(0, 3, 1, 2)


def raw_output(encoder: nn.Module, pixels_NCHW: Float[Tensor, "N 3 h w"], layer: Layer) -> Tensor:
    """Returns the chosen hidden state in the model's own layout."""
    if layer == "last":
        return encoder(pixels_NCHW).last_hidden_state
    if layer == "pooled":
        return pooled_output(encoder(pixels_NCHW), encoder)[:, None]
    return encoder(pixels_NCHW, output_hidden_states=True).hidden_states[layer]


def pooled_output(output: ModelOutput, encoder: nn.Module) -> Float[Tensor, "N E"]:
    """Returns the pooled vector that an encoder itself computes.

    Raises:
        ConfigError: it computes none.
    """
    pooled = getattr(output, "pooler_output", None)
    if pooled is None:
        raise ConfigError(f"{type(encoder).__name__} has no pooled output of its own.", "Set pooling=mean in model.dual.")
    return pooled.flatten(1)


def encode(encoder: nn.Module, pixels_NCHW: Float[Tensor, "N 3 h w"], layer: Layer, drop: int) -> Float[Tensor, "N P E"]:
    """Returns visual features of prepared images in raster order.

    Args:
        encoder: the model.
        pixels_NCHW: rescaled and normalised images.
        layer: as in `VisionConfig`.
        drop: number of leading tokens to remove.
    """
    output = raw_output(encoder, pixels_NCHW, layer)
    if output.ndim == 4:
        return output.flatten(2).transpose(1, 2)
    return output[:, drop:]
