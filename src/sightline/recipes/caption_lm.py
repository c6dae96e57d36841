"""`caption_lm`: a small decoder pre-trained on caption text alone, to be used as a frozen language model for captions."""

from sightline.assembly.config.schema import DataConfig, ModelConfig, RunConfig, StageConfig, TrainConfig
from sightline.models.language import LanguageConfig, TokenizerConfig

DECODER = {
    "model_type": "llama",
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
TOKENIZER = TokenizerConfig(vocabulary=4096)


def caption_lm() -> RunConfig:
    """A Llama-type decoder of 2.6 million parameters with its own tokenizer."""
    return RunConfig(
        recipe="caption_lm",
        model=ModelConfig(language=LanguageConfig(config=DECODER, tokenizer=TOKENIZER)),
        data=DataConfig(drop_images=True, max_tokens=128, row_tokens=256, max_skipped=0.001),
        train=TrainConfig(
            epochs=6, batch_tokens=4096, lr=2e-3, weight_decay=0.1, warmup=200, checkpoint_every=300, evaluate_every=300
        ),
        stages=(StageConfig(name="pretrain", parts={"language": "train"}),),
    )
