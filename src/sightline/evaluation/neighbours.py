"""The baseline `neighbours`: answers a query with the answers of the training images that are nearest (Devlin et al. 2015).

No model writes anything; a model of the same features that scores less has learnt nothing that a search does not give. The nearest
images are those with the highest cosine similarity of their features, among the training queries with the same text (for captions
all, for questions those that ask the same). Of the nearest `k`

- captions: the candidates are all their captions, and the answer is the one with the highest mean CIDEr-D with the others;
- other answers: the most frequent one, of several the one whose image is nearest.

A question that no training query asks gets the most frequent answer of all. An image is never its own neighbour.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from sightline.errors import RecordError
from sightline.evaluation.tasks import Query, Task
from sightline.metrics.caption import PairwiseCider, tokenize_groups
from sightline.types import Prediction, Record

Vector = Float[np.ndarray, " E"]


@dataclass(frozen=True)
class _Known:
    """A training query: its images, their vector of length 1, and its answers."""

    image_keys: tuple[str, ...]
    vector_E: Vector
    answers: tuple[str, ...]


class NeighbourAnswers:
    """Answers queries from the nearest training images.

    Args:
        task: whose queries are answered.
        pool: the training queries.
        pool_vector_of, vector_of: features of the images of a training record, and of an asked one, as one vector; both raise
            RecordError where there are none.
        count: number of neighbours that agree on an answer.

    Attributes:
        skipped: training queries without a vector, by reason.
    """

    def __init__(
        self,
        task: Task,
        pool: Sequence[Query],
        pool_vector_of: Callable[[Record], Vector],
        vector_of: Callable[[Record], Vector],
        count: int,
    ) -> None:
        self.count = count
        self.skipped: Counter[str] = Counter()
        self._vector_of = vector_of
        self._known: list[_Known] = []
        by_text: dict[str, list[int]] = defaultdict(list)
        for query in pool:
            try:
                vector_E = _unit(pool_vector_of(query.record))
            except RecordError as error:
                self.skipped[error.reason] += 1
                continue
            by_text[_text_of(query)].append(len(self._known))
            self._known.append(_Known(query.record.image_keys, vector_E, task.references(query)))
        self._groups: Mapping[str, tuple[np.ndarray, np.ndarray]] = {
            text: (np.array(places), np.stack([self._known[place].vector_E for place in places]))
            for text, places in by_text.items()
        }
        self._usual = _most_frequent([_most_frequent(known.answers) for known in self._known])
        self._captions = [known.answers for known in self._known] if task.has_captions else []
        self._first = np.cumsum([0, *map(len, self._captions)])
        self._cider = PairwiseCider(tokenize_groups(self._captions)) if self._captions else None

    def width(self, queries: Sequence[Query]) -> int:
        """Nothing is generated."""
        return 0

    def answer(self, queries: Sequence[Query], width: int) -> list[Prediction]:
        """Returns one prediction per query, or why there is none."""
        found: dict[str, Prediction] = {}
        for query in queries:
            if query.id not in found:
                found[query.id] = self._answer(query)
        return [found[query.id] for query in queries]

    def _answer(self, query: Query) -> Prediction:
        try:
            vector_E = _unit(self._vector_of(query.record))
        except RecordError as error:
            return Prediction(query.id, skipped=error.reason)
        near = self._nearest(query, vector_E)
        if not len(near):
            return Prediction(query.id, self._usual)
        if self._cider is not None:
            return Prediction(query.id, self._agreed_caption(near))
        return Prediction(query.id, _most_frequent([_most_frequent(self._known[place].answers) for place in near]))

    def _nearest(self, query: Query, vector_E: Vector) -> np.ndarray:
        """Places of the nearest training queries with the same text, nearest first; of equally near ones the earlier."""
        places, vectors_NE = self._groups.get(_text_of(query), (np.zeros(0, dtype=int), np.zeros((0, len(vector_E)))))
        order = places[np.argsort(-(vectors_NE @ vector_E), kind="stable")]
        others = (place for place in order if self._known[place].image_keys != query.record.image_keys)
        return np.array([place for place, _ in zip(others, range(self.count), strict=False)], dtype=int)

    def _agreed_caption(self, near: np.ndarray) -> str:
        assert self._cider is not None
        chosen = np.concatenate([np.arange(self._first[place], self._first[place + 1]) for place in near])
        similarity = self._cider.among(chosen)
        np.fill_diagonal(similarity, 0.0)
        best = int(chosen[similarity.sum(axis=1).argmax()])
        owner = int(np.searchsorted(self._first, best, side="right")) - 1
        return self._captions[owner][best - self._first[owner]]


def _unit(vector_E: Vector) -> Vector:
    vector_E = np.asarray(vector_E, dtype=np.float32)
    return vector_E / max(float(np.linalg.norm(vector_E)), 1e-12)


def _text_of(query: Query) -> str:
    """Returns the text of a query, apart from case and spaces."""
    return " ".join(query.messages[-1].text.lower().split()) if query.messages else ""


def _most_frequent(answers: Sequence[str]) -> str:
    """Returns the most frequent answer, the first of several; empty without any."""
    return Counter(answers).most_common(1)[0][0] if answers else ""
