"""The model section of a run as it holds once everything that it refers to has been looked up.

Runs become the folder of their last checkpoint, `model.from` becomes the parts that it stands for, and the tiling gets the size
of the encoder's input. No weights are read, so whoever asks for token counts alone gets the same answer as training.
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


def resolve_model_section(wanted: ModelConfig) -> ModelConfig:
    """The section with nothing left to look up; `from_.parts` are those that really come out of the other model.

    Raises:
        ConfigError: parts are missing, given twice, or not known.
        UsageError, StorageError: a run that is named has no usable checkpoint.
    """
    if wanted.from_ is not None:
        wanted = _with_parts(wanted, wanted.from_)
    if wanted.language is None:
        raise ConfigError(
            "model.language must be given.", "Name a decoder: model.language.path=..., or a whole model: model.from=..."
        )
    if wanted.language.path is not None:  # a run stands for the model of its last checkpoint
        folder = str(locate.model_folder(wanted.language.path))
        wanted = wanted.model_copy(update={"language": wanted.language.model_copy(update={"path": folder})})
    if wanted.vision is None or wanted.vision.external is not None:
        return wanted
    preparation = preparation_of(wanted, wanted.vision)
    return wanted.model_copy(update={"tiling": wanted.tiling.fitted(preparation.height, preparation.width)})


def _with_parts(wanted: ModelConfig, origin: FromConfig) -> ModelConfig:
    """The section with the parts of another model filled in where it names none itself."""
    path = str(locate.model_folder(origin.path))
    config = loading.read_config(path)
    if not composites.is_known(config):
        composites.find(config, path)
    given = {"vision": wanted.vision is not None, "language": wanted.language is not None}
    taken = tuple(part for part in origin.parts if not given.get(part, False))
    changes: dict[str, object] = {"from_": FromConfig(path=path, parts=taken)}
    if "vision" in taken:
        if isinstance(config.vision_config, StoredFeaturesConfig):
            raise ConfigError(f"model.from: the model at {path!r} was trained on an external table and has no encoder.")
        layer, drop = composites.vision_choice(config, path)
        changes["vision"] = VisionConfig(path=path, layer=layer, drop_class_token=drop)
    if "language" in taken:
        changes["language"] = LanguageConfig(path=path)
    if "connector" in taken:
        connector = composites.connector_config(config, path)
        if wanted.connector not in (MLPConfig(), connector):
            raise ConfigError(
                f"model.connector asks for {wanted.connector.kind!r}, but model.from.parts takes the connector of {path!r}.",
                "Leave out one of the two.",
            )
        changes["connector"] = connector
    if "tiling" in taken:
        changes["tiling"] = tiling_of(path)
    return wanted.model_copy(update=changes)


def tiling_of(path: str) -> TilingConfig:
    """The tiling of a whole model in a folder, or by its Hub id."""
    if is_ours(path):
        return read_processing(path).tiling
    return read_processor(path)[1]


def preparation_of(wanted: ModelConfig, eye: VisionConfig) -> ImagePreparation:
    """How images are prepared for an encoder: as its folder says, or from the sizes of a new one.

    Raises:
        ConfigError: a new encoder has no `image_size`.
    """
    if eye.path is not None:
        return read_processor(eye.path, wanted.fit, wanted.draft)[0]
    size = (eye.config or {}).get("image_size")
    if not isinstance(size, int):
        raise ConfigError("model.vision.config needs a whole number as 'image_size'.")
    values = {key: tuple(value) for key, value in eye.normalise.items()}
    try:
        made = ImagePreparation.model_validate({"resize": (size, size), **values}, strict=False)
    except ValueError as error:
        raise ConfigError(f"model.vision.normalise: {loading.first_line(error)}") from error
    return made.refitted(wanted.fit).model_copy(update={"draft": wanted.draft})
