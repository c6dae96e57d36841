"""`sightline.json` of a model's folder: how records become inputs of the model."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from sightline.config import Config
from sightline.data.images.preparation import ImagePreparation
from sightline.data.images.tilings import AnyTiling, WholeConfig
from sightline.data.samples.encoding import Policy
from sightline.errors import StorageError
from sightline.runtime.storage import read_json

PROCESSING = "sightline.json"


class Processing(Config):
    """How records become inputs of a model; `sightline.json` of its folder."""

    schema_version: Literal[1] = 1
    prompt: str = ""
    template: str = "auto"
    supervise: Policy = "assistant"
    max_tokens: int = Field(2048, ge=1)
    tiling: AnyTiling = WholeConfig()
    preparation: ImagePreparation | None = None
    recipe: str = "custom"
    run: dict[str, Any] = Field(default_factory=dict)
    """Where the weights come from: recipe, stage, step."""


def is_ours(folder: str | Path) -> bool:
    """Tells whether a folder holds a model that Sightline wrote, also one whose `sightline.json` was lost."""
    folder = Path(folder)
    if (folder / PROCESSING).is_file():
        return True
    try:
        config = read_json(folder / "config.json") if (folder / "config.json").is_file() else None
    except StorageError:
        return False  # whoever reads the configuration says what is wrong with it
    return isinstance(config, dict) and config.get("model_type") == "sightline"


def read_processing(folder: str | Path) -> Processing:
    """Reads `sightline.json` of a model folder.

    Raises:
        StorageError: the folder holds no Sightline model, or the file is damaged.
    """
    file = Path(folder) / PROCESSING
    if not file.is_file():
        raise StorageError(
            f"{folder} has no {PROCESSING}, the file with prompt, chat template and image preparation of a Sightline model.",
            "Give a run, or copy the whole model folder of a checkpoint.",
        )
    try:
        return Processing.model_validate(read_json(file), strict=False)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        raise StorageError(
            f"{file}: not how this version writes it ({place}: {fault['msg']}).", "If another version wrote it, use that one."
        ) from error
