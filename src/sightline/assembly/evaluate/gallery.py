"""Retrieval with a model that writes text: the likelihood of every caption of a gallery given every image.

The likelihoods of an image with all captions are one line of `likelihoods/with_image/predictions.jsonl`, so that an evaluation that
was stopped goes on with the next image, and several processes share the images.
"""

import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from sightline.assembly.evaluate.answers import ModelAnswers
from sightline.assembly.evaluate.similarity import GalleryAnswers
from sightline.data.images.pixels import VisualInputs
from sightline.data.images.tilings import Layout
from sightline.data.samples.encoding import shared_prefix, text_sample
from sightline.data.samples.prompts import conversation_of, visual_inputs_of
from sightline.errors import RecordError
from sightline.evaluation.controls import without_images
from sightline.evaluation.likelihood import YES_OR_NO, confirm_messages, gain, per_byte, yes_minus_no
from sightline.evaluation.predict import predict
from sightline.evaluation.tasks import Query
from sightline.evaluation.tasks.base import Likelihood
from sightline.generation.continuations import Continuations
from sightline.runtime.logs import logger, readable_duration
from sightline.runtime.process_group import process_count
from sightline.types import EncodedConversation, Message, Prediction, Sample

MEASURED = 32  # captions of the first image that the estimate of the time rests on
NO_IMAGE = "no_image"
_IRRELEVANT = ("batch_size", "decoding")  # settings of an evaluation that likelihoods do not depend on


class GalleryLikelihoods:
    """Answers a query with the log-probability of each of its candidates, with the image's prefix computed once.

    With a `template` each candidate is asked about instead: two values, of "Yes" and of "No".

    Args:
        answers: the model.
        template: the question about one candidate; has `{question}` and `{candidate}`.
    """

    def __init__(self, answers: ModelAnswers, template: str | None = None) -> None:
        self.answers, self.template = answers, template
        self._rows: dict[Hashable, list[EncodedConversation]] = {}
        self._without_image: dict[Hashable, tuple[float, ...]] = {}

    def width(self, queries: Sequence[Query]) -> int:
        """Returns 0: nothing is generated."""
        return 0

    def answer(self, queries: Sequence[Query], width: int) -> list[Prediction]:
        """Returns one prediction per query, or why there is none."""
        found: dict[str, Prediction] = {}
        for query in queries:
            if query.id not in found:
                try:
                    found[query.id] = Prediction(query.id, scores=self._scores(query))
                except RecordError as error:
                    found[query.id] = Prediction(query.id, skipped=error.reason)
        return [found[query.id] for query in queries]

    def announce(self, queries: Sequence[Query]) -> None:
        """Measures the first pairs and logs how long all queries of this process will take."""
        if not queries:
            return
        pairs = len(queries[0].candidates)
        for query in queries:
            try:
                sample = self._sample(query)
                break
            except RecordError:
                continue
        else:
            return
        per_pair = len(sample.branches) / pairs
        count = min(len(sample.branches), MEASURED)
        with torch.no_grad(), self.answers.autocast():
            Continuations(self.answers.bundle.model, sample).log_probabilities(count)  # the first call also warms up
            begin = time.perf_counter()
            prefix = Continuations(self.answers.bundle.model, sample)
            encoded = time.perf_counter()
            prefix.log_probabilities(count)
            seconds = (time.perf_counter() - encoded) / count * per_pair
        whole = len(queries) * (encoded - begin + pairs * seconds)
        logger.info(
            "%d images x %d captions: about %s (%.3f s an image and %.4f s a caption, measured on %d)",
            len(queries) * process_count(),
            pairs,
            readable_duration(whole),
            encoded - begin,
            seconds,
            count,
        )

    def _scores(self, query: Query) -> tuple[float, ...]:
        sample = self._sample(query)
        key = None if sample.num_crops else (query.messages, query.candidates)
        if key is None or key not in self._without_image:
            with torch.no_grad(), self.answers.autocast():
                scores = tuple(Continuations(self.answers.bundle.model, sample).log_probabilities())
            if key is None:
                return scores
            self._without_image[key] = scores
        return self._without_image[key]

    def _sample(self, query: Query) -> Sample:
        """Returns the query's conversations, one for each candidate, as branches of one sample.

        Raises:
            RecordError: the image cannot be used, or a conversation is too long for the decoder.
        """
        bundle, conversation_encoder = self.answers.bundle, self.answers.scoring_builder
        turns, layouts = conversation_of(query.record, query.messages, conversation_encoder)
        inputs = visual_inputs_of(self.answers.dataset, query.record, conversation_encoder, self.answers.visual_loader)
        rows = self._encoded(tuple(turns), query.candidates, layouts)
        text = text_sample(rows, [query.record.id] * len(rows), layouts, bundle.tokens_per_crop)
        joined = VisualInputs.joined(inputs)
        return replace(text, prefix=shared_prefix(rows), images=joined.pixels, features=joined.features)

    def _encoded(
        self, turns: tuple[Message, ...], candidates: tuple[str, ...], layouts: Sequence[Layout]
    ) -> list[EncodedConversation]:
        shapes = tuple((layout.text, layout.slots, layout.visual_index.tobytes()) for layout in layouts)
        key = turns, candidates, shapes
        if key not in self._rows:
            self._rows[key] = [
                self.answers.candidate_row(messages, candidate, layouts)
                for text in candidates
                for messages, candidate in self._conversations(turns, text)
            ]
        return self._rows[key]

    def _conversations(self, turns: tuple[Message, ...], text: str) -> list[tuple[Sequence[Message], str]]:
        if self.template is None:
            return [(turns, text)]
        asked = confirm_messages(self.template, turns, text)
        return [(asked, word) for word in YES_OR_NO]


@dataclass(frozen=True)
class ScoredGallery:
    """Likelihoods of the texts of a gallery given its images.

    Attributes:
        queries: those whose image could be read, in order.
        texts: the different texts of all queries.
        with_image_NT: log-probability of each text given each image; of `yes_no`, that of yes minus that of no.
        without_image_T: log-probability of each text alone, of `gain`; else None.
        skipped: why a query is not in it, by id.
    """

    queries: list[Query]
    texts: tuple[str, ...]
    with_image_NT: Float[np.ndarray, "N T"]
    without_image_T: Float[np.ndarray, " T"] | None
    skipped: Mapping[str, str]

    def scores(self, kind: Likelihood, alpha: float) -> Float[np.ndarray, "N T"]:
        """Returns the scores of one kind."""
        match kind:
            case "gain":
                assert self.without_image_T is not None
                return gain(self.with_image_NT, self.without_image_T, alpha)
            case "plain":
                return per_byte(self.with_image_NT, self.texts)
            case "yes_no":
                return self.with_image_NT

    def ranking(self, scores_NT: Float[np.ndarray, "N T"]) -> GalleryAnswers:
        """Returns what answers the queries with the ranks of these scores."""
        place = {text: number for number, text in enumerate(self.texts)}
        columns = [place[text] for query in self.queries for text in query.candidates]
        return GalleryAnswers.of_scores(self.queries, scores_NT[:, columns])


def score_gallery(
    answers: ModelAnswers, queries: Sequence[Query], kind: Likelihood, template: str, folder: Path, settings: Mapping[str, Any]
) -> ScoredGallery:
    """Computes, or reads from `folder`, the likelihood of all candidates of some queries given the image of each.

    Args:
        answers: the model.
        queries: of the form `embed`.
        kind: `gain` needs the likelihoods without an image too; they are computed once.
        template: the question of `yes_no`.
        folder: holds the log-probabilities, an image a line.
        settings: what they depend on.
    """
    texts = tuple(dict.fromkeys(text for query in queries for text in query.candidates))
    scorer = GalleryLikelihoods(answers, template if kind == "yes_no" else None)
    asked = [replace(query, form="likelihood", candidates=texts) for query in queries]
    own = {name: value for name, value in settings.items() if name not in _IRRELEVANT} | {"kind": kind == "yes_no", "texts": texts}
    found = predict(scorer, asked, folder / "with_image", own, 1, "images", scorer.announce)
    by_id = {prediction.id: prediction for prediction in found.predictions}
    kept = [query for query in queries if query.id in by_id]
    with_image = np.array([by_id[query.id].scores for query in kept], dtype=np.float64).reshape(len(kept), -1)
    without = None
    if kind == "gain" and kept:
        bare = replace(without_images(asked[:1])[0], id=NO_IMAGE)
        blind = predict(scorer, [bare], folder / "without_image", own, 1, "captions without an image")
        without = np.array(blind.predictions[0].scores)
    with_image = yes_minus_no(with_image) if kind == "yes_no" else with_image
    return ScoredGallery(kept, texts, with_image, without, found.reasons)


class RankedGallery:
    """Answers `embed` with ranks by likelihood.

    Args:
        gallery: the likelihoods.
        kind, alpha: how scores are made of them.
    """

    def __init__(self, gallery: ScoredGallery, kind: Likelihood, alpha: float) -> None:
        self.skipped = gallery.skipped
        self.ranking = gallery.ranking(gallery.scores(kind, alpha)) if gallery.queries else None

    def width(self, queries: Sequence[Query]) -> int:
        """Returns 0: nothing is generated."""
        return 0

    def answer(self, queries: Sequence[Query], width: int) -> list[Prediction]:
        """Returns the ranks of each query, or why there are none."""
        kept = [query for query in queries if query.id not in self.skipped]
        ranks = {} if self.ranking is None else {found.id: found for found in self.ranking.answer(kept, 0)}
        return [ranks.get(query.id) or Prediction(query.id, skipped=self.skipped[query.id]) for query in queries]
