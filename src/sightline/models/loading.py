"""The gate through which foreign weights and configurations enter.

Only safetensors, no remote code, an index whose entries stay inside its folder, an attention kernel chosen by us, and no weight
silently left at random: what is missing is an error, what is left over is allowed by name only.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from sightline.errors import ConfigError, DataError, StorageError
from sightline.runtime.storage import safe_join

# No real model of these families has more; a configuration beyond them builds for minutes and then fails for memory.
LIMITS = {
    "num_hidden_layers": 512,
    "num_attention_heads": 1024,
    "hidden_size": 65536,
    "intermediate_size": 1 << 20,
    "vocab_size": 1 << 21,
    "image_size": 16384,
}


def read_config(path: str) -> PreTrainedConfig:
    """The transformers configuration of a local folder or Hub id.

    Raises:
        ConfigError: there is none, it needs remote code, or a size is absurd.
    """
    check_index(path)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        raise ConfigError(
            f"no usable model configuration at {path!r}: {first_line(error)}",
            "Give a folder written by save_pretrained, or a Hub id that can be reached.",
        ) from error
    check_sizes(config, path)
    return config


def config_from(values: dict[str, Any], place: str) -> PreTrainedConfig:
    """A configuration from its values; `model_type` names the architecture.

    Raises:
        ConfigError: `model_type` is missing or unknown, or a value does not fit.
    """
    values = dict(values)
    model_type = values.pop("model_type", None)
    if not isinstance(model_type, str):
        raise ConfigError(f"{place}: 'model_type' must name an architecture of transformers.", "For example: llama")
    try:
        config = AutoConfig.for_model(model_type, **values)
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{place}: {first_line(error)}") from error
    unknown = sorted(set(values) - set(config.to_dict()))
    if unknown:
        raise ConfigError(f"{place}: {model_type} has no {unknown[0]!r}.")
    check_sizes(config, place)
    return config


def check_sizes(config: PreTrainedConfig, place: str) -> None:
    """Refuses sizes that no real model has, in the configuration and in those it holds."""
    values = config.to_dict()
    stack = [values]
    while stack:
        section = stack.pop()
        for name, value in section.items():
            if isinstance(value, dict):
                stack.append(value)
            limit = LIMITS.get(name)
            if limit is not None and isinstance(value, int) and not 0 < value <= limit:
                raise ConfigError(f"{place}: {name}={value} is outside of 1..{limit}.")


def check_index(path: str) -> None:
    """Refuses a sharded checkpoint whose index points outside of its folder, before transformers reads it."""
    folder = Path(path)
    for index in folder.glob("*.index.json") if folder.is_dir() else ():
        try:
            shards = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StorageError(f"{index}: not an index of weights ({first_line(error)}).") from error
        for shard in sorted(map(str, shards)):
            try:
                safe_join(folder, shard)
            except DataError as error:
                raise StorageError(f"{index}: {error.message}", "Do not use this checkpoint.") from error


def load(
    auto: Any,
    path: str,
    config: PreTrainedConfig,
    attention: str | None,
    leftovers: Sequence[str] = (),
    dtype: torch.dtype | None = None,
) -> PreTrainedModel:
    """`from_pretrained` with everything that could go wrong silently made an error.

    Args:
        auto: an Auto class of transformers.
        path: local folder or Hub id.
        config: what `read_config` gave, or a part of it.
        attention: attention implementation, `eager` or `sdpa` or another that transformers knows; None for what `config` says.
        leftovers: regular expressions of weights that the checkpoint may hold beyond the model.
        dtype: parameters' type; fp32 by default.

    Raises:
        StorageError: weights are missing, left over, of another shape, not finite, or not safetensors.
    """
    previous = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        model, info = auto.from_pretrained(
            path,
            config=config,
            dtype=dtype or torch.float32,
            attn_implementation=attention,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise StorageError(f"cannot load weights from {path!r}: {first_line(error)}", "Only safetensors are read.") from error
    finally:
        transformers.logging.set_verbosity(previous)
    missing = sorted(info["missing_keys"])
    if missing:
        raise StorageError(f"{path!r} lacks {len(missing)} weights of the model, {missing[0]!r} first.")
    extra = sorted(key for key in info["unexpected_keys"] if not any(re.search(pattern, key) for pattern in leftovers))
    if extra:
        raise StorageError(f"{path!r} holds {len(extra)} weights that the model does not have, {extra[0]!r} first.")
    if info["mismatched_keys"]:
        raise StorageError(f"{path!r}: weights of another shape: {sorted(info['mismatched_keys'])[0]}.")
    check_finite(model, path)
    return model


def supported_kernel(architecture: type[PreTrainedModel], attention: str) -> str:
    """The wanted attention kernel, or `eager` in place of an sdpa that the architecture does not have."""
    return "eager" if attention == "sdpa" and not architecture._supports_sdpa else attention


def check_finite(model: torch.nn.Module, path: str) -> None:
    """Refuses NaN and infinity among the weights."""
    for name, parameter in model.named_parameters():
        if parameter.device.type != "meta" and not bool(torch.isfinite(parameter).all()):
            raise StorageError(f"{path!r}: weight {name!r} holds NaN or infinity.", "Use another checkpoint.")


def mark_initialised(module: torch.nn.Module) -> None:
    """Tells transformers that a module's weights are set, so that a surrounding `post_init` leaves them alone."""
    for part in module.modules():
        part._is_hf_initialized = True  # type: ignore[assignment]
    for parameter in module.parameters():
        parameter._is_hf_initialized = True  # type: ignore[attr-defined]


def first_line(error: BaseException) -> str:
    """The first line of an error's text, which is what fits a message."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
