"""Low-rank adapters on a part, by PEFT: put in for a stage, folded into the weights at its end.

While a stage runs, its checkpoints hold the folded weights under `model/` (any `from_pretrained` reads them) and, for an exact
resume, the unfolded ones under `lora/`: the adapters, and the base weights once, linked from checkpoint to checkpoint.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sightline.config import Config
from sightline.errors import ConfigError, StorageError
from sightline.runtime.storage import link_or_copy

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
    """Scale; the rank by default."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    rslora: bool = False
    """Divide by the square root of the rank (Kalajdzievski 2023)."""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Last name of the layers that get an adapter."""
    full: tuple[str, ...] = ()
    """What trains fully beside the adapters: `norms`, `embeddings`, `head`, or regular expressions of parameter names."""


def inject(part: nn.Module, rule: LoraRule, name: str) -> None:
    """Puts adapters into a part; a part that has them already is left as it is.

    Args:
        part: a module of the model.
        rule: where and how large.
        name: of the part, for messages.

    Raises:
        ConfigError: PEFT is not installed, or no layer has a target's name.
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
            f"{name} has no linear layer named {missing[0]!r}; it has {', '.join(sorted(linear))}.", "Set lora.targets."
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
    """Adapted layers by name."""
    for name, child in module.named_modules():
        if any(key.startswith("lora_A") for key, _ in child.named_children()):
            yield name, child


def check_full(rule: LoraRule, parameters: Collection[str], name: str) -> None:
    """Checks that everything that is to train fully is there.

    Raises:
        ConfigError: no parameter of the part has one of the names of `full`; a tied decoder has no head of its own.
    """
    for pattern in rule.full:
        if pattern == "head" and "embeddings" in rule.full:  # one and the same where they are tied
            continue
        if not any(re.search(FULL.get(pattern, pattern), parameter) for parameter in parameters):
            tied = " Where head and embeddings are tied, 'embeddings' means both." if pattern == "head" else ""
            raise ConfigError(f"lora.full: nothing in {name} is called {pattern!r}.", f"Known are {', '.join(FULL)}.{tied}")


def trains_under(rule: LoraRule, parameter: str) -> bool:
    """Whether a parameter of an adapted part trains."""
    if ".lora_" in parameter:
        return True
    return any(re.search(FULL.get(pattern, pattern), parameter) for pattern in rule.full)


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of the model as it is without adapters, their products added to the weights; the model is not touched."""
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
    """Merges every adapter into its weight and puts the plain layer back in its place."""
    for name, layer in list(layers(model)):
        with torch.no_grad():
            layer.merge()  # pyrefly: ignore
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())  # pyrefly: ignore
    for module in model.modules():
        vars(module).pop("peft_config", None)  # PEFT's note of what it put in; the adapters of a later stage are new ones


def save(model: nn.Module, folder: Path, previous: Path | None) -> list[str]:
    """Writes adapters and base weights into `folder`; returns the names that are links to files of `previous`."""
    state = model.state_dict()
    adapters = {name: value.detach().cpu().contiguous() for name, value in state.items() if ".lora_" in name}
    if not adapters:
        return []
    folder.mkdir()
    save_file(adapters, folder / ADAPTERS)
    if previous is not None and (previous / BASE).is_file():
        link_or_copy(previous / BASE, folder / BASE)
        return [BASE]
    save_file({name: value.detach().cpu().contiguous() for name, value in state.items() if ".base_layer." in name}, folder / BASE)
    return []


def restore(model: nn.Module, folder: Path) -> None:
    """Gives an adapted model the weights that `save` wrote.

    Raises:
        StorageError: they are of other layers.
    """
    if not folder.is_dir():
        return
    stored: Mapping[str, Tensor] = {**load_file(folder / BASE), **load_file(folder / ADAPTERS)}
    own = model.state_dict()
    odd = sorted(name for name in stored if name not in own or own[name].shape != stored[name].shape)
    if odd:
        raise StorageError(f"{folder}: {odd[0]!r} does not fit the adapters of this stage.", "Resume with the same configuration.")
    with torch.no_grad():
        for name, value in stored.items():
            own[name].copy_(value)
