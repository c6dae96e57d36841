"""The Python API: `import sightline as sl` gives these functions as `sl.load`, `sl.evaluate`, `sl.look` and so on.

Each takes what its command takes: a run, RUN@STAGE, a model folder or a Hub id; options are those of the command, by the names that
`EvalSpec`, `DecodingConfig` and the configuration give them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from sightline.assembly.config.resolving import resolve_config
from sightline.assembly.config.schema import RunConfig
from sightline.assembly.evaluate.chat import Answer, ChatModel
from sightline.assembly.evaluate.evaluate import Evaluation
from sightline.assembly.evaluate.evaluate import evaluate as run_evaluation
from sightline.assembly.evaluate.looking import look as run_look
from sightline.assembly.model.bundle import ModelBundle
from sightline.assembly.train.run import TrainResult
from sightline.assembly.train.run import train as run_training
from sightline.config import Config, Tree, validate_tree
from sightline.evaluation.probes.looking import LADDER, LookingFindings
from sightline.evaluation.spec import EvalSpec
from sightline.generation.decode import DecodingConfig
from sightline.recipes import recipe_by_name
from sightline.reporting.looking_page import looking_page
from sightline.runtime.storage import write_text
from sightline.studies.compare import CONTROLS, ComparisonOptions, ComparisonResult
from sightline.studies.compare import compare as run_comparison

Name = str | PathLike[str]


@dataclass(frozen=True)
class Model:
    """A model on its device, as `load` returns it.

    Attributes:
        name, checkpoint, device, threads: the arguments of `load`.
        chat: the model as something that answers.
    """

    name: str
    chat: ChatModel
    checkpoint: str = "last"
    device: str = "auto"
    threads: int | None = None

    @property
    def bundle(self) -> ModelBundle:
        """The model's modules (`bundle.model`), tokenizer and processing."""
        return self.chat.bundle

    def generate(self, image: Any = None, prompt: str | None = None, **options: Any) -> Answer:
        """Generates a text about one or several images.

        Args:
            image: a path, a PIL image, an array `[height, width, channels]`, a list of these, or None.
            prompt: text beside the images; by default the one that the model was trained with.
            options: fields of `DecodingConfig`, such as `max_new_tokens=64`; greedy by default.

        Returns:
            The answer, with `text`, `num_tokens` and `seconds`; printed, it is its text.

        Raises:
            UsageError: an image cannot be opened, or the model takes none.
            ConfigError: there is no such option.
        """
        decoding = validate_tree(DecodingConfig, Tree(dict(options)))
        images = list(image) if isinstance(image, list | tuple) else [] if image is None else [image]
        message = self.chat.opening(len(images), prompt)
        return self.chat.answer((message,) if message.content else (), images, decoding)


def load(model: Name, checkpoint: str = "last", device: str = "auto", threads: int | None = None, fallback: bool = False) -> Model:
    """Opens a model.

    Args:
        model: a run, RUN@STAGE, a model folder, or the folder or Hub id of a stock model.
        checkpoint: of a run: `last`, `best`, the name of a stage, or a step.
        device, threads: the machine: `auto`, `cpu`, `cuda` or `mps`; CPU threads.
        fallback: where the last checkpoint of a run is damaged, open the newest that is not.

    Raises:
        UsageError, ConfigError, StorageError: see `open_model`.
    """
    return Model(str(model), ChatModel.open(str(model), checkpoint, device, threads, fallback), checkpoint, device, threads)


def evaluate(
    model: Model | Name,
    data: Name,
    task: str = "caption",
    split: str = "val",
    *,
    out: Name | None = None,
    checkpoint: str = "last",
    device: str = "auto",
    threads: int | None = None,
    **options: Any,
) -> Evaluation:
    """Evaluates a model on a split and stores predictions and scores, as `sightline eval` does.

    Args:
        model: what `load` takes, or what it returned; then `checkpoint`, `device` and `threads` are those of the loaded model.
        data, task, split: what it is asked.
        out: folder of the results; inside the run by default.
        checkpoint, device, threads: as in `load`.
        options: further fields of `EvalSpec`, such as `control="blind"`, `limit=100`, `shots=4`.

    Returns:
        The evaluation: `scores` by name, `predicted`, `queries`, `folder`.

    Raises:
        ConfigError: there is no such option.
        UsageError, DataError, SkipLimitError: see `sightline.assembly.evaluate.evaluate.evaluate`.
    """
    spec = _spec(data=str(data), task=task, split=split, **options)
    folder = None if out is None else Path(out)
    if isinstance(model, Model):
        # words and a feature store are settings of the opened model itself
        opened = model.chat.model if spec.words is None and spec.features is None else None
        return run_evaluation(spec, model.name, model.checkpoint, folder, model.device, model.threads, opened=opened)
    return run_evaluation(spec, str(model), checkpoint, folder, device, threads)


def look(
    model: Model | Name,
    data: Name,
    task: str = "caption",
    split: str = "val",
    *,
    controls: Sequence[str] = LADDER,
    floor: Name | None = None,
    page: Name | None = None,
    checkpoint: str = "last",
    device: str = "auto",
    threads: int | None = None,
    **options: Any,
) -> LookingFindings:
    """Finds out whether a model looks at the image, as `sightline probe --what looking` does.

    Args:
        model: what `load` takes, or what it returned.
        data, task, split: what it is asked.
        controls: what it is shown in place of the images; the whole ladder of blurs and controls by default.
        floor: a run that was trained with shuffled images, which shows what can be scored without seeing any.
        page: an HTML file to write.
        checkpoint, device, threads: as in `load`.
        options: further fields of `EvalSpec`, such as `limit=100`.

    Returns:
        The findings: `verdict`, `sentence()`, `ladder`, `to_json()`.

    Raises:
        ConfigError, UsageError, DataError, SkipLimitError: see `sightline.assembly.evaluate.looking.look`.
    """
    spec = _spec(data=str(data), task=task, split=split, **options)
    if isinstance(model, Model):
        model, checkpoint, device, threads = model.name, model.checkpoint, model.device, model.threads
    found = run_look(spec, str(model), checkpoint, device, threads, controls, None if floor is None else str(floor))
    if page is not None:
        write_text(Path(page), looking_page(Path(str(model)).name, found))
    return found


def compare(
    models: Mapping[str, Name | Sequence[Name]] | Sequence[Name],
    out: Name,
    data: Name | None = None,
    task: str = "caption",
    split: str = "val",
    *,
    baselines: Sequence[Literal["neighbours"]] = (),
    controls: Sequence[str] | None = None,
    metrics: Sequence[str] = (),
    against: str = "",
    checkpoint: str = "last",
    device: str = "auto",
    threads: int | None = None,
    title: str = "",
    stores: Mapping[str, Name] | Name | None = None,
    **options: Any,
) -> ComparisonResult:
    """Compares models on the same questions and writes a report, as `sightline compare` does.

    Args:
        models: two or more, each as `load` takes it; by name, or named by their folders. A list of runs under one name is averaged:
            the runs of several training seeds.
        out: folder of the report and of new evaluations.
        data, task, split: what they are asked; without data, what is stored with them.
        baselines: that answer beside the models, with the features of the first one.
        controls: asked beside it; those of the command by default.
        metrics: scores to compare; the task's headline by default.
        against: name of the model that all others are compared with, instead of every pair.
        checkpoint, device, threads: as in `load`.
        title: of the report.
        stores: feature store for the models without an encoder, or stores by name of a model.
        options: further fields of `EvalSpec`, such as `limit=100`.

    Returns:
        The page's path (`page`) and what stands on it (`comparison`); `to_json()` is what the command prints.

    Raises:
        UsageError, ConfigError, DataError: see `sightline.studies.compare.compare`.
    """
    given = ComparisonOptions(
        baselines=tuple(baselines),
        controls=CONTROLS if controls is None else tuple(controls),
        metrics=tuple(metrics),
        against=against,
        checkpoint=checkpoint,
        device=device,
        threads=threads,
        title=title,
        features=tuple(f"{name}={store}" for name, store in stores.items())
        if isinstance(stores, Mapping)
        else ()
        if stores is None
        else (str(stores),),
    )
    named = (
        [f"{name}={_joined(model)}" for name, model in models.items()] if isinstance(models, Mapping) else list(map(str, models))
    )
    asked = [] if data is None else [_spec(data=str(data), task=task, split=split, **options)]
    return run_comparison(named, asked, Path(out), given)


def _joined(model: Name | Sequence[Name]) -> str:
    return str(model) if isinstance(model, str | PathLike) else ",".join(str(one) for one in model)


def train(
    recipe: str | RunConfig | None,
    out: Name,
    settings: Mapping[str, Any] | None = None,
    *,
    config: Name | None = None,
    allow_change: Sequence[str] = (),
) -> TrainResult:
    """Trains a model, or goes on with the run that is in the folder, as `sightline train` does.

    Args:
        recipe: name of a recipe, a configuration, or None with `config`.
        out: the run folder.
        settings: values by key, as on the command line: `{"data.path": "sets/scenes", "train.steps": 200}`.
        config: YAML file over the recipe.
        allow_change: settings that may differ from those that the run began with.

    Returns:
        `run`, `step`, `checkpoint` and `weights_sha256`.

    Raises:
        ConfigError: a setting is wrong, or the folder holds another run.
        StorageError, Stopped: see `sightline.assembly.train.run.train`.
    """
    base = recipe_by_name(recipe) if isinstance(recipe, str) else recipe
    arguments = [f"{key}={json.dumps(_plain(value), ensure_ascii=False)}" for key, value in (settings or {}).items()]
    return run_training(resolve_config(base, config if config is None else Path(config), arguments), Path(out), allow_change)


def _spec(**fields: Any) -> EvalSpec:
    return validate_tree(EvalSpec, Tree(fields))


def _plain(value: Any) -> Any:
    """Returns a setting as JSON: paths as texts, sections as their fields."""
    if isinstance(value, Config):
        return value.model_dump(mode="json")
    return str(value) if isinstance(value, PathLike) else value
