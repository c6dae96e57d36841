"""`scenes_tiny`: a small model trained from scratch on generated scenes, in minutes on two CPU cores."""

from sightline.assembly.schema import DataConfig, ModelConfig, RunConfig, StageConfig, TrainConfig
from sightline.models.connectors.mlp import MLPConfig
from sightline.models.language import LanguageConfig, TokenizerConfig
from sightline.models.vision import VisionConfig


def scenes_tiny() -> RunConfig:
    """A ViT of 64 tokens and a decoder of four layers, all parts trained together on one-object scenes."""
    return RunConfig(
        recipe="scenes_tiny",
        model=ModelConfig(
            vision=VisionConfig(
                config={
                    "model_type": "siglip_vision_model",
                    "image_size": 64,
                    "patch_size": 8,
                    "hidden_size": 96,
                    "intermediate_size": 192,
                    "num_hidden_layers": 3,
                    "num_attention_heads": 4,
                    "vision_use_head": False,
                },
            ),
            connector=MLPConfig(shuffle=2),
            language=LanguageConfig(
                config={
                    "model_type": "llama",
                    "hidden_size": 96,
                    "intermediate_size": 256,
                    "num_hidden_layers": 3,
                    "num_attention_heads": 4,
                    "num_key_value_heads": 4,
                    "max_position_embeddings": 256,
                    "tie_word_embeddings": True,
                },
                tokenizer=TokenizerConfig(vocabulary=512),
            ),
        ),
        data=DataConfig(captions="first", max_tokens=128, row_tokens=512, max_skipped=0.0),
        train=TrainConfig(steps=450, batch_size=4, lr=2e-3, weight_decay=0.01, warmup=50, checkpoint_every=200, evaluate_every=200),
        stages=(StageConfig(name="full", parts={"vision": "train", "connector": "train", "language": "train"}),),
    )
