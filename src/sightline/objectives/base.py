"""What an objective is."""

from abc import abstractmethod
from typing import Protocol

from sightline.config import Config
from sightline.types import Batch, Hidden, Loss


class HiddenStateModel(Protocol):
    """The one surface of a model that an objective uses."""

    def hidden(self, batch: Batch) -> Hidden:
        """Hidden states at the supervised slots."""
        ...


class Objective(Protocol):
    """Turns a batch into a loss."""

    def __call__(self, model: HiddenStateModel, batch: Batch) -> Loss:
        """The sum to back-propagate and its weight."""
        ...


class ObjectiveConfig(Config):
    """Fields of an objective; `build` makes it."""

    @property
    def stores_blind_logits(self) -> bool:
        """Whether image-free logits of a frozen decoder are computed once, before the first step."""
        return False

    @property
    def needs_padded_rows(self) -> bool:
        """Whether the objective is defined on rows of one sample each only."""
        return False

    @abstractmethod
    def build(self) -> Objective:
        """The objective."""
