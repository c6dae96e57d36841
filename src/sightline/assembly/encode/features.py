"""Encodes data sets into feature stores, and checks that a store belongs to the model that reads it.

The key of a store covers everything that the features depend on: the encoder's weights, image preparation and tiling, the layer and
the kept tokens. A model that differs from the store in any of these is refused before the first step; the error names the part.
"""

import hashlib
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import nn

from sightline.assembly.config import locate
from sightline.assembly.config.parts import resolve_model_section
from sightline.assembly.config.schema import RunConfig
from sightline.assembly.model.blueprint import config_blueprint, encoder_blueprint
from sightline.assembly.model.build import build_bundle, build_encoder, read_model
from sightline.assembly.model.bundle import ModelBundle
from sightline.assembly.model.origin import RunOrigin
from sightline.data.dataset import Dataset
from sightline.data.features.store import FeatureDtype, FeatureLoader, FeatureStore, RowFormat, count_missing_images, open_store
from sightline.data.features.writer import ImageSelection, MissingImage, StoreOrigin, select_images, write_store
from sightline.data.images.pixels import PixelLoader, VisualInputLoader
from sightline.data.images.preparation import ImagePreparation
from sightline.data.images.reader import CropReader, ImageLocation
from sightline.data.images.tilings import TilingConfig
from sightline.errors import ConfigError, UsageError
from sightline.models import vision
from sightline.models.loading import kernel_by_choice
from sightline.models.vision import Layer
from sightline.runtime.device import Runtime, process_settings_restored
from sightline.runtime.workers import GuardedPool, TaskFailure

# Parts of the key that must equal the model's; `arithmetic` (fp32 or bf16) may differ, it only changes rounding.
COMPARED = ("weights", "preparation", "tiling", "layer", "dropped_tokens")


# Encoders -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FeatureEncoder:
    """A frozen vision encoder with image preparation, tiling, layer and kept tokens: all that its outputs depend on.

    Attributes:
        encoder: the model, in `eval` mode.
        preparation, tiling: how an image becomes crops.
        layer: hidden layer whose outputs are used.
        num_dropped: leading tokens (class and register tokens) that are left out.
        grid: rows and columns of tokens of a crop.
        width: features per token.
        name: for messages and `store.json`.
    """

    encoder: nn.Module
    preparation: ImagePreparation
    tiling: TilingConfig
    layer: Layer
    num_dropped: int
    grid: tuple[int, int]
    width: int
    name: str

    @property
    def parts(self) -> dict[str, Any]:
        """Everything that the outputs depend on, by name, for the key of a store."""
        return {
            "weights": weights_key(self.encoder),
            "preparation": self.preparation.key(),
            "tiling": self.tiling.key(),
            "layer": self.layer,
            "dropped_tokens": self.num_dropped,
        }

    @property
    def description(self) -> dict[str, Any]:
        """Encoder, preparation and tiling in readable form, for `store.json`."""
        return {
            "encoder": self.name,
            "preparation": self.preparation.model_dump(mode="json"),
            "tiling": self.tiling.model_dump(mode="json"),
        }

    def row_format(self, dtype: FeatureDtype) -> RowFormat:
        """Returns the row format of a store of this encoder's outputs."""
        return RowFormat(dtype, self.grid[0] * self.grid[1], self.width)

    def encode(self, pixels_NHWC: UInt8[np.ndarray, "N h w 3"], runtime: Runtime) -> Float[np.ndarray, "N P E"]:
        """Encodes prepared crops; returns float32."""
        preparation = self.preparation
        device = torch.device(runtime.device)
        with torch.no_grad(), torch.autocast(runtime.device, torch.bfloat16, enabled=runtime.bf16):
            pixels = torch.from_numpy(pixels_NHWC).to(device)
            values = vision.normalise(pixels, preparation.rescale, preparation.mean, preparation.std)
            return vision.encode(self.encoder, values, self.layer, self.num_dropped).float().cpu().numpy()


def weights_key(encoder: nn.Module) -> str:
    """Returns a sha256 over names, dtypes, shapes and bytes of all weights and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def feature_encoder_of(bundle: ModelBundle) -> FeatureEncoder:
    """Returns the feature encoder of a model.

    Raises:
        UsageError: it has none.
    """
    outputs, processing = bundle.model.encoder_outputs, bundle.processing
    if outputs is None:
        raise UsageError("this model has no encoder whose outputs can be stored.", "Name a run of a vision-language model.")
    if processing.preparation is None:
        raise UsageError("this model was trained on an external table; it has no encoder.")
    return FeatureEncoder(
        encoder=outputs.encoder,
        preparation=processing.preparation,
        tiling=processing.tiling,
        layer=outputs.layer,
        num_dropped=outputs.drop,
        grid=outputs.grid,
        width=outputs.width,
        name=str(outputs.encoder.config.model_type),
    )


def feature_encoder_of_run(folder: str) -> FeatureEncoder:
    """Returns the feature encoder of a run or model folder."""
    return feature_encoder_of(read_model(locate.model_folder(folder, origin_of=RunOrigin)))


def feature_encoder_of_config(config: RunConfig) -> FeatureEncoder:
    """Returns the feature encoder of a run with this configuration at its first step; builds no other part of the model.

    Raises:
        ConfigError: the configuration names no encoder, or one that trains from its first stage on.
    """
    wanted = resolve_model_section(config.model)
    if wanted.dual is not None:
        _check_frozen(config)
        return feature_encoder_of(build_bundle(config_blueprint(config), config))
    if wanted.vision is None:
        raise ConfigError(
            "the configuration has no model.vision; there is no encoder to store features of.", "Set model.vision.path."
        )
    if wanted.vision.external is not None:
        raise ConfigError("model.vision.external is a table of features already; there is no encoder to run.")
    _check_frozen(config)
    if config.init is not None:
        return feature_encoder_of_run(config.init)
    attention = kernel_by_choice(config.runtime.attention)
    described = encoder_blueprint(wanted)
    encoder = build_encoder(wanted, described.config, config.train.seed, attention)
    assert described.preparation is not None
    return FeatureEncoder(
        encoder=encoder,
        preparation=described.preparation,
        tiling=wanted.tiling,
        layer=wanted.vision.layer,
        num_dropped=described.drop,
        grid=described.grid,
        width=described.shape.width,
        name=Path(wanted.vision.path or str(encoder.config.model_type)).name,
    )


def _check_frozen(config: RunConfig) -> None:
    if config.stages[0].parts.get("vision", "frozen") != "frozen":
        raise ConfigError(
            f"stage {config.stages[0].name!r} trains vision: stored features would be outdated after its first step.",
            "Store features of an encoder that stays frozen.",
        )


# Encoding -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EncodingRequest:
    """What to encode.

    Attributes:
        datasets: one or several dataset folders.
        out: the store to write.
        splits: splits to encode; all by default.
        dtype: dtype of the stored features.
        batch_size: crops per batch of the encoder.
        workers: processes that decode images; 0 decodes in this process, without limits on time and memory.
        max_skipped: share of images that may be skipped.
    """

    datasets: tuple[Dataset, ...]
    out: Path
    splits: tuple[str, ...] = ()
    dtype: FeatureDtype = "fp16"
    batch_size: int = 32
    workers: int = 0
    max_skipped: float = 0.01


@process_settings_restored()
def encode_dataset(encoder: FeatureEncoder, request: EncodingRequest, runtime: Runtime) -> dict[str, Any]:
    """Encodes data sets into a feature store; returns its `store.json`. Resumes an interrupted job.

    Raises:
        DataError: a split does not exist, or there is no image.
        StorageError, SkipLimitError, NumericsError, Stopped: as in `write_store`.
    """
    runtime.apply()
    row_format = encoder.row_format(request.dtype)
    selection = select_images(
        request.datasets,
        request.splits,
        lambda info: encoder.tiling.layout(info.width, info.height, encoder.grid).num_crops,
        encoder.tiling.image_key,
    )
    arithmetic = "bf16" if runtime.bf16 else "fp32"
    description = encoder.description | {"torch": torch.__version__, "device": runtime.device}
    origin = StoreOrigin("encoder", encoder.parts | {"arithmetic": arithmetic}, encoder.grid, description)
    encoder.encoder.eval().to(torch.device(runtime.device))
    reader = CropReader(request.datasets, encoder.preparation, encoder.tiling)
    with GuardedPool(reader, request.workers) as pool:
        supply = _EncodedFeatures(encoder, selection, pool, request.batch_size, runtime)
        return write_store(request.out, row_format, origin, selection, supply, request.max_skipped)


class _EncodedFeatures:
    """Decodes images in child processes, in order, and encodes them in batches of a fixed size."""

    def __init__(
        self,
        encoder: FeatureEncoder,
        selection: ImageSelection,
        pool: GuardedPool[ImageLocation, np.ndarray],
        batch_size: int,
        runtime: Runtime,
    ) -> None:
        self.encoder, self.selection, self.pool, self.batch_size, self.runtime = encoder, selection, pool, batch_size, runtime
        self._decoded: Iterator[np.ndarray | TaskFailure] | None = None

    def features(self, first: int, end: int) -> Iterator[tuple[np.ndarray, list[MissingImage]]]:
        """Yields the features of a range of images. Batches start anew in each range, so a resumed job has the same batches.

        A missing image is replaced by a black one, so that batches keep their shape: the last bits of the outputs depend on it.
        """
        if self._decoded is None:
            self._decoded = self.pool.map(self._locations(first))
        waiting: list[np.ndarray] = []
        lost: list[MissingImage] = []
        for image in range(first, end):
            outcome = next(self._decoded)
            if isinstance(outcome, TaskFailure):
                lost.append(MissingImage(image, outcome.reason, outcome.detail))
                side = (self.encoder.preparation.height, self.encoder.preparation.width)
                outcome = np.zeros((int(self.selection.crops[image]), *side, 3), dtype=np.uint8)
            waiting.append(outcome)
            while sum(map(len, waiting)) >= self.batch_size:
                stack = np.concatenate(waiting)
                yield self.encoder.encode(stack[: self.batch_size], self.runtime), lost
                waiting, lost = [stack[self.batch_size :]], []
        if sum(map(len, waiting)):
            yield self.encoder.encode(np.concatenate(waiting), self.runtime), lost

    def _locations(self, first: int) -> Iterator[ImageLocation]:
        selection = self.selection
        for image in range(first, len(selection)):
            yield ImageLocation(int(selection.dataset[image]), int(selection.record[image]), int(selection.image[image]))


# Use ------------------------------------------------------------------------------------------------------------------------


def loader_of(
    bundle: ModelBundle, features: str | None, encoder: str = "--run RUN", keep_bytes: int = 0
) -> VisualInputLoader | None:
    """Returns the loader of visual inputs: from image files or a feature store; None for a model that takes no images.

    Args:
        bundle: the model.
        features: a feature store; None reads image files.
        encoder: option of `data features` that names the model's encoder, for the error message.
        keep_bytes: size in bytes of the in-memory cache of prepared pixels.

    Raises:
        ConfigError: the store does not belong to the model.
        UsageError: the model needs a store and none is given.
    """
    if not bundle.model.takes_images:
        return None
    if features is not None:
        return open_features(features, bundle, encoder)
    if bundle.processing.preparation is None:
        raise UsageError(
            "the model was trained on an external table and has no encoder.",
            "Give its store: data.features=STORE or --features STORE.",
        )
    return PixelLoader(bundle.processing.preparation, bundle.processing.tiling, keep_bytes)


def open_features(path: str, bundle: ModelBundle, encoder: str = "--run RUN") -> FeatureLoader:
    """Opens a feature store for a model.

    Args:
        path: the store.
        bundle: the model that will read it.
        encoder: option of `data features` that names the model's encoder, for the error message.

    Raises:
        DataError: it is no complete store.
        ConfigError: it does not belong to this model; the message names the part that differs.
    """
    store = open_store(path)
    outputs = bundle.model.encoder_outputs
    if outputs is None:
        raise ConfigError(f"data.features={path}: this model reads no stored features.", "Remove data.features.")
    rows = (outputs.grid[0] * outputs.grid[1], outputs.width)
    if bundle.processing.preparation is None:
        encoder = "--external FILE"
        faults = [] if store.kind == "external" else ["it holds the outputs of an encoder, the model takes an external table"]
    elif store.kind == "external":
        faults = ["it is an external table, the model has an encoder of its own"]
    else:
        faults = _differences(store, feature_encoder_of(bundle))
    if not faults and (store.row_format.patches, store.row_format.width) != rows:
        faults = [
            f"it has {store.row_format.patches} tokens of width {store.row_format.width}, the model takes {rows[0]} of {rows[1]}"
        ]
    if faults:
        remedy = f"Make one for this model: sightline data features DATASET {encoder} --out STORE"
        raise ConfigError(f"the feature store {path} does not belong to this model: {'; '.join(faults)}.", remedy)
    return FeatureLoader(store, bundle.processing.tiling.image_key)


def _differences(store: FeatureStore, encoder: FeatureEncoder) -> list[str]:
    """Describes each difference between a store and an encoder."""
    mine = encoder.parts
    out = []
    for name in COMPARED:
        theirs = store.parts.get(name)
        if theirs == mine[name]:
            continue
        if name == "weights":
            out.append(f"the encoder's weights differ (the store was made with {store.summary['told'].get('encoder')!r})")
        elif name in ("preparation", "tiling"):
            out.append(_first_difference(name, store.summary["told"].get(name) or {}, encoder.description[name]))
        else:
            out.append(f"{name} is {theirs!r} in the store and {mine[name]!r} in the model")
    return out


def _first_difference(name: str, theirs: dict[str, Any], mine: dict[str, Any]) -> str:
    for key in sorted(theirs.keys() | mine.keys()):
        if theirs.get(key) != mine.get(key):
            return f"{name}.{key} is {theirs.get(key)!r} in the store and {mine.get(key)!r} in the model"
    return f"{name} differs"


def check_covered(inputs: VisualInputLoader | None, splits: Sequence[tuple[Dataset, str]]) -> None:
    """Checks that the visual inputs of some splits are available, before training or evaluation starts.

    Raises:
        ConfigError: the store lacks images, or pixels are needed of a data set that was prepared without images; the message
            says how many and how to get them.
    """
    if not isinstance(inputs, FeatureLoader):
        blank = [dataset for dataset, _ in splits if dataset.is_without_images] if inputs is not None else []
        if blank:
            raise ConfigError(
                f"{blank[0].path} was prepared without its images, but this model reads pixels.",
                "Give the feature store of an external table (data.features, --features), or prepare it with its images.",
            )
        return
    store = inputs.store
    for dataset, split in splits:
        if store.knows(dataset, split):
            continue
        missing, total = count_missing_images(store, dataset, split, inputs.key_of)
        if missing:
            raise ConfigError(
                f"the feature store {store.path} lacks {missing} of {total} images of {dataset.path}, split {split!r}.",
                f"Make a store that has them: sightline data features {shlex.quote(str(dataset.path))} ... --out STORE "
                "(several data sets may be named).",
            )
