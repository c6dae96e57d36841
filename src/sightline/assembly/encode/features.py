"""Feature stores and models: encoding a data set once, and making sure that a store belongs to the model that reads it.

A store is keyed by everything that its numbers depend on: the encoder's weights, how pictures are prepared and tiled, which
layer and tokens are taken. A model whose parts differ from those of the store is refused, with the part named, before any step.
"""

import hashlib
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import nn

from sightline.assembly.config import locate
from sightline.assembly.config import parts as sections
from sightline.assembly.config.schema import RunConfig
from sightline.assembly.model import build as models
from sightline.assembly.model.blueprint import encoder_blueprint
from sightline.assembly.model.bundle import ModelBundle
from sightline.data.dataset import Dataset
from sightline.data.features.store import FeatureForm, FeatureLoader, FeatureStore, Number, missing_pictures, open_store
from sightline.data.features.writer import MissingImage, StoreNote, Wanted, gather, write_store
from sightline.data.images.pixels import PixelLoader, VisualInputLoader
from sightline.data.images.preparation import ImagePreparation
from sightline.data.images.reader import PicturePlace, PictureReader
from sightline.data.images.tilings import TilingConfig
from sightline.errors import ConfigError, UsageError
from sightline.models import vision
from sightline.runtime.device import Runtime, process_settings_restored
from sightline.runtime.workers import GuardedPool, TaskFailure

# Parts of a key that a model must agree with; `arithmetic` (fp32 or bf16) is a matter of rounding.
COMPARED = ("weights", "preparation", "tiling", "layer", "dropped_tokens")


# Encoders -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FeatureEncoder:
    """An encoder with all that its outputs depend on.

    Attributes:
        encoder: in `eval` mode.
        preparation, tiling: how a picture becomes crops.
        layer, drop: which outputs are taken.
        grid: rows and columns of tokens of a crop.
        width: of a token.
        name: for people.
    """

    encoder: nn.Module
    preparation: ImagePreparation
    tiling: TilingConfig
    layer: Literal["last"] | int
    drop: int
    grid: tuple[int, int]
    width: int
    name: str

    @property
    def parts(self) -> dict[str, Any]:
        """What the outputs depend on, by name."""
        return {
            "weights": weights_key(self.encoder),
            "preparation": self.preparation.key(),
            "tiling": self.tiling.key(),
            "layer": self.layer,
            "dropped_tokens": self.drop,
        }

    @property
    def told(self) -> dict[str, Any]:
        """The same for people."""
        return {
            "encoder": self.name,
            "preparation": self.preparation.model_dump(mode="json"),
            "tiling": self.tiling.model_dump(mode="json"),
        }

    def form(self, number: Number) -> FeatureForm:
        """Rows of a store of this encoder's outputs."""
        return FeatureForm(number, self.grid[0] * self.grid[1], self.width)

    def encode(self, pixels_NHWC: UInt8[np.ndarray, "N h w 3"], runtime: Runtime) -> Float[np.ndarray, "N P E"]:
        """Outputs for prepared crops, float32."""
        preparation = self.preparation
        device = torch.device(runtime.device)
        with torch.no_grad(), torch.autocast(runtime.device, torch.bfloat16, enabled=runtime.bf16):
            pixels = torch.from_numpy(pixels_NHWC).to(device)
            values = vision.normalise(pixels, preparation.rescale, preparation.mean, preparation.std)
            return vision.encode(self.encoder, values, self.layer, self.drop).float().cpu().numpy()


def weights_key(encoder: nn.Module) -> str:
    """sha256 over names, types, shapes and bytes of all weights and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def feature_encoder_of(bundle: ModelBundle) -> FeatureEncoder:
    """The encoder of a model.

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
        drop=outputs.drop,
        grid=outputs.grid,
        width=outputs.width,
        name=str(outputs.encoder.config.model_type),
    )


def feature_encoder_of_run(folder: str) -> FeatureEncoder:
    """The encoder of a run or model folder."""
    return feature_encoder_of(models.read(locate.model_folder(folder)))


def feature_encoder_of_config(config: RunConfig) -> FeatureEncoder:
    """The encoder that a run with this configuration would begin with; nothing else of the model is built.

    Raises:
        ConfigError: the configuration names no encoder, or one that trains from its first stage on.
    """
    wanted = sections.resolve(config.model)
    if wanted.vision is None:
        raise ConfigError("the configuration has no model.vision; there is nothing to encode.")
    if wanted.vision.external is not None:
        raise ConfigError("model.vision.external is a table already; there is nothing to encode.")
    if config.stages[0].parts.get("vision", "frozen") != "frozen":
        raise ConfigError(
            f"stage {config.stages[0].name!r} trains vision: stored outputs would be wrong after its first step.",
            "Store features of an encoder that stays frozen.",
        )
    if config.init is not None:
        return feature_encoder_of_run(config.init)
    attention = "sdpa" if config.runtime.attention == "auto" else config.runtime.attention
    described = encoder_blueprint(wanted)
    encoder = models.build_encoder(wanted, described.config, config.train.seed, attention)
    assert described.preparation is not None
    return FeatureEncoder(
        encoder=encoder,
        preparation=described.preparation,
        tiling=wanted.tiling,
        layer=wanted.vision.layer,
        drop=described.drop,
        grid=described.grid,
        width=described.shape.width,
        name=Path(wanted.vision.path or str(encoder.config.model_type)).name,
    )


# Encoding -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EncodingRequest:
    """What is to be encoded.

    Attributes:
        datasets: one or several dataset folders.
        splits: of each; all by default.
        out: the store.
        number: how numbers are stored.
        batch_size: crops per batch of the encoder.
        workers: processes that decode; 0 decodes in this one, without protection.
        max_skipped: share of pictures that may be skipped.
    """

    datasets: tuple[Dataset, ...]
    out: Path
    splits: tuple[str, ...] = ()
    number: Number = "fp16"
    batch_size: int = 32
    workers: int = 0
    max_skipped: float = 0.01


@process_settings_restored()
def encode_dataset(eye: FeatureEncoder, request: EncodingRequest, runtime: Runtime) -> dict[str, Any]:
    """Makes a feature store; returns its `store.json`. Goes on where an earlier try stopped.

    Raises:
        DataError: a split does not exist, or there is no picture.
        StorageError, BudgetError, NumericsError, Stopped: as in `write_store`.
    """
    runtime.apply()
    form = eye.form(request.number)
    wanted = gather(request.datasets, request.splits, lambda info: eye.tiling.layout(info.width, info.height, eye.grid).num_crops)
    arithmetic = "bf16" if runtime.bf16 else "fp32"
    told = eye.told | {"torch": torch.__version__, "device": runtime.device}
    note = StoreNote("encoder", eye.parts | {"arithmetic": arithmetic}, eye.grid, told)
    eye.encoder.eval().to(torch.device(runtime.device))
    reader = PictureReader(request.datasets, eye.preparation, eye.tiling)
    with GuardedPool(reader, request.workers) as pool:
        supply = _Encoding(eye, wanted, pool, request.batch_size, runtime)
        return write_store(request.out, form, note, wanted, supply, request.max_skipped)


class _Encoding:
    """Decodes pictures in child processes, in order, and encodes them in batches of one size."""

    def __init__(
        self,
        eye: FeatureEncoder,
        wanted: Wanted,
        pool: GuardedPool[PicturePlace, np.ndarray],
        batch_size: int,
        runtime: Runtime,
    ) -> None:
        self.eye, self.wanted, self.pool, self.batch_size, self.runtime = eye, wanted, pool, batch_size, runtime
        self._decoded: Iterator[np.ndarray | TaskFailure] | None = None

    def features(self, first: int, end: int) -> Iterator[tuple[np.ndarray, list[MissingImage]]]:
        """Features of a range of pictures. Batches begin anew with each range, so that a resumed work has the same ones.

        A lost picture is encoded as a black one: its neighbours' batches keep their shape, on which the last bits depend.
        """
        if self._decoded is None:
            self._decoded = self.pool.map(self._places(first))
        waiting: list[np.ndarray] = []
        lost: list[MissingImage] = []
        for picture in range(first, end):
            outcome = next(self._decoded)
            if isinstance(outcome, TaskFailure):
                lost.append(MissingImage(picture, outcome.reason, outcome.detail))
                side = (self.eye.preparation.height, self.eye.preparation.width)
                outcome = np.zeros((int(self.wanted.crops[picture]), *side, 3), dtype=np.uint8)
            waiting.append(outcome)
            while sum(map(len, waiting)) >= self.batch_size:
                stack = np.concatenate(waiting)
                yield self.eye.encode(stack[: self.batch_size], self.runtime), lost
                waiting, lost = [stack[self.batch_size :]], []
        if sum(map(len, waiting)):
            yield self.eye.encode(np.concatenate(waiting), self.runtime), lost

    def _places(self, first: int) -> Iterator[PicturePlace]:
        wanted = self.wanted
        for picture in range(first, len(wanted)):
            yield PicturePlace(int(wanted.dataset[picture]), int(wanted.record[picture]), int(wanted.image[picture]))


# Use ------------------------------------------------------------------------------------------------------------------------


def loader_of(
    bundle: ModelBundle, features: str | None, encoder: str = "--run RUN", keep_bytes: int = 0
) -> VisualInputLoader | None:
    """What fills the visual slots of records: images, or a feature store; None for a model that takes no images.

    Args:
        bundle: the model.
        features: a feature store, or None for images.
        encoder: how `data features` is told the model's encoder, for the message.
        keep_bytes: prepared pixels that are kept in memory.

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
    """Opens a store for a model.

    Args:
        path: the store.
        made: the model that will read it.
        encoder: how `data features` is told the model's encoder, for the message.

    Raises:
        DataError: it is no whole store.
        ConfigError: it does not belong to this model; names the part that differs.
    """
    store = open_store(path)
    outputs = bundle.model.encoder_outputs
    if outputs is None:
        raise ConfigError(f"data.features={path}: this model reads no stored features.", "Leave it out.")
    rows = (outputs.grid[0] * outputs.grid[1], outputs.width)
    if bundle.processing.preparation is None:
        encoder = "--external FILE"
        faults = [] if store.kind == "external" else ["it holds the outputs of an encoder, the model takes an external table"]
    elif store.kind == "external":
        faults = ["it is an external table, the model has an encoder of its own"]
    else:
        faults = _faults(store, feature_encoder_of(bundle))
    if not faults and (store.form.patches, store.form.width) != rows:
        faults = [f"it has {store.form.patches} tokens of width {store.form.width}, the model takes {rows[0]} of {rows[1]}"]
    if faults:
        remedy = f"Make one for this model: sightline data features DATASET {encoder} --out STORE"
        raise ConfigError(f"the feature store {path} does not belong to this model: {'; '.join(faults)}.", remedy)
    return FeatureLoader(store)


def _faults(store: FeatureStore, eye: FeatureEncoder) -> list[str]:
    """What differs between a store and an encoder, in words."""
    mine = eye.parts
    out = []
    for name in COMPARED:
        theirs = store.parts.get(name)
        if theirs == mine[name]:
            continue
        if name == "weights":
            out.append(f"the encoder's weights are others (the store was made with {store.summary['told'].get('encoder')!r})")
        elif name in ("preparation", "tiling"):
            out.append(_settings_fault(name, store.summary["told"].get(name) or {}, eye.told[name]))
        else:
            out.append(f"{name} is {theirs!r} in the store and {mine[name]!r} in the model")
    return out


def _settings_fault(name: str, theirs: dict[str, Any], mine: dict[str, Any]) -> str:
    for key in sorted(theirs.keys() | mine.keys()):
        if theirs.get(key) != mine.get(key):
            return f"{name}.{key} is {theirs.get(key)!r} in the store and {mine.get(key)!r} in the model"
    return f"{name} is another"


def check_covered(pictures: VisualInputLoader | None, splits: Sequence[tuple[Dataset, str]]) -> None:
    """Makes sure that the pictures of some splits are there, before anything is trained or asked.

    Raises:
        ConfigError: the store lacks some, or pixels are wanted of a data set that was prepared without images; says how many,
            and how to get them.
    """
    if not isinstance(pictures, FeatureLoader):
        blank = [dataset for dataset, _ in splits if dataset.is_without_images] if pictures is not None else []
        if blank:
            raise ConfigError(
                f"{blank[0].path} was prepared without its images; this model wants to see them.",
                "Give the feature store of an external table (data.features, --features), or prepare it with its images.",
            )
        return
    store = pictures.store
    for dataset, split in splits:
        if store.knows(dataset, split):
            continue
        missing, places = missing_pictures(store, dataset, split)
        if missing:
            raise ConfigError(
                f"the feature store {store.path} lacks {missing} of {places} pictures of {dataset.path}, split {split!r}.",
                f"Make a store that has them: sightline data features {shlex.quote(str(dataset.path))} ... --out STORE "
                "(several data sets may be named).",
            )
