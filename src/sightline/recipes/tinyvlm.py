"""`tinyvlm`: a SwiGLU connector trained between a frozen SigLIP-base and a frozen SmolLM2-135M."""

from sightline.assembly.config.schema import DataConfig, ModelConfig, RunConfig, RuntimeConfig, StageConfig, TrainConfig
from sightline.models.connectors.swiglu import SwiGLUConfig
from sightline.models.language import LanguageConfig
from sightline.models.vision import VisionConfig

MODEL = ModelConfig(
    vision=VisionConfig(path="google/siglip-base-patch16-224"),
    # The reported run merged strips of four patches in raster order; the later code merges blocks of 2 x 2: merge=blocks.
    connector=SwiGLUConfig(shuffle=2, merge="raster"),
    language=LanguageConfig(path="HuggingFaceTB/SmolLM2-135M-Instruct"),
)


def tinyvlm() -> RunConfig:
    """TinyVLM's reported run: SigLIP-base and SmolLM2-135M frozen, a SwiGLU connector on 595K captions, 49 visual tokens.

    Differs: the original puts the image between two added tokens with random, frozen embeddings; here no tokens are added. Its
    validation split was the last tenth of the file; here it is drawn at random by `data prepare`.
    """
    return RunConfig(
        recipe="tinyvlm",
        model=MODEL,
        data=DataConfig(
            path="sets/cc3m-595k",
            template="chatml",  # without the system turn that SmolLM2's own template adds
            supervise="with_header",  # the reported run also supervised the header's three tokens; its later code does not
            max_tokens=256,
            pack=False,
            share_prefix=False,
            workers=8,
        ),
        # Plain AdamW in fp32. On one A40: 8 micro-batches of 96 rows; an epoch is 697 steps.
        train=TrainConfig(batch_size=768, accumulate=8, weight_decay=0.01, decay_all=True, warmup=0.03, clip=1.0),
        stages=(
            StageConfig(
                name="align",
                parts={"vision": "frozen", "connector": "train", "language": "frozen"},
                train={"epochs": 1.0, "lr": 1e-3},
            ),
        ),
        runtime=RuntimeConfig(dtype="fp32"),
    )
