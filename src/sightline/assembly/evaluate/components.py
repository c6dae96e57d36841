"""A model with light networks (ComAlign) as something that answers queries: component by component."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from sightline.assembly.evaluate.similarity import ROWS, GalleryAnswers, SimilarityAnswers
from sightline.assembly.model.bundle import ModelBundle
from sightline.assembly.model.towers import component_rules
from sightline.data.batches.components import phrase_table
from sightline.data.dataset import Dataset
from sightline.data.images.pixels import VisualInputLoader, VisualInputs
from sightline.errors import UsageError
from sightline.evaluation.spec import Scoring
from sightline.evaluation.tasks import Query
from sightline.metrics.retrieval import Gallery
from sightline.models.comalign import AlignedModel
from sightline.ops.component_similarity import TERMS, join_rows, level_similarity, select_rows, weighted_similarity
from sightline.ops.late_interaction import LateInteraction
from sightline.runtime.logs import logger, progress
from sightline.types import Box, ComponentInputs, ComponentVectors, Prediction, Record, Texts, Visual

BLOCK = 1000  # texts or images that are compared in float64 at once
Weights = Mapping[str, Mapping[str, float]]


# Scores -----------------------------------------------------------------------------------------------------------------------


class ComponentGallery(Gallery):
    """Images and texts that are ranked against each other by weighted similarities of all levels.

    Args:
        images, texts: the vectors, on the CPU.
        image_N, text_C: identity of each image, and of the image that each text describes.
        weights: of the terms for `t2i` and `i2t`; None for the authors' rule (`published`).
    """

    def __init__(
        self,
        images: ComponentVectors,
        texts: ComponentVectors,
        image_N: Int[np.ndarray, " N"],
        text_C: Int[np.ndarray, " C"],
        weights: Weights | None,
    ) -> None:
        super().__init__(self.to_text, self.to_image, image_N, text_C)
        self.images, self.texts, self.weights = images, texts, weights
        self._norms = published_norms(images, texts) if weights is None else {}

    def to_text(self, images: Sequence[int]) -> Float[np.ndarray, "Q C"]:
        """Returns the scores of all texts for some images."""
        chosen = _double(select_rows(self.images, torch.tensor(images)))
        blocks = [self._scores(chosen, texts).image_to_text_IT for texts in _blocks(self.texts)]
        return torch.cat(blocks, dim=1).numpy()

    def to_image(self, texts: Sequence[int]) -> Float[np.ndarray, "Q N"]:
        """Returns the scores of all images for some texts."""
        chosen = _double(select_rows(self.texts, torch.tensor(texts)))
        blocks = [self._scores(images, chosen).text_to_image_IT for images in _blocks(self.images)]
        return torch.cat(blocks).T.numpy()

    def _scores(self, images: ComponentVectors, texts: ComponentVectors) -> LateInteraction:
        if self.weights is None:
            return published_scores(published_terms(images, texts), self._norms)
        return weighted_similarity(images, texts, dict(self.weights["t2i"]), dict(self.weights["i2t"]))


def _double(vectors: ComponentVectors) -> ComponentVectors:
    values = (getattr(vectors, name) for name in ComponentVectors.__slots__)
    return ComponentVectors(*(value if value.dtype == torch.bool else value.double() for value in values))


def _blocks(vectors: ComponentVectors) -> list[ComponentVectors]:
    count = len(vectors.plain_NW)
    return [_double(select_rows(vectors, slice(begin, begin + BLOCK))) for begin in range(0, count, BLOCK)]


def published_terms(images: ComponentVectors, texts: ComponentVectors) -> dict[str, torch.Tensor]:
    """Returns the four matrices `[images, texts]` that the authors' inference code combines.

    `plain` and `global` are cosines of the encoder's and of the refined images with the encoder's texts; `to_text` and `to_image`
    are the sums of entities and relations in each direction.
    """
    fine = [level_similarity(images, texts, level) for level in ("entity", "relation") if getattr(images, f"{level}_NK").shape[1]]
    plain = images.plain_NW @ texts.plain_NW.T
    return {
        "plain": plain,
        "global": images.whole_NW @ texts.plain_NW.T,
        "to_text": sum((pair.image_to_text_IT for pair in fine), torch.zeros_like(plain)),
        "to_image": sum((pair.text_to_image_IT for pair in fine), torch.zeros_like(plain)),
    }


def published_norms(images: ComponentVectors, texts: ComponentVectors) -> dict[str, float]:
    """Returns what the authors divide each matrix by: the absolute mean over its rows of the row's maximum.

    The rows of `to_image` are texts, those of the others images.
    """
    largest: dict[str, list[torch.Tensor]] = {name: [] for name in ("plain", "global", "to_text", "to_image")}
    best_of_texts: torch.Tensor | None = None
    for some in _blocks(images):
        rows = {name: [] for name in ("plain", "global", "to_text")}
        columns = []
        for others in _blocks(texts):
            terms = published_terms(some, others)
            for name, found in rows.items():
                found.append(terms[name].amax(1))
            columns.append(terms["to_image"].amax(0))
        for name, found in rows.items():
            largest[name].append(torch.stack(found).amax(0))
        best = torch.cat(columns)
        best_of_texts = best if best_of_texts is None else torch.maximum(best_of_texts, best)
    assert best_of_texts is not None
    norms = {name: abs(float(torch.cat(found).mean())) for name, found in largest.items() if found}
    return {name: value or 1.0 for name, value in (norms | {"to_image": abs(float(best_of_texts.mean()))}).items()}


def published_scores(terms: Mapping[str, torch.Tensor], norms: Mapping[str, float]) -> LateInteraction:
    """Returns the scores of the authors' inference code, with its weights, which it does not explain."""
    plain, whole, to_text, to_image = (terms[name] / norms[name] for name in ("plain", "global", "to_text", "to_image"))
    return LateInteraction(10 * plain + to_image + whole, 2 * plain + 0.06 * whole + 0.06 * to_text + 0.02 * to_image)


# Answers ----------------------------------------------------------------------------------------------------------------------


class ComponentAnswers(SimilarityAnswers):
    """Answers as `SimilarityAnswers` does, with similarities of all levels.

    `likelihood` is the mean of both directions' scores: a false caption may name a thing that is not there, or leave one out.

    Args:
        bundle, dataset, visual_loader, bf16, queries: as in `SimilarityAnswers`.
        scoring: `weighted` as chosen in training, `mean` of the trained levels, or the authors' rule `published`.
        boxes_of: boxes of each image by its keys: a control may give a record another's image.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        dataset: Dataset,
        visual_loader: VisualInputLoader,
        bf16: bool,
        queries: Sequence[Query],
        scoring: Scoring,
        boxes_of: Mapping[tuple[str, ...], tuple[Box, ...]],
    ) -> None:
        super().__init__(bundle, dataset, visual_loader, bf16, queries)
        rules = component_rules(bundle)
        assert rules is not None
        self.rules, self.boxes_of, self.scoring = rules, boxes_of, scoring
        if scoring == "published" and any(query.form != "embed" for query in queries):
            raise UsageError(
                "scoring=published divides by means over a whole gallery, which only retrieval has.", "Use --scoring weighted."
            )
        if not any(query.record.components for query in queries):
            logger.warning("no record has components; every caption is compared as a whole at all levels (see data components)")
        self._components: dict[tuple[str, ...], ComponentVectors] = {}

    @property
    def _model(self) -> AlignedModel:
        model = self.bundle.pairs
        assert isinstance(model, AlignedModel)
        return model

    def _weights(self) -> Weights | None:
        if self.scoring == "published":
            return None
        config: Any = self.bundle.inner.config
        chosen: Weights | None = config.score_weights
        if chosen is None or self.scoring == "mean":
            choice = self._model.alignment
            trained = {term for way in (chosen or {}).values() for term in way} or set(TERMS)
            present = {"global": True, "entity": choice.entities > 0, "relation": choice.relations > 0}
            levels = [level for level, is_there in present.items() if is_there and level in trained]
            even = {level: 1 / len(levels) for level in levels}
            return {"t2i": even, "i2t": even}
        return chosen

    def _gallery_of(self, queries: Sequence[Query]) -> tuple[GalleryAnswers | None, dict[str, str]]:
        images, skipped = self._image_vectors(queries, "image vectors")
        kept = [query for query in queries if query.id in images]
        texts = [(query.record, text) for query in kept for text in query.candidates]
        self._embed(texts, "text vectors")
        if not kept:
            return None, skipped
        gallery = partial(
            ComponentGallery,
            join_rows([images[query.id] for query in kept]),
            join_rows([self._components[self._key(*text)] for text in texts]),
            weights=self._weights(),
        )
        return GalleryAnswers(kept, gallery), skipped

    def _similarities(self, queries: Sequence[Query]) -> dict[str, Prediction]:
        if not queries:
            return {}
        images, skipped = self._image_vectors(queries)
        self._embed([(query.record, text) for query in queries if query.id in images for text in query.candidates])
        scale = float(self._model.alignment_scale().detach())
        out = {query_id: Prediction(query_id, skipped=reason) for query_id, reason in skipped.items()}
        weights = self._weights()
        assert weights is not None  # the authors' rule was refused
        for query in queries:
            if query.id in images:
                texts = join_rows([self._components[self._key(query.record, text)] for text in query.candidates])
                both = weighted_similarity(_double(images[query.id]), _double(texts), dict(weights["t2i"]), dict(weights["i2t"]))
                scores = scale * (both.text_to_image_IT + both.image_to_text_IT)[0] / 2
                out[query.id] = Prediction(query.id, scores=tuple(scores.tolist()))
        return out

    # Vectors ----------------------------------------------------------------------------------------------------------------

    def _shown(self, query: Query) -> Record:
        """Returns the record of a query with the boxes of the image that it shows."""
        record = query.record
        return replace(record, boxes=self.boxes_of.get(record.image_keys, record.boxes))

    def _vectors_of(self, queries: Sequence[Query], inputs: VisualInputs) -> list[ComponentVectors]:
        boxes = torch.from_numpy(np.stack([self.rules.boxes_of(self._shown(query)) for query in queries]))
        device, nowhere = self.bundle.inner.device, torch.zeros(0, dtype=torch.long)
        pixels, features = (None if a is None else torch.tensor(a, device=device) for a in (inputs.pixels, inputs.features))
        with torch.no_grad(), self._autocast():
            states = self._model.features(Visual(pixels, features, nowhere, nowhere))
            return _rows(self._model.image_components(states, boxes.to(device)))

    def _key(self, record: Record, text: str) -> tuple[str, ...]:
        return (text, *self.rules.phrases_of(record, text))

    def _embed(self, texts: Sequence[tuple[Record, str]], title: str = "") -> None:
        """Adds the vectors of texts with their phrases; equal ones are encoded once, so that they have equal vectors."""
        new = [key for key in dict.fromkeys(self._key(*text) for text in texts) if key not in self._components]
        device = self.bundle.inner.device
        with progress(title, len(new), show=bool(title)) as bar:
            for begin in range(0, len(new), ROWS):
                block = new[begin : begin + ROWS]
                phrases, index = phrase_table([key[1:] for key in block])
                whole, parts = (self._tokens(list(items)) for items in ([key[0] for key in block], phrases or [block[0][0]]))
                with torch.no_grad(), self._autocast():
                    inputs = ComponentInputs(torch.zeros(0), parts, torch.from_numpy(index).to(device))
                    vectors = _rows(self._model.text_components(self._model.text_states(whole), inputs))
                self._components |= dict(zip(block, vectors, strict=True))
                bar.step(len(block))

    def _tokens(self, texts: list[str]) -> Texts:
        return Texts(*(torch.from_numpy(value).to(self.bundle.inner.device) for value in self.tokens(texts)))


def _rows(vectors: ComponentVectors) -> list[ComponentVectors]:
    """Returns the vectors of each image or text on the CPU, in float32."""
    values = [getattr(vectors, name) for name in ComponentVectors.__slots__]
    moved = ComponentVectors(*(value.cpu() if value.dtype == torch.bool else value.float().cpu() for value in values))
    return [select_rows(moved, slice(row, row + 1)) for row in range(len(vectors.plain_NW))]
