"""Objectives: a model and a batch in, a `Loss` (sum and weight) out. One file each; the model knows none of them."""

from typing import Annotated

from pydantic import Field

from sightline.objectives.base import Objective as Objective
from sightline.objectives.base import ObjectiveConfig as ObjectiveConfig
from sightline.objectives.next_token import NextTokenConfig

OBJECTIVES: dict[str, type[ObjectiveConfig]] = {
    "next_token": NextTokenConfig,
}

AnyObjective = Annotated[NextTokenConfig, Field(discriminator="kind")]
