"""`scenes_tiny`: a small model trained from scratch on generated scenes, in minutes on two CPU cores."""

from sightline.assembly.config.schema import DataConfig, ModelConfig, RunConfig, StageConfig, TrainConfig
from sightline.models.connectors.mlp import MLPConfig
from sightline.models.language import LanguageConfig, TokenizerConfig
from sightline.models.vision import VisionConfig


def scenes_tiny() -> RunConfig:
    """A ConvNeXt of 8 x 8 tokens and a decoder of two layers, all parts trained together on one-object scenes.

    Convolutions learn shapes sooner than a ViT of this size (docs/log.md).
    """
    return RunConfig(
        recipe="scenes_tiny",
        model=ModelConfig(
            vision=VisionConfig(
                config={
                    "model_type": "convnext",
                    "image_size": 64,
                    "patch_size": 4,
                    "num_stages": 2,
                    "hidden_sizes": [48, 96],
                    "depths": [1, 2],
                    "layer_scale_init_value": 0.0,  # no layer scale: this net is shallow and trained from scratch
                },
            ),
            connector=MLPConfig(shuffle=2),
            language=LanguageConfig(
                config={
                    "model_type": "llama",
                    "hidden_size": 96,
                    "intermediate_size": 256,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 4,
                    "num_key_value_heads": 4,
                    "max_position_embeddings": 256,
                    "tie_word_embeddings": True,
                },
                tokenizer=TokenizerConfig(vocabulary=512),
            ),
        ),
        data=DataConfig(captions="first", max_tokens=128, row_tokens=256, max_skipped=0.0),
        train=TrainConfig(
            steps=1300, batch_size=4, lr=3e-3, weight_decay=0.01, warmup=80, checkpoint_every=200, evaluate_every=200
        ),
        stages=(StageConfig(name="full", parts={"vision": "train", "connector": "train", "language": "train"}),),
    )
