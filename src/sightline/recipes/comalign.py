"""`comalign`: light networks over a frozen CLIP that align entities and relations (arXiv 2409.08206)."""

from sightline.assembly.config.schema import DataConfig, ModelConfig, RunConfig, StageConfig, TrainConfig
from sightline.models.dual import DualConfig
from sightline.models.light_network import AlignmentConfig
from sightline.objectives.comalign import ComAlignObjectiveConfig


def comalign() -> RunConfig:
    """ComAlign on CLIP ViT-B/32 and captions of COCO with `components`; only the light network of the image side trains.

    The network is the published one. Differs: boxes are COCO's annotations, an oracle, because the authors' detector is not part of
    this package (`model.dual.alignment.boxes=cells` needs none); loss, learning rate, batch size and epochs are our reconstruction,
    because the authors released no training code. Store the crops once (`sightline data features`) and name the store in
    `data.features`: an image has 21 crops.
    """
    return RunConfig(
        recipe="comalign",
        model=ModelConfig(
            dual=DualConfig(
                path="openai/clip-vit-base-patch32", alignment=AlignmentConfig(variant="published", boxes="record", encode="crops")
            )
        ),
        data=DataConfig(path="sets/coco-train2017", captions="one", pack=False, share_prefix=False, max_tokens=77, workers=4),
        objective=ComAlignObjectiveConfig(),
        train=TrainConfig(epochs=15.0, batch_size=512, lr=1e-4, weight_decay=0.01, warmup=0.03, evaluate_samples=500),
        stages=(StageConfig(name="align", parts={"alignment": "train"}),),
    )
