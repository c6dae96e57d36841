"""`nanovlm`: nanoVLM-222M, a linear connector and small backbones, all parts trained at once."""

from sightline.assembly.config.schema import DataConfig, ModelConfig, RunConfig, StageConfig, TrainConfig
from sightline.models.connectors.linear import LinearConfig
from sightline.models.language import LanguageConfig
from sightline.models.vision import VisionConfig


def nanovlm() -> RunConfig:
    """nanoVLM-222M (its first release): SigLIP-base, pixel shuffle and one linear map, SmolLM2-135M, on The Cauldron.

    Differs: the original uses only the first question of an image, as "Question: ... Answer:"; here the complete conversation is
    rendered in ChatML, and conversations of more than 128 tokens are truncated, not left out. Its connector was drawn from N(0,
    0.02).
    """
    return RunConfig(
        recipe="nanovlm",
        model=ModelConfig(
            vision=VisionConfig(path="google/siglip-base-patch16-224"),
            connector=LinearConfig(shuffle=2, bias=False),
            language=LanguageConfig(path="HuggingFaceTB/SmolLM2-135M"),
        ),
        data=DataConfig(
            path="sets/cauldron",
            template="chatml",
            max_tokens=128,  # 49 visual tokens and 79 of text
            too_long="truncate",
            max_skipped=0.2,  # several images, or a question that is too long by itself
            pack=False,
            share_prefix=False,
            workers=8,
        ),
        # Plain AdamW without clipping; the rate ends at a tenth of its peak.
        train=TrainConfig(batch_size=256, weight_decay=0.01, decay_all=True, warmup=0.03, floor=0.1, clip=0.0),
        stages=(
            StageConfig(
                name="full",
                parts={"vision": 1e-4, "connector": 2e-3, "language": 1e-4},
                train={"epochs": 5.0},
            ),
        ),
    )
