"""`alignvlm_smolvlm`: the public port of AlignVLM: SmolVLM2-500M with its connector replaced by ALIGN, trained by LoRA."""

from sightline.assembly.config.schema import DataConfig, FromConfig, ModelConfig, RunConfig, RuntimeConfig, StageConfig, TrainConfig
from sightline.models.connectors.align import AlignConfig
from sightline.training.lora import LoraRule
from sightline.training.stages import PartConfig, PartRule

PARTS: dict[str, PartRule] = {
    "vision": "frozen",
    "connector": "train",
    "language": PartConfig(
        lr=1e-4,
        lora=LoraRule(
            r=64,
            alpha=64.0,
            rslora=True,
            dropout=0.1,
            full=("embeddings", "head", r"layers\.\d+\.(input|post_attention)_layernorm\."),
        ),
    ),
}


def alignvlm_smolvlm() -> RunConfig:
    """The port of AlignVLM to SmolVLM2-500M: ALIGN, LoRA of rank 64, 100K PixMo captions, then 200K Localized Narratives.

    The connector is the port's: W1 with bias, inner norm without scale, no outer norm, W2 random. The paper's own is
    `model.connector.{outer_norm=scalar,head=copy,inner_affine=true,bias=false}`.

    Differs: the port keeps the same adapters in its second half; here they are merged into the weights in between and new ones are
    added. It draws one of twenty prompts for each PixMo image and adds a system turn; here there is one prompt and no system turn.
    """
    return RunConfig(
        recipe="alignvlm_smolvlm",
        model=ModelConfig(
            from_=FromConfig(path="HuggingFaceTB/SmolVLM2-500M-Video-Instruct", parts=("vision", "language", "tiling")),
            connector=AlignConfig(shuffle=4, bias=True, inner_affine=False, outer_norm="none", head="random"),
        ),
        data=DataConfig(
            prompt="Describe this image in a few sentences.",
            supervise="all_text",  # the port masks only images and padding
            max_tokens=2048,  # 17 crops take 1088 positions, besides the tokens of rows and columns
            pack=False,
            share_prefix=False,
            workers=8,
        ),
        train=TrainConfig(batch_size=32, accumulate=8, lr=1e-4, weight_decay=0.01, warmup=70, schedule="linear"),
        stages=(
            StageConfig(name="pixmo", parts=PARTS, data={"path": "sets/pixmo-cap-100k"}, train={"epochs": 1.0}),
            StageConfig(name="narratives", parts=PARTS, data={"path": "sets/localized-narratives-200k"}, train={"epochs": 1.0}),
        ),
        runtime=RuntimeConfig(gradient_checkpointing=True),
    )
