"""A dual encoder as something that answers queries: similarities of candidates, and ranks in a gallery."""

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch

from sightline.assembly.model.bundle import ModelBundle
from sightline.assembly.model.towers import text_tokens
from sightline.data.batches.pairs import identity
from sightline.data.dataset import Dataset
from sightline.data.images.pixels import VisualInputLoader, VisualInputs
from sightline.errors import RecordError, UsageError
from sightline.evaluation.tasks import Query
from sightline.metrics.retrieval import Gallery
from sightline.runtime.logs import progress
from sightline.types import Prediction, Record, Texts, Visual

ROWS = 32  # images or texts per batch; fixed, so that vectors do not depend on the queries


class GalleryAnswers:
    """Answers `embed` with ranks.

    Args:
        queries: all that will be asked.
        gallery: makes the ranking from the identity of each query's image and of the image that each text describes.
    """

    def __init__(self, queries: Sequence[Query], gallery: Callable[[np.ndarray, np.ndarray], Gallery]) -> None:
        images = np.array([identity(*query.record.image_keys) for query in queries])
        owners = np.repeat(images, [len(query.candidates) for query in queries])
        self._gallery = gallery(images, owners)
        self._image_of = {query.id: row for row, query in enumerate(queries)}
        rows = iter(range(len(owners)))
        self._texts_of = {query.id: [next(rows) for _ in query.candidates] for query in queries}

    @classmethod
    def of_vectors(cls, queries: Sequence[Query], image_NW: np.ndarray, text_CW: np.ndarray) -> "GalleryAnswers":
        """Ranks by the cosine of the vector of each query's image and those of the queries' candidates, query after query."""
        return cls(queries, partial(Gallery.of_vectors, image_NW, text_CW))

    @classmethod
    def of_scores(cls, queries: Sequence[Query], scores_NC: np.ndarray) -> "GalleryAnswers":
        """Ranks by the scores of each query's image with the queries' candidates, query after query."""
        return cls(queries, partial(Gallery.of_scores, scores_NC))

    def width(self, queries: Sequence[Query]) -> int:
        """Returns 0: nothing is continued."""
        return 0

    def answer(self, queries: Sequence[Query], width: int) -> list[Prediction]:
        """Returns the ranks of each query."""
        rows, texts = [self._image_of[query.id] for query in queries], [self._texts_of[query.id] for query in queries]
        ranked = self._gallery.ranked(rows, texts)
        return [Prediction(query.id, scores=rank.to_scores()) for query, rank in zip(queries, ranked, strict=True)]


class SimilarityAnswers:
    """Answers `likelihood` with the scaled similarity of each candidate to the image, and `embed` with ranks in the gallery.

    A question beside the image stands before each candidate, with a space between them.

    Args:
        bundle: a dual encoder, on its device and in `eval` mode.
        dataset: holds the images.
        visual_loader: loads images; a control replaces them.
        bf16: arithmetic of the machine.
        queries: all that will be asked; those of the form `embed` are the gallery.

    Raises:
        UsageError: a query asks for text.
    """

    def __init__(
        self, bundle: ModelBundle, dataset: Dataset, visual_loader: VisualInputLoader, bf16: bool, queries: Sequence[Query]
    ) -> None:
        if any(query.form == "generate" for query in queries):
            raise UsageError(
                "a dual encoder compares images with texts and writes none.",
                "Use `sightline eval --task retrieval`, or composition or classify.",
            )
        self.bundle, self.dataset, self.visual_loader, self.bf16, self.queries = bundle, dataset, visual_loader, bf16, queries
        self.tokens = text_tokens(bundle)
        self._texts: dict[str, np.ndarray] = {}

    def width(self, queries: Sequence[Query]) -> int:
        """Returns 0: nothing is continued."""
        return 0

    def answer(self, queries: Sequence[Query], width: int) -> list[Prediction]:
        """Returns one prediction per query, or why there is none."""
        ranks = self._ranks([query for query in queries if query.form == "embed"])
        scores = self._similarities([query for query in queries if query.form == "likelihood"])
        return [(ranks | scores)[query.id] for query in queries]

    # Ranks ------------------------------------------------------------------------------------------------------------------

    @cached_property
    def _gallery(self) -> tuple["GalleryAnswers | None", dict[str, str]]:
        """The gallery, and why some queries are not in it."""
        return self._gallery_of([query for query in self.queries if query.form == "embed"])

    def _gallery_of(self, queries: Sequence[Query]) -> tuple["GalleryAnswers | None", dict[str, str]]:
        vectors, skipped = self._image_vectors(queries, "image vectors")
        kept = [query for query in queries if query.id in vectors]
        texts = [text for query in kept for text in query.candidates]
        self._embed_texts(texts, "text vectors")
        if not kept:
            return None, skipped
        images = np.stack([vectors[query.id] for query in kept])
        return GalleryAnswers.of_vectors(kept, images, np.stack([self._texts[text] for text in texts])), skipped

    def _ranks(self, queries: Sequence[Query]) -> dict[str, Prediction]:
        if not queries:
            return {}
        gallery, skipped = self._gallery
        kept = [query for query in queries if query.id not in skipped]
        found = gallery.answer(kept, 0) if gallery is not None and kept else []
        return {prediction.id: prediction for prediction in found} | {
            query.id: Prediction(query.id, skipped=skipped[query.id]) for query in queries if query.id in skipped
        }

    # Similarities -----------------------------------------------------------------------------------------------------------

    def _similarities(self, queries: Sequence[Query]) -> dict[str, Prediction]:
        if not queries:
            return {}
        model = self.bundle.pairs
        assert model is not None
        vectors, skipped = self._image_vectors(queries)
        asked = {query.id: [f"{_question(query)} {text}".strip() for text in query.candidates] for query in queries}
        self._embed_texts([text for query in queries if query.id in vectors for text in asked[query.id]])
        scale = float(model.logit_scale().detach())
        out = {query_id: Prediction(query_id, skipped=reason) for query_id, reason in skipped.items()}
        for query_id, vector in vectors.items():
            texts = np.stack([self._texts[text] for text in asked[query_id]]).astype(np.float64)
            out[query_id] = Prediction(query_id, scores=tuple((scale * texts @ vector.astype(np.float64)).tolist()))
        return out

    # Vectors ----------------------------------------------------------------------------------------------------------------

    def _image_vectors(self, queries: Sequence[Query], title: str = "") -> tuple[dict[str, Any], dict[str, str]]:
        """Returns the vector of each query's image, and the reason where there is none."""
        vectors: dict[str, Any] = {}
        skipped: dict[str, str] = {}
        with progress(title, len(queries), show=bool(title)) as bar:
            for begin in range(0, len(queries), ROWS):
                block = queries[begin : begin + ROWS]
                loaded: dict[str, VisualInputs] = {}
                for query in block:
                    try:
                        if len(query.record.images) != 1:
                            raise RecordError("several_images", "a dual encoder compares one image with texts")
                        loaded[query.id] = self.visual_loader.load(self.dataset, self._shown(query))
                    except RecordError as error:
                        skipped[query.id] = error.reason
                if loaded:
                    shown = {query.id: query for query in block}  # a block may be filled up with the same queries
                    kept = [shown[query_id] for query_id in loaded]
                    vectors |= dict(zip(loaded, self._vectors_of(kept, VisualInputs.joined(list(loaded.values()))), strict=True))
                bar.step(len(block))
        return vectors, skipped

    def _shown(self, query: Query) -> Record:
        """Returns the record whose image a query shows."""
        return query.record

    def _vectors_of(self, queries: Sequence[Query], inputs: VisualInputs) -> Any:
        """Returns the vector of each query's image."""
        device, nowhere = self.bundle.inner.device, torch.zeros(0, dtype=torch.long)
        pixels, features = (None if a is None else torch.tensor(a, device=device) for a in (inputs.pixels, inputs.features))
        model = self.bundle.pairs
        assert model is not None
        with torch.no_grad(), self._autocast():
            return model.image_vectors(model.features(Visual(pixels, features, nowhere, nowhere))).float().cpu().numpy()

    def _embed_texts(self, texts: Sequence[str], title: str = "") -> None:
        """Adds the vectors of texts that are not known yet; each text is encoded once, so that equal texts have equal vectors."""
        model = self.bundle.pairs
        assert model is not None
        new = [text for text in dict.fromkeys(texts) if text not in self._texts]
        with progress(title, len(new), show=bool(title)) as bar:
            for begin in range(0, len(new), ROWS):
                block = new[begin : begin + ROWS]
                arrays = (torch.from_numpy(value).to(self.bundle.inner.device) for value in self.tokens(block))
                with torch.no_grad(), self._autocast():
                    vectors = model.text_vectors(model.text_states(Texts(*arrays))).float().cpu().numpy()
                self._texts |= dict(zip(block, vectors, strict=True))
                bar.step(len(block))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.bundle.inner.device.type, torch.bfloat16, enabled=self.bf16)


def _question(query: Query) -> str:
    return " ".join(message.text for message in query.messages if message.role == "user").strip()
