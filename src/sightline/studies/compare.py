"""Compares models: asks each the same, with and without its images, and reports who is better and who looks.

    OUT/evaluations/MODEL/KEY/     predictions.jsonl, scores.json, items.json
    OUT/report.html  report.md  report.json  scores.csv  items.csv

An evaluation that is stored, here or where `sightline eval` puts it, for the same weights, data and settings is not computed again,
so a comparison that was stopped goes on where it was, and a model can be added to it.
"""

import glob
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from sightline.assembly.config import locate
from sightline.assembly.config.locate import CheckpointChoice
from sightline.assembly.config.resolving import resolve_config
from sightline.assembly.evaluate.evaluate import default_folder, evaluate
from sightline.assembly.evaluate.opened import OpenedModel, open_model, weights_hash
from sightline.assembly.evaluate.verdicts import control_command
from sightline.data.dataset import open_dataset
from sightline.data.samples.processing import is_ours, read_processing
from sightline.errors import SightlineError, Stopped, StorageError, UsageError
from sightline.evaluation.controls import BLIND, SHUFFLED
from sightline.evaluation.predict import ITEMS, PREDICTIONS, SCORES
from sightline.evaluation.probes.looking import LADDER
from sightline.evaluation.spec import EvalSpec
from sightline.evaluation.tasks import ScoreInfo, Task, task_by_name
from sightline.reporting.comparison import Comparison, Table, sentences
from sightline.runtime import storage
from sightline.runtime.logs import logger, readable_duration
from sightline.studies.compared_items import with_items
from sightline.studies.compared_models import cost_grid, curves_of, settings_grid
from sightline.studies.comparison import Items, read_items
from sightline.studies.stored import is_stored
from sightline.studies.tables import Arm, all_pairs, ladder_chart, measure, table_of, write_comparison

EVALUATIONS, SECONDS = "evaluations", "seconds.json"
CONTROLS = (SHUFFLED, BLIND)  # that every model is asked by default


@dataclass(frozen=True)
class Compared:
    """A model of a comparison.

    Attributes:
        name: for people, unique.
        source: what the user named.
        kind: a run, a model folder, a stock model or a baseline.
        folder: of its weights.
        choice: the checkpoint of a run; None for a folder.
        weights: hash of the weight files.
        arm: name of the models that it is averaged with, runs of several training seeds; its own name where it stands alone.
        seed: training seed within the arm.
        features: a feature store that it reads instead of images.
        baseline: what answers with the features of this model in its place.
    """

    name: str
    source: str
    kind: str
    folder: Path
    choice: CheckpointChoice | None
    weights: str
    arm: str
    seed: int = 0
    features: str | None = None
    baseline: Literal["neighbours"] | None = None

    @property
    def run(self) -> Path | None:
        """The run's folder; None for a model folder and a baseline."""
        return None if self.choice is None or self.baseline is not None else locate.run_of(self.source)

    def asked(self, spec: EvalSpec, control: str | None) -> EvalSpec:
        """Returns the evaluation of the model, or of the baseline in its place."""
        return spec.model_copy(update={"control": control, "baseline": self.baseline, "features": self.features or spec.features})

    def to_json(self) -> dict[str, Any]:
        step = None if self.choice is None else self.choice.saved.step
        arm = {} if self.arm == self.name else {"arm": self.arm, "seed": self.seed}
        store = {} if self.features is None else {"features": self.features}
        own = {"name": self.name, "source": self.source, "kind": self.kind, "step": step, "weights_sha256": self.weights}
        return own | arm | store


@dataclass(frozen=True)
class ComparisonOptions:
    """Options of `compare` beside models and questions.

    Attributes:
        baselines: that answer beside the models, with the features of the first one.
        controls: what else every model is asked. Other steps of the ladder are shown where they are stored already.
        metrics: scores with a table each; by default the headline of each task.
        against: name of the model that all others are compared with; by default every pair is compared.
        checkpoint, device, threads, fallback: see `open_model`.
        features: feature stores, `STORE` for the models without an encoder, or `NAME=STORE` for one model.
        title: of the report.
    """

    baselines: tuple[Literal["neighbours"], ...] = ()
    controls: tuple[str, ...] = CONTROLS
    metrics: tuple[str, ...] = ()
    against: str = ""
    checkpoint: str = "last"
    device: str = "auto"
    threads: int | None = None
    fallback: bool = False
    features: tuple[str, ...] = ()
    title: str = ""


@dataclass(frozen=True)
class ComparisonResult:
    """What `compare` found, and the page that shows it."""

    page: Path
    comparison: Comparison

    def sentences(self) -> list[str]:
        """Returns the verdicts, the most important first."""
        return [sentence.text for sentence in sentences(self.comparison)]

    def to_json(self) -> dict[str, Any]:
        """As `compare --json` prints it."""
        return {"report": str(self.page), **self.comparison.to_json()}


@dataclass
class _Found:
    """Folders of finished evaluations by model and question, and those that could not be evaluated."""

    folders: dict[tuple[str, EvalSpec], Path] = field(default_factory=dict)
    faults: list[dict[str, str]] = field(default_factory=list)
    reused: int = 0


def compare(
    models: Sequence[str], asked: Sequence[EvalSpec], out: Path, options: ComparisonOptions | None = None
) -> ComparisonResult:
    """Evaluates what is not evaluated yet, compares, and writes the report.

    Args:
        models: runs, RUN@STAGE, model folders or Hub ids, each as it is or as NAME=MODEL; NAME=RUN,RUN,... or a pattern such as
            NAME=runs/x-s* for the runs of several training seeds, which are averaged.
        asked: the evaluations, without a control; empty takes those that are stored with the models.
        out: folder of the report and of new evaluations.
        options: what else is wanted.

    Raises:
        UsageError: fewer than two models, a name that is used twice or does not exist, or nothing to ask.
        DataError: a data set or split does not exist.
        SkipLimitError: no two models could be asked the same.
        Stopped: a signal arrived; what is finished is kept.
    """
    options = options or ComparisonOptions()
    compared = named_models(models, options.checkpoint, options.fallback, options.baselines, options.features)
    arms = list(dict.fromkeys(model.arm for model in compared))
    if options.against and options.against not in arms:
        raise UsageError(f"no model is named {options.against!r}; there are {', '.join(arms)}.")
    specs = list(dict.fromkeys(asked)) or stored_questions(compared)
    for spec in specs:
        open_dataset(spec.data).split_indices(spec.split)
    found = _evaluated(compared, specs, out, options)
    tables = [table for spec, key in question_keys(specs).items() for table in _tables(spec, key, compared, found, options)]
    if not tables:
        reasons = "; ".join(f"{fault['model']}: {fault['error']}" for fault in found.faults) or "they have no record in common"
        raise UsageError(f"no two models could be compared ({reasons}).")
    firsts = {model.arm: model for model in reversed(compared) if model.baseline is None}
    of_arms = [replace(firsts[arm], name=arm) for arm in arms if arm in firsts]
    settings = settings_grid(of_arms)
    measured = _measured(found, {(model.name, model.asked(spec, None)) for model in compared for spec in specs})
    comparison = Comparison(
        title=options.title or _title(arms),
        tables=tuple(tables),
        curves=curves_of(compared),
        grids=(
            cost_grid(of_arms, {arm: measured.get(model.name, {}) for arm, model in firsts.items()}),
            *([] if settings is None else [settings]),
        ),
        notes=tuple(f"{fault['model']} was not asked {fault['question']}: {fault['error']}" for fault in found.faults),
        facts={
            "models": [model.to_json() for model in compared],
            "questions": [spec.model_dump(mode="json") for spec in specs],
            "not_asked": found.faults,
            "evaluations_reused": found.reused,
            "evaluations": len(found.folders),
        },
    )
    return ComparisonResult(write_comparison(comparison, out), comparison)


# Models ---------------------------------------------------------------------------------------------------------------------


def named_models(
    models: Sequence[str],
    checkpoint: str = "last",
    fallback: bool = False,
    baselines: Sequence[Literal["neighbours"]] = (),
    features: Sequence[str] = (),
) -> list[Compared]:
    """Finds every model that the user named, and adds the baselines.

    Raises:
        UsageError: fewer than two, two with one name, a pattern that nothing fits, a store for no model, or a run without such a
            checkpoint.
        StorageError: a checkpoint is damaged.
    """
    if len(models) + len(baselines) < 2 or not models:
        raise UsageError("a comparison needs two models or more.", "For example: sightline compare runs/a runs/b --out DIR")
    arms = [_name_and_sources(model) for model in models]
    short = [name or Path(sources[0]).name for name, sources in arms]
    found: dict[str, list[Compared]] = {}
    for place, (given, sources) in enumerate(arms):
        name = given or (short[place] if short.count(short[place]) == 1 else sources[0])
        if name in found:
            raise UsageError(f"two models are named {name!r}.", "Give them names: NAME=MODEL.")
        found[name] = _arm_of(name, place, sources, checkpoint, fallback)
    found = _with_features(found, features)
    first = next(iter(found.values()))[0]
    floor = (replace(first, name=name, arm=name, kind="baseline", baseline=name) for name in baselines)
    return [*(model for own in found.values() for model in own), *floor]


def _name_and_sources(text: str) -> tuple[str, list[str]]:
    """Returns the name that the user gave, if any, and the models that it stands for.

    Raises:
        UsageError: several models have no name, or nothing fits a pattern.
    """
    if Path(text).exists():
        return "", [text]
    name, equals, source = text.partition("=")
    name, source = (name, source) if equals and name else ("", text)
    if Path(source).exists():
        return name, [source]
    sources = [found for part in source.split(",") for found in _expanded(part)]
    if not name and (len(sources) > 1 or sources != [source]):
        raise UsageError(f"{text!r} stands for several runs, which need a name.", f"Write NAME={text}")
    return name, sources


def _expanded(part: str) -> list[str]:
    if not set("*?[") & set(part):
        return [part]
    found = sorted(path for path in glob.glob(part) if Path(path).is_dir())
    if not found:
        raise UsageError(f"no folder fits {part!r}.", "Name runs, or a pattern that fits some.")
    return found


def _arm_of(name: str, place: int, sources: Sequence[str], checkpoint: str, fallback: bool) -> list[Compared]:
    """Returns the model of a name, or the runs of several training seeds."""
    out = []
    for source in sources:
        folder, choice = locate.find_model(source, checkpoint, fallback)
        kind = ("model folder" if is_ours(str(folder)) else "stock model") if choice is None else "run"
        own = name if len(sources) == 1 else f"{name} {Path(source).name}"
        if own in [model.name for model in out]:
            own = f"{name} {source}"
        out.append(Compared(own, source, kind, folder, choice, weights_hash(folder), name))
    if len(out) == 1:
        return out
    if len({model.weights for model in out}) < len(out):
        raise UsageError(f"two of the models of {name!r} have the same weights.", "Name each run once.")
    seeds = [_seed_of(model) for model in out]
    if None in seeds or len({*seeds}) < len(seeds):  # numbers that no other arm shares: nothing says which runs belong together
        seeds = [-(1000 * (place + 1) + number) for number in range(len(out))]
    return [replace(model, seed=seed) for model, seed in zip(out, seeds, strict=True) if seed is not None]


def _seed_of(model: Compared) -> int | None:
    """Returns the training seed of a run; None where it is not known."""
    if model.run is None or not (model.run / locate.CONFIG).exists():
        return None
    return resolve_config(None, model.run / locate.CONFIG, []).train.seed


def _with_features(arms: dict[str, list[Compared]], stores: Sequence[str]) -> dict[str, list[Compared]]:
    """Gives models the feature stores that they read."""
    by_name: dict[str, str] = {}
    of_rest = None
    for text in stores:
        name, equals, store = text.partition("=")
        if equals and name in arms:
            by_name[name] = store
        elif equals and not Path(text).exists():
            raise UsageError(f"--features {text}: no model is named {name!r}; there are {', '.join(arms)}.")
        else:
            of_rest = text
    return {
        name: [replace(model, features=by_name.get(name, of_rest if _lacks_encoder(model) else None)) for model in own]
        for name, own in arms.items()
    }


def _lacks_encoder(model: Compared) -> bool:
    return is_ours(str(model.folder)) and read_processing(model.folder).preparation is None


def _title(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) <= 4 else f"{len(names)} models"


# Questions ------------------------------------------------------------------------------------------------------------------


def stored_questions(models: Sequence[Compared]) -> list[EvalSpec]:
    """Returns the plain evaluations that are stored with the models, of the data sets that are still there, each question once.

    Raises:
        UsageError: there are none.
    """
    found: dict[tuple[str, str], EvalSpec] = {}
    for model in models:
        root = default_folder(EvalSpec(data="."), model.folder).parents[1]
        for file in sorted(root.glob(f"*/*/{SCORES}")):
            try:
                stored = storage.read_json(file)
                spec = EvalSpec.model_validate_json(storage.dump_line(stored["spec"]))
            except (StorageError, KeyError, TypeError, ValueError):
                continue
            is_plain = spec.control is None and spec.noise is None and spec.words is None and spec.baseline is None
            if is_plain and stored["settings"].get("model") == model.weights and Path(spec.data).is_dir():
                found.setdefault((question_key(spec), str(stored["settings"].get("data"))), spec)
    if not found:
        raise UsageError("no evaluation is stored with these models.", "Say what they are asked: --task TASK --data DIR.")
    return list(found.values())


def question_key(spec: EvalSpec) -> str:
    """Returns the name of an evaluation in tables and files: task, data, split and what differs from the defaults."""
    parts = [
        spec.task,
        Path(spec.data).resolve().name,
        spec.split,
        spec.shots and f"shots{spec.shots}",
        spec.likelihood,
        spec.limit and f"n{spec.limit}",
        spec.name_of_rest(),
    ]
    return re.sub(r"[^\w.-]", "_", "-".join(str(part) for part in parts if part))


def question_keys(specs: Sequence[EvalSpec]) -> dict[EvalSpec, str]:
    """Returns `question_key` of each evaluation; those of data sets of one name get the beginning of the data's fingerprint."""
    keys = {spec: question_key(spec) for spec in specs}
    names = list(keys.values())
    return {
        spec: key if names.count(key) == 1 else f"{key}-{open_dataset(spec.data).fingerprint[:8]}" for spec, key in keys.items()
    }


def _heading(spec: EvalSpec) -> str:
    shots = f", {spec.shots} examples" if spec.shots else ""
    return f"{spec.task} on {Path(spec.data).resolve().name}, {spec.split}{shots}"


# Evaluations ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Question:
    model: Compared
    spec: EvalSpec
    folder: Path

    @property
    def text(self) -> str:
        return f"{self.spec.task} {self.spec.control or 'with the image'}"


def _evaluated(models: Sequence[Compared], specs: Sequence[EvalSpec], out: Path, options: ComparisonOptions) -> _Found:
    """Finds what is evaluated and evaluates the rest, model by model."""
    found, missing = _Found(), []
    for question in _questions(models, specs, out, _ladder(options)):
        places = (question.folder, default_folder(question.spec, question.model.folder))
        stored = next((place for place in places if is_stored(question.spec, place, question.model.weights)), None)
        if stored is None:
            missing += [question] if question.spec.control in (None, *options.controls) else []
        else:
            found.folders[question.model.name, question.spec] = stored
    found.reused = len(found.folders)
    logger.info("%d of %d evaluations are stored already", found.reused, found.reused + len(missing))
    begin = time.perf_counter()
    opened: OpenedModel | None = None
    is_open: tuple[str, str | None] | None = None
    for number, question in enumerate(missing):
        spent = time.perf_counter() - begin
        left = f"; about {readable_duration(spent / number * (len(missing) - number))} left" if number else ""
        logger.info("evaluation %d of %d: %s, %s%s", number + 1, len(missing), question.model.name, question.text, left)
        try:
            model, store = question.model, question.spec.features
            if is_open != (model.name, store) or opened is None:
                opened = None  # gives back the memory of the model before
                opened = open_model(model.source, options.checkpoint, store, options.device, options.threads, options.fallback)
                is_open = model.name, store
            _evaluate(question, opened, options)
        except Stopped:
            raise
        except SightlineError as error:
            logger.warning("%s, %s: %s", question.model.name, question.text, error)
            found.faults.append({"model": question.model.name, "question": question.text, "error": str(error)})
            continue
        found.folders[question.model.name, question.spec] = question.folder
    return found


def _questions(models: Sequence[Compared], specs: Sequence[EvalSpec], out: Path, controls: Sequence[str]) -> Iterator[_Question]:
    keys = question_keys(specs)
    for model in models:
        home = out / EVALUATIONS / re.sub(r"[^\w.-]", "_", model.name)
        for spec in specs:
            for control in (None, *(controls if model.baseline is None else ())):
                own = model.asked(spec, control)
                name = keys[spec] + (f"-{control.replace(':', '')}" if control else "")
                yield _Question(model, own, home / name)


def _ladder(options: ComparisonOptions) -> tuple[str, ...]:
    """Returns the controls that may be shown, in the order of the ladder."""
    return tuple(dict.fromkeys((*LADDER, BLIND, *options.controls))) if options.controls else ()


def _evaluate(question: _Question, opened: OpenedModel, options: ComparisonOptions) -> None:
    is_new, begin = not (question.folder / PREDICTIONS).exists(), time.perf_counter()
    done = evaluate(
        question.spec,
        question.model.source,
        options.checkpoint,
        question.folder,
        options.device,
        options.threads,
        options.fallback,
        opened,
    )
    if is_new:
        seconds = time.perf_counter() - begin
        storage.write_json(question.folder / SECONDS, {"seconds": round(seconds, 3), "queries": len(done.queries)})


def _measured(found: _Found, plain: set[tuple[str, EvalSpec]]) -> Mapping[str, Mapping[str, float]]:
    """Tokens of an answer and seconds of a query by model, over the evaluations with the images as they are (`plain`)."""
    tokens: dict[str, list[int]] = {}
    seconds: dict[str, list[float]] = {}
    for (name, spec), folder in found.folders.items():
        if (name, spec) not in plain:
            continue
        lines = storage.read_json_lines(folder / PREDICTIONS)
        tokens.setdefault(name, []).extend(line["tokens"] for line in lines if "tokens" in line)
        if (folder / SECONDS).exists():
            noted = storage.read_json(folder / SECONDS)
            seconds.setdefault(name, []).append(noted["seconds"] / max(noted["queries"], 1))
    out: dict[str, dict[str, float]] = {}
    for key, values in (("answer_tokens", tokens), ("seconds_per_query", seconds)):
        for name, numbers in values.items():
            if numbers:
                out.setdefault(name, {})[key] = sum(numbers) / len(numbers)
    return out


# Tables ---------------------------------------------------------------------------------------------------------------------


def _tables(spec: EvalSpec, key: str, models: Sequence[Compared], found: _Found, options: ComparisonOptions) -> list[Table]:
    by_arm: dict[str, list[Compared]] = {}
    for model in models:
        by_arm.setdefault(model.arm, []).append(model)
    arms = [arm for own in by_arm.values() if (arm := _arm(spec, own, found, options)).found]
    task = task_by_name(spec.task, spec.resamples)
    infos = {info.name: info for info in task.scores}
    tables = []
    for metric in options.metrics or _first_metric(task, arms):
        measured = measure(arms, metric)
        if measured is None or len(measured.arms) < 2:
            continue
        info = infos.get(metric, ScoreInfo(metric, metric, times=1.0))
        pairs = all_pairs(list(measured.arms), options.against if options.against in measured.arms else "")
        table = table_of(key, _heading(spec), info, measured, pairs, bool(options.against))
        answers = {name: _folder(spec, by_arm[name], found) for name in measured.arms}
        chart = ladder_chart(table, table.rows, table.conditions, table.title)
        table = replace(table, charts={f"{table.evaluation}-{metric}.svg": chart})
        tables.append(with_items(table, spec, task, answers))
    return tables


def _folder(spec: EvalSpec, members: Sequence[Compared], found: _Found) -> Path:
    """Returns the evaluation of the first model of an arm that has one, whose answers are shown."""
    folders = (found.folders.get((model.name, model.asked(spec, None))) for model in members)
    return next(folder for folder in folders if folder is not None)


def _first_metric(task: Task, arms: Sequence[Arm]) -> tuple[str, ...]:
    """Returns the first score of a task that has a value for each record: the headline, where it is no sum of others."""
    everything = [items.scores for arm in arms for seeds in arm.found.values() for items in seeds.values()]
    return next(((info.name,) for info in task.scores if all(info.name in scores for scores in everything)), ())


def _arm(spec: EvalSpec, members: Sequence[Compared], found: _Found, options: ComparisonOptions) -> Arm:
    kinds: dict[str, dict[int, Items]] = {}
    for control in (None, *_ladder(options)):
        for model in members:
            folder = found.folders.get((model.name, model.asked(spec, control)))
            items = None if folder is None else read_items(folder / ITEMS)
            if items is not None:
                kinds.setdefault(control or "", {})[model.seed] = items
    first = members[0]
    command = control_command(first.asked(spec, None), first.source, options.checkpoint)
    return Arm(first.arm, kinds if "" in kinds else {}, command, first.baseline is not None, is_fixed=len(members) == 1)
