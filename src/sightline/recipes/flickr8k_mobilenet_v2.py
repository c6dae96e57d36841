"""`flickr8k_mobilenet_v2`: photos, a frozen pre-trained encoder, and a small decoder that is first trained on captions."""

from sightline.assembly.config.schema import DataConfig, ModelConfig, RunConfig, StageConfig, TrainConfig
from sightline.models.connectors.mlp import MLPConfig
from sightline.models.language import LanguageConfig
from sightline.models.vision import VisionConfig
from sightline.recipes.caption_lm import DECODER, TOKENIZER


def flickr8k_mobilenet_v2() -> RunConfig:
    """Stage `words` trains the decoder on captions alone, `instruct` the connector and the decoder together.

    The best checkpoint of `instruct` is that of the best CIDEr-D on validation photos, because the loss rises while captions still
    get better; set `data.validation_split` to a part of the training photos if you report scores on `val`.

    Set `model.vision.path` to a MobileNetV2 folder. With a decoder that was trained by `caption_lm`, skip the first stage:
    `model.language.path=runs/caption_lm stages.words=null`.
    """
    return RunConfig(
        recipe="flickr8k_mobilenet_v2",
        model=ModelConfig(
            vision=VisionConfig(path="google/mobilenet_v2_1.0_224"),
            connector=MLPConfig(),
            language=LanguageConfig(config=DECODER, tokenizer=TOKENIZER),
        ),
        data=DataConfig(max_tokens=128, row_tokens=512),
        train=TrainConfig(
            batch_size=8, weight_decay=0.05, checkpoint_every=100, evaluate_every=100, evaluate_samples=200, generate_samples=200
        ),
        stages=(
            StageConfig(
                name="words",
                parts={"vision": "frozen", "connector": "frozen", "language": "train"},
                data={"drop_images": True},
                train={"epochs": 8.0, "lr": 2e-3, "weight_decay": 0.1, "generate_samples": 0},
            ),
            StageConfig(
                name="instruct",
                parts={"vision": "frozen", "connector": 1e-3, "language": 1e-3},
                data={"row_tokens": 256},
                train={"epochs": 6.0, "batch_size": 4, "best": "score", "evaluate_every": 250},
            ),
        ),
    )
