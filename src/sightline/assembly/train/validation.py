"""In-loop validation: the loss on the same samples each time, generated texts of some of them, and their score if it counts."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from sightline.assembly.model.build import ModelBundle
from sightline.assembly.train.trackers import IMAGE_SIDE, TrackedSample
from sightline.data.batches.collate import collate
from sightline.data.batches.corpus import Corpus, Source
from sightline.data.dataset import Dataset
from sightline.data.images.reader import read_image
from sightline.data.samples.prompts import Prompt, make_prompt
from sightline.errors import ConfigError, RecordError
from sightline.evaluation.tasks import Query, Task
from sightline.generation.decode import DecodingConfig, generate
from sightline.objectives.base import HiddenStateModel, Objective
from sightline.training.checkpoint import Progress
from sightline.training.console import SampleText
from sightline.training.meters import StepTotals
from sightline.types import Batch, Prediction, Sample, TrainingBatch

ROWS = 8  # samples per batch; fixed, so that the value does not depend on the training batch
MAX_NEW_TOKENS = 32
SHOWN = 2  # generated texts on the console and in trackers


@dataclass(frozen=True)
class Generated:
    """A text generated in validation, the query that it answers, and the data set of its record."""

    query: Query
    text: str
    dataset: Dataset


Show = Callable[[Progress, dict[str, Any], Sequence[Generated]], None]


@dataclass(frozen=True)
class Validation:
    """Called by the loop with the model in `eval` mode.

    Args:
        accelerator: ranks share the samples.
        model: gives hidden states.
        objective: the loss that is reported; not that of training, so that runs can be compared.
        batches: makes the batches of this rank, on the CPU, anew for each call.
        generated: generates texts for the log on the first rank; None for none.
        task: its headline score of the generated texts decides which checkpoint is the best; None for the lowest loss.
        show: called with the values and the generated texts on the first rank.
    """

    accelerator: Accelerator
    model: nn.Module
    objective: Objective
    batches: Callable[[], Iterable[TrainingBatch]]
    generated: Callable[[], list[Generated]] | None = None
    task: Task | None = None
    show: Show | None = None

    def __call__(self, at: Progress) -> dict[str, Any]:
        """Returns the values for the log.

        Returns:
            `validation_loss` (mean over the weight of all samples), `generated` (texts by record, on the first rank),
            `validation_score` with a task, and `value`: what the best checkpoint has most of.
        """
        sums = StepTotals()
        for batch in self.batches():
            batch = batch.to(self.accelerator.device)
            with self.accelerator.autocast():
                loss = self.objective(cast(HiddenStateModel, self.model), cast(Batch, batch))
            sums.add(replace(loss, parts={}))
        mean = sums.reduced(self.accelerator).mean
        out: dict[str, Any] = {"validation_loss": mean, "value": -mean}
        texts = self.generated() if self.accelerator.is_main_process and self.generated is not None else []
        if texts:
            out["generated"] = [{"id": made.query.record.id, "text": made.text} for made in texts]
        if self.task is not None:
            score = self._headline(self.task, texts)
            out |= {"validation_score": {self.task.headline.name: score}}
            out["value"] = score if self.task.headline.higher_is_better else -score
        if self.show is not None and self.accelerator.is_main_process:
            self.show(at, out, texts)
        return out

    def _headline(self, task: Task, texts: Sequence[Generated]) -> float:
        """Scores the texts of the first rank; all ranks return its value."""
        shared = [0.0]
        if self.accelerator.is_main_process:
            queries = [made.query for made in texts]
            scores = task.score(queries, [Prediction(made.query.id, made.text) for made in texts])
            shared = [scores[task.headline.name].value]
        return broadcast_object_list(shared)[0]


def validation_batches(corpus: Corpus, pad_id: int, rank: int, world: int) -> Iterator[Batch]:
    """Gives a rank's share of a corpus, one sample per row; samples that cannot be made are left out."""
    units = range(len(corpus.tokens))[rank::world]
    for begin in range(0, len(units), ROWS):
        samples = corpus.samples(units[begin : begin + ROWS])
        yield collate([[sample] for sample in samples if isinstance(sample, Sample)], pad_id).to_batch()


def check_scored(task: Task, corpus: Corpus, drops_images: bool) -> None:
    """Checks that the headline score of a task can be had of texts generated for validation samples.

    Raises:
        ConfigError: the stage sees no images, the task asks for something other than text, or it asks nothing about these samples.
    """
    remedy = "Set train.best=loss for this stage."
    if drops_images or corpus.visual_inputs is None:
        raise ConfigError("train.best=score scores texts about images, and this stage trains on text alone.", remedy)
    queries = [query for _, query in _queries(corpus, len(corpus.tokens), task)]
    if not queries:
        raise ConfigError(f"train.best=score: task {task.name!r} asks nothing about the validation samples.", remedy)
    if odd := {query.form for query in queries} - {"generate"}:
        raise ConfigError(f"train.best=score needs generated texts; task {task.name!r} asks for {', '.join(odd)}.", remedy)


def generated_texts(
    corpus: Corpus, bundle: ModelBundle, count: int, accelerator: Accelerator, task: Task | None = None
) -> list[Generated]:
    """Generates texts greedily for the first samples of a corpus.

    Args:
        corpus: of the validation split.
        bundle: the model.
        count: number of samples; several samples of one record are asked once.
        accelerator: arithmetic of the machine.
        task: asks the queries; without one each record is continued as in training.
    """
    prompts: list[tuple[Dataset, Query, Prompt]] = []
    for source, query in _queries(corpus, count, task):
        with contextlib.suppress(RecordError):
            args = (source.dataset, query.record, source.conversation_encoder, corpus.visual_inputs, bundle.tokens_per_crop, ())
            prompts.append((source.dataset, query, make_prompt(*args, query.messages)))
    width = max((len(prompt.row.ids) for _, _, prompt in prompts), default=0)
    decoding = DecodingConfig(max_new_tokens=MAX_NEW_TOKENS)
    out = []
    for begin in range(0, len(prompts), ROWS):
        batch = prompts[begin : begin + ROWS]
        with accelerator.autocast(), torch.no_grad():
            texts = generate(bundle.model, bundle.tokenizer, [prompt for _, _, prompt in batch], decoding, width)
        out += [Generated(query, text.text, dataset) for (dataset, query, _), text in zip(batch, texts, strict=True)]
    return out


def _queries(corpus: Corpus, count: int, task: Task | None) -> Iterator[tuple[Source, Query]]:
    """Yields the queries of the records of the first samples, each record once."""
    seen = set()
    for sample in range(min(count, len(corpus.tokens))):
        source, record = corpus.first_member(sample)
        if (source.name, record.id) in seen:
            continue
        seen.add((source.name, record.id))
        prompt = source.conversation_encoder.rules.prompt
        if task is None:
            yield source, Query(record.id, record, source.conversation_encoder.prompt_messages(record))
        elif task.asks(record):
            for query in task.queries(record, prompt if task.prompt is None else task.prompt):
                yield source, query


def sample_texts(texts: Sequence[Generated]) -> list[SampleText]:
    """Returns generated texts with a reference text of their records."""
    return [
        SampleText(made.query.id, made.text, next(iter(made.query.record.captions or made.query.record.answers), ""))
        for made in texts
    ]


def tracked_samples(texts: Sequence[Generated], samples: Sequence[SampleText]) -> list[TrackedSample]:
    """Returns the same texts with their images, scaled down; without an image that cannot be opened."""
    out = []
    for made, sample in zip(texts, samples, strict=True):
        image = None
        if made.query.record.images:
            with contextlib.suppress(RecordError):
                image = read_image(made.dataset, made.query.record)
                image.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
        out.append(TrackedSample(sample.id, sample.text, sample.truth, image))
    return out
