"""`seemore`: the published from-scratch model at its sizes, on images of 96 pixels, one token per character."""

from typing import Any

from sightline.assembly.config.schema import DataConfig, ModelConfig, RunConfig, StageConfig, TrainConfig
from sightline.models.connectors.mlp import MLPConfig
from sightline.models.language import LanguageConfig, TokenizerConfig
from sightline.models.vision import VisionConfig

ENCODER: dict[str, Any] = {
    "model_type": "sightline_vit",
    "image_size": 96,
    "patch_size": 16,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "output_tokens": "class",
    "dropout": 0.1,
}
DECODER: dict[str, Any] = {
    "model_type": "sightline_decoder",
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "max_position_embeddings": 1000,
    "dropout": 0.1,
}
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
CHARACTERS = TokenizerConfig(kind="characters", vocabulary=512)


def seemore() -> RunConfig:
    """A ViT whose class token is the one visual token, and a dense decoder, all parts trained together.

    docs/methods/seemore.md lists what differs from the published code; `model.compat=seemore` brings its faults back.
    """
    return RunConfig(
        recipe="seemore",
        model=ModelConfig(
            vision=VisionConfig(config=ENCODER, normalise=IMAGENET),
            connector=MLPConfig(hidden=2048),
            language=LanguageConfig(config=DECODER, tokenizer=CHARACTERS),
        ),
        data=DataConfig(max_tokens=256, pack=False, share_prefix=False),
        train=TrainConfig(steps=3000, batch_size=16, lr=1e-3, warmup=100, checkpoint_every=200, evaluate_every=200),
        stages=(StageConfig(name="full", parts={"vision": "train", "connector": "train", "language": "train"}),),
    )
