"""An evaluation from what the user names: a run or model folder, a task, a data set, a control."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sightline.assembly.config.locate import CheckpointChoice
from sightline.assembly.evaluate.answers import ModelAnswers
from sightline.assembly.evaluate.few_shot import Shots, draw_all, origin_of
from sightline.assembly.evaluate.opened import OpenedModel, chosen_records, has_images, open_model, open_records
from sightline.assembly.evaluate.verdicts import control_command, find_verdict
from sightline.data.dataset import Dataset, open_dataset
from sightline.data.features.store import open_store
from sightline.errors import SkipLimitError, UsageError
from sightline.evaluation.controls import NOT_EXCHANGEABLE, SHUFFLED, TEXT, exchange_images, without_images
from sightline.evaluation.predict import ITEMS, SCORES, Predicted, predict
from sightline.evaluation.probes.words import most_used_words
from sightline.evaluation.spec import EvalSpec
from sightline.evaluation.tasks import Query, Task, task_by_name
from sightline.generation.decode import DecodingConfig
from sightline.metrics.verdict import Verdict, verdict_of
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
        decoding: how text was generated.
        checkpoint: the checkpoint of a run that was evaluated, and why it is this one; None for a model folder.
        verdict: whether the model looks at the image, from this evaluation and a stored control (or the reverse).
    """

    spec: EvalSpec
    folder: Path
    queries: list[Query]
    predicted: Predicted
    scores: dict[str, Score]
    prompt: str
    decoding: DecodingConfig
    checkpoint: CheckpointChoice | None = None
    verdict: Verdict = field(default_factory=lambda: verdict_of(None, 0.0))

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
            "decoding": self.decoding.model_dump(mode="json"),
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
    model: str,
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
        model, checkpoint, device, threads, fallback: see `open_model`.
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
    opened = opened or open_model(model, checkpoint, spec.features, device, threads, fallback)
    bundle, runtime = opened.bundle, opened.runtime
    runtime.apply()
    prompt = next(text for text in (spec.prompt, task.prompt, bundle.processing.prompt) if text is not None)
    decoding = DecodingConfig(max_new_tokens=spec.max_new_tokens or task.max_new_tokens, num_beams=spec.num_beams)
    queries = _queries_of(task, records, prompt)
    asked = _queries_of(task, exchange_images(records), prompt) if spec.control == SHUFFLED else queries
    asked = without_images(asked) if spec.control == TEXT else asked
    visual_loader = opened.visual_loader([(dataset, spec.split)], spec.control, spec.noise)
    if spec.words is not None:
        restrict_words(opened, dataset, spec.words_from, spec.words)
    shots = (
        shots_for(spec, opened, dataset, records, task.asks, lambda record: task.example(record, prompt)) if spec.shots else None
    )
    examples = None if shots is None else shots.of
    answers = ModelAnswers(bundle, dataset, visual_loader, decoding, bundle.builder(prompt), runtime.bf16, examples)
    folder = out or default_folder(spec, opened.folder)
    settings = {
        "model": weights_hash(opened.folder),
        "data": dataset.fingerprint,
        "split": spec.split,
        "control": spec.control,
        "task": spec.task,
        "records": hashlib.sha256("\n".join(record.id for record in records).encode()).hexdigest(),
        "prompt": prompt,
        "decoding": decoding.model_dump(mode="json"),
        "batch_size": spec.batch_size,
        "features": open_store(spec.features).key if spec.features is not None else None,
        **({"shots": shots.settings()} if shots is not None else {}),
        **({"noise": spec.noise} if spec.noise is not None else {}),
        **({"words": [spec.words, spec.words_from]} if spec.words is not None else {}),
        "facts": {key: runtime.facts()[key] for key in ("torch", "device", "bf16", "threads")},
    }
    title = f"{spec.task} {spec.control or ''}".strip()
    predicted = predict(answers, asked, folder, settings, spec.batch_size, title)
    if len(asked) < len(queries):
        skipped = predicted.skipped | {NOT_EXCHANGEABLE: len(queries) - len(asked)}
        predicted = replace(predicted, skipped=skipped)
    if not predicted.predictions:
        raise SkipLimitError(
            f"none of {len(queries)} records could be answered ({_told(predicted)}).", "See `sightline data check`."
        )
    if shots is not None:
        _write(folder / SHOTS, shots.to_json())
    scores = task.score(queries, predicted.predictions)
    done = Evaluation(spec, folder, queries, predicted, scores, prompt, decoding, opened.checkpoint)
    items = done.items_json()
    command = control_command(spec, model, checkpoint)
    verdict = find_verdict(spec, items, settings, lambda other: default_folder(other, opened.folder), task.headline, command)
    done = replace(done, verdict=verdict)
    _write(folder / ITEMS, items)
    _write(folder / SCORES, done.to_json() | {"spec": spec.model_dump(mode="json"), "settings": settings})
    if predicted.skipped:
        logger.warning("skipped: %s", _told(predicted))
    return done


def _queries_of(task: Task, records: Sequence[Record], prompt: str) -> list[Query]:
    queries = [query for record in records for query in task.queries(record, prompt)]
    if any(query.form == "embed" for query in queries):
        raise UsageError(f"task {task.name!r} asks for embeddings, which eval does not compute.", "Name another --task.")
    return queries


def _write(file: Path, value: dict[str, Any]) -> None:
    """Writes a file of the results; of several processes, which all have the same results, only the first does."""
    if process_number() == 0:
        storage.write_json(file, value)


def _told(predicted: Predicted) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in predicted.skipped.items())


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
    """`RUN/eval/<task>/<dataset>-<split>[-shotsK][-control]-<checkpoint>`; a model outside of a run has its results beside it."""
    parts = [Path(spec.data).resolve().name, spec.split, spec.shots and f"shots{spec.shots}", spec.control]
    parts += [spec.limit and f"n{spec.limit}"]
    parts += [spec.noise and f"noise{spec.noise:g}", spec.words and f"words{spec.words}"]
    name, task = (re.sub(r"[^\w.-]", "_", text) for text in ("-".join(str(part) for part in parts if part), spec.task))
    if source.name == "model" and source.parent.name.startswith("step-"):
        return source.parent.parent.parent / "eval" / task / f"{name}-{source.parent.name}"
    return source.parent / f"{source.name}-eval" / task / name


def weights_hash(source: Path) -> str:
    """One hash over the weight files of a model folder."""
    files = sorted(source.glob("*.safetensors"))
    return hashlib.sha256("".join(f"{file.name} {storage.sha256_file(file)}\n" for file in files).encode()).hexdigest()
