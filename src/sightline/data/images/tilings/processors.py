"""Reads image processors of vision-language models as a preparation of crops and a tiling.

`ImagePreparation` covers the processors of encoders. Those of LLaVA-NeXT, Idefics3 and SmolVLM also tile images; the preparation
and tiling read here give the same pixels, bit for bit.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sightline.data.images.preparation import Fit, ImagePreparation, read_processor_file
from sightline.data.images.tilings.anyres import AnyResConfig
from sightline.data.images.tilings.split import SplitConfig
from sightline.data.images.tilings.whole import WholeConfig
from sightline.errors import ConfigError

Tiling = AnyResConfig | SplitConfig | WholeConfig

# Encoder processors with the same defaults for missing keys, and the default filter.
_LIKE = {"Idefics3": ("SiglipImageProcessor", 1), "LlavaNext": ("BlipImageProcessor", 3), "SmolVLM": ("SiglipImageProcessor", 1)}


def read_processor(path: str | Path, fit: Fit = "encoder", draft: bool = False) -> tuple[ImagePreparation, Tiling]:
    """Reads how the image processor in a folder prepares and tiles images.

    Args:
        path: a folder as `save_pretrained` writes it, or a Hub id; of an encoder or of a vision-language model.
        fit: see `ImagePreparation.refitted`.
        draft: see the field of `ImagePreparation`.

    Raises:
        ConfigError: there is no processor file, it is damaged, or its kind is not supported.
    """
    settings, file = read_processor_file(str(path))
    name = str(settings.get("image_processor_type")).removesuffix("Pil").removesuffix("Fast").removesuffix("ImageProcessor")
    if name not in _TILED:
        return ImagePreparation.from_processor(settings, file).refitted(fit).model_copy(update={"draft": draft}), WholeConfig()
    try:
        side, tiling = _TILED[name](settings, file)
    except ValidationError as error:
        raise ConfigError(f"{file}: its sizes are out of range ({error.errors()[0]['msg']}).", "Use another model.") from None
    kind, resample = _LIKE[name]
    kept = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
    values = {key: settings[key] for key in kept if key in settings}
    given = settings.get("resample")
    values |= {"image_processor_type": kind, "resample": resample if given is None else given}
    values |= {"size": {"height": side, "width": side}, "do_center_crop": False}
    preparation = ImagePreparation.from_processor(values, file).refitted(fit).model_copy(update={"draft": draft})
    return preparation, tiling


def _idefics3(settings: dict[str, Any], file: str) -> tuple[int, SplitConfig]:
    """Returns side of a tile, and the tiling."""
    if settings.get("do_resize", True) is not True:
        raise ConfigError(f"{file}: 'do_resize' is off, so crops would have any size.", "Use another model.")
    side = _edge(settings, "max_image_size", "longest_edge", 364, file)
    longest = _edge(settings, "size", "longest_edge", 4 * 364, file)
    splits = settings.get("do_image_splitting", True)
    if not isinstance(splits, bool):
        raise ConfigError(f"{file}: 'do_image_splitting' must be true or false, got {splits!r}.")
    return side, SplitConfig(tile=side, longest_edge=longest, splits=splits)


def _llava_next(settings: dict[str, Any], file: str) -> tuple[int, AnyResConfig]:
    size = settings.get("size") or {"shortest_edge": 224}
    key = "shortest_edge" if isinstance(size, dict) and "shortest_edge" in size else "height"
    side = _edge(settings, "size", key, 224, file)
    crop = _edge(settings, "crop_size", "height", 224, file) if settings.get("do_center_crop", True) else side
    if crop != side:
        raise ConfigError(f"{file}: tiles of {crop} pixels are made to {side}; they must be equal.", "Use another model.")
    pinpoints = settings.get("image_grid_pinpoints") or [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    return side, AnyResConfig(tile=side, grids=grids_of(pinpoints, side, file))


def grids_of(pinpoints: Any, side: int, file: str) -> tuple[tuple[int, int], ...]:
    """Converts LLaVA-NeXT's `image_grid_pinpoints` (`[height, width]` in pixels) to rows and columns of tiles.

    Raises:
        ConfigError: a size is no multiple of the tile.
    """
    out = []
    for pair in pinpoints if isinstance(pinpoints, list | tuple) else [pinpoints]:
        match pair:
            case [int(height), int(width)] if height > 0 and width > 0 and height % side == width % side == 0:
                out.append((height // side, width // side))
            case _:
                raise ConfigError(
                    f"{file}: 'image_grid_pinpoints' holds {pair!r}, no pair of multiples of the tile's {side} pixels."
                )
    return tuple(out)


def _edge(settings: dict[str, Any], key: str, edge: str, default: int, file: str) -> int:
    value = settings.get(key)
    found = value.get(edge) if isinstance(value, dict) else default if value is None else value
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise ConfigError(f"{file}: {key!r} must give {edge!r} as a whole number, got {value!r}.")
    return found


_TILED: dict[str, Callable[[dict[str, Any], str], tuple[int, Tiling]]] = {
    "Idefics3": _idefics3,
    "LlavaNext": _llava_next,
    "SmolVLM": _idefics3,
}
