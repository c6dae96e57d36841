"""The interface of objectives."""

from abc import abstractmethod
from typing import Protocol

from sightline.config import Config
from sightline.registry import HasKind
from sightline.types import Batch, Hidden, Loss


class HiddenStateModel(Protocol):
    """The part of a model's interface that objectives use."""

    def hidden(self, batch: Batch) -> Hidden:
        """Returns the hidden states at the supervised slots."""
        ...


class Objective(Protocol):
    """Computes the loss of a batch."""

    def __call__(self, model: HiddenStateModel, batch: Batch) -> Loss:
        """Returns the sum to back-propagate and its weight."""
        ...


class ObjectiveConfig(HasKind, Config):
    """Fields of an objective; `build` creates the objective."""

    @property
    def stores_blind_logits(self) -> bool:
        """Whether blind logits (those without images) of a frozen decoder are computed once, before the first step."""
        return False

    @property
    def needs_padded_rows(self) -> bool:
        """Whether the objective supports only padded rows of one sample each."""
        return False

    @property
    def compares_pairs(self) -> bool:
        """Whether the objective compares all pairs of a step with each other, so that a step cannot be split."""
        return False

    @abstractmethod
    def build(self) -> Objective:
        """Builds the objective."""
