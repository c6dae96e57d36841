"""`alignvlm`: AlignVLM-3B, whose visual tokens are mixtures of the decoder's input embeddings, in the paper's three stages."""

from sightline.assembly.config.schema import DataConfig, ModelConfig, RunConfig, RuntimeConfig, StageConfig, TrainConfig
from sightline.data.images.tilings import CoverConfig
from sightline.models.connectors.align import AlignConfig
from sightline.models.language import LanguageConfig
from sightline.models.vision import VisionConfig

VISION = VisionConfig(path="google/siglip-so400m-patch14-384")
# The paper says Llama-3.2-3B. This is its instruct version, because questions need a chat template.
LANGUAGE = LanguageConfig(path="meta-llama/Llama-3.2-3B-Instruct")


def alignvlm() -> RunConfig:
    """AlignVLM-3B: SigLIP-400M, ALIGN, Llama-3.2-3B; CC-12M, BigDocs-7.5M, then DocDownstream with the encoder frozen.

    Left open by the paper and chosen here: weight decay, betas, warm-up and schedule (as in examples of MS-Swift, with which it
    was trained), the encoder's last layer, and labels (answers only). Its lengths of 1024 and 2048 cannot hold nine tiles of 729
    tokens, so they are taken as text lengths, and 6561 positions for the image are added.
    """
    return RunConfig(
        recipe="alignvlm",
        model=ModelConfig(vision=VISION, tiling=CoverConfig(max_tiles=9), connector=AlignConfig(), language=LANGUAGE),
        data=DataConfig(
            prompt="Describe the image.", max_tokens=8704, too_long="truncate", pack=False, share_prefix=False, workers=8
        ),
        train=TrainConfig(weight_decay=0.1, betas=(0.9, 0.95), warmup=0.05),
        stages=(
            StageConfig(
                name="captions",
                parts={"vision": "train", "connector": "train", "language": "train"},
                data={"path": "sets/cc12m", "max_tokens": 7680},
                train={"epochs": 1.0, "lr": 1e-5, "batch_size": 512},
            ),
            StageConfig(
                name="documents",
                parts={"vision": "train", "connector": "train", "language": "train"},
                data={"path": "sets/bigdocs-7.5m"},
                train={"epochs": 1.0, "lr": 5e-5, "batch_size": 256},
            ),
            StageConfig(
                name="questions",
                parts={"vision": "frozen", "connector": "train", "language": "train"},
                data={"path": "sets/docdownstream"},
                train={"epochs": 5.0, "lr": 5e-5, "batch_size": 256},
            ),
        ),
        runtime=RuntimeConfig(gradient_checkpointing=True, shard=True),
    )
