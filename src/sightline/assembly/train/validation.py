"""In-loop validation: the loss on the same samples each time, and captions of a few of them for the log."""

from typing import Any

import torch
from accelerate import Accelerator

from sightline.assembly.config.schema import StagePlan
from sightline.assembly.model.build import ModelBundle
from sightline.data.batches.collate import collate
from sightline.data.batches.corpus import Corpus
from sightline.data.samples.prompts import make_prompt
from sightline.errors import RecordError
from sightline.generation.decode import DecodingConfig, generate
from sightline.objectives.next_token import NextToken
from sightline.training.checkpoint import Progress
from sightline.training.meters import Sums
from sightline.types import Sample

ROWS = 8  # samples per batch; fixed, so that the value does not depend on the training batch


class Validation:
    """Called by the loop with the model in `eval` mode.

    Args:
        accelerator: ranks share the samples.
        made: the model.
        corpus: what is validated on.
        plan: how many samples are captioned.
    """

    def __init__(self, accelerator: Accelerator, bundle: ModelBundle, corpus: Corpus, plan: StagePlan) -> None:
        self.accelerator, self.bundle, self.corpus, self.plan = accelerator, bundle, corpus, plan

    def __call__(self, at: Progress) -> dict[str, Any]:
        """`validation_loss` (mean over supervised tokens), `value` (its negative), and `samples`."""
        sums = Sums()
        objective = NextToken()
        units = list(range(len(self.corpus.tokens)))[self.accelerator.process_index :: self.accelerator.num_processes]
        for begin in range(0, len(units), ROWS):
            samples = [sample for unit in units[begin : begin + ROWS] if (sample := self._sample(unit)) is not None]
            batch = collate([[sample] for sample in samples], self.bundle.pad_id).to_batch().to(self.accelerator.device)
            with self.accelerator.autocast():
                loss = objective(self.bundle.model, batch)
            sums.loss += float(loss.total)
            sums.weight += float(loss.weight)
        sums = sums.reduced(self.accelerator)
        mean = sums.loss / sums.weight if sums.weight else 0.0
        out: dict[str, Any] = {"validation_loss": mean, "value": -mean}
        if self.accelerator.is_main_process and self.plan.train.generate_samples:
            out["generated"] = self._captions()
        return out

    def _sample(self, unit: int) -> Sample | None:
        try:
            return self.corpus.sample(unit)
        except RecordError:
            return None

    def _captions(self) -> list[dict[str, str]]:
        out = []
        for unit in range(min(self.plan.train.generate_samples, len(self.corpus.tokens))):
            try:
                source, record = self.corpus.first_member(unit)
                prompt = make_prompt(source.dataset, record, source.builder, self.corpus.pictures, self.bundle.tokens_per_crop)
            except RecordError:
                continue
            with self.accelerator.autocast(), torch.no_grad():
                text = generate(self.bundle.model, self.bundle.tokenizer, [prompt], DecodingConfig(max_new_tokens=32))[0]
            out.append({"id": record.id, "text": text.text})
        return out
