"""`flickr8k_dual`: heads between a frozen image encoder and a frozen sentence encoder, on a CPU in minutes."""

from sightline.assembly.config.schema import DataConfig, ModelConfig, RunConfig, StageConfig, TrainConfig
from sightline.models.dual import DualConfig, TextConfig
from sightline.models.vision import VisionConfig
from sightline.objectives.contrastive import InfoNCEConfig


def flickr8k_dual() -> RunConfig:
    """MobileNetV2 and MiniLM, both frozen, joined by projection heads; with `data.features` no image is encoded twice.

    Results and the comparison with CCA: docs/results/retrieval.md.
    """
    return RunConfig(
        recipe="flickr8k_dual",
        model=ModelConfig(
            vision=VisionConfig(path="google/mobilenet_v2_1.0_224"),
            dual=DualConfig(
                text=TextConfig(path="sentence-transformers/all-MiniLM-L6-v2", pooling="mean"),
                width=512,
                projection="mlp",
                dropout=0.3,
            ),
        ),
        data=DataConfig(path="sets/flickr8k", captions="one", pack=False, share_prefix=False, max_tokens=64),
        objective=InfoNCEConfig(),
        train=TrainConfig(
            epochs=40.0,
            batch_size=512,
            lr=1e-3,
            weight_decay=0.05,
            checkpoint_every=0,
            evaluate_every=60,
            evaluate_samples=500,
            best="score",
            best_task="retrieval",
        ),
        stages=(StageConfig(name="heads", parts={"projection": "train"}),),
    )
