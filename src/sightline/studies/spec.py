"""What a sweep is: a YAML file of arms, the runs that are made of them in the order of their worth, and what each is asked.

    recipe: flickr8k_mobilenet_v2
    settings: {train.batch_size: 16}
    arms:
      mlp: {model.connector.kind: mlp}
      align: {model.connector.kind: align}
    runs:
      - {arms: [mlp, align], seeds: [0, 1, 2]}
    evaluations:
      - {name: photos, task: caption, split: val, controls: [blind]}
    compare: {baseline: mlp}

Settings have the form of the command line, `section.key: value`. The file is checked whole, with every run's settings, before
anything is computed.
"""

import json
import re
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from sightline.assembly.config.resolving import resolve_config, stage_plan
from sightline.assembly.config.schema import RunConfig
from sightline.assembly.config.sources import sources_of
from sightline.config import Config, Tree, read_yaml, validate_tree
from sightline.errors import ConfigError, UsageError
from sightline.evaluation.controls import Control
from sightline.evaluation.spec import EvalSpec, QuestionConfig
from sightline.recipes import recipe_by_name

Value = bool | int | float | str | list[Any] | dict[str, Any] | None
Settings = dict[str, Value]
NAME = r"^[A-Za-z][A-Za-z0-9_.]*$"
MAX_RUNS = 1000


class RunsConfig(Config):
    """A block of runs: every seed of every cell of every arm, the first seed of everything first."""

    arms: tuple[str, ...] = ()
    """Names of arms; all by default."""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Values of `seed_keys`."""
    grid: dict[str, tuple[Value, ...]] = Field(default_factory=dict)
    """Settings that are varied, each with its values; `null` leaves the setting as it is."""


class EvaluationConfig(QuestionConfig):
    """What finished runs are asked, plain and with each of the changes that are listed."""

    name: str = Field(pattern=NAME)
    """Of its folder and its table."""
    data: str | None = None
    """A dataset folder; the one that the run was trained on by default."""
    features: str | None = None
    """A feature store; the run's own by default."""
    arms: tuple[str, ...] = ("*",)
    """Patterns of the arms that are asked."""
    controls: tuple[Control, ...] = ()
    """Beside the plain evaluation."""
    noise: tuple[float, ...] = ()
    """Sizes of Gaussian noise on the visual features, in units of their standard deviation; each is one evaluation more."""
    noise_arms: tuple[str, ...] = ("*",)
    """Patterns of the arms that are asked under noise."""
    words: tuple[int, ...] = ()
    """Only so many of the words that an `align` connector mixes, each one evaluation more; other connectors are not asked."""
    batch_size: int = Field(default=32, ge=1)
    """Rows of a batch."""


class CompareConfig(Config):
    """What the report puts side by side."""

    baseline: str | None = None
    """The arm that others are subtracted from."""
    metrics: tuple[str, ...] = ()
    """Scores of the report's tables; by default the headline of each evaluation's task."""
    reference: Settings = Field(default_factory=dict)
    """A cell of the grid: what the other cells lose against it is compared, arm by arm, with what the baseline loses."""


class SweepConfig(Config):
    """A sweep file."""

    title: str = ""
    """Heading of the report."""
    recipe: str | None = None
    """Name of a recipe that the runs begin with."""
    config: str | None = None
    """Or a configuration file, its path relative to this file."""
    settings: Settings = Field(default_factory=dict)
    """Of all runs."""
    seed_keys: tuple[str, ...] = Field(default=("train.seed",), min_length=1)
    """Settings that a seed sets."""
    arms: dict[str, Settings] = Field(min_length=1)
    """What is compared: settings by name."""
    runs: tuple[RunsConfig, ...] = Field(min_length=1)
    """Which runs are made, in the order of their worth."""
    evaluations: tuple[EvaluationConfig, ...] = Field(min_length=1)
    compare: CompareConfig = CompareConfig()

    @model_validator(mode="after")
    def _names_exist(self) -> "SweepConfig":
        if (self.recipe is None) == (self.config is None):
            raise ValueError("give either 'recipe' or 'config'")
        for name in self.arms:
            if not re.match(NAME, name):
                raise ValueError(f"arm {name!r}: a name has letters, digits, dots and underscores, and begins with a letter")
        for block in self.runs:
            odd = [name for name in block.arms if name not in self.arms]
            if odd:
                raise ValueError(f"runs: there is no arm {odd[0]!r}; there are {', '.join(self.arms)}")
            if any(not values for values in block.grid.values()):
                raise ValueError("runs: a key of the grid has no value")
        if self.compare.baseline is not None and self.compare.baseline not in self.arms:
            raise ValueError(f"compare.baseline: there is no arm {self.compare.baseline!r}; there are {', '.join(self.arms)}")
        names = [evaluation.name for evaluation in self.evaluations]
        if len(set(names)) < len(names):
            raise ValueError(f"two evaluations have the same name: {', '.join(names)}")
        return self


# Runs -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """One evaluation of a run.

    Attributes:
        key: name of its folder: the evaluation's name and what differs from the plain one.
        config: the evaluation.
        change: what differs: nothing, or one of the fields `control`, `noise` and `words` of `EvalSpec`.
    """

    key: str
    config: EvaluationConfig
    change: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PlannedRun:
    """A run of a sweep.

    Attributes:
        name: of its folder.
        arm, seed: what it is.
        cell: its values of the grid.
        config: its whole configuration.
        asked: its evaluations.
    """

    name: str
    arm: str
    seed: int
    cell: Mapping[str, Value]
    config: RunConfig
    asked: tuple[Asked, ...]

    def spec_of(self, asked: Asked) -> EvalSpec:
        """Returns one of the evaluations, with what it takes from the run's configuration filled in."""
        last = stage_plan(self.config, len(self.config.stages) - 1).data
        shared = asked.config.model_dump(include=set(QuestionConfig.model_fields))
        data = asked.config.data or sources_of(last)[0].path
        return EvalSpec.model_validate({**shared, "data": data, "features": asked.config.features or last.features, **asked.change})


@dataclass(frozen=True)
class Sweep:
    """A sweep file with its runs in order."""

    path: Path
    config: SweepConfig
    runs: tuple[PlannedRun, ...]

    def chosen(self, only: str | None, limit: int | None) -> tuple[PlannedRun, ...]:
        """Returns the runs whose name fits a pattern (`align*`), the first `limit` of them.

        Raises:
            UsageError: the pattern fits none.
        """
        found = [run for run in self.runs if only is None or any(fnmatchcase(run.name, part) for part in only.split(","))]
        if not found:
            raise UsageError(f"no run of {self.path} is named {only!r}.", f"For example {self.runs[0].name!r}.")
        return tuple(found[:limit])


def sweep_file(path: Path) -> Path:
    """Returns a sweep file; where `studies/NAME.yaml` or `NAME.yaml` does not exist, the one that comes with Sightline."""
    if path.exists() or path.parent not in (Path(), Path("studies")):
        return path
    homes = Path(sysconfig.get_path("data"), "share", "sightline", "studies"), Path(__file__).parents[3] / "studies"
    return next((home / path.name for home in homes if (home / path.name).is_file()), path)


def read_sweep(path: str | Path, arguments: Sequence[str] = ()) -> Sweep:
    """Reads a sweep file and resolves every run's configuration.

    Args:
        path: the file; see `sweep_file`.
        arguments: `key=value`, laid over the file's settings and under those of the arms.

    Raises:
        ConfigError: a key of the file or a setting of a run is wrong; says where.
    """
    path = sweep_file(Path(path))
    tree = read_yaml(path)
    config = validate_tree(SweepConfig, tree)
    base = recipe_by_name(config.recipe) if config.recipe is not None else None
    file = path.parent / config.config if config.config is not None else None
    runs: dict[str, PlannedRun] = {}
    for number, block in enumerate(config.runs):
        arms = block.arms or tuple(config.arms)
        cells = [dict(zip(block.grid, values, strict=True)) for values in product(*block.grid.values())]
        for seed, cell, arm in product(block.seeds, cells, arms):
            cell = {key: value for key, value in cell.items() if value is not None}
            name = run_name(arm, cell, seed)
            given = _SweepArguments(tree)
            given.section(config.settings, ("settings",))
            given.words(arguments)
            given.section(config.arms[arm], ("arms", arm))
            given.section(cell, ("runs", number, "grid"))
            given.section(dict.fromkeys(config.seed_keys, seed), ("seed_keys",))
            resolved = given.resolved(base, file, name)
            asked = asked_of(config.evaluations, arm, resolved.model.connector.kind)
            planned = PlannedRun(name, arm, seed, cell, resolved, asked)
            if name in runs and runs[name].config != planned.config:
                raise ConfigError(f"{path}: two runs are named {name!r} and differ.", "Give the arm of one another name.")
            runs.setdefault(name, planned)
            if len(runs) > MAX_RUNS:
                raise ConfigError(f"{path}: more than {MAX_RUNS} runs.", "Split the file.")
    return Sweep(path, config, tuple(runs.values()))


def run_name(arm: str, cell: Mapping[str, Value], seed: int) -> str:
    """Names a run by its arm, cell and seed: `align-noise0.3-s0`."""
    return "-".join([arm, *[f"{key.rpartition('.')[2]}{_short(value)}" for key, value in cell.items()], f"s{seed}"])


def cell_name(cell: Mapping[str, Value]) -> str:
    """Names a cell for people: `noise=0.3`."""
    return ", ".join(f"{key.rpartition('.')[2]}={_short(value)}" for key, value in cell.items())


def _short(value: Value) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return re.sub(r"[^\w.]+", "_", text).strip("_")


def asked_of(evaluations: Sequence[EvaluationConfig], arm: str, connector: str) -> tuple[Asked, ...]:
    """Returns the evaluations of an arm with a kind of connector, the plain ones with their controls first."""
    own = [item for item in evaluations if _fits(arm, item.arms)]
    out = []
    for item in own:
        out.append(Asked(item.name, item))
        out += [Asked(f"{item.name}+{control.replace(':', '')}", item, {"control": control}) for control in item.controls]
    for item in own:
        if _fits(arm, item.noise_arms):
            out += [Asked(f"{item.name}+noise{sigma:g}", item, {"noise": sigma}) for sigma in item.noise]
        if connector == "align":
            out += [Asked(f"{item.name}+words{count}", item, {"words": count}) for count in item.words]
    return tuple(out)


def _fits(arm: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(arm, pattern) for pattern in patterns)


class _SweepArguments:
    """Settings as arguments of `resolve_config`, and where each stands in the sweep file."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.arguments: list[str] = []
        self.places: dict[str, str] = {}

    def section(self, settings: Mapping[str, Value], at: tuple[str | int, ...]) -> None:
        for key, value in settings.items():
            argument = f"{key}={json.dumps(value, ensure_ascii=False)}"
            self.arguments.append(argument)
            self.places[argument] = f"{self.tree.origin((*at, key))}: {key}"

    def words(self, arguments: Sequence[str]) -> None:
        self.arguments.extend(arguments)

    def resolved(self, base: RunConfig | None, file: Path | None, name: str) -> RunConfig:
        try:
            return resolve_config(base, file, self.arguments)
        except ConfigError as error:
            message = error.message
            for argument, place in self.places.items():
                message = message.replace(f"argument {argument!r}", place).replace(f"argument {argument}", place)
            raise ConfigError(f"run {name!r}: {message}", error.remedy) from None
