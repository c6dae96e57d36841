"""An evaluation from what the user names: a run or model folder, a task, a data set, a control."""

import functools
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sightline.assembly.config.locate import CheckpointChoice
from sightline.assembly.evaluate.answers import ModelAnswers
from sightline.assembly.evaluate.components import ComponentAnswers
from sightline.assembly.evaluate.few_shot import Shots, draw_all, origin_of
from sightline.assembly.evaluate.likelihood import LikelihoodScoring, likelihood_scoring
from sightline.assembly.evaluate.neighbours import neighbour_answers
from sightline.assembly.evaluate.opened import OpenedModel, chosen_records, has_images, open_model, open_records
from sightline.assembly.evaluate.similarity import SimilarityAnswers
from sightline.assembly.evaluate.verdicts import control_command, find_verdict, folders_beside
from sightline.assembly.model.bundle import ModelBundle
from sightline.data.dataset import Dataset, open_dataset
from sightline.data.features.store import open_store
from sightline.data.skip_limit import reasons_text
from sightline.errors import DataError, SkipLimitError, StorageError, UsageError
from sightline.evaluation.controls import NOT_EXCHANGEABLE, SHUFFLED, TEXT, exchange_images, without_images
from sightline.evaluation.likelihood import check_candidates
from sightline.evaluation.predict import ITEMS, SCORES, SETTINGS, Answers, Predicted, predict
from sightline.evaluation.probes.words import most_used_words
from sightline.evaluation.spec import EvalSpec
from sightline.evaluation.tasks import Query, Task, task_by_name
from sightline.evaluation.tasks.base import Likelihood
from sightline.generation.decode import DecodingConfig
from sightline.metrics.verdict import Verdict, verdict_of
from sightline.models.comalign import AlignedModel
from sightline.runtime import storage
from sightline.runtime.device import process_settings_restored
from sightline.runtime.logs import logger
from sightline.runtime.process_group import process_number
from sightline.types import Record, Score

SHOTS = "shots.json"
WORD_RECORDS = 200  # records on which an align connector's most used words are counted


@dataclass(frozen=True)
class Evaluation:
    """The outcome of an evaluation.

    Attributes:
        spec: what was asked.
        folder: holds `predictions.jsonl`, `scores.json` and `items.json`.
        queries: what was asked, in order.
        predicted: answers and skips.
        scores: by name.
        prompt: text beside the image, where a record brings no question of its own.
        decoding: how text was generated; None for a baseline.
        checkpoint: the checkpoint of a run that was evaluated, and why it is this one; None for a model folder.
        verdict: whether the model looks at the image, from this evaluation and a stored control (or the reverse).
        likelihood: how candidates were scored; None where answers were generated.
    """

    spec: EvalSpec
    folder: Path
    queries: list[Query]
    predicted: Predicted
    scores: dict[str, Score]
    prompt: str
    decoding: DecodingConfig | None
    checkpoint: CheckpointChoice | None = None
    verdict: Verdict = field(default_factory=lambda: verdict_of(None, 0.0))
    likelihood: LikelihoodScoring | None = None

    @property
    def task(self) -> Task:
        return task_by_name(self.spec.task, self.spec.resamples)

    def to_json(self) -> dict[str, Any]:
        """As `eval --json` prints it."""
        return {
            "task": self.spec.task,
            "split": self.spec.split,
            "control": self.spec.control,
            **({"shots": self._shots()} if self.spec.shots else {}),
            "prompt": self.prompt,
            "decoding": None if self.decoding is None else self.decoding.model_dump(mode="json"),
            **({"baseline": self.spec.baseline, "neighbours": self.spec.neighbours} if self.spec.baseline is not None else {}),
            **({"likelihood": self.likelihood.to_json()} if self.likelihood is not None else {}),
            "headline": self.task.headline.name,
            "scores": {name: score.to_json() | {"unparsed": score.unparsed} for name, score in self.scores.items()},
            "scorers": {name: score.scorer for name, score in self.scores.items()},
            "looks": self.verdict.to_json(),
            "input": len(self.queries),
            "ok": len(self.predicted.predictions),
            "skipped": self.predicted.skipped,
            "folder": str(self.folder),
            **({"checkpoint": self.checkpoint.to_json()} if self.checkpoint is not None else {}),
        }

    def items_json(self) -> dict[str, Any]:
        """Scores query by query; `image` says which have the same images and belong together in a bootstrap."""
        answered = {prediction.id for prediction in self.predicted.predictions}
        queries = [query for query in self.queries if query.id in answered]
        images = ["+".join(key[:16] for key in query.record.image_keys) or query.record.id for query in queries]
        return {
            "records": [query.id for query in queries],
            "image": images,
            "values": {name: score.value for name, score in self.scores.items()},
            "items": {name: list(score.items) for name, score in self.scores.items() if len(score.items) == len(queries)},
        }

    def _shots(self) -> dict[str, Any]:
        data, split = origin_of(self.spec.shots_from, self.spec.data)
        return {"count": self.spec.shots, "data": data, "split": split, "seed": self.spec.shots_seed, "examples": SHOTS}


@process_settings_restored()
def evaluate(
    spec: EvalSpec,
    model: str | None,
    checkpoint: str = "last",
    out: Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    fallback: bool = False,
    opened: OpenedModel | None = None,
) -> Evaluation:
    """Predicts, scores, and writes both.

    Args:
        spec: task, data and options of the evaluation.
        model, checkpoint, device, threads, fallback: see `open_model`; a baseline that reads a feature store needs no model.
        out: folder of the results; inside the run by default.
        opened: the model, where it is open already with the same arguments.

    Raises:
        UsageError: the task or checkpoint does not exist, the split has no record that the task can ask about, or no two of them
            can exchange their images.
        DataError: the data set or the split does not exist.
        SkipLimitError: no query could be answered.
    """
    task = task_by_name(spec.task, spec.resamples)
    dataset, records = open_records(spec.data, spec.split, task.asks, spec.limit, f"for task {spec.task!r}")
    records = task.drawn(records, spec.images, spec.captions, spec.gallery_seed)
    task.survey(records)
    if spec.baseline is not None:
        if opened is None and model is not None:
            opened = open_model(model, checkpoint, spec.features, device, threads, fallback)
        return _evaluate_neighbours(spec, task, dataset, records, model, checkpoint, out, opened)
    if model is None:
        raise UsageError("no model is named.", "Name a run or a model folder, or a --baseline.")
    opened = opened or open_model(model, checkpoint, spec.features, device, threads, fallback)
    bundle, runtime = opened.bundle, opened.runtime
    runtime.apply()
    if spec.scoring is not None and not isinstance(bundle.pairs, AlignedModel):
        raise UsageError("scoring belongs to a model with light networks (ComAlign).", "Leave out --scoring.")
    likelihood = _likelihood_of(spec, task, bundle)
    choices = (spec.prompt, task.default_prompt(likelihood), bundle.processing.prompt)
    prompt = next(text for text in choices if text is not None)
    asked_with = task.bare_prompt if likelihood == "yes_no" else prompt  # its prompt is about one candidate
    decoding = DecodingConfig(max_new_tokens=spec.max_new_tokens or task.max_new_tokens, num_beams=spec.num_beams)
    queries = _queries_of(task, records, asked_with)
    _check_form(spec, queries, bundle, likelihood)
    asked = _queries_of(task, exchange_images(records), asked_with) if spec.control == SHUFFLED else queries
    asked = without_images(asked) if spec.control == TEXT else asked
    visual_loader = opened.visual_loader([(dataset, spec.split)], spec.control, spec.noise)
    if spec.words is not None:
        restrict_words(opened, dataset, spec.words_from, spec.words)
    as_example = functools.partial(task.example, prompt=asked_with)
    shots = shots_for(spec, opened, dataset, records, task.asks, as_example) if spec.shots else None
    folder = out or default_folder(spec, opened.folder)
    settings = _settings_of_model(spec, opened, prompt, decoding, shots) | _settings_of_data(spec, dataset, records)
    if isinstance(bundle.pairs, AlignedModel) and visual_loader is not None:
        boxes = {record.image_keys: record.boxes for record in records}
        how = spec.scoring or "weighted"
        answers: Answers = ComponentAnswers(bundle, dataset, visual_loader, runtime.bf16, asked, how, boxes)
    elif bundle.pairs is not None and visual_loader is not None:
        answers = SimilarityAnswers(bundle, dataset, visual_loader, runtime.bf16, asked)
    else:
        encoder, examples = bundle.conversation_encoder(prompt), None if shots is None else shots.of
        answers = ModelAnswers(bundle, dataset, visual_loader, decoding, encoder, runtime.bf16, examples)
    scoring = None
    if likelihood is not None and isinstance(answers, ModelAnswers):
        # The choice of alpha is the same under every control, and is stored once for all.
        home = folder if out is not None else default_folder(spec.model_copy(update={"control": None}), opened.folder)
        scoring = likelihood_scoring(likelihood, spec, task, asked_with, opened, dataset, decoding, home, settings)
        answers = scoring.of(answers, asked, prompt, folder, settings)
        settings["likelihood"] = scoring.settings()
    done = Evaluation(spec, folder, queries, Predicted([], {}), {}, prompt, decoding, opened.checkpoint, likelihood=scoring)
    done = _answered(done, answers, asked, settings, control_command(spec, model, checkpoint), opened.folder)
    if shots is not None:
        write_result(folder / SHOTS, shots.to_json())
    return done


def _evaluate_neighbours(
    spec: EvalSpec,
    task: Task,
    dataset: Dataset,
    records: list[Record],
    model: str | None,
    checkpoint: str,
    out: Path | None,
    opened: OpenedModel | None,
) -> Evaluation:
    """Answers with what the nearest training images have; the prompt and the settings of generation do not matter.

    Raises:
        UsageError: the options ask for likelihoods, few-shot examples, noise or word limits, or there are no features to compare.
    """
    if spec.likelihood or spec.alpha is not None or spec.shots or spec.noise or spec.words:
        raise UsageError(
            "the baseline neighbours answers with texts of the training data.",
            "Leave out --likelihood, --alpha, --shots, --noise, --words.",
        )
    queries = _queries_of(task, records, task.bare_prompt)
    if any(query.form == "embed" for query in queries):
        raise UsageError(
            f"task {task.name!r} ranks images and captions, which the baseline neighbours cannot.", "Leave out --baseline."
        )
    answers, neighbours = neighbour_answers(spec, task, dataset, opened)
    asked = _queries_of(task, exchange_images(records), task.bare_prompt) if spec.control == SHUFFLED else queries
    source = Path(spec.data) if opened is None else opened.folder
    settings = {
        "baseline": {"name": spec.baseline} | neighbours,
        "model": None if opened is None else opened.weights,
        **_settings_of_data(spec, dataset, records),
    }
    choice = None if opened is None else opened.checkpoint
    done = Evaluation(spec, out or default_folder(spec, source), queries, Predicted([], {}), {}, task.bare_prompt, None, choice)
    return _answered(done, answers, asked, settings, control_command(spec, model, checkpoint), source)


def _settings_of_model(
    spec: EvalSpec, opened: OpenedModel, prompt: str, decoding: DecodingConfig, shots: Shots | None
) -> dict[str, Any]:
    """Returns the settings that a model's answers depend on beside the data."""
    return {
        "model": opened.weights,
        "prompt": prompt,
        "decoding": decoding.model_dump(mode="json"),
        "batch_size": spec.batch_size,
        **({"shots": shots.settings()} if shots is not None else {}),
        **({"scoring": spec.scoring} if spec.scoring is not None else {}),
        **({"noise": spec.noise} if spec.noise is not None else {}),
        **({"words": [spec.words, spec.words_from]} if spec.words is not None else {}),
        "facts": {key: opened.runtime.facts()[key] for key in ("torch", "device", "bf16", "threads")},
    }


def _settings_of_data(spec: EvalSpec, dataset: Dataset, records: Sequence[Record]) -> dict[str, Any]:
    """Returns the settings that all answers depend on, those of a model and of the baseline."""
    return {
        "data": dataset.fingerprint,
        "split": spec.split,
        "control": spec.control,
        "task": spec.task,
        "records": hashlib.sha256("\n".join(record.id for record in records).encode()).hexdigest(),
        "features": open_store(spec.features).key if spec.features is not None else None,
        **({"gallery": [spec.images, spec.captions, spec.gallery_seed]} if spec.images or spec.captions else {}),
    }


def _answered(
    done: Evaluation, answers: Answers, asked: Sequence[Query], settings: dict[str, Any], command: str, source: Path
) -> Evaluation:
    """Collects the answers, scores them, and writes both.

    Args:
        done: without answers and scores.
        asked: the queries as they are answered: under a control with other images, and only those that have some.
        settings: what the answers depend on.
        command: what makes a control, for the verdict.
        source: the model's folder; the results of its controls are looked for there.
    """
    spec, folder, queries, task = done.spec, done.folder, done.queries, done.task
    title = f"{spec.task} {spec.control or ''}".strip()
    predicted = predict(answers, asked, folder, settings, spec.batch_size, title)
    if len(asked) < len(queries):
        skipped = predicted.skipped | {NOT_EXCHANGEABLE: len(queries) - len(asked)}
        predicted = replace(predicted, skipped=skipped)
    if not predicted.predictions:
        raise SkipLimitError(
            f"none of {len(queries)} records could be answered ({reasons_text(predicted.skipped)}).", "See `sightline data check`."
        )
    done = replace(done, predicted=predicted, scores=task.score(queries, predicted.predictions))
    items = done.items_json()
    beside = folders_beside(folder) if folder != default_folder(spec, source) else []
    verdict = find_verdict(spec, items, settings, lambda other: [default_folder(other, source), *beside], task.headline, command)
    done = replace(done, verdict=verdict)
    write_result(folder / ITEMS, items)
    write_result(folder / SCORES, done.to_json() | {"spec": spec.model_dump(mode="json"), "settings": settings})
    if predicted.skipped:
        logger.warning("skipped: %s", reasons_text(predicted.skipped))
    return done


def _likelihood_of(spec: EvalSpec, task: Task, bundle: ModelBundle) -> Likelihood | None:
    """Returns how candidates are scored: by `--likelihood`, else as the task does; a dual encoder has similarities instead."""
    kind = spec.likelihood or task.likelihood
    if spec.alpha is not None and kind != "gain":
        raise UsageError("alpha belongs to --likelihood gain.", "Leave out --alpha, or add --likelihood gain.")
    if bundle.pairs is None:
        return kind
    if spec.likelihood is not None:
        raise UsageError("a dual encoder compares images with texts and has no likelihoods.", "Leave out --likelihood.")
    return None


def _check_form(spec: EvalSpec, queries: Sequence[Query], bundle: ModelBundle, likelihood: Likelihood | None) -> None:
    """Refuses what the model cannot answer, or would not take into account."""
    is_gallery = any(query.form == "embed" for query in queries)
    if bundle.pairs is not None and spec.control == TEXT:
        raise UsageError("a dual encoder compares images with texts.", "Leave out the control text.")
    if spec.shots and (is_gallery or bundle.pairs is not None):
        raise UsageError("an image is compared with texts, without few-shot examples.", "Leave out --shots.")
    if is_gallery and bundle.pairs is None and likelihood is None:
        raise UsageError(
            f"task {spec.task!r} asks for embeddings, which only a dual encoder computes.",
            "Add --likelihood gain, plain or yes_no.",
        )
    if likelihood is not None:
        check_candidates(queries, spec.task, likelihood)


def _queries_of(task: Task, records: Sequence[Record], prompt: str) -> list[Query]:
    return [query for record in records for query in task.queries(record, prompt)]


def write_result(file: Path, value: dict[str, Any]) -> None:
    """Writes a file of the results; of several processes, which all have the same results, only the first does."""
    if process_number() == 0:
        storage.write_json(file, value)


def shots_for(
    spec: EvalSpec,
    model: OpenedModel,
    dataset: Dataset,
    records: list[Record],
    suits: Callable[[Record], bool],
    as_example: Callable[[Record], Record] = lambda record: record,
) -> Shots:
    """The examples of an evaluation, the same under every control; their images carry noise as the questions' do.

    Raises:
        DataError: the data set or the split that they come from does not exist.
        UsageError: it has too few records.
        ConfigError: a feature store lacks their images.
    """
    folder, split = origin_of(spec.shots_from, spec.data)
    pool = open_dataset(folder)
    visual_loader = model.visual_loader([(pool, split)], noise=spec.noise)
    return draw_all(records, dataset, pool, split, spec.shots, spec.shots_seed, suits, visual_loader, as_example)


def restrict_words(model: OpenedModel, dataset: Dataset, split: str, count: int) -> None:
    """Leaves an `align` connector the words that it uses most on a split, for as long as the model lives.

    Raises:
        UsageError: the model has no connector of ours.
        ConfigError: the connector mixes no words.
    """
    connector = model.connector
    mixer = connector.vocabulary_mixer
    records = chosen_records(list(dataset.records(split)), has_images, WORD_RECORDS)
    encoded = model.probed_records(dataset, records, model.visual_loader([(dataset, split)]), Counter())
    mixer.restrict_vocabulary(most_used_words(connector, encoded, count))


def default_folder(spec: EvalSpec, source: Path) -> Path:
    """`RUN/eval/TASK/DATASET-SPLIT[-shotsK][-control][-baseline][-likelihood]...[-HASH]-CHECKPOINT`, or beside a model folder.

    Where that holds an evaluation of other data (another folder of the same name), the beginning of the data's fingerprint is
    added.
    """
    parts = [Path(spec.data).resolve().name, spec.split, spec.shots and f"shots{spec.shots}", spec.control]
    parts += [spec.baseline and f"{spec.baseline}{spec.neighbours}", spec.likelihood, spec.limit and f"n{spec.limit}"]
    parts += [spec.noise and f"noise{spec.noise:g}", spec.words and f"words{spec.words}", spec.name_of_rest()]
    name, task = (re.sub(r"[^\w.-]", "_", text) for text in ("-".join(str(part) for part in parts if part), spec.task))
    if source.name == "model" and source.parent.name.startswith("step-"):
        folder = source.parent.parent.parent / "eval" / task / f"{name}-{source.parent.name}"
    else:
        folder = source.parent / f"{source.name}-eval" / task / name
    if not (folder / SETTINGS).exists():
        return folder
    try:
        stored, own = storage.read_json(folder / SETTINGS)["data"], open_dataset(spec.data).fingerprint
    except (StorageError, DataError, KeyError, TypeError):
        return folder
    return folder if stored == own else folder.with_name(f"{folder.name}-{own[:8]}")
