"""`flickr8k_mobilenet_v2`: real photos, a frozen real encoder, and the decoder of a `caption_lm` run."""

from sightline.assembly.schema import DataConfig, ModelConfig, RunConfig, StageConfig, TrainConfig
from sightline.models.connectors.mlp import MLPConfig
from sightline.models.language import LanguageConfig
from sightline.models.vision import VisionConfig


def flickr8k_mobilenet_v2() -> RunConfig:
    """Stage `align` trains the connector alone, stage `instruct` the connector and the decoder.

    `model.vision.path` and `model.language.path` must be set to a MobileNetV2 folder and a run of `caption_lm`.
    """
    return RunConfig(
        recipe="flickr8k_mobilenet_v2",
        model=ModelConfig(
            vision=VisionConfig(path="google/mobilenet_v2_1.0_224"),
            connector=MLPConfig(),
            language=LanguageConfig(path="runs/caption_lm"),
        ),
        data=DataConfig(max_tokens=128, row_tokens=512),
        train=TrainConfig(batch_size=8, weight_decay=0.05, checkpoint_every=100, evaluate_every=100),
        stages=(
            StageConfig(
                name="align",
                parts={"vision": "frozen", "connector": "train", "language": "frozen"},
                train={"epochs": 4.0, "lr": 1e-3},
            ),
            StageConfig(
                name="instruct",
                parts={"vision": "frozen", "connector": 2e-4, "language": 2e-4},
                train={"epochs": 2.0},
            ),
        ),
    )
