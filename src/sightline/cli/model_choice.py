"""Which model a command of `data` looks through (a recipe, a file, a run), and which words are folders and which settings."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sightline.errors import UsageError

if TYPE_CHECKING:
    from sightline.assembly.config.schema import RunConfig
    from sightline.assembly.model.blueprint import Blueprint


def split_words(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Folders and `key=value` settings; a folder whose name holds an equals sign is a folder."""
    settings = [word for word in words if "=" in word and not Path(word).is_dir()]
    return [Path(word) for word in words if word not in settings], settings


@dataclass(frozen=True)
class ModelChoice:
    """What was given on the command line.

    Raises:
        UsageError: a run together with a configuration, or settings without either.
    """

    config: Path | None
    recipe: str | None
    run: str | None
    settings: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.run is not None and (self.config is not None or self.recipe is not None):
            raise UsageError("Give --run, or --config and --recipe, not both.")
        if self.settings and not self.is_given:
            raise UsageError(
                f"{self.settings[0]!r} is a setting, but there is no --config, --recipe or --run that it could change."
            )

    @property
    def is_given(self) -> bool:
        """Whether there is a model at all."""
        return not (self.config is None and self.recipe is None and self.run is None)

    def folders(self) -> list[Path]:
        """The dataset folders that the configuration names.

        Raises:
            UsageError: there is no configuration.
            ConfigError: it names none.
        """
        if not self.is_given:
            raise UsageError("Give a dataset folder.", "Make one: sightline data prepare SOURCE --format FORMAT --out DIR")
        from sightline.assembly.inspect.rows import folders_of

        config = self._resolved() if self.run is None else self.describe(()).config
        if config is None:
            raise UsageError(f"{self.run} does not say what it was trained on.", "Give a dataset folder.")
        return list(folders_of(config))

    def describe(self, folders: Sequence[Path]) -> "Blueprint":
        """Returns the model without its weights; `folders` take the place of the configuration's data."""
        from dataclasses import replace

        from sightline.assembly.inspect.rows import with_folders
        from sightline.assembly.model.blueprint import config_blueprint, folder_blueprint

        if self.run is None:
            config = self._resolved()
            return config_blueprint(with_folders(config, folders) if folders else config)
        found = folder_blueprint(self.run, self.settings)
        if found.config is None or not folders:
            return found
        return replace(found, config=with_folders(found.config, folders))

    def _resolved(self) -> "RunConfig":
        from sightline.assembly.config.resolving import resolve_config
        from sightline.recipes import recipe_by_name

        return resolve_config(None if self.recipe is None else recipe_by_name(self.recipe), self.config, self.settings)
