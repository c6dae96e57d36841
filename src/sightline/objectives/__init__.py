"""Objectives map a model and a batch to a `Loss` (sum and weight). One file each; models do not depend on them."""

from typing import Annotated

from pydantic import Field

from sightline.objectives.base import Objective as Objective
from sightline.objectives.base import ObjectiveConfig as ObjectiveConfig
from sightline.objectives.cal import CALConfig as CALConfig
from sightline.objectives.next_token import NextTokenConfig as NextTokenConfig

OBJECTIVES: dict[str, type[ObjectiveConfig]] = {
    "cal": CALConfig,
    "next_token": NextTokenConfig,
}

AnyObjective = Annotated[CALConfig | NextTokenConfig, Field(discriminator="kind")]
