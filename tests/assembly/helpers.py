"""The configuration of a small run, for tests."""

from typing import Any

from sightline.assembly.config.schema import DataConfig, ModelConfig, RunConfig, StageConfig, TrainConfig
from sightline.models.connectors.mlp import MLPConfig
from sightline.models.language import LanguageConfig
from sightline.models.vision import VisionConfig
from tests.builders import decoder_folder, encoder_folder


def run_config(stages: tuple[StageConfig, ...] = (), train: dict[str, Any] | None = None, **section: Any) -> RunConfig:
    section = {"max_tokens": 120, "row_tokens": 240, "path": None, **section}
    return RunConfig(
        model=ModelConfig(
            vision=VisionConfig(path=str(encoder_folder("siglip"))),
            connector=MLPConfig(shuffle=2),
            language=LanguageConfig(path=str(decoder_folder("llama"))),
        ),
        data=DataConfig.model_validate(section, strict=False),
        train=TrainConfig.model_validate({"epochs": 3.0, "batch_size": 2, "seed": 5} | (train or {}), strict=False),
        stages=stages or (StageConfig(name="align", parts={"connector": "train"}),),
    )
