"""In-loop validation: the loss on the same samples each time, and captions of a few of them for the log."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import nn

from sightline.assembly.model.build import ModelBundle
from sightline.data.batches.collate import collate
from sightline.data.batches.corpus import Corpus
from sightline.data.samples.prompts import make_prompt
from sightline.errors import RecordError
from sightline.generation.decode import DecodingConfig, generate
from sightline.objectives.base import HiddenStateModel, Objective
from sightline.training.checkpoint import Progress
from sightline.training.meters import StepTotals
from sightline.types import Batch, Sample, TrainingBatch

ROWS = 8  # samples per batch; fixed, so that the value does not depend on the training batch


@dataclass(frozen=True)
class Validation:
    """Called by the loop with the model in `eval` mode.

    Args:
        accelerator: ranks share the samples.
        model: gives hidden states.
        objective: the loss that is reported; not that of training, so that runs can be compared.
        batches: makes the batches of this rank, on the CPU, anew for each call.
        captions: makes captions for the log on the first rank; None for none.
    """

    accelerator: Accelerator
    model: nn.Module
    objective: Objective
    batches: Callable[[], Iterable[TrainingBatch]]
    captions: Callable[[], list[dict[str, str]]] | None = None

    def __call__(self, at: Progress) -> dict[str, Any]:
        """Returns `validation_loss` (mean over the weight of all samples), `value` (its negative), and `generated`."""
        sums = StepTotals()
        for batch in self.batches():
            batch = batch.to(self.accelerator.device)
            with self.accelerator.autocast():
                loss = self.objective(cast(HiddenStateModel, self.model), cast(Batch, batch))
            sums.loss += float(loss.total)
            sums.weight += float(loss.weight)
        mean = sums.reduced(self.accelerator).mean
        out: dict[str, Any] = {"validation_loss": mean, "value": -mean}
        if self.accelerator.is_main_process and self.captions is not None:
            out["generated"] = self.captions()
        return out


def validation_batches(corpus: Corpus, pad_id: int, rank: int, world: int) -> Iterator[Batch]:
    """Gives a rank's share of a corpus, one sample per row; samples that cannot be made are left out."""
    units = range(len(corpus.tokens))[rank::world]
    for begin in range(0, len(units), ROWS):
        samples = corpus.samples(units[begin : begin + ROWS])
        yield collate([[sample] for sample in samples if isinstance(sample, Sample)], pad_id).to_batch()


def captions(corpus: Corpus, bundle: ModelBundle, count: int, accelerator: Accelerator) -> list[dict[str, str]]:
    """Generates texts for the first samples of a corpus."""
    out = []
    for unit in range(min(count, len(corpus.tokens))):
        try:
            source, record = corpus.first_member(unit)
            prompt = make_prompt(source.dataset, record, source.builder, corpus.visual_inputs, bundle.tokens_per_crop)
        except RecordError:
            continue
        with accelerator.autocast(), torch.no_grad():
            text = generate(bundle.model, bundle.tokenizer, [prompt], DecodingConfig(max_new_tokens=32))[0]
        out.append({"id": record.id, "text": text.text})
    return out
