"""`scratch_flickr8k`: all parts from scratch on real photos, end to end, as Kosmos-1 is trained."""

from sightline.assembly.config.schema import DataConfig, ModelConfig, RunConfig, StageConfig, TrainConfig
from sightline.models.connectors.mlp import MLPConfig
from sightline.models.language import LanguageConfig, TokenizerConfig
from sightline.models.vision import VisionConfig
from sightline.recipes.seemore import IMAGENET


def scratch_flickr8k() -> RunConfig:
    """A ViT of all patches and a mixture-of-experts decoder with words as tokens.

    A few thousand photos are far too few for this: compare with `flickr8k_mobilenet_v2`, whose encoder is pre-trained.
    """
    return RunConfig(
        recipe="scratch_flickr8k",
        model=ModelConfig(
            vision=VisionConfig(
                config={
                    "model_type": "sightline_vit",
                    "image_size": 96,
                    "patch_size": 12,
                    "hidden_size": 192,
                    "intermediate_size": 768,
                    "num_hidden_layers": 4,
                    "num_attention_heads": 6,
                    "dropout": 0.1,
                },
                normalise=IMAGENET,
            ),
            connector=MLPConfig(shuffle=2),
            language=LanguageConfig(
                config={
                    "model_type": "sightline_decoder",
                    "hidden_size": 192,
                    "intermediate_size": 384,
                    "num_hidden_layers": 4,
                    "num_attention_heads": 6,
                    "max_position_embeddings": 512,
                    "positions": "rotary",
                    "norm": "rms_norm",
                    "hidden_act": "silu",
                    "gated": True,
                    "bias": False,
                    "tie_word_embeddings": True,
                    "dropout": 0.1,
                    "num_experts": 8,
                    "num_experts_per_tok": 2,
                    "router_noise": True,
                },
                tokenizer=TokenizerConfig(vocabulary=4096),
            ),
        ),
        data=DataConfig(max_tokens=128, row_tokens=512),
        train=TrainConfig(epochs=8, batch_size=8, lr=1e-3, weight_decay=0.1, warmup=200, checkpoint_every=200, evaluate_every=200),
        stages=(StageConfig(name="full", parts={"vision": "train", "connector": "train", "language": "train"}),),
    )
