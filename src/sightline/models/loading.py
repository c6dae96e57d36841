"""Loads configurations and weights of other projects safely; no other module calls `from_pretrained` on them.

Weights are read from safetensors only, and no remote code runs. An index file may name only files inside its folder, and the
attention kernels are chosen by Sightline, not by the file. A missing weight is an error, so no weight silently keeps its random
initial value; an unexpected weight is allowed only by name.
"""

import contextlib
import copy
import difflib
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from sightline.errors import ConfigError, DataError, SightlineError, StorageError
from sightline.models.transformers_private import clear_kernels, supports_sdpa
from sightline.runtime import hub
from sightline.runtime.storage import check_links, safe_join

# Largest sizes, under all names in use. No real model exceeds them; a larger value takes minutes to build or all memory.
LIMITS = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), 512),
    **dict.fromkeys(("depth", "depths", "num_stages", "layer_types", "num_hidden_groups", "num_blocks"), 512),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_head", "n_heads", "num_heads"), 1024),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4096),
    **dict.fromkeys(("hidden_size", "hidden_sizes", "n_embd", "d_model", "head_dim", "projection_dim"), 1 << 16),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "d_ff"), 1 << 20),
    "vocab_size": 1 << 21,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), 1 << 27),
    **dict.fromkeys(("image_size", "patch_size"), 1 << 14),
    "depth_multiplier": 64,
}
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
ADAPTER = "adapter_config.json"
_SUBFOLDERS = ("additional_chat_templates",)  # that transformers looks into
# Largest files that are parsed as a whole. No real model has larger ones.
_FILE_BYTES = {
    **dict.fromkeys(("config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json"), 4 << 20),
    **dict.fromkeys(("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "sightline.json"), 4 << 20),
    **dict.fromkeys(("chat_template.jinja", "chat_template.json"), 1 << 20),
    **dict.fromkeys(("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model"), 64 << 20),
}
# Names of counts and sizes that `LIMITS` does not list; they may be 0, but not negative.
_COUNT = re.compile(r"(num|n)_.*|.*_(size|sizes|dim|dims|heads|layers|channels|width|tokens)")
_MAY_BE_NEGATIVE = frozenset({"window_size"})  # -1 for none
MAX_COUNT = 1 << 31
MAX_ITEMS = 100_000  # entries of a configuration, all sections together


def read_config(path: str) -> PreTrainedConfig:
    """Reads the transformers configuration of a local folder or Hub id.

    Raises:
        ConfigError: there is no configuration, it needs remote code, its weights are quantised, or a size exceeds `LIMITS`.
        StorageError: a file in it is a link out of it, or the index of its weights is damaged or names files outside of the folder.
    """
    is_local = hub.find_local(path) is not None
    if not is_local:
        hub.check_reachable()
    check_folder(path)
    if "\0" not in path and (Path(path) / ADAPTER).is_file():
        raise ConfigError(f"{path!r} is a PEFT adapter, not a model.", "Merge it into its base model (PEFT: merge_and_unload).")
    try:
        values, _ = PreTrainedConfig.get_config_dict(path)
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: config.json is not a JSON object.")
        check_sizes(values, path)  # before transformers: some configurations build a list with one entry per layer
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except ConfigError:
        raise
    except Exception as error:  # transformers may raise anything for a foreign file
        if not is_local:
            raise ConfigError(*hub.not_found(path, "model", first_line(error))) from error
        raise ConfigError(
            f"cannot read a model configuration from {path!r}: {first_line(error)}",
            "Give a folder written by save_pretrained, or the id of a model on the Hub.",
        ) from error
    clear_kernels(config)
    if values.get("quantization_config"):
        raise ConfigError(
            f"the weights at {path!r} are quantised; Sightline cannot train them.", "Give the folder of the unquantised weights."
        )
    check_sizes(config.to_dict(), path)
    return config


def config_from(values: dict[str, Any], place: str) -> PreTrainedConfig:
    """Builds a configuration from its values; `model_type` names the architecture.

    Raises:
        ConfigError: `model_type` is missing or unknown, or a value is invalid.
    """
    values = dict(values)
    model_type = values.pop("model_type", None)
    if not isinstance(model_type, str):
        raise ConfigError(
            f"{place}: 'model_type' must be the name of a transformers architecture.", "For example: model_type: llama"
        )
    check_sizes(values, place)
    try:
        config = AutoConfig.for_model(model_type, **values)
        known = set(type(config)().to_dict()) | set(config.attribute_map)  # `config` itself also keeps unknown keys
    except Exception as error:  # each architecture validates its values in its own way
        raise ConfigError(f"{place}: {first_line(error)}") from error
    unknown = sorted(set(values) - known)
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{place}: a {model_type} configuration has no key {unknown[0]!r}.{hint}")
    check_sizes(config.to_dict(), place)
    return config


def check_sizes(values: dict[str, Any], place: str) -> None:
    """Refuses sizes beyond `LIMITS`, negative counts and token ids that are no numbers in a configuration and its nested ones.

    Raises:
        ConfigError: a size exceeds its limit.
    """
    stack: list[tuple[str, Any]] = [("", values)]
    for _ in range(MAX_ITEMS):
        if not stack:
            return
        name, value = stack.pop()
        if isinstance(value, dict):
            stack.extend((str(key), item) for key, item in value.items())
        elif isinstance(value, list | tuple):
            stack.extend((name, item) for item in value)
        elif name in LIMITS and isinstance(value, int | float) and not 0 < value <= LIMITS[name]:
            raise ConfigError(f"{place}: {name}={value} is outside of 1..{LIMITS[name]}.")
        elif isinstance(value, int | float) and _is_count(name) and not 0 <= value <= MAX_COUNT:
            raise ConfigError(f"{place}: {name}={value} is outside of 0..{MAX_COUNT}.")
        elif name.endswith("_token_id") and value is not None and type(value) is not int:
            raise ConfigError(f"{place}: {name}={value!r} is no whole number.")
    raise ConfigError(f"{place}: more than {MAX_ITEMS} entries; this is not the configuration of a model.")


def _is_count(name: str) -> bool:
    return _COUNT.fullmatch(name) is not None and name not in _MAY_BE_NEGATIVE


def check_folder(path: str) -> None:
    """Refuses a model folder with files that lead out of it, before transformers reads it; a Hub id is left to its own cache.

    Raises:
        ConfigError, StorageError: as in `check_files`.
        StorageError: an index of weights names a file outside of the folder or a missing file, or is not an index.
    """
    folder = Path(path)
    if "\0" in path or not folder.is_dir():
        return
    check_files(folder)
    for index in folder.glob("*.index.json"):
        try:
            shards = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise StorageError(f"{index}: this is not an index of weights ({first_line(error)}).") from error
        # In the Hub's cache a snapshot is a folder of links to files two levels up.
        root = folder.parent.parent if folder.parent.name == "snapshots" else folder
        for shard in sorted(map(str, shards)):
            try:
                safe_join(root, f"{folder.relative_to(root).as_posix()}/{shard}" if root != folder else shard)
            except DataError as error:
                raise StorageError(f"{index}: {error.message}", "Do not use this checkpoint.") from error


def check_files(folder: Path) -> None:
    """Refuses a model folder by its files and the sizes in its configuration.

    Raises:
        ConfigError: a size in its configuration exceeds `LIMITS`.
        StorageError: a file is a link out of the folder, no regular file, or far too large.
    """
    try:
        for place in (folder, *(folder / name for name in _SUBFOLDERS if os.path.lexists(folder / name))):
            check_links(place)
    except DataError as error:
        raise StorageError(error.message, f"{error.remedy} If you do not know why it is there, do not use this model.") from error
    for name, limit in _FILE_BYTES.items():
        if (size := _size_of(folder / name)) > limit:
            raise StorageError(f"{folder / name}: {size:,} bytes; at most {limit:,} are expected.", "Do not use this model.")
    for name in ("config.json", "generation_config.json"):
        with contextlib.suppress(OSError, ValueError, RecursionError):  # whoever reads the file says what is wrong with it
            values = json.loads((folder / name).read_text("utf-8"))
            if isinstance(values, dict):
                check_sizes(values, str(folder))  # transformers reads it for a tokenizer too, and may build a list of layers


def _size_of(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def load(
    auto: Any,
    path: str,
    config: PreTrainedConfig,
    attention: str | None,
    leftovers: Sequence[str] = (),
    dtype: torch.dtype | None = None,
) -> PreTrainedModel:
    """Calls `from_pretrained` and raises an error for every problem that it would only log or ignore.

    Args:
        auto: Auto class of transformers.
        path: local folder or Hub id.
        config: returned by `read_config`, or a part of it.
        attention: attention implementation such as `eager` or `sdpa`; None keeps the one in `config`.
        leftovers: regular expressions of weights that the checkpoint may hold in addition to the model's.
        dtype: dtype of the parameters; fp32 by default.

    Raises:
        StorageError: weights are missing, unexpected, of another shape, not finite, or not stored as safetensors.
    """
    previous = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        check_num_weights(auto, config, path)
        model, info = auto.from_pretrained(
            path,
            config=config,
            dtype=dtype or torch.float32,
            attn_implementation=attention,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # so that they are listed, and raised as an error below
            output_loading_info=True,
        )
    except SightlineError:
        raise
    except Exception as error:  # transformers may raise anything for damaged files or invalid sizes
        raise StorageError(
            f"cannot load weights from {path!r}: {first_line(error)}",
            "Give a folder of safetensors files written by save_pretrained.",
        ) from error
    finally:
        transformers.logging.set_verbosity(previous)
    missing = sorted(info["missing_keys"])
    if missing:
        raise StorageError(f"{path!r} lacks {len(missing)} weights of the model; the first is {missing[0]!r}.")
    extra = sorted(key for key in info["unexpected_keys"] if not any(re.search(pattern, key) for pattern in leftovers))
    if extra:
        raise StorageError(f"{path!r} holds {len(extra)} weights that the model does not have; the first is {extra[0]!r}.")
    if info["mismatched_keys"]:
        name, found, wanted = sorted(info["mismatched_keys"])[0]
        raise StorageError(f"{path!r}: weight {name!r} has the shape {tuple(found)}; the model needs {tuple(wanted)}.")
    check_finite(model, path)
    return model


def check_num_weights(auto: Any, config: PreTrainedConfig, path: str) -> None:
    """Refuses a local folder whose files hold fewer weights than its configuration describes, before allocating memory for them.

    Raises:
        StorageError: the files hold fewer weights, or a file is not safetensors.
    """
    folder = Path(path)
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        files = {single}
    elif index.is_file():
        files = {folder / name for name in json.loads(index.read_text("utf-8"))["weight_map"].values()}
    elif pickles := sorted(file.name for suffix in PICKLES for file in folder.glob(f"*{suffix}") if folder.is_dir()):
        raise StorageError(
            f"{path}: weights are in {pickles[0]}, a pickle, which may run code when it is opened; Sightline reads safetensors.",
            f"Convert them, without running code: sightline convert {path} --out {folder.with_name(folder.name + '-safetensors')}",
        )
    else:
        return  # a model on the Hub, or a folder without weights, for which transformers raises an error
    held = sum(_elements(file) for file in files)
    with torch.device("meta"):
        model = auto.from_config(copy.deepcopy(config), trust_remote_code=False)
    described = sum(parameter.numel() for parameter in model.parameters())
    if described > held:
        raise StorageError(f"{path!r}: the configuration describes {described:,} weights, but the files hold {held:,}.")


def _elements(file: Path) -> int:
    try:
        with safe_open(file, "pt") as tensors:
            return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"{file}: this is not a safetensors file ({first_line(error)}).",
            "Save the weights as safetensors (save_pretrained does).",
        ) from error


def kernel_by_choice(attention: str) -> str:
    """Returns the attention kernel that a model is built with, by `runtime.attention`; `flex` is set later, for training alone."""
    return "sdpa" if attention in ("auto", "flex") else attention


def supported_kernel(architecture: type[PreTrainedModel], attention: str) -> str:
    """Returns the requested attention kernel, or `eager` if that is sdpa and the architecture does not support it."""
    return "eager" if attention == "sdpa" and not supports_sdpa(architecture) else attention


def check_finite(model: torch.nn.Module, path: str) -> None:
    """Refuses NaN and infinity in weights and buffers (the statistics of a BatchNorm are buffers).

    Raises:
        StorageError: a weight is not finite.
    """
    for name, value in model.state_dict().items():
        if value.is_floating_point() and value.device.type != "meta" and not bool(torch.isfinite(value).all()):
            raise StorageError(f"{path!r}: weight {name!r} holds NaN or infinity.", "Use another checkpoint.")


def first_line(error: BaseException) -> str:
    """Returns the first line of an exception's text for use in a message; also the next line if the first ends in a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if isinstance(error, KeyError):
        return f"{lines[0]} is not known"
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
