"""Building a model with everything that belongs to it, saving it as a folder, and reading such a folder back.

What belongs to it: the tokenizer with the image token, how pictures are prepared and tiled, the chat template, the prompt, and
when generation stops. All of it goes into the model's folder, so that a folder alone can be evaluated, served and resumed.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sightline.assembly.config import locate
from sightline.assembly.config import parts as sections
from sightline.assembly.config.parts import preparation_of as preparation_of
from sightline.assembly.config.schema import ModelConfig, RunConfig
from sightline.assembly.model import tokenizer as tokenizers
from sightline.assembly.model.bundle import ModelBundle as ModelBundle
from sightline.assembly.model.pretrained import read_stock
from sightline.data.features.store import open_store
from sightline.data.images.preparation import ImagePreparation
from sightline.data.images.tilings import WholeConfig
from sightline.data.samples.processing import PROCESSING as PROCESSING
from sightline.data.samples.processing import Processing as Processing
from sightline.data.samples.processing import is_ours, read_processing
from sightline.data.samples.templates import TEMPLATES
from sightline.errors import ConfigError
from sightline.models import composites, language, vision
from sightline.models.connectors import Connector
from sightline.models.saving import load_model, save_model
from sightline.models.saving import non_finite as non_finite
from sightline.models.stored import StoredFeatures, StoredFeaturesConfig
from sightline.models.text import TextModel
from sightline.models.vlm import PARTS, SightlineConfig, SightlineForConditionalGeneration
from sightline.runtime.storage import write_json
from sightline.training import lora
from sightline.types import IMAGE, Message, Part

PROCESSOR = "preprocessor_config.json"


# Building ------------------------------------------------------------------------------------------------------------------------


def build(config: RunConfig, processing: Processing, texts: Iterable[str] | None) -> ModelBundle:
    """Loads or makes the parts of a model and puts them together.

    Args:
        config: the run.
        processing: prompt, template and policy of the run; preparation and tiling are filled in here.
        texts: what a new tokenizer is trained on.

    Raises:
        ConfigError: parts do not fit together.
        StorageError: weights are missing or damaged.
    """
    wanted = sections.resolve(config.model)
    assert wanted.language is not None  # by `resolve`
    attention = "sdpa" if config.runtime.attention == "auto" else config.runtime.attention
    donor = composites.load(wanted.from_.path, attention) if wanted.from_ is not None else None
    tokenizer = tokenizers.build_tokenizer(wanted.language, texts)
    num_words = tokenizers.num_words(tokenizer)
    if wanted.vision is not None:
        tokenizers.add_tokens(tokenizer, (IMAGE, *wanted.tiling.tokens))
    torch.manual_seed(config.train.seed)
    if donor is not None and wanted.takes("language"):
        decoder = composites.language_of(donor)
    else:
        decoder = language.build_decoder(wanted.language, len(tokenizer), attention)
    language.check_decoder(decoder)
    num_words = min(num_words, rows_of(decoder.get_input_embeddings()).shape[0])
    fit_vocabulary(decoder, len(tokenizer))
    limit = language.position_limit(language.text_config(decoder))
    if processing.max_tokens > limit:
        raise ConfigError(
            f"data.max_tokens={processing.max_tokens}, but the decoder has {limit} positions.", f"Set data.max_tokens={limit}."
        )
    if wanted.vision is None:
        bundle = ModelBundle(TextModel(decoder), tokenizer, processing)
    else:
        model, preparation = _with_vision(wanted, wanted.vision, decoder, tokenizer, num_words, config.train.seed, attention, donor)
        wanted.tiling.check_grid(model.connector.token_grid)
        processing = processing.model_copy(update={"preparation": preparation, "tiling": wanted.tiling})
        bundle = ModelBundle(model, tokenizer, processing)
    bundle.inner.generation_config = generation_config(bundle)
    return bundle


def _with_vision(
    wanted: ModelConfig,
    eye: vision.VisionConfig,
    decoder: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    num_words: int,
    seed: int,
    attention: str,
    donor: PreTrainedModel | None,
) -> tuple[SightlineForConditionalGeneration, ImagePreparation | None]:
    encoder, preparation, shape = build_encoder(wanted, eye, seed, attention, donor)
    drop, grid = shape.kept(eye.drop_class_token)
    if shape.prefix and not drop and wanted.connector.shuffle > 1:
        raise ConfigError("a class token has no place in a grid of blocks.", "Set model.vision.drop_class_token=true.")
    image_id = tokenizer.convert_tokens_to_ids(IMAGE)
    assert isinstance(image_id, int)
    model_config = SightlineConfig(
        vision_config=encoder.config,
        text_config=decoder.config,
        connector=wanted.connector.model_dump(mode="json"),
        vision_layer=eye.layer,
        vision_drop=drop,
        grid=grid,
        vision_width=shape.width,
        image_token_id=image_id,
        num_words=num_words,
        num_separators=wanted.tiling.num_separators,
    )
    if preparation is not None:
        model_config.image_mean, model_config.image_std = list(preparation.mean), list(preparation.std)
        model_config.rescale_factor = preparation.rescale
    torch.manual_seed(seed + 2)
    connector = Connector(wanted.connector, model_config.connector_shape())
    connector.adopt_head(language.head_of(decoder).weight_VD)
    model = SightlineForConditionalGeneration(model_config, encoder, connector, decoder)
    nn.init.normal_(model.separators, std=decoder.config.get_text_config(decoder=True).hidden_size ** -0.5)  # as LLaVA-NeXT's
    if donor is not None and wanted.takes("connector"):
        composites.copy_connector(donor, model.connector, model.separators)
    return model, preparation


def build_encoder(
    wanted: ModelConfig, eye: vision.VisionConfig, seed: int, attention: str, donor: PreTrainedModel | None = None
) -> tuple[PreTrainedModel, ImagePreparation | None, vision.EncoderShape]:
    """The encoder of a new model, how pictures are prepared for it, and what comes out of it.

    For an external table it is one that takes no pictures, and there is no preparation.

    Args:
        wanted, eye: the model section, resolved, and its encoder.
        seed: of new weights.
        attention: kernel.
        donor: the model that `model.from` names, where it is loaded already.

    Raises:
        ConfigError: it is no vision model, or the table is tiled or holds the outputs of a known encoder.
        StorageError: its weights are not all there.
    """
    if eye.external is not None:
        store = open_store(eye.external)
        if store.kind != "external":
            raise ConfigError(
                f"model.vision.external={eye.external}: that store holds the outputs of an encoder.",
                "Name the encoder in model.vision.path and the store in data.features.",
            )
        if wanted.tiling != WholeConfig():
            raise ConfigError("an external table knows no tiles.", "Use model.tiling.kind=whole.")
        shape = vision.EncoderShape(*store.grid, store.form.width, 0)
        return StoredFeatures(StoredFeaturesConfig(*store.grid, shape.width, store.key)), None, shape
    torch.manual_seed(seed + 1)
    if wanted.from_ is not None and wanted.takes("vision"):
        donor = composites.load(wanted.from_.path, attention) if donor is None else donor
        encoder = composites.vision_of(donor)
    else:
        encoder = vision.build_encoder(eye, attention)
    vision.strip_labels(encoder.config)
    preparation = preparation_of(wanted, eye)
    shape = vision.probe_shape(encoder, (preparation.height, preparation.width), eye.layer)
    if donor is not None and wanted.takes("vision"):
        composites.check_prefix(donor.config, shape.prefix)
    return encoder, preparation, shape


def fit_vocabulary(decoder: PreTrainedModel, size: int) -> None:
    """Gives the decoder rows for added tokens: the mean of the rows it has, so that they stand out in neither input nor output."""
    old = rows_of(decoder.get_input_embeddings()).shape[0]
    if size <= old:
        return
    ends = (decoder.get_input_embeddings, decoder.get_output_embeddings)
    means = [rows_of(end()).detach().mean(0) for end in ends]
    decoder.resize_token_embeddings(size, mean_resizing=False)
    with torch.no_grad():
        for end, mean in zip(ends, means, strict=True):
            rows_of(end())[old:] = mean


def rows_of(module: nn.Module | None) -> nn.Parameter:
    """The `[vocabulary, width]` matrix of an embedding or a head."""
    assert isinstance(module, nn.Embedding | nn.Linear)
    assert isinstance(module.weight, nn.Parameter)
    return module.weight


def generation_config(bundle: ModelBundle) -> Any:
    """The decoder's generation settings with the ends of a turn, the padding, and no image token among what may be said."""
    config: Any = bundle.model.language.generation_config
    ends = config.eos_token_id
    found = set(ends if isinstance(ends, list) else [] if ends is None else [ends])
    if bundle.tokenizer.eos_token_id is not None:
        found.add(int(bundle.tokenizer.eos_token_id))
    closing = _closing_token(bundle)
    if closing is not None:
        found.add(closing)
    config.eos_token_id = sorted(found)
    config.max_length = None  # a length from the decoder's folder would stand beside every max_new_tokens
    config.pad_token_id = bundle.pad_id
    config.bos_token_id = bundle.tokenizer.bos_token_id
    if bundle.model.takes_images:
        tokens = (IMAGE, *bundle.processing.tiling.tokens)
        config.suppress_tokens = sorted(bundle.tokenizer.get_vocab()[token] for token in tokens)
    return config


def _closing_token(bundle: ModelBundle) -> int | None:
    """The special token that ends an assistant turn in the model's template."""
    builder = bundle.builder(max_tokens=1 << 16, supervise="assistant")  # whatever the data's limit and policy
    turn = (Message("user", (Part("a"),)), Message("assistant", (Part("a"),)))
    row = builder.row(turn, [])
    last = int(row.ids[row.spans[-1].end - 1])
    return last if last in builder.special_ids else None


# Folders -------------------------------------------------------------------------------------------------------------------------


def state_of(bundle: ModelBundle) -> dict[str, Tensor]:
    """The weights that `write` writes, with adapters added to those that they belong to."""
    return lora.plain_state(bundle.inner)


def write(
    bundle: ModelBundle,
    folder: Path,
    previous: Path | None = None,
    changed: Collection[str] = PARTS,
    weights: Mapping[str, Tensor] | None = None,
) -> list[str]:
    """Writes a model's folder; returns the names of weight files that are links into `previous`.

    `weights` are those of `state_of`, by default taken now; the other arguments are those of `save_model`.
    """
    linked = save_model(bundle.inner, folder, previous, changed, state_of(bundle) if weights is None else weights)
    if bundle.processing.template in TEMPLATES or bundle.tokenizer.chat_template is None:
        bundle.tokenizer.chat_template = bundle.template.source
    bundle.tokenizer.save_pretrained(folder)
    write_json(folder / PROCESSING, json.loads(bundle.processing.model_dump_json()))
    if bundle.processing.preparation is not None:
        write_json(folder / PROCESSOR, bundle.processing.preparation.to_processor())
    return linked


def read(folder: str | Path, attention: str = "auto") -> ModelBundle:
    """Reads a folder that `write` made, or a stock vision-language model from a folder or the Hub.

    Raises:
        ConfigError: it is neither.
        StorageError: its weights are damaged.
    """
    kernel = "sdpa" if attention == "auto" else attention
    if not is_ours(folder):
        return read_stock(str(folder), kernel)
    processing = read_processing(folder)
    tokenizer = tokenizers.load_tokenizer(str(folder))
    return ModelBundle(load_model(str(folder), kernel), tokenizer, processing)


def initialise(bundle: ModelBundle, origin: str) -> None:
    """Gives a model the weights of another run or model folder, all of them.

    Raises:
        ConfigError: that model is not of the same shape.
    """
    other = read(locate.model_folder(origin))
    mine, theirs = bundle.inner.state_dict(), other.inner.state_dict()
    odd = sorted(set(mine) ^ set(theirs)) or sorted(name for name in mine if mine[name].shape != theirs[name].shape)
    if odd:
        raise ConfigError(f"init: the model at {origin} differs from this one, first in {odd[0]!r}.", "Use the same model section.")
    bundle.inner.load_state_dict(theirs)
