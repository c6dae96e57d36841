"""What a task is."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from sightline.types import Prediction, Record, Score


class Task(ABC):
    """Chooses the records it can ask about and scores the answers.

    Args:
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """

    name: str = ""
    max_new_tokens: int = 64

    def __init__(self, resamples: int = 1000, seed: int = 0) -> None:
        self.resamples, self.seed = resamples, seed

    @abstractmethod
    def asks(self, record: Record) -> bool:
        """Whether a record has what the task needs."""

    @abstractmethod
    def score(self, records: Sequence[Record], predictions: Sequence[Prediction]) -> dict[str, Score]:
        """Scores by name; records and predictions are paired by id."""
