"""`seemoe_frozen`: the way that seemore's author recommends and does not publish: a pre-trained encoder that stays frozen."""

from sightline.assembly.config.schema import DataConfig, ModelConfig, RunConfig, StageConfig, TrainConfig
from sightline.models.connectors.mlp import MLPConfig
from sightline.models.language import LanguageConfig
from sightline.models.vision import VisionConfig
from sightline.recipes.seemoe import MIXTURE
from sightline.recipes.seemore import CHARACTERS


def seemoe_frozen() -> RunConfig:
    """Stage `words` trains the decoder on captions alone, `align` the connector, `full` the connector and the decoder.

    The author trains the connector first, then connector and decoder, with a decoder that is pre-trained, too; `words` takes that
    place. All patches become visual tokens.
    """
    return RunConfig(
        recipe="seemoe_frozen",
        model=ModelConfig(
            vision=VisionConfig(path="google/siglip-base-patch16-224"),
            connector=MLPConfig(shuffle=2),
            language=LanguageConfig(config=MIXTURE, tokenizer=CHARACTERS),
        ),
        data=DataConfig(max_tokens=384, row_tokens=768),
        train=TrainConfig(batch_size=16, warmup=100, checkpoint_every=200, evaluate_every=200),
        stages=(
            StageConfig(
                name="words",
                parts={"vision": "frozen", "connector": "frozen", "language": "train"},
                data={"drop_images": True},
                train={"epochs": 4.0, "lr": 1e-3},
            ),
            StageConfig(
                name="align",
                parts={"vision": "frozen", "connector": "train", "language": "frozen"},
                train={"epochs": 2.0, "lr": 1e-3},
            ),
            StageConfig(
                name="full",
                parts={"vision": "frozen", "connector": "train", "language": "train"},
                train={"epochs": 4.0, "lr": 5e-4},
            ),
        ),
    )
