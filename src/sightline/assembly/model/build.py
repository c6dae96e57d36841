"""Builds a model bundle from a blueprint, saves it as a folder, and reads such a folder back.

A bundle holds the weights, the tokenizer with the image token, how images are prepared and tiled, the chat template, the prompt,
and when generation stops. All of it goes into the model's folder, so that a folder alone can be evaluated, served and resumed.
"""

import copy
import json
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel

from sightline.assembly.config import locate
from sightline.assembly.config.schema import ModelConfig, RunConfig
from sightline.assembly.model import towers
from sightline.assembly.model.blueprint import Blueprint, saved_blueprint, section_blueprint
from sightline.assembly.model.bundle import ModelBundle as ModelBundle
from sightline.assembly.model.pretrained import read_stock
from sightline.assembly.model.processor import IMAGE_PROCESSOR, PROCESSOR, SightlineProcessor
from sightline.data.samples.processing import PROCESSING as PROCESSING
from sightline.data.samples.processing import Processing as Processing
from sightline.data.samples.processing import is_ours
from sightline.data.samples.templates import TEMPLATES
from sightline.errors import ConfigError
from sightline.models import composites, language, loading, vision
from sightline.models.connectors import Connector
from sightline.models.dual import DualModel, dual_config
from sightline.models.saving import load_model, save_model
from sightline.models.saving import non_finite as non_finite
from sightline.models.stored import StoredFeatures, StoredFeaturesConfig
from sightline.models.text import TextModel
from sightline.models.vlm import PARTS, SightlineForConditionalGeneration
from sightline.runtime.storage import write_json
from sightline.training import lora
from sightline.types import IMAGE

# Building ------------------------------------------------------------------------------------------------------------------------


def build_from_config(config: RunConfig, processing: Processing, texts: Iterable[str] | None) -> ModelBundle:
    """Builds the model of a run's model section, with weights, tokenizer and processing.

    Args:
        config: the run.
        processing: prompt, template, supervision and row length; image preparation and tiling are filled in here.
        texts: what a new tokenizer is trained on.

    Raises:
        ConfigError: parts do not fit together.
        StorageError: weights are missing or damaged.
    """
    return build_bundle(section_blueprint(config.model, processing, texts), config)


def build_bundle(blueprint: Blueprint, config: RunConfig) -> ModelBundle:
    """Builds the model of a blueprint: loads or initialises its weights.

    Args:
        blueprint: made from a configuration.
        config: the run, for the seed and the attention kernel.

    Raises:
        ConfigError: the tokenizer is not there, or the decoder cannot be trained.
        StorageError: weights are missing or damaged.
    """
    tokenizer = blueprint.tokenizer
    attention = loading.kernel_by_choice(config.runtime.attention)
    bundle = ModelBundle(build_model(blueprint, config.train.seed, attention), tokenizer, blueprint.processing)
    if blueprint.dual is None:
        bundle.inner.generation_config = generation_config(bundle)
    return bundle


def build_model(
    blueprint: Blueprint, seed: int = 0, attention: str = "sdpa", init_device: Literal["cpu", "meta"] = "cpu"
) -> SightlineForConditionalGeneration | TextModel | DualModel:
    """Builds the parts of a blueprint's model and joins them.

    Args:
        blueprint: made from a configuration; on `meta`, of a saved model too.
        seed: for new weights.
        attention: attention kernel of encoder and decoder.
        init_device: on `meta` all parameters have shapes but no values, and no weights are read.

    Raises:
        ConfigError: the decoder cannot be trained.
        StorageError: weights are missing or damaged.
    """
    section, vlm = blueprint.section, blueprint.vlm
    if init_device == "meta":
        with torch.device("meta"):
            if blueprint.dual is not None:
                return towers.build_meta(copy.deepcopy(blueprint.dual))
            if vlm is not None:
                return SightlineForConditionalGeneration(copy.deepcopy(vlm))
            return TextModel(AutoModelForCausalLM.from_config(copy.deepcopy(blueprint.text_config), trust_remote_code=False))
    assert section is not None, "a saved model is read, not built"
    if blueprint.dual is not None:
        return towers.build(blueprint.dual, section, blueprint.processing, seed, attention, len(blueprint.tokenizer))
    donor = composites.load(section.from_.path, attention) if section.from_ is not None else None
    decoder = build_decoder(section, len(blueprint.tokenizer), seed, attention, donor)
    if vlm is None:
        return TextModel(decoder)
    encoder = build_encoder(section, vlm.vision_config, seed, attention, donor)
    # The configuration of each part comes from the part: it says how the weights were loaded (dtype, attention kernel).
    config = vlm.with_parts(encoder.config, decoder.config)
    torch.manual_seed(seed + 2)
    connector = Connector(blueprint.connector_config, config.connector_shape())
    connector.initialise_from_head(language.head_of(decoder).weight_VD)
    built = SightlineForConditionalGeneration(config, encoder, connector, decoder)
    nn.init.normal_(built.separators, std=language.text_config(decoder).hidden_size ** -0.5)  # as LLaVA-NeXT's
    if donor is not None and section.takes("connector"):
        composites.copy_connector(donor, built.connector, built.separators)
    return built


def build_decoder(
    section: ModelConfig, num_tokens: int, seed: int, attention: str, donor: PreTrainedModel | None = None
) -> PreTrainedModel:
    """Loads the decoder of a model section, or initialises a new one, with a row of the vocabulary for each token.

    Args:
        section: the resolved model section.
        num_tokens: tokens of the tokenizer.
        seed: for new weights.
        attention: attention kernel.
        donor: the model that `model.from` names, where it is loaded already.

    Raises:
        ConfigError: the decoder cannot be trained.
        StorageError: weights are missing or damaged.
    """
    assert section.language is not None
    torch.manual_seed(seed)
    if section.from_ is not None and section.takes("language"):
        decoder = composites.language_of(composites.load(section.from_.path, attention) if donor is None else donor)
    else:
        decoder = language.build_decoder(section.language, num_tokens, attention)
    language.check_decoder(decoder)
    fit_vocabulary(decoder, num_tokens)
    return decoder


def build_encoder(
    section: ModelConfig, config: PreTrainedConfig, seed: int, attention: str, donor: PreTrainedModel | None = None
) -> PreTrainedModel:
    """Loads the encoder of a model section, or initialises a new one.

    Args:
        section: the resolved model section.
        config: the encoder's configuration, by its blueprint; for an external table the encoder takes no images.
        seed: for new weights.
        attention: attention kernel.
        donor: the model that `model.from` names, where it is loaded already.

    Raises:
        StorageError: weights are missing or damaged.
    """
    assert section.vision is not None
    if isinstance(config, StoredFeaturesConfig):
        return StoredFeatures(config)
    torch.manual_seed(seed + 1)
    if section.from_ is not None and section.takes("vision"):
        encoder = composites.vision_of(composites.load(section.from_.path, attention) if donor is None else donor)
    else:
        encoder = vision.build_encoder(section.vision, attention)
    vision.strip_labels(encoder.config)
    return encoder


def fit_vocabulary(decoder: PreTrainedModel, size: int) -> None:
    """Resizes the decoder's embedding and head to `size` rows; each new row is the mean of the old ones."""
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
    """Returns the `[vocabulary, width]` matrix of an embedding or a head."""
    assert isinstance(module, nn.Embedding | nn.Linear)
    assert isinstance(module.weight, nn.Parameter)
    return module.weight


def generation_config(bundle: ModelBundle) -> Any:
    """Returns the decoder's generation settings with all tokens that end a turn, the pad id, and image tokens suppressed.

    Settings without effect are left out, because transformers refuses to save them (Vicuna: `temperature` without `do_sample`).
    """
    config: Any = bundle.model.language.generation_config
    ends = config.eos_token_id
    found = set(ends if isinstance(ends, list) else [] if ends is None else [ends])
    if bundle.tokenizer.eos_token_id is not None:
        found.add(int(bundle.tokenizer.eos_token_id))
    if (closing := bundle.closing_token()) is not None:
        found.add(closing)
    config.eos_token_id = sorted(found)
    config.max_length = None  # a length from the decoder's folder would stand beside every max_new_tokens
    config.pad_token_id = bundle.pad_id
    config.bos_token_id = bundle.tokenizer.bos_token_id
    if bundle.model.takes_images:
        tokens = (IMAGE, *bundle.processing.tiling.tokens)
        config.suppress_tokens = sorted(bundle.tokenizer.get_vocab()[token] for token in tokens)
    plain = GenerationConfig()
    for names, has_effect in ((OF_SAMPLING, config.do_sample is True), (OF_BEAMS, (config.num_beams or 1) > 1)):
        for name in names:
            if not has_effect and hasattr(config, name):
                setattr(config, name, getattr(plain, name))
    return config


OF_SAMPLING = ("temperature", "top_p", "top_k", "top_h", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
OF_BEAMS = ("early_stopping", "length_penalty")


# Folders -------------------------------------------------------------------------------------------------------------------------


def state_of(bundle: ModelBundle) -> dict[str, Tensor]:
    """Returns the weights that `write_model` writes, with adapters added to the weights that they belong to."""
    return lora.plain_state(bundle.inner)


def write_model(
    bundle: ModelBundle,
    folder: Path,
    take_unchanged: Callable[[Path], bool] | None = None,
    changed: Collection[str] = PARTS,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes a model's folder.

    Args:
        bundle: the model.
        folder, take_unchanged, changed: as in `save_model`.
        weights: those of `state_of`; by default they are taken now.
    """
    save_model(bundle.inner, folder, take_unchanged, changed, state_of(bundle) if weights is None else weights)
    if bundle.pairs is None and (bundle.processing.template in TEMPLATES or bundle.tokenizer.chat_template is None):
        bundle.tokenizer.chat_template = bundle.template.source
    bundle.tokenizer.save_pretrained(folder)
    write_json(folder / PROCESSING, json.loads(bundle.processing.model_dump_json()))
    if bundle.processing.preparation is not None:
        write_json(folder / IMAGE_PROCESSOR, bundle.processing.preparation.to_processor())
        if bundle.model.connector is not None:
            write_json(folder / PROCESSOR, SightlineProcessor.of(bundle).to_dict())
    for file in folder.iterdir():
        if file.stat().st_nlink == 1:  # not taken from another folder
            shutil.copymode(folder / PROCESSING, file)  # safetensors lets nobody but the owner read its files


def read_model(folder: str | Path, attention: str = "auto") -> ModelBundle:
    """Reads a folder that `write_model` made, or a stock vision-language model from a folder or the Hub.

    Raises:
        ConfigError: it is neither.
        StorageError: its weights are damaged.
    """
    kernel = loading.kernel_by_choice(attention)
    if not is_ours(folder):
        if dual_config(loading.read_config(str(folder))) is not None:
            return towers.read_stock(str(folder), kernel)
        return read_stock(str(folder), kernel)
    saved = saved_blueprint(str(folder))
    if saved.dual is not None:
        return ModelBundle(towers.read(str(folder), saved.processing, kernel), saved.tokenizer, saved.processing)
    return ModelBundle(load_model(str(folder), kernel), saved.tokenizer, saved.processing)


def load_initial_weights(bundle: ModelBundle, origin: str, origin_of: locate.OriginOf | None = None) -> None:
    """Replaces all weights of a model by those of another run or model folder.

    Args:
        bundle: the model.
        origin: the run or folder.
        origin_of: rebuilds damaged parts of that run.

    Raises:
        ConfigError: that model is not of the same shape.
        StorageError: its weights are damaged.
    """
    other = read_model(locate.model_folder(origin, origin_of=origin_of))
    mine, theirs = bundle.inner.state_dict(), other.inner.state_dict()
    odd = sorted(set(mine) ^ set(theirs)) or sorted(name for name in mine if mine[name].shape != theirs[name].shape)
    if odd:
        raise ConfigError(f"init: the model at {origin} differs from this one, first in {odd[0]!r}.", "Use the same model section.")
    bundle.inner.load_state_dict(theirs)
