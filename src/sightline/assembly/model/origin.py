"""Writes frozen parts of a run anew from where its configuration loads them, for checkpoints whose copies are all damaged."""

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from sightline.assembly.config import locate
from sightline.assembly.config.parts import resolve_model_section
from sightline.assembly.config.resolving import stored_config
from sightline.assembly.config.schema import RunConfig
from sightline.assembly.model.blueprint import config_blueprint, encoder_blueprint
from sightline.assembly.model.build import build_decoder, build_encoder, build_model
from sightline.errors import StorageError
from sightline.models import loading
from sightline.models.saving import INDEX, load_model, save_part
from sightline.training import lora
from sightline.training.checkpoint import LORA, MODEL

KERNEL = "eager"  # no kernel changes a weight
PARTS_FROM_ELSEWHERE = ("vision", "language", "text")


class RunOrigin:
    """The origin of a run's parts, see `checkpoint.Origin`.

    Args:
        run: the run folder.
    """

    def __init__(self, run: Path) -> None:
        self.run = run

    def write(self, checkpoint: Path, name: str, target: Path) -> str:
        """Writes an encoder or decoder of `model/`, or the base weights of adapters.

        Raises:
            SightlineError: the file is another one, or the origin is gone.
        """
        if name == f"{LORA}/{lora.BASE}":
            owners = lora.adapted_layers(checkpoint / LORA)
            parts = {owner.partition(".")[0] for owner in owners}
            states, places = zip(*(self._part(checkpoint, part) for part in sorted(parts)), strict=True)
            state = {key: value for own in states for key, value in own.items()}
            base = {
                f"{owner}.base_layer.{kind}": state[f"{owner}.{kind}"]
                for owner in owners
                for kind in ("weight", "bias")
                if f"{owner}.{kind}" in state
            }
            lora.save_weights(base, target)
            return " and ".join(places)
        part = Path(name).stem
        if name not in (f"{MODEL}/{part}.safetensors" for part in PARTS_FROM_ELSEWHERE):
            raise StorageError(f"{name} has no origin outside of the run.")
        state, place = self._part(checkpoint, part)
        save_part(state, _names(checkpoint / MODEL, f"{part}.safetensors"), target)
        return place

    def _part(self, checkpoint: Path, part: str) -> tuple[Mapping[str, Tensor], str]:
        """Returns the weights of a part as the run began with them, by full name, and where they come from."""
        config = stored_config(self.run)
        if config.init is not None:
            return load_model(str(locate.model_folder(config.init)), KERNEL).state_dict(), f"init={config.init}"
        if config.model.dual is not None:
            return build_model(config_blueprint(config), config.train.seed, KERNEL).state_dict(), _place(config, part)
        section = resolve_model_section(config.model)
        seed = config.train.seed
        if part == "vision":
            module = build_encoder(section, encoder_blueprint(section).config, seed, KERNEL)
        else:
            num_tokens = loading.read_config(str(checkpoint / MODEL)).get_text_config(decoder=True).vocab_size
            module = build_decoder(section, num_tokens, seed, KERNEL)
        return {f"{part}.{key}": value for key, value in module.state_dict().items()}, _place(config, part)


def _place(config: RunConfig, part: str) -> str:
    """Returns the key and value by which a configuration takes a part from somewhere."""
    model = config.model
    key = {"vision": "model.vision", "language": "model.language", "text": "model.dual.text"}[part]
    own = {"vision": model.vision, "language": model.language, "text": model.dual and model.dual.text}[part]
    if own is None:
        assert model.from_ is not None
        return f"model.from.path={model.from_.path}"
    return f"{key}.path={own.path}" if own.path is not None else f"{key}.config"


def _names(folder: Path, file: str) -> list[str]:
    """Returns the weights that the index of a model folder places in a file."""
    index = json.loads((folder / INDEX).read_text("utf-8"))
    return [name for name, place in index["weight_map"].items() if place == file]
