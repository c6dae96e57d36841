"""`llava_next_cal`: LLaVA-NeXT-7B with contrastive alignment, on the mixture of its authors."""

from sightline.assembly.config.schema import RunConfig, StageConfig
from sightline.objectives.cal import CALConfig
from sightline.recipes.llava_next import llava_next

# The authors' own mixture; they do not give its proportions, so every dataset is used once.
MIXTURE = ("sets/llava-665k", "sets/docvqa", "sets/chartqa", "sets/sharegpt4v")


def llava_next_cal() -> RunConfig:
    """CAL on LLaVA-NeXT-7B: 558K captions, then 665K instructions, DocVQA, ChartQA and ShareGPT4V, the encoder at a tenth.

    `objective.mode=published` uses the authors' own arithmetic.
    """
    base = llava_next()
    align, full = base.stages
    full = StageConfig(
        name=full.name,
        parts=full.parts,
        data={"mixture": [{"path": path} for path in MIXTURE], "template": "vicuna"},
        train=full.train,
    )
    return base.model_copy(update={"recipe": "llava_next_cal", "objective": CALConfig(), "stages": (align, full)})
