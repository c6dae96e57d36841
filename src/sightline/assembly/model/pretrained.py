"""Stock vision-language models of transformers, read unchanged from a folder or the Hub, to be evaluated beside ours.

Prompts come from the model's own chat template and are expanded here, crops are cut by our tilings from the settings of the model's
own image processor: no processor class is needed (SmolVLM's wants torchvision). Ids and pixels equal those of the processors.
"""

from transformers import PreTrainedTokenizerBase

from sightline.assembly.model.bundle import ModelBundle
from sightline.assembly.model.tokenizer import load_composite_tokenizer
from sightline.data.images.tilings import AnyResConfig
from sightline.data.images.tilings.processors import grids_of, read_processor
from sightline.data.samples.processing import Processing
from sightline.errors import ConfigError
from sightline.models import composites, language, loading
from sightline.models.stock import StockModel
from sightline.types import IMAGE

# Default question about an image for stock models: lmms-eval's prompt for COCO captions.
CAPTION_PROMPT = "Provide a one-sentence caption for the provided image."


def stock_inputs(path: str) -> tuple[PreTrainedTokenizerBase, Processing]:
    """Returns the tokenizer of a stock model and how records become its inputs.

    Args:
        path: a folder as `save_pretrained` writes it, with tokenizer and image processor, or a Hub id.

    Raises:
        ConfigError: the architecture is not known, or its files contradict each other.
    """
    config = loading.read_config(path)
    composites.find(config, path)
    preparation, tiling = read_processor(path)
    pinpoints = config.to_dict().get("image_grid_pinpoints")
    if isinstance(tiling, AnyResConfig) and grids_of(pinpoints, tiling.side, path) != tiling.choices:
        raise ConfigError(f"{path!r}: 'image_grid_pinpoints' of config.json and of the processor differ.", "Use another model.")
    tokenizer = load_composite_tokenizer(path)
    image_id = tokenizer.convert_tokens_to_ids(IMAGE)
    if image_id != config.image_token_id:
        raise ConfigError(
            f"{path!r}: the model's image token is {config.image_token_id}, the tokenizer's {IMAGE!r} is {image_id}.",
            "Use another model.",
        )
    processing = Processing(
        prompt=CAPTION_PROMPT,
        max_tokens=language.max_sequence_length(config.get_text_config(decoder=True)),
        tiling=tiling,
        preparation=preparation,
        recipe=f"stock {config.model_type}",
    )
    return tokenizer, processing


def read_stock(path: str, attention: str = "sdpa") -> ModelBundle:
    """Reads a stock LLaVA, LLaVA-NeXT, Idefics3 or SmolVLM.

    Args:
        path: as in `stock_inputs`.
        attention: attention kernel of encoder and decoder.

    Raises:
        ConfigError: the architecture is not known, or its files contradict each other.
        StorageError: weights are missing or damaged.
    """
    tokenizer, processing = stock_inputs(path)
    model, preparation = composites.load(path, attention), processing.preparation
    assert preparation is not None  # by `stock_inputs`
    side = (preparation.height, preparation.width)
    stock = StockModel(model, preparation.mean, preparation.std, preparation.rescale, side)
    stock.eval()
    bundle = ModelBundle(stock, tokenizer, processing)
    settings = model.generation_config
    assert settings is not None
    if settings.eos_token_id is None:
        settings.eos_token_id = tokenizer.eos_token_id
    if settings.pad_token_id is None:
        settings.pad_token_id = bundle.pad_id
    return bundle
