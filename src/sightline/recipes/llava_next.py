"""`llava_next`: LLaVA-NeXT-7B: images in up to five crops, the encoder trained in the second stage."""

from sightline.assembly.config.schema import DataConfig, ModelConfig, RunConfig, RuntimeConfig, StageConfig, TrainConfig
from sightline.data.images.tilings import AnyResConfig
from sightline.models.connectors.mlp import MLPConfig
from sightline.recipes.llava15 import LANGUAGE, VISION


def llava_next() -> RunConfig:
    """LLaVA-NeXT-7B (Vicuna): any resolution, 558K captions, then 779K instructions with the encoder at a tenth of the rate.

    Differs: the original was trained on 760K conversations that were never released in that form; the released 779K are used.
    """
    return RunConfig(
        recipe="llava_next",
        model=ModelConfig(vision=VISION, tiling=AnyResConfig(), connector=MLPConfig(), language=LANGUAGE),
        data=DataConfig(max_tokens=4096, too_long="truncate", pack=False, share_prefix=False, workers=8),
        train=TrainConfig(warmup=0.03),
        stages=(
            StageConfig(
                name="align",
                parts={"vision": "frozen", "connector": "train", "language": "frozen"},
                data={"path": "sets/llava-558k", "template": "plain"},
                train={"epochs": 1.0, "lr": 1e-3, "batch_size": 256},
            ),
            StageConfig(
                name="full",
                parts={"vision": 2e-6, "connector": "train", "language": "train"},
                data={"path": "sets/llava-next-779k", "template": "vicuna"},
                train={"epochs": 1.0, "lr": 2e-5, "batch_size": 128},
            ),
        ),
        runtime=RuntimeConfig(gradient_checkpointing=True, shard=True),
    )
