"""`alignvlm_low_resource`: AlignVLM's comparison of connectors, on the public data of LLaVA-NeXT."""

from sightline.assembly.config.schema import DataConfig, ModelConfig, RunConfig, RuntimeConfig, StageConfig, TrainConfig
from sightline.data.images.tilings import AnyResConfig
from sightline.models.connectors.align import AlignConfig
from sightline.recipes.alignvlm import LANGUAGE, VISION


def alignvlm_low_resource() -> RunConfig:
    """AlignVLM's low-resource run (its table 3): 558K captions for the connector, then 779K instructions for all parts.

    Compare connectors with `model.connector.kind=...` (those that keep a grid, because any-resolution tiling joins tiles to a map).
    The paper's batch sizes of 32 and 8 are taken as totals over all processes; schedule and warm-up are LLaVA-NeXT's. Grids of more
    than nine tiles are excluded, where the original shrinks their map.
    """
    return RunConfig(
        recipe="alignvlm_low_resource",
        model=ModelConfig(
            vision=VISION, tiling=AnyResConfig(grids="up_to_6x6", max_tiles=9), connector=AlignConfig(), language=LANGUAGE
        ),
        data=DataConfig(max_tokens=8192, too_long="truncate", pack=False, share_prefix=False, workers=8),
        train=TrainConfig(warmup=0.03),
        stages=(
            StageConfig(
                name="align",
                parts={"vision": "frozen", "connector": "train", "language": "frozen"},
                data={"path": "sets/llava-558k", "template": "plain"},
                train={"epochs": 1.0, "lr": 1e-3, "batch_size": 32},
            ),
            StageConfig(
                name="full",
                parts={"vision": 2e-6, "connector": "train", "language": "train"},
                data={"path": "sets/llava-next-779k"},
                train={"epochs": 1.0, "lr": 1e-5, "batch_size": 8},
            ),
        ),
        runtime=RuntimeConfig(gradient_checkpointing=True),
    )
