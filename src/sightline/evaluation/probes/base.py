"""What a probe works on: records as the model's connector sees them, and what it gives back."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor


@dataclass(frozen=True)
class ProbedRecord:
    """The images of a record as they reach the connector.

    Attributes:
        record_id: of the record.
        features_NPE: the encoder's outputs for each crop, on the model's device.
        pixels_NHWC: the crops themselves, to be shown; None where features were stored.
    """

    record_id: str
    features_NPE: Float[Tensor, "N P E"]
    pixels_NHWC: UInt8[np.ndarray, "N h w 3"] | None = None


class Findings(Protocol):
    """What a probe found."""

    def to_json(self) -> dict[str, Any]:
        """As `probe --json` prints it."""
        ...

    def figures(self) -> dict[str, str]:
        """The numbers that matter, by name, for people."""
        ...
