"""`llava15_cal`: LLaVA-1.5-7B with contrastive alignment in both stages."""

from sightline.assembly.config.schema import RunConfig
from sightline.objectives.cal import CALConfig
from sightline.recipes.llava15 import llava15


def llava15_cal() -> RunConfig:
    """CAL on LLaVA-1.5-7B: its data, stages and rates; label tokens are weighted by how much the image raises their logit.

    `objective.mode=published` uses the authors' own arithmetic. In the first stage only the image precedes the caption's first
    token, which therefore has weight 1 in mode `clean`.
    """
    return llava15().model_copy(update={"recipe": "llava15_cal", "objective": CALConfig()})
