"""Opens what the user names: a model (run, RUN@STAGE, folder, Hub id) on its device, and the records that it is asked about."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from sightline.assembly.config import locate
from sightline.assembly.config.locate import CheckpointChoice
from sightline.assembly.encode.features import check_covered, feature_encoder_of, loader_of
from sightline.assembly.model.build import read_model
from sightline.assembly.model.bundle import ModelBundle
from sightline.assembly.model.origin import RunOrigin
from sightline.data.dataset import Dataset, open_dataset
from sightline.data.features.store import FeatureLoader
from sightline.data.images.pixels import VisualInputLoader, VisualInputs
from sightline.errors import RecordError, UsageError
from sightline.evaluation.controls import (
    BLIND,
    ControlFeatureLoader,
    MeanFeatureLoader,
    changes_pixels,
    pixel_loader_of,
    sigma_of,
)
from sightline.evaluation.probes import ProbedRecord
from sightline.evaluation.probes.noise import NoisyFeatureLoader
from sightline.models.connectors import Connector
from sightline.runtime import storage
from sightline.runtime.device import Runtime, choose_runtime
from sightline.runtime.keyed import keyed_generator
from sightline.runtime.logs import logger, progress
from sightline.types import Record, Visual


@dataclass(frozen=True)
class OpenedModel:
    """A model on its device, in `eval` mode.

    Attributes:
        folder: its files, or a Hub id.
        bundle: the model with its tokenizer and processing.
        runtime: the device and the arithmetic.
        features: a feature store that is read instead of images.
        checkpoint: the checkpoint of a run that was opened, and why it is this one; None for a model folder.
    """

    folder: Path
    bundle: ModelBundle
    runtime: Runtime
    features: str | None = None
    checkpoint: CheckpointChoice | None = None

    @cached_property
    def weights(self) -> str:
        """One hash over the weight files."""
        return weights_hash(self.folder)

    def autocast(self) -> torch.autocast:
        """The arithmetic of the device as a context."""
        return torch.autocast(self.runtime.device, torch.bfloat16, enabled=self.runtime.bf16)

    def visual_loader(
        self, splits: Sequence[tuple[Dataset, str]] = (), control: str | None = None, noise: float | None = None
    ) -> VisualInputLoader | None:
        """What fills the visual slots of records; None for a model that takes no images.

        Args:
            splits: datasets and splits whose images will be needed.
            control: `blind` and `grey` show a uniform image (`blind` the mean row of an external table), `blur:SIGMA` a blurred
                one; `shuffled` and `text` change the queries, not the loader.
            noise: size of Gaussian noise on the features, in units of their standard deviation; pixels are then encoded one record
                at a time.

        Raises:
            UsageError: the model needs a feature store and none is given, noise is asked of a model without images, or a blur or a
                grey image of a model without an encoder.
            ConfigError: the store does not belong to the model, or lacks images of the splits.
        """
        plain = loader_of(self.bundle, self.features)
        if control is None or not changes_pixels(control):
            check_covered(plain, splits)
        elif plain is not None:
            plain = self._controlled(control, plain, splits)
        if noise is None:
            return plain
        if plain is None:
            raise UsageError("the model takes text only; there are no visual features to put noise on.")
        return NoisyFeatureLoader(plain, noise, None if self.bundle.processing.preparation is None else self._encoding())

    @property
    def connector(self) -> Connector:
        """The model's connector.

        Raises:
            UsageError: it has none, or one that is none of Sightline's.
        """
        if self.bundle.model.connector is None:
            raise UsageError("this model has no connector of Sightline's.", "Name a run of a vision-language model.")
        return self.bundle.model.connector

    def probed_records(
        self, dataset: Dataset, records: Sequence[Record], visual_loader: VisualInputLoader | None, skipped: Counter[str]
    ) -> Iterator[ProbedRecord]:
        """Encoder outputs of each record, one by one; records that cannot be used are counted in `skipped`."""
        with progress("encoding", len(records)) as bar:
            for record in records:
                bar.step(1)
                try:
                    assert visual_loader is not None  # probes refuse a decoder alone before
                    inputs = visual_loader.load(dataset, record)
                except RecordError as error:
                    skipped[error.reason] += 1
                    continue
                yield ProbedRecord(record.id, self.features_of(inputs), inputs.pixels)

    def features_of(self, inputs: VisualInputs) -> torch.Tensor:
        """Returns the encoder's outputs of one record, `[N, P, E]`."""

        def tensor(array: np.ndarray | None) -> torch.Tensor | None:
            return None if array is None else torch.tensor(array, device=self.bundle.inner.device)  # rows of a store are read-only

        nowhere = torch.zeros(0, dtype=torch.long)
        with torch.no_grad():
            return self.bundle.model.features(Visual(tensor(inputs.pixels), tensor(inputs.features), nowhere, nowhere))

    def _controlled(self, control: str, plain: VisualInputLoader, splits: Sequence[tuple[Dataset, str]]) -> VisualInputLoader:
        """Returns the loader that shows a control's images in place of those that `plain` loads."""
        processing = self.bundle.processing
        if processing.preparation is None:
            if control != BLIND:
                raise UsageError(
                    f"control {control!r} needs an encoder, and this model was trained on an external table of features.",
                    "Use the control blind (the mean row of the table), shuffled or text.",
                )
            assert isinstance(plain, FeatureLoader)  # a table is the only thing that such a model reads
            return MeanFeatureLoader(plain.store)
        pixels = pixel_loader_of(control, processing.preparation, processing.tiling)
        if sigma_of(control) is not None:
            check_covered(pixels, splits)
        if not isinstance(plain, FeatureLoader):
            return pixels
        return ControlFeatureLoader(pixels, self._encoding(), plain.store.row_format)

    def _encoding(self) -> Callable[[np.ndarray], np.ndarray]:
        """From prepared crops to features, as the model's own encoder makes them."""
        encoder = feature_encoder_of(self.bundle)
        return lambda pixels: encoder.encode(pixels, self.runtime)


def weights_hash(folder: Path) -> str:
    """Returns one hash over the weight files of a model folder."""
    files = sorted(folder.glob("*.safetensors"))
    return hashlib.sha256("".join(f"{file.name} {storage.sha256_file(file)}\n" for file in files).encode()).hexdigest()


def open_model(
    model: str,
    checkpoint: str = "last",
    features: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    fallback: bool = False,
) -> OpenedModel:
    """Opens a model to be asked.

    Args:
        model: a run, RUN@STAGE, a model folder, or a stock model's folder or Hub id.
        checkpoint: of a run: `last`, `best`, the name of a stage, or a step.
        features: a feature store that is read instead of images.
        device, threads: the machine, see `choose_runtime`; callers that compute apply it with `OpenedModel.runtime.apply()`.
        fallback: where the last checkpoint of a run is damaged, open the newest that is not.

    Raises:
        UsageError: the run has no such checkpoint.
        ConfigError: the folder holds no model that is known, or the device is not there.
        StorageError: its weights are damaged.
    """
    runtime = choose_runtime(device, "auto", threads)
    folder, choice = locate.find_model(model, checkpoint, fallback, RunOrigin)
    if choice is not None:
        logger.info("model: %s (%s)", choice.saved.path, choice.reason)
    bundle = read_model(folder)
    bundle.module.to(torch.device(runtime.device)).eval()
    return OpenedModel(folder, bundle, runtime, features, choice)


def open_records(
    data: str, split: str, suits: Callable[[Record], bool], limit: int | None, purpose: str
) -> tuple[Dataset, list[Record]]:
    """Opens a data set and chooses the records that a model is asked about.

    Args:
        data, split: a dataset folder and one of its splits.
        suits: whether a record can be used.
        limit: keep this many records, drawn with seed 0.
        purpose: what the records are for, for the message: `with an image`.

    Raises:
        DataError: the data set or the split does not exist.
        UsageError: no record suits.
    """
    dataset = open_dataset(data)
    records = chosen_records(list(dataset.records(split)), suits, limit)
    if not records:
        raise UsageError(f"split {split!r} of {data} has no record {purpose}.")
    return dataset, records


def chosen_records(records: Sequence[Record], suits: Callable[[Record], bool], limit: int | None) -> list[Record]:
    """The records that suit, or `limit` of them, drawn with seed 0, in their order."""
    found = [record for record in records if suits(record)]
    if limit is not None and limit < len(found):
        keep = set(keyed_generator("evaluate", 0).permutation(len(found))[:limit].tolist())
        found = [record for place, record in enumerate(found) if place in keep]
    return found


def has_images(record: Record) -> bool:
    """Whether a record has an image."""
    return bool(record.images)
