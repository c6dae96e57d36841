"""`clip`, `siglip` and `negclip`: whole dual encoders trained on with captions of COCO."""

from sightline.assembly.config.schema import DataConfig, ModelConfig, RunConfig, StageConfig, TrainConfig
from sightline.models.dual import DualConfig
from sightline.objectives.contrastive import InfoNCEConfig, PairwiseSigmoidConfig


def clip() -> RunConfig:
    """CLIP ViT-B/32, all parts, on one caption of each image per epoch: the plain fine-tuning that other methods are compared with.

    The learning rate and the batch size follow NegCLIP's fine-tuning. For a model from scratch give `model.vision` and
    `model.dual.text` instead.
    """
    return RunConfig(
        recipe="clip",
        model=ModelConfig(dual=DualConfig(path="openai/clip-vit-base-patch32")),
        data=DataConfig(path="sets/coco-train2017", captions="one", pack=False, share_prefix=False, max_tokens=77, workers=4),
        objective=InfoNCEConfig(),
        train=TrainConfig(
            epochs=5.0, batch_size=1024, lr=1e-6, weight_decay=0.1, betas=(0.9, 0.98), eps=1e-6, warmup=50, evaluate_samples=500
        ),
        stages=(StageConfig(name="full", parts={"vision": "train", "text": "train", "projection": "train"}),),
    )


def negclip() -> RunConfig:
    """NegCLIP (Yuksekgonul et al. 2023): `clip` with a hard-negative caption for each pair, from the records' `negatives`."""
    return clip().model_copy(
        update={
            "recipe": "negclip",
            "objective": InfoNCEConfig(hard_negatives=1),
        }
    )


def siglip() -> RunConfig:
    """SigLIP base, all parts, with the pairwise sigmoid loss."""
    base = clip()
    return base.model_copy(
        update={
            "recipe": "siglip",
            "model": ModelConfig(dual=DualConfig(path="google/siglip-base-patch16-224")),
            "data": base.data.model_copy(update={"max_tokens": 64}),
            "objective": PairwiseSigmoidConfig(),
            "train": base.train.model_copy(update={"betas": (0.9, 0.95)}),
        }
    )
