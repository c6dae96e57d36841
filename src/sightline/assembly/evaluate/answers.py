"""A model as something that answers queries."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import torch

from sightline.assembly.model.build import ModelBundle
from sightline.data.batches.collate import collate
from sightline.data.dataset import Dataset
from sightline.data.images.pixels import VisualInputLoader, VisualInputs
from sightline.data.images.tilings import Layout
from sightline.data.samples.encoding import ConversationEncoder, text_sample
from sightline.data.samples.prompts import FewShotExample, Prompt, conversation_of, encode_prompt, make_prompt, visual_inputs_of
from sightline.errors import RecordError
from sightline.evaluation.tasks import Query
from sightline.generation.decode import DecodingConfig, generate
from sightline.models.language import max_sequence_length
from sightline.ops.cross_entropy import linear_cross_entropy
from sightline.types import EncodedConversation, Message, Part, Prediction, Sample


class ModelAnswers:
    """Answers queries in batches: by generation, or with the log-probabilities of their candidates.

    Args:
        bundle: the model, on its device and in `eval` mode.
        dataset: holds the images.
        visual_loader: fills visual slots; a control replaces them.
        decoding: greedy by default.
        conversation_encoder: makes prompts.
        bf16: arithmetic of the machine.
        examples: what stands before the questions, by record id.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        dataset: Dataset,
        visual_loader: VisualInputLoader | None,
        decoding: DecodingConfig,
        conversation_encoder: ConversationEncoder,
        bf16: bool,
        examples: Mapping[str, Sequence[FewShotExample]] | None = None,
    ) -> None:
        self.bundle, self.dataset, self.visual_loader = bundle, dataset, visual_loader
        self.decoding, self.conversation_encoder, self.bf16 = decoding, conversation_encoder, bf16
        self.examples: Mapping[str, Sequence[FewShotExample]] = examples or {}
        self.positions = max_sequence_length(bundle.inner.config.get_text_config(decoder=True))

    def width(self, queries: Sequence[Query]) -> int:
        """The longest prompt to be continued, in tokens."""
        longest = 0
        for query in queries:
            if query.form != "generate":
                continue
            try:
                longest = max(longest, len(self._encode_prompt(query).ids))
            except RecordError:
                continue
        return longest

    def answer(self, queries: Sequence[Query], width: int) -> list[Prediction]:
        """One prediction per query, or why there is none."""
        made: dict[str, Prediction] = {}
        for form, answer in (("generate", self._texts), ("likelihood", self._scores)):
            own = [query for query in queries if query.form == form]
            made |= answer(own, width) if own else {}
        return [made[query.id] for query in queries]

    def _texts(self, queries: Sequence[Query], width: int) -> dict[str, Prediction]:
        made: dict[str, Prompt | RecordError] = {}
        for query in queries:
            if query.id not in made:
                made[query.id] = self._prompt(query)
        prompts = [prompt for query in queries if isinstance(prompt := made[query.id], Prompt)]
        prompts += prompts[-1:] * (len(queries) - len(prompts))  # one shape, whatever had to be skipped
        with self.autocast():
            texts = iter(generate(self.bundle.model, self.bundle.tokenizer, prompts, self.decoding, width) if prompts else [])
        out: dict[str, Prediction] = {}
        for query in queries:  # a query that fills up the batch stands at its end: its first text is kept
            prompt = made[query.id]
            if isinstance(prompt, RecordError):
                out[query.id] = Prediction(query.id, skipped=prompt.reason)
                continue
            text = next(texts)
            out.setdefault(query.id, Prediction(query.id, text.text, text.num_tokens))
        return out

    def _prompt(self, query: Query) -> Prompt | RecordError:
        examples, per_crop = self.examples.get(query.record.id, ()), self.bundle.tokens_per_crop
        try:
            self._encode_prompt(query)
            return make_prompt(
                self.dataset, query.record, self.conversation_encoder, self.visual_loader, per_crop, examples, query.messages
            )
        except RecordError as error:
            return error

    def _encode_prompt(self, query: Query) -> EncodedConversation:
        """The row of a prompt behind which the decoder can place an answer."""
        row, _ = encode_prompt(query.record, self.conversation_encoder, self.examples.get(query.record.id, ()), query.messages)
        if len(row.ids) + self.decoding.max_new_tokens > self.positions:
            raise RecordError("too_long", f"{len(row.ids)} tokens and an answer, but the decoder has {self.positions} positions")
        return row

    def autocast(self) -> torch.autocast:
        """The arithmetic of the machine as a context."""
        return torch.autocast(self.bundle.inner.device.type, torch.bfloat16, enabled=self.bf16)

    # Likelihood -------------------------------------------------------------------------------------------------------------

    def _scores(self, queries: Sequence[Query], width: int) -> dict[str, Prediction]:
        """Log-probability of each candidate as the assistant's turn after the question: a sum over its tokens and its end."""
        made: dict[str, list[Sample] | RecordError] = {query.id: self._candidates(query) for query in queries}
        samples = [sample for own in made.values() if not isinstance(own, RecordError) for sample in own]
        values = iter(self._log_probabilities(samples) if samples else [])
        return {
            key: Prediction(key, skipped=own.reason)
            if isinstance(own, RecordError)
            else Prediction(key, scores=tuple(next(values) for sample in own for _ in sample.branches))
            for key, own in made.items()
        }

    def _candidates(self, query: Query) -> list[Sample] | RecordError:
        examples, conversation_encoder = self.examples.get(query.record.id, ()), self.scoring_builder
        try:
            turns, layouts = conversation_of(query.record, query.messages, conversation_encoder, examples)
            rows = [self.candidate_row(turns, candidate, layouts) for candidate in query.candidates]
            inputs = visual_inputs_of(self.dataset, query.record, conversation_encoder, self.visual_loader, examples)
        except RecordError as error:
            return error
        return branch_samples(rows, query.record.id, layouts, VisualInputs.joined(inputs), self.bundle.tokens_per_crop)

    def candidate_row(self, turns: Sequence[Message], candidate: str, layouts: Sequence[Layout]) -> EncodedConversation:
        """Encodes a candidate as the assistant's turn after `turns`; it alone is supervised.

        Raises:
            RecordError: `no_supervised_token` or `too_long`.
        """
        row = self.scoring_builder.encode_conversation([*turns, Message("assistant", (Part(candidate),))], layouts)
        spans = tuple(span for span in row.spans if span.turn == len(turns))
        if not spans:
            raise RecordError("no_supervised_token", f"candidate {candidate!r} has no token of its own")
        row = replace(row, spans=spans)
        return self.scoring_builder.with_start(row) if spans[0].start == 0 else row  # nothing else could predict its first token

    @cached_property
    def scoring_builder(self) -> ConversationEncoder:
        """Encodes conversations whose assistant turns are scored."""
        rules = replace(self.conversation_encoder.rules, supervise="assistant", max_tokens=self.positions, too_long="skip")
        return ConversationEncoder(self.bundle.tokenizer, self.bundle.template, rules)

    def _log_probabilities(self, samples: Sequence[Sample]) -> list[float]:
        batch = collate([[sample] for sample in samples], self.bundle.pad_id).to_batch().to(self.bundle.inner.device)
        with torch.no_grad(), self.autocast():
            hidden = self.bundle.model.hidden(batch)
            nll_S, _ = linear_cross_entropy(hidden.states_SD, hidden.head, batch.supervision.target_S)
        counts = [branch.num_supervised for sample in samples for branch in sample.branches]
        return [-float(nll.double().sum()) for nll in nll_S.split(counts)]


def branch_samples(
    rows: Sequence[EncodedConversation], record_id: str, layouts: Sequence[Layout], inputs: VisualInputs, tokens_per_crop: int
) -> list[Sample]:
    """Rows with the same images as branches of one sample, or each as its own where they share no prefix that holds the images."""

    def sample(rows: Sequence[EncodedConversation]) -> Sample:
        text = text_sample(rows, [record_id] * len(rows), layouts, tokens_per_crop)
        return replace(text, images=inputs.pixels, features=inputs.features)

    together = sample(rows)
    return [together] if len(rows) == 1 or together.prefix else [sample([row]) for row in rows]
