"""An evaluation from what the user names: a run or model folder, a task, a data set, a control."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sightline.assembly.evaluate.answers import ModelAnswers
from sightline.assembly.evaluate.few_shot import Shots, draw_all, origin_of
from sightline.assembly.evaluate.opened import OpenedModel, chosen_records, has_images, open_model, open_records
from sightline.data.dataset import Dataset, open_dataset
from sightline.data.features.store import open_store
from sightline.errors import SkipLimitError, UsageError
from sightline.evaluation.controls import NOT_EXCHANGEABLE, Control, exchange_images
from sightline.evaluation.predict import Predicted, predict
from sightline.evaluation.probes.words import most_used_words
from sightline.evaluation.tasks import TASKS
from sightline.generation.decode import DecodingConfig
from sightline.runtime import storage
from sightline.runtime.device import process_settings_restored
from sightline.runtime.logs import logger
from sightline.types import Record, Score

SCORES, SHOTS = "scores.json", "shots.json"
WORD_RECORDS = 200  # records on which an align connector's most used words are counted


@dataclass(frozen=True)
class EvaluationRequest:
    """What is to be evaluated.

    Attributes:
        model: a run, a model folder.
        task: name of a task.
        data, split: records.
        control: `blind`, `shuffled` or None.
        checkpoint: of a run.
        out: folder of the results; inside the run by default.
        batch_size: rows per batch.
        limit: evaluate this many records, drawn with seed 0.
        decoding: changes to greedy decoding with the task's length.
        features: a feature store, instead of the pictures' pixels; a model of an external table needs one.
        noise: size of Gaussian noise on the visual features, in units of their standard deviation.
        words: allow an `align` connector only so many words: those it uses most on `words_from`, a split of the same data.
        shots: examples before each question, with pictures and answers, drawn by `shots_seed` for each record from `shots_from`:
            `DATA:SPLIT`, `DATA`, or a split of the same data. A control changes the picture of the question alone.
        device, threads: the machine.
    """

    model: str
    task: str
    data: str
    split: str
    control: Control | None = None
    checkpoint: str = "last"
    out: Path | None = None
    batch_size: int = 16
    limit: int | None = None
    prompt: str | None = None
    max_new_tokens: int | None = None
    num_beams: int = 1
    features: str | None = None
    noise: float | None = None
    words: int | None = None
    words_from: str = "train"
    shots: int = 0
    shots_from: str = "train"
    shots_seed: int = 0
    device: str = "auto"
    threads: int | None = None
    resamples: int = 1000


@dataclass(frozen=True)
class Evaluation:
    """The outcome of an evaluation.

    Attributes:
        folder: holds `predictions.jsonl` and `scores.json`.
        records: what was asked, in order.
        predicted: texts and skips.
        scores: by name.
    """

    request: EvaluationRequest
    folder: Path
    records: list[Record]
    predicted: Predicted
    scores: dict[str, Score]

    def to_json(self) -> dict[str, Any]:
        """As `eval --json` prints it."""
        return {
            "task": self.request.task,
            "split": self.request.split,
            "control": self.request.control,
            **({"shots": self._shots()} if self.request.shots else {}),
            "scores": {name: score.to_json() for name, score in self.scores.items()},
            "input": len(self.records),
            "ok": len(self.predicted.predictions),
            "skipped": self.predicted.skipped,
            "folder": str(self.folder),
        }

    def _shots(self) -> dict[str, Any]:
        data, split = origin_of(self.request.shots_from, self.request.data)
        return {"count": self.request.shots, "data": data, "split": split, "seed": self.request.shots_seed, "examples": SHOTS}


@process_settings_restored()
def evaluate(request: EvaluationRequest) -> Evaluation:
    """Predicts, scores, and writes both.

    Raises:
        UsageError: the task or checkpoint does not exist, the split has no record that the task can ask about, or no two of them
            can exchange their pictures.
        DataError: the data set or the split does not exist.
        BudgetError: no record could be answered.
    """
    if request.task not in TASKS:
        raise UsageError(f"no task {request.task!r}.", f"There are {', '.join(TASKS)}.")
    task = TASKS[request.task](request.resamples)
    dataset, records = open_records(request.data, request.split, task.asks, request.limit, f"for task {request.task!r}")
    model = open_model(request.model, request.checkpoint, request.features, request.device, request.threads)
    bundle, runtime = model.bundle, model.runtime
    length = request.max_new_tokens or task.max_new_tokens
    decoding = DecodingConfig(max_new_tokens=length, num_beams=request.num_beams)
    asked = exchange_images(records) if request.control == "shuffled" else records
    pictures = model.pictures([(dataset, request.split)], request.control, request.noise)
    if request.words is not None:
        restrict_words(model, dataset, request.words_from, request.words)
    shots = shots_for(request, model, dataset, records, task.asks) if request.shots else None
    examples = None if shots is None else shots.of
    answers = ModelAnswers(bundle, dataset, pictures, decoding, bundle.builder(request.prompt), runtime.bf16, examples)
    folder = request.out or default_folder(request, model.folder)
    settings = {
        "model": weights_hash(model.folder),
        "data": dataset.fingerprint,
        "split": request.split,
        "control": request.control,
        "task": request.task,
        "records": hashlib.sha256("\n".join(record.id for record in records).encode()).hexdigest(),
        "prompt": request.prompt if request.prompt is not None else bundle.processing.prompt,
        "decoding": decoding.model_dump(mode="json"),
        "batch_size": request.batch_size,
        "features": open_store(request.features).key if request.features is not None else None,
        **({"shots": shots.settings()} if shots is not None else {}),
        **({"noise": request.noise} if request.noise is not None else {}),
        **({"words": [request.words, request.words_from]} if request.words is not None else {}),
        "facts": {key: runtime.facts()[key] for key in ("torch", "device", "bf16", "threads")},
    }
    title = f"{request.task} {request.control or ''}".strip()
    predicted = predict(answers, asked, folder, settings, request.batch_size, title)
    if len(asked) < len(records):
        skipped = predicted.skipped | {NOT_EXCHANGEABLE: len(records) - len(asked)}
        predicted = replace(predicted, skipped=skipped)
    if not predicted.predictions:
        raise SkipLimitError(
            f"none of {len(records)} records could be answered ({_told(predicted)}).", "See `sightline data check`."
        )
    if shots is not None:
        storage.write_json(folder / SHOTS, shots.to_json())
    scores = task.score(records, predicted.predictions)
    done = Evaluation(request, folder, records, predicted, scores)
    storage.write_json(folder / SCORES, done.to_json() | {"settings": settings})
    if predicted.skipped:
        logger.warning("skipped: %s", _told(predicted))
    return done


def _told(predicted: Predicted) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in predicted.skipped.items())


def shots_for(
    request: EvaluationRequest, model: OpenedModel, dataset: Dataset, records: list[Record], suits: Callable[[Record], bool]
) -> Shots:
    """The examples of an evaluation, the same under every control; their images carry noise as the questions' do.

    Raises:
        DataError: the data set or the split that they come from does not exist.
        UsageError: it has too few records.
        ConfigError: a feature store lacks their images.
    """
    folder, split = origin_of(request.shots_from, request.data)
    pool = open_dataset(folder)
    pictures = model.pictures([(pool, split)], noise=request.noise)
    return draw_all(records, dataset, pool, split, request.shots, request.shots_seed, suits, pictures)


def restrict_words(model: OpenedModel, dataset: Dataset, split: str, count: int) -> None:
    """Leaves an `align` connector the words that it uses most on a split, for as long as the model lives.

    Raises:
        UsageError: the model has no connector of ours.
        ConfigError: the connector mixes no words.
    """
    connector = model.connector
    mixer = connector.word_mixer
    records = chosen_records(list(dataset.records(split)), has_images, WORD_RECORDS)
    encoded = model.probed_records(dataset, records, model.pictures([(dataset, split)]), Counter())
    mixer.restrict(most_used_words(connector, encoded, count))


def default_folder(request: EvaluationRequest, source: Path) -> Path:
    """`RUN/eval/<task>/<dataset>-<split>[-shotsK][-control]-<checkpoint>`; a model outside of a run has its results beside it."""
    parts = [Path(request.data).resolve().name, request.split, request.shots and f"shots{request.shots}", request.control]
    parts += [request.limit and f"n{request.limit}"]
    parts += [request.noise and f"noise{request.noise:g}", request.words and f"words{request.words}"]
    name = re.sub(r"[^\w.-]", "_", "-".join(str(part) for part in parts if part))
    if source.name == "model" and source.parent.name.startswith("step-"):
        return source.parent.parent.parent / "eval" / request.task / f"{name}-{source.parent.name}"
    return source.parent / f"{source.name}-eval" / request.task / name


def weights_hash(source: Path) -> str:
    """One hash over the weight files of a model folder."""
    files = sorted(source.glob("*.safetensors"))
    return hashlib.sha256("".join(f"{file.name} {storage.sha256_file(file)}\n" for file in files).encode()).hexdigest()
