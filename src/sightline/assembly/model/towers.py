"""Dual encoders from a model section or a folder: tokenizer, image preparation, configuration, weights."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from sightline.assembly.config.parts import preparation_of
from sightline.assembly.config.schema import ModelConfig
from sightline.assembly.model.bundle import ModelBundle
from sightline.assembly.model.tokenizer import load_tokenizer, train_tokenizer
from sightline.data.batches.components import ComponentRules
from sightline.data.batches.pairs import TextTokens
from sightline.data.features.store import open_store
from sightline.data.images.preparation import ImagePreparation
from sightline.data.images.tilings import BoxTilingConfig
from sightline.data.images.tilings.processors import read_processor
from sightline.data.samples.processing import Processing, is_ours, read_processing
from sightline.errors import ConfigError
from sightline.models import dual, loading, vision
from sightline.models.comalign import AlignedModel, SightlineComAlign, SightlineComAlignConfig, encodes_crops
from sightline.models.dual import DualConfig, DualModel, SightlineDualConfig, SightlineDualEncoder, TextConfig
from sightline.models.language import TokenizerConfig
from sightline.models.light_network import AlignmentConfig
from sightline.models.stored import StoredFeatures, StoredFeaturesConfig


@dataclass(frozen=True)
class DualDescription:
    """A dual encoder without its weights; the tokenizer is None where it is still to be trained."""

    tokenizer: PreTrainedTokenizerBase | None
    processing: Processing
    config: Any


def describe(section: ModelConfig, processing: Processing, texts: Iterable[str] | None) -> DualDescription:
    """Describes the dual encoder of a resolved model section.

    Args:
        section: has `dual`.
        processing: gets the image preparation.
        texts: what a new tokenizer is trained on.

    Raises:
        ConfigError: a folder is missing, or the parts do not fit together.
    """
    choice = section.dual
    assert choice is not None
    made = _joined(section, choice, processing, texts) if choice.path is None else _whole(choice.path, section, processing)
    return made if choice.alignment is None else _aligned(made, choice.alignment)


def _aligned(made: DualDescription, choice: AlignmentConfig) -> DualDescription:
    """Adds the light networks of ComAlign to the description of a dual encoder."""
    if isinstance(made.config, SightlineComAlignConfig):
        raise ConfigError(
            "model.dual.path names a model that has light networks already.",
            "Name the dual encoder that they were trained on in model.dual.path, and the run with its networks in init.",
        )
    tiling = made.processing.tiling
    if encodes_crops(made.config, choice):
        tiling = BoxTilingConfig(boxes=choice.boxes, entities=choice.entities, relations=choice.relations, region=choice.region)
    config = SightlineComAlignConfig(made.config, choice.model_dump(mode="json"))
    return DualDescription(made.tokenizer, made.processing.model_copy(update={"tiling": tiling}), config)


def _joined(section: ModelConfig, choice: DualConfig, processing: Processing, texts: Iterable[str] | None) -> DualDescription:
    """Describes a vision and a text encoder joined by heads."""
    assert choice.text is not None
    assert section.vision is not None
    tokenizer, vocabulary = _tokenizer(choice.text, texts)
    text_config = dual.text_encoder_config(choice.text, vocabulary)
    vision_config, preparation, layer, tokens, width = _vision(section, choice)
    config = SightlineDualConfig(
        vision_config=vision_config,
        text_config=text_config,
        vision_layer=layer,
        vision_width=width,
        vision_tokens=tokens,
        text_pooling=choice.text.pooling,
        text_width=int(text_config.hidden_size),
        projection_dim=choice.width,
        projection=choice.projection,
        dropout=choice.dropout,
        logit_scale_init_value=float(torch.tensor(1 / choice.temperature).log()),
        logit_bias_init_value=choice.bias,
    )
    if preparation is not None:
        config.image_mean, config.image_std = list(preparation.mean), list(preparation.std)
        config.rescale_factor = preparation.rescale
    return DualDescription(tokenizer, _with(processing, preparation), config)


def _whole(path: str, section: ModelConfig, processing: Processing) -> DualDescription:
    config = dual.dual_config(loading.read_config(path))
    if config is None:
        raise ConfigError(
            f"model.dual.path={path}: this is no dual encoder.", "Name a CLIP, a SigLIP, or a dual encoder that Sightline trained."
        )
    is_table = isinstance(config.vision_config, StoredFeaturesConfig)
    if is_ours(path):
        preparation = read_processing(path).preparation
    else:
        preparation = None if is_table else read_processor(path, section.fit, section.draft)[0]
    return DualDescription(load_tokenizer(path), _with(processing, preparation), config)


def _with(processing: Processing, preparation: ImagePreparation | None) -> Processing:
    return processing.model_copy(update={"preparation": preparation})


def _tokenizer(choice: TextConfig, texts: Iterable[str] | None) -> tuple[PreTrainedTokenizerBase | None, int]:
    """Returns the tokenizer and its number of entries."""
    if isinstance(choice.tokenizer, TokenizerConfig):
        if texts is None:
            return None, choice.tokenizer.vocabulary
        tokenizer: PreTrainedTokenizerBase = train_tokenizer(texts, choice.tokenizer)
    else:
        tokenizer = load_tokenizer(choice.tokenizer or choice.path or "")
    return tokenizer, len(tokenizer)


def _vision(section: ModelConfig, choice: DualConfig) -> tuple[PreTrainedConfig, ImagePreparation | None, Any, int, int]:
    """Returns the vision encoder's configuration, its preparation, and which output is taken, with its tokens and width."""
    encoder = section.vision
    assert encoder is not None
    if encoder.external is not None:
        store = open_store(encoder.external)
        if store.kind != "external":
            raise ConfigError(
                f"model.vision.external={encoder.external}: that store holds the outputs of an encoder.",
                "Name the encoder in model.vision.path and the store in data.features.",
            )
        rows, columns = store.grid
        table = StoredFeaturesConfig(rows, columns, store.row_format.width, store.key)
        return table, None, "last", rows * columns, store.row_format.width
    config, preparation = vision.strip_labels(vision.encoder_config(encoder)), preparation_of(section, encoder)
    layer = "pooled" if choice.pooling == "own" else encoder.layer
    with torch.device("meta"), torch.no_grad():
        pixels = torch.zeros(1, 3, preparation.height, preparation.width)
        output = vision.encode(vision.from_config(config, "eager").eval(), pixels, layer, 0)
    return config, preparation, layer, output.shape[1], output.shape[2]


def build(config: Any, section: ModelConfig, processing: Processing, seed: int, attention: str, vocabulary: int) -> DualModel:
    """Builds a dual encoder: loads its weights or initialises them.

    Args:
        config, section, processing: as `describe` gives them.
        seed: for new weights.
        attention: attention kernel of both encoders.
        vocabulary: entries of the tokenizer.

    Raises:
        StorageError: weights are missing or damaged.
        ConfigError: the text encoder has fewer entries than the tokenizer.
    """
    choice = section.dual
    assert choice is not None
    whole: Any = config.dual_config if isinstance(config, SightlineComAlignConfig) else config
    if choice.path is not None:
        inner = dual.load(choice.path, attention)
    else:
        inner = _build_joined(whole, section, seed, attention, vocabulary)
    if whole is not config:
        torch.manual_seed(seed + 3)
        config.dual_config = inner.config
        inner = SightlineComAlign(config, inner)
    return _wrapped(inner, processing)


def _build_joined(
    config: SightlineDualConfig, section: ModelConfig, seed: int, attention: str, vocabulary: int
) -> SightlineDualEncoder:
    assert section.dual is not None
    choice = section.dual
    assert choice.text is not None
    assert section.vision is not None
    if vocabulary > config.text_config.vocab_size:
        raise ConfigError(
            f"the tokenizer has {vocabulary} entries, the text encoder {config.text_config.vocab_size}.",
            "Use the tokenizer that belongs to the text encoder.",
        )
    torch.manual_seed(seed)
    text = dual.build_text_encoder(choice.text, config.text_config, attention)
    torch.manual_seed(seed + 1)
    if isinstance(config.vision_config, StoredFeaturesConfig):
        encoder: Any = StoredFeatures(config.vision_config)
    else:
        encoder = vision.build_encoder(section.vision, attention)
        vision.strip_labels(encoder.config)
    config.vision_config, config.text_config = encoder.config, text.config
    torch.manual_seed(seed + 2)
    return SightlineDualEncoder(config, encoder, text)


def build_meta(config: Any) -> DualModel:
    """Builds a dual encoder without weights, on the current device."""
    return _model(dual.build_meta(config))


def read(folder: str, processing: Processing, attention: str) -> DualModel:
    """Loads a dual encoder.

    Raises:
        ConfigError: the folder holds none.
        StorageError: weights are missing or damaged.
    """
    return _wrapped(dual.load(folder, attention), processing)


def read_stock(path: str, attention: str) -> ModelBundle:
    """Reads a CLIP or SigLIP of transformers from a folder or the Hub, with its tokenizer and image preparation."""
    made = _whole(path, ModelConfig(dual=DualConfig(path=path)), Processing())
    processing = made.processing.model_copy(update={"recipe": f"stock {made.config.model_type}"})
    assert made.tokenizer is not None
    return ModelBundle(read(path, processing, attention).eval(), made.tokenizer, processing)


def text_tokens(bundle: ModelBundle) -> TextTokens:
    """Returns how a dual encoder's texts become tokens: its own limit, or the run's `data.max_tokens` where that is lower."""
    assert bundle.pairs is not None
    length = bundle.pairs.text_length
    limit = length.limit if length.is_fixed else min(length.limit, bundle.processing.max_tokens)
    return TextTokens(bundle.tokenizer, limit, length.is_fixed, bundle.pad_id)


def component_rules(bundle: ModelBundle) -> ComponentRules | None:
    """Returns which boxes and phrases a model compares; None for a model without light networks."""
    model = bundle.pairs
    if not isinstance(model, AlignedModel):
        return None
    choice = model.alignment
    view = None if model.encodes_crops else bundle.processing.preparation
    return ComponentRules(choice.entities, choice.relations, choice.boxes, choice.phrases, choice.template, view)


def _wrapped(inner: Any, processing: Processing) -> DualModel:
    preparation = processing.preparation
    return _model(inner) if preparation is None else _model(inner, preparation.mean, preparation.std, preparation.rescale)


def _model(inner: Any, *normalisation: Any) -> DualModel:
    return (AlignedModel if isinstance(inner, SightlineComAlign) else DualModel)(inner, *normalisation)
