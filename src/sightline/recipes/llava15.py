"""`llava15`: LLaVA-1.5-7B, the connector on captions first, then connector and decoder on instructions."""

from sightline.assembly.config.schema import DataConfig, ModelConfig, RunConfig, RuntimeConfig, StageConfig, TrainConfig
from sightline.models.connectors.mlp import MLPConfig
from sightline.models.language import LanguageConfig
from sightline.models.vision import VisionConfig

VISION = VisionConfig(path="openai/clip-vit-large-patch14-336", layer=-2)
# Vicuna's folder has no tokenizer.json; LLaVA's has the same vocabulary, followed by <image> and <pad>.
LANGUAGE = LanguageConfig(path="lmsys/vicuna-7b-v1.5", tokenizer="llava-hf/llava-1.5-7b-hf")


def llava15() -> RunConfig:
    """LLaVA-1.5-7B: CLIP-L/14-336 frozen, a two-layer MLP, Vicuna-7B; 558K captions, then 665K instructions; 576 visual tokens.

    Differs: the original crops images in the first stage and pads them to squares in the second; here both stages pad. Its captions
    end with a line break, here with the end token.
    """
    return RunConfig(
        recipe="llava15",
        model=ModelConfig(vision=VISION, fit="pad", connector=MLPConfig(), language=LANGUAGE),
        data=DataConfig(max_tokens=2048, too_long="truncate", pack=False, share_prefix=False, workers=8),
        train=TrainConfig(warmup=0.03),
        stages=(
            StageConfig(
                name="align",
                parts={"vision": "frozen", "connector": "train", "language": "frozen"},
                data={"path": "sets/llava-558k", "template": "plain"},
                train={"epochs": 1.0, "lr": 1e-3, "batch_size": 256},
            ),
            StageConfig(
                name="instruct",
                parts={"vision": "frozen", "connector": "train", "language": "train"},
                data={"path": "sets/llava-665k", "template": "vicuna"},
                train={"epochs": 1.0, "lr": 2e-5, "batch_size": 128},
            ),
        ),
        runtime=RuntimeConfig(gradient_checkpointing=True, shard=True),
    )
