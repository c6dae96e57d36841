"""`seemoe`: seemore with a mixture of eight experts in each decoder block."""

from typing import Any

from sightline.assembly.config.schema import RunConfig
from sightline.models.language import LanguageConfig
from sightline.models.vision import VisionConfig
from sightline.recipes.seemore import CHARACTERS, DECODER, ENCODER, IMAGENET, seemore

MIXTURE: dict[str, Any] = DECODER | {"num_experts": 8, "num_experts_per_tok": 2, "router_noise": True}


def seemoe() -> RunConfig:
    """Noisy top-2 routing, with the load-balancing loss and the z-loss that the published code lacks; its ViT has ReLU."""
    base = seemore()
    vision = VisionConfig(config=ENCODER | {"hidden_act": "relu"}, normalise=IMAGENET)
    model = base.model.model_copy(update={"vision": vision, "language": LanguageConfig(config=MIXTURE, tokenizer=CHARACTERS)})
    return base.model_copy(update={"recipe": "seemoe", "model": model})
