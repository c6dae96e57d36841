"""`tinyvlm_instruct`: a second stage for TinyVLM, which has none: decoder and connector trained on instructions."""

from sightline.assembly.config.schema import DataConfig, RunConfig, StageConfig, TrainConfig
from sightline.recipes.tinyvlm import MODEL


def tinyvlm_instruct() -> RunConfig:
    """Stage 2 of TinyVLM on LLaVA's 665K instructions; starts from the weights of a `tinyvlm` run (`init`).

    No published run exists. Data, epoch, schedule and the frozen encoder are those of LLaVA-1.5's second stage; the rate is
    nanoVLM's for the same decoder, five times LLaVA's for a decoder fifty times larger.
    """
    return RunConfig(
        recipe="tinyvlm_instruct",
        model=MODEL,
        init="runs/tinyvlm",
        data=DataConfig(path="sets/llava-665k", template="chatml", max_tokens=2048, too_long="truncate", workers=8),
        # 32 packed rows of 2048 tokens hold about as many conversations as LLaVA's batch of 128.
        train=TrainConfig(batch_tokens=65536, accumulate=4, warmup=0.03),
        stages=(
            StageConfig(
                name="instruct",
                parts={"vision": "frozen", "connector": "train", "language": "train"},
                train={"epochs": 1.0, "lr": 1e-4},
            ),
        ),
    )
