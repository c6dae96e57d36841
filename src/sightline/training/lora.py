"""Low-rank adapters on a part, with PEFT: added for a stage and merged into the weights at its end.

During a stage its checkpoints hold the merged weights under `model/` (readable by `from_pretrained`) and, for an exact resume, the
unmerged ones under `lora/`: the adapters, and the base weights once, hard-linked from checkpoint to checkpoint.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sightline.config import Config
from sightline.errors import ConfigError, StorageError

ADAPTERS, BASE = "adapters.safetensors", "base.safetensors"
FULL = {
    "embeddings": r"(embed_tokens|wte|word_embeddings)\.",
    "head": r"(lm_head|embed_out)\.",
    "norms": r"(norm|ln_|layer_norm)[^.]*\.",
}


class LoraRule(Config):
    """Adapters `W + s B A` on chosen linear layers (Hu et al. 2021), with `s = alpha / r`, or `alpha / sqrt(r)` for rsLoRA."""

    r: int = Field(default=16, ge=1)
    """Rank."""
    alpha: float | None = Field(default=None, gt=0)
    """Numerator of the scale; the rank by default."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapters' input."""
    rslora: bool = False
    """Divide by the square root of the rank instead of the rank (Kalajdzievski 2023)."""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Last component of the names of the layers that get an adapter."""
    full: tuple[str, ...] = ()
    """Parameters trained fully beside the adapters: `norms`, `embeddings`, `head`, or regular expressions of parameter names."""


def inject(part: nn.Module, rule: LoraRule, name: str) -> None:
    """Adds adapters to a part; a part that already has them is not changed.

    Args:
        part: a module of the model.
        rule: which layers, and the size of the adapters.
        name: name of the part, for messages.

    Raises:
        ConfigError: PEFT is not installed, or no layer has the name of a target.
    """
    if any(True for _ in layers(part)):
        return
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ConfigError("LoRA needs the package peft.", "pip install 'sightline[lora]'") from error
    linear = {path.rpartition(".")[2] for path, module in part.named_modules() if isinstance(module, nn.Linear)}
    missing = sorted(set(rule.targets) - linear)
    if len(missing) == len(rule.targets):
        raise ConfigError(
            f"{name} has no linear layer named {missing[0]!r}; its layers are {', '.join(sorted(linear))}.", "Set lora.targets."
        )
    config = LoraConfig(
        r=rule.r,
        lora_alpha=rule.alpha if rule.alpha is not None else rule.r,  # pyrefly: ignore
        lora_dropout=rule.dropout,
        use_rslora=rule.rslora,
        target_modules=[target for target in rule.targets if target in linear],
    )
    inject_adapter_in_model(config, part)


def layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yields the layers with adapters, by name."""
    for name, child in module.named_modules():
        if any(key.startswith("lora_A") for key, _ in child.named_children()):
            yield name, child


def check_full(rule: LoraRule, parameters: Collection[str], name: str) -> None:
    """Checks that `full` matches parameters of the part.

    Raises:
        ConfigError: no parameter of the part matches one of the names in `full`; a tied decoder has no separate head.
    """
    for pattern in rule.full:
        if pattern == "head" and "embeddings" in rule.full:  # the same parameter if they are tied
            continue
        if not any(re.search(FULL.get(pattern, pattern), parameter) for parameter in parameters):
            tied = " If head and embeddings are tied, 'embeddings' means both." if pattern == "head" else ""
            raise ConfigError(f"lora.full: no parameter of {name} matches {pattern!r}.", f"Names are {', '.join(FULL)}.{tied}")


def trains_under(rule: LoraRule, parameter: str) -> bool:
    """Returns whether a parameter of a part with adapters trains."""
    if ".lora_" in parameter:
        return True
    return any(re.search(FULL.get(pattern, pattern), parameter) for pattern in rule.full)


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """Returns the model's state dict with the adapters merged into the weights; the model is not changed."""
    state = model.state_dict()
    adapted = dict(layers(model))
    if not adapted:
        return state
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        if ".lora_" in name:
            continue
        plain = name.replace(".base_layer.", ".")
        owner = name.partition(".base_layer.")[0]
        if name.endswith(".base_layer.weight"):
            value = (value + delta(adapted[owner])).to(value.dtype)  # rounds once, as PEFT's `merge` does in `fold`
        out[plain] = value
    return out


def delta(layer: nn.Module) -> Tensor:
    """Returns what an adapted layer adds to its weight."""
    compute = layer.get_delta_weight  # pyrefly: ignore
    return compute("default").detach()  # pyrefly: ignore


def fold(model: nn.Module) -> None:
    """Merges every adapter into its weight and restores the plain layers."""
    for name, layer in list(layers(model)):
        with torch.no_grad():
            layer.merge()  # pyrefly: ignore
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())  # pyrefly: ignore
    for module in model.modules():
        vars(module).pop("peft_config", None)  # PEFT's record of its adapters; those of a later stage are new


def save(model: nn.Module, folder: Path, take_unchanged: Callable[[Path], bool]) -> None:
    """Writes adapters and base weights into `folder`.

    Args:
        model: without adapters nothing is written.
        folder: is created.
        take_unchanged: puts the file of the base weights, which do not change within a stage, at the path given from where this
            function wrote it earlier; returns whether it could.
    """
    state = model.state_dict()
    adapters = {name: value.detach().cpu().contiguous() for name, value in state.items() if ".lora_" in name}
    if not adapters:
        return
    folder.mkdir()
    save_file(adapters, folder / ADAPTERS)
    if not take_unchanged(folder / BASE):
        base = {name: value for name, value in state.items() if ".base_layer." in name}
        save_weights(base, folder / BASE)


def save_weights(weights: Mapping[str, Tensor], file: Path) -> None:
    """Writes weights to a file; the same weights give the same bytes."""
    save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, file)


def adapted_layers(folder: Path) -> list[str]:
    """Names of the layers whose adapters `save` wrote into a folder.

    Raises:
        StorageError: the file of the adapters is missing or damaged.
    """
    try:
        with safe_open(folder / ADAPTERS, "pt") as adapters:
            return sorted({name.partition(".lora_")[0] for name in adapters.keys()})  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{folder / ADAPTERS}: {error}.") from error


def restore(model: nn.Module, folder: Path) -> None:
    """Loads the weights that `save` wrote into a model with adapters.

    Raises:
        StorageError: the weights belong to other layers.
    """
    if not folder.is_dir():
        return
    stored: Mapping[str, Tensor] = {**load_file(folder / BASE), **load_file(folder / ADAPTERS)}
    own = model.state_dict()
    mismatched = sorted(name for name in stored if name not in own or own[name].shape != stored[name].shape)
    if mismatched:
        raise StorageError(
            f"{folder}: {mismatched[0]!r} does not match the adapters of this stage.",
            "Resume with the configuration of the original run.",
        )
    with torch.no_grad():
        for name, value in stored.items():
            own[name].copy_(value)
