"""Resolves the model section of a run: replaces everything that it refers to.

A run becomes the folder of its last checkpoint, `model.from` the parts that it stands for, and the tiling gets the size of the
encoder's input. No weights are read; token counts computed from the result equal those of training.
"""

from sightline.assembly.config import locate
from sightline.assembly.config.schema import FromConfig, ModelConfig
from sightline.data.images.preparation import ImagePreparation
from sightline.data.images.tilings import TilingConfig
from sightline.data.images.tilings.processors import read_processor
from sightline.data.samples.processing import is_ours, read_processing
from sightline.errors import ConfigError
from sightline.models import composites, loading
from sightline.models.connectors.mlp import MLPConfig
from sightline.models.language import LanguageConfig
from sightline.models.stored import StoredFeaturesConfig
from sightline.models.vision import VisionConfig


def resolve_model_section(section: ModelConfig) -> ModelConfig:
    """Resolves a model section. In the result `from_.parts` holds only the parts that are taken from the other model.

    Raises:
        ConfigError: parts are missing, given twice, or unknown.
        UsageError, StorageError: a named run has no usable checkpoint.
    """
    if section.dual is not None:
        return _with_towers(section)
    if section.from_ is not None:
        section = _with_parts(section, section.from_)
    if section.language is None:
        raise ConfigError(
            "model.language must be given.", "Name a decoder: model.language.path=..., or a whole model: model.from=..."
        )
    if section.language.path is not None:  # a run means the model of its last checkpoint
        folder = str(locate.model_folder(section.language.path))
        section = section.model_copy(update={"language": section.language.model_copy(update={"path": folder})})
    if section.vision is None or section.vision.external is not None:
        return section
    preparation = preparation_of(section, section.vision)
    return section.model_copy(update={"tiling": section.tiling.fitted(preparation.height, preparation.width)})


def _with_towers(section: ModelConfig) -> ModelConfig:
    """Replaces a run that is named as a whole dual encoder by the folder of its last checkpoint."""
    assert section.dual is not None
    if section.dual.path is None:
        return section
    folder = str(locate.model_folder(section.dual.path))
    return section.model_copy(update={"dual": section.dual.model_copy(update={"path": folder})})


def _with_parts(section: ModelConfig, origin: FromConfig) -> ModelConfig:
    """Fills in the parts of another model that the section does not name itself."""
    path = str(locate.model_folder(origin.path))
    config = loading.read_config(path)
    if not composites.is_known(config):
        composites.find(config, path)
    given = {"vision": section.vision is not None, "language": section.language is not None}
    taken = tuple(part for part in origin.parts if not given.get(part, False))
    changes: dict[str, object] = {"from_": FromConfig(path=path, parts=taken)}
    if "vision" in taken:
        if isinstance(config.vision_config, StoredFeaturesConfig):
            raise ConfigError(f"model.from: the model at {path!r} was trained on an external table and has no encoder.")
        layer, skip_class_token = composites.vision_choice(config, path)
        changes["vision"] = VisionConfig(path=path, layer=layer, drop_class_token=skip_class_token)
    if "language" in taken:
        changes["language"] = LanguageConfig(path=path)
    if "connector" in taken:
        connector = composites.connector_config(config, path)
        if section.connector not in (MLPConfig(), connector):
            raise ConfigError(
                f"model.connector asks for {section.connector.kind!r}, but model.from.parts takes the connector of {path!r}.",
                "Leave out one of the two.",
            )
        changes["connector"] = connector
    if "tiling" in taken:
        changes["tiling"] = tiling_of(path)
    return section.model_copy(update=changes)


def tiling_of(path: str) -> TilingConfig:
    """Returns the tiling of a vision-language model in a folder or on the Hub."""
    if is_ours(path):
        return read_processing(path).tiling
    return read_processor(path)[1]


def preparation_of(section: ModelConfig, encoder: VisionConfig) -> ImagePreparation:
    """Returns the image preparation of an encoder: from its folder, or from the configuration of a new one.

    Raises:
        ConfigError: a new encoder has no `image_size`.
    """
    if encoder.path is not None:
        return read_processor(encoder.path, section.fit, section.draft)[0]
    size = (encoder.config or {}).get("image_size")
    if not isinstance(size, int):
        raise ConfigError("model.vision.config needs a whole number as 'image_size'.")
    values = {key: tuple(value) for key, value in encoder.normalise.items()}
    try:
        preparation = ImagePreparation.model_validate({"resize": (size, size), **values}, strict=False)
    except ValueError as error:
        raise ConfigError(f"model.vision.normalise: {loading.first_line(error)}") from error
    return preparation.refitted(section.fit).model_copy(update={"draft": section.draft})
