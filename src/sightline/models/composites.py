"""Composite checkpoints: complete vision-language models of transformers, and the names of their parts.

Two callers use them: `StockModel` evaluates such a model unchanged, and `model.from` takes parts out of one. What is known of
each architecture is listed here once, by its `model_type`.
"""

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel

from sightline.errors import ConfigError
from sightline.models import language, loading, vision
from sightline.models.connectors import Connector, ConnectorConfig, connector_from
from sightline.models.connectors.linear import LinearConfig
from sightline.models.connectors.mlp import MLPConfig
from sightline.models.transformers_private import attention_kernel, set_attention_kernel
from sightline.models.vlm import SightlineConfig, SightlineForConditionalGeneration

LEFTOVERS = (*language.LEFTOVERS, *vision.LEFTOVERS)


@dataclass(frozen=True)
class Composite:
    """Names of the modules of an architecture.

    Attributes:
        vision, connector, body: names of the modules (`body` is the decoder without its head).
        separator: name of the learned token at the end of each row of tiles.
        projection: maps module names inside the connector to weight names of `sightline.models.connectors`.
    """

    vision: str
    connector: str
    body: str
    separator: str | None
    projection: dict[str, str]


_IDEFICS3 = Composite(
    "model.vision_model",
    "model.connector",
    "model.text_model",
    None,
    {"modality_projection.proj": "project.linear"},
)
_LLAVA = Composite(
    "model.vision_tower",
    "model.multi_modal_projector",
    "model.language_model",
    None,
    {"linear_1": "project.linears.0", "linear_2": "project.linears.1"},
)

COMPOSITES: dict[str, Composite] = {
    "idefics3": _IDEFICS3,
    "llava": _LLAVA,
    "llava_next": Composite(_LLAVA.vision, _LLAVA.connector, _LLAVA.body, "model.image_newline", _LLAVA.projection),
    "smolvlm": _IDEFICS3,
}


def is_known(config: PreTrainedConfig) -> bool:
    """Returns whether a configuration is a vision-language model with known parts: one of `COMPOSITES`, or a Sightline model."""
    return isinstance(config, SightlineConfig) or config.model_type in COMPOSITES


def find(config: PreTrainedConfig, path: str) -> Composite:
    """Returns the part names of an architecture.

    Raises:
        ConfigError: the architecture is not in `COMPOSITES`.
    """
    if config.model_type not in COMPOSITES:
        raise ConfigError(
            f"{path!r} holds a {config.model_type} model; Sightline does not know where its parts are.",
            f"Supported are Sightline models and {', '.join(COMPOSITES)}.",
        )
    return COMPOSITES[config.model_type]


def load(path: str, attention: str = "sdpa") -> PreTrainedModel:
    """Loads a complete vision-language model, from transformers or from Sightline, with the checks of `loading.load`.

    Raises:
        ConfigError: the architecture is not in `COMPOSITES`.
        StorageError: weights are missing.
    """
    config = loading.read_config(path)
    if not isinstance(config, SightlineConfig):
        find(config, path)
    set_attention_kernel(config.vision_config, vision.kernel_for(config.vision_config, attention))
    set_attention_kernel(config.text_config, language.kernel_for(config.text_config, attention))
    leftovers = () if isinstance(config, SightlineConfig) else LEFTOVERS
    return loading.load(AutoModelForImageTextToText, path, config, None, leftovers)


# Read from a configuration, without weights -------------------------------------------------------------------------------------


def vision_choice(config: PreTrainedConfig, path: str) -> tuple[Literal["last"] | int, bool]:
    """Returns which hidden state of the encoder is used, and whether class tokens are left out.

    Raises:
        ConfigError: the model concatenates several hidden states.
    """
    if isinstance(config, SightlineConfig):
        return config.vision_layer, config.vision_drop > 0
    if find(config, path) is _IDEFICS3:
        return "last", True
    layer = config.vision_feature_layer
    if not isinstance(layer, int):
        raise ConfigError(
            f"{path!r} concatenates the hidden states {layer} of its encoder; Sightline supports one layer only.",
            "Choose another model.",
        )
    return layer, config.vision_feature_select_strategy == "default"


def check_prefix(config: PreTrainedConfig, prefix: int) -> None:
    """Refuses an encoder for which the composite and Sightline would keep different tokens.

    LLaVA's `default` strategy removes exactly one token, whether or not it is a class token.

    Args:
        config: configuration of the composite model.
        prefix: number of class and register tokens of its encoder.
    """
    if config.to_dict().get("vision_feature_select_strategy") == "default" and prefix != 1:
        raise ConfigError(
            f"model.from: this {config.model_type} removes one token, but its encoder has {prefix} class and register tokens.",
            "Choose another model.",
        )


def connector_config(config: PreTrainedConfig, path: str) -> ConnectorConfig:
    """Returns the configuration of the Sightline connector that computes the same as the composite's connector.

    Raises:
        ConfigError: no Sightline connector computes the same.
    """
    if isinstance(config, SightlineConfig):
        return connector_from(config.connector)
    if find(config, path) is _IDEFICS3:
        return LinearConfig(shuffle=config.scale_factor, bias=False)
    if config.projector_hidden_act != "gelu":
        raise ConfigError(
            f"{path!r} has a connector with the activation {config.projector_hidden_act!r}; `mlp` has gelu.",
            "Leave the connector out of model.from.parts.",
        )
    return MLPConfig(bias=config.multimodal_projector_bias)


# Parts of a loaded model --------------------------------------------------------------------------------------------------------


def vision_of(model: PreTrainedModel) -> PreTrainedModel:
    """Returns the encoder."""
    if isinstance(model, SightlineForConditionalGeneration):
        return model.vision
    part = model.get_submodule(COMPOSITES[model.config.model_type].vision)
    assert isinstance(part, PreTrainedModel)
    return part


def connector_of(model: PreTrainedModel) -> nn.Module:
    """Returns the connector module of a composite model of transformers."""
    return model.get_submodule(COMPOSITES[model.config.model_type].connector)


def language_of(model: PreTrainedModel) -> PreTrainedModel:
    """Returns the decoder with its head as a causal language model that shares its weights with the composite (no copies).

    Raises:
        ConfigError: transformers has no causal language model with this body.
    """
    if isinstance(model, SightlineForConditionalGeneration):
        return model.language
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    assert isinstance(head, nn.Linear)
    assert isinstance(embedding, nn.Embedding)
    config = copy.deepcopy(model.config.text_config)
    config.tie_word_embeddings = head.weight is embedding.weight
    with torch.device("meta"):  # its initial weights are replaced at once
        decoder = AutoModelForCausalLM.from_config(config, attn_implementation=attention_kernel(config), trust_remote_code=False)
    body = model.get_submodule(COMPOSITES[model.config.model_type].body)
    if type(decoder.base_model) is not type(body):
        raise ConfigError(
            f"transformers has no causal language model for the decoder {type(body).__name__} of this model.",
            "Set model.language.path instead of taking 'language' in model.from.parts.",
        )
    setattr(decoder, decoder.base_model_prefix, body)
    decoder.set_output_embeddings(head)
    if model.generation_config is not None:
        decoder.generation_config = copy.deepcopy(model.generation_config)
    return decoder


def copy_connector(model: PreTrainedModel, target: Connector, separators: Tensor) -> None:
    """Copies the composite's connector weights into a connector made by `connector_config`, and its separators if there are any.

    Args:
        model: the composite model.
        target: connector of the same shape.
        separators: learned separator tokens of the new model, `[number, width]`.

    Raises:
        ConfigError: the shapes differ.
    """
    weights, learned = connector_weights(model), separators_of(model)
    own = target.state_dict()
    mismatched = sorted(set(own) ^ set(weights)) or sorted(name for name in own if own[name].shape != weights[name].shape)
    if mismatched:
        raise ConfigError(
            f"model.from: the connector does not fit these parts; the weight {mismatched[0]!r} differs in name or shape.",
            "Take vision and language from the same model, or leave the connector out of model.from.parts.",
        )
    target.load_state_dict(weights)
    if learned.shape == separators.shape:
        with torch.no_grad():
            separators.copy_(learned)


def connector_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Returns the connector's weights under the names of the Sightline connector."""
    if isinstance(model, SightlineForConditionalGeneration):
        return model.connector.state_dict()
    composite = COMPOSITES[model.config.model_type]
    out: dict[str, Tensor] = {}
    for name, value in connector_of(model).state_dict().items():
        module, _, kind = name.rpartition(".")
        out[f"{composite.projection[module]}.{kind}"] = value
    return out


def separators_of(model: PreTrainedModel) -> Tensor:
    """Returns the learned separator tokens between tiles, `[number, width]`."""
    if isinstance(model, SightlineForConditionalGeneration):
        return model.separators.detach()
    name = COMPOSITES[model.config.model_type].separator
    width = model.config.text_config.hidden_size
    return torch.zeros(0, width) if name is None else model.get_parameter(name).detach()[None]
