"""Writes a model as a `from_pretrained` folder with one safetensors file per part, and reads it back.

A part that has not changed since an earlier folder is hard-linked from there: a run that trains a connector of some megabytes
between frozen parts of gigabytes writes only the connector at each checkpoint.
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from sightline.models import comalign, composites, dual, language, loading, vlm
from sightline.models.comalign import SightlineComAlign
from sightline.models.dual import SightlineDualEncoder
from sightline.models.text import TextModel
from sightline.models.vlm import PARTS, SightlineConfig, SightlineForConditionalGeneration
from sightline.runtime.storage import write_json

INDEX = "model.safetensors.index.json"


def save_model(
    model: PreTrainedModel,
    folder: Path,
    take_unchanged: Callable[[Path], bool] | None = None,
    changed: Collection[str] = PARTS,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes configuration and weights.

    Args:
        model: the vision-language model, or any transformers model (saved by its own `save_pretrained`).
        folder: exists and is empty.
        take_unchanged: puts the file of an unchanged part at the path given, from where this function wrote it earlier; returns
            whether it could.
        changed: parts whose weights may differ from those written earlier.
        state: weights to write instead of the model's own state dict (adapters merged).
    """
    if not isinstance(model, SightlineForConditionalGeneration | SightlineDualEncoder | SightlineComAlign):
        model.save_pretrained(folder, state_dict=None if state is None else dict(state))
        return
    # As transformers' own `save_pretrained` writes them.
    model.config.dtype, model.config.architectures = model.dtype, [type(model).__name__]
    model.config.save_pretrained(folder)
    if isinstance(model, SightlineForConditionalGeneration):
        model.generation_config.save_pretrained(folder)
        parts, part_of = PARTS, vlm.part_of
    elif isinstance(model, SightlineComAlign):
        parts, part_of = ("dual", comalign.PART), _aligned_part
        changed = {comalign.PART if part == comalign.PART else "dual" for part in changed}
    else:
        parts, part_of = dual.PARTS, _first_name
    weight_map: dict[str, str] = {}
    total = 0
    tied = set(model.all_tied_weights_keys)
    state = {name: value for name, value in (model.state_dict() if state is None else state).items() if name not in tied}
    for part in parts:
        names = [name for name in state if part_of(name) == part]
        if not names:  # `StoredFeatures`, which has no weights
            continue
        file = f"{part}.safetensors"
        weight_map |= dict.fromkeys(names, file)
        total += sum(state[name].numel() * state[name].element_size() for name in names)
        if take_unchanged is None or part in changed or not take_unchanged(folder / file):
            save_part(state, names, folder / file)
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})


def _first_name(name: str) -> str:
    return name.partition(".")[0]


def _aligned_part(name: str) -> str:
    return "dual" if name.startswith("dual.") else comalign.PART


def save_part(state: Mapping[str, Tensor], names: Collection[str], file: Path) -> None:
    """Writes some weights of a state dict to a safetensors file; the same weights give the same bytes."""
    save_file({name: state[name].detach().to("cpu").contiguous() for name in names}, file, metadata={"format": "pt"})


def load_model(folder: str, attention: str) -> SightlineForConditionalGeneration | TextModel:
    """Reads a folder that `save_model` wrote: a Sightline vision-language model, or a decoder alone.

    Raises:
        ConfigError: the folder holds another kind of model.
        StorageError: its weights are damaged.
    """
    config = loading.read_config(folder)
    if isinstance(config, SightlineConfig):
        model = composites.load(folder, attention)
        assert isinstance(model, SightlineForConditionalGeneration)
        return model
    return TextModel(loading.load(AutoModelForCausalLM, folder, config, language.kernel_for(config, attention)))


def non_finite(state: Mapping[str, Tensor]) -> str | None:
    """Returns the name of the first weight that holds NaN or infinity, None if all are finite."""
    for name, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            return name
    return None
