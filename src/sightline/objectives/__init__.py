"""Objectives map a model and a batch to a `Loss` (sum and weight). One file each; models do not depend on them."""

from typing import Annotated

from pydantic import SerializeAsAny

from sightline.objectives.base import Objective as Objective
from sightline.objectives.base import ObjectiveConfig as ObjectiveConfig
from sightline.objectives.cal import CALConfig as CALConfig
from sightline.objectives.comalign import ComAlignObjectiveConfig as ComAlignObjectiveConfig
from sightline.objectives.contrastive import InfoNCEConfig as InfoNCEConfig
from sightline.objectives.contrastive import PairwiseSigmoidConfig as PairwiseSigmoidConfig
from sightline.objectives.next_token import NextTokenConfig as NextTokenConfig
from sightline.registry import KindRegistry

OBJECTIVES = KindRegistry[ObjectiveConfig](
    ObjectiveConfig,
    "sightline.objectives",
    (CALConfig, ComAlignObjectiveConfig, InfoNCEConfig, NextTokenConfig, PairwiseSigmoidConfig),
)

AnyObjective = Annotated[SerializeAsAny[ObjectiveConfig], OBJECTIVES]
