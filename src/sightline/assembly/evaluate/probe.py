"""A probe from what the user names: a model, a data set, and what is asked of it."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sightline.assembly.config import locate
from sightline.assembly.evaluate.evaluate import chosen_records, pictures_for
from sightline.assembly.evaluate.gain import probe_gain
from sightline.assembly.model import build as models
from sightline.assembly.model.bundle import ModelBundle
from sightline.data.dataset import Dataset, open_dataset
from sightline.data.images.pixels import Pictures
from sightline.errors import RecordError, UsageError
from sightline.evaluation.probes import Findings, ProbedRecord, probe_noise, probe_words
from sightline.evaluation.probes.noise import SIGMAS
from sightline.models.vlm import SightlineForConditionalGeneration
from sightline.runtime import storage
from sightline.runtime.device import prepare_runtime, process_settings_restored
from sightline.runtime.logs import progress
from sightline.types import Record


@dataclass(frozen=True)
class ProbeRequest:
    """What is to be probed.

    Attributes:
        model: a run, a model folder.
        data, split: records.
        what: a key of `WHAT`.
        checkpoint: of a run.
        count: look at this many records, drawn with seed 0.
        shown: records that a page shows one by one.
        sigmas: sizes of noise, for `noise`.
        features: a feature store instead of pictures.
        device, threads: the machine.
    """

    model: str
    data: str
    what: str
    split: str = "val"
    checkpoint: str = "last"
    count: int | None = 200
    shown: int = 12
    sigmas: tuple[float, ...] = SIGMAS
    features: str | None = None
    device: str = "auto"
    threads: int | None = None


@dataclass(frozen=True)
class Opened:
    """A request with everything that it names opened.

    Attributes:
        made: the model, on its device and in `eval` mode.
        dataset, records: what it is shown.
        pictures: fills visual slots; None for a model of text alone.
        bf16: arithmetic of the machine.
    """

    request: ProbeRequest
    bundle: ModelBundle
    dataset: Dataset
    records: Sequence[Record]
    pictures: Pictures | None
    bf16: bool


@process_settings_restored()
def probe(request: ProbeRequest) -> Findings:
    """Opens the model and the data and asks.

    Raises:
        UsageError: there is no such probe, or the split has no record with a picture.
        ConfigError: the model has not what the probe looks at.
        DataError: the data set or the split does not exist.
    """
    if request.what not in WHAT:
        raise UsageError(f"there is no probe {request.what!r}.", f"There are {', '.join(WHAT)}.")
    return WHAT[request.what](opened(request))


def opened(request: ProbeRequest) -> Opened:
    """Opens the model and the data of a request; raises as `probe` does."""
    runtime = prepare_runtime(request.device, "auto", request.threads)
    dataset = open_dataset(request.data)
    records = chosen_records(list(dataset.records(request.split)), lambda record: bool(record.images), request.count)
    if not records:
        raise UsageError(f"split {request.split!r} of {request.data} has no record with a picture.")
    bundle = models.read(locate.model_folder(request.model, request.checkpoint))
    bundle.model.to(torch.device(runtime.device))  # pyrefly: ignore
    bundle.model.eval()
    pictures = pictures_for(bundle, None, request.features, runtime)
    return Opened(request, bundle, dataset, records, pictures, runtime.bf16)


def seen_records(
    bundle: ModelBundle, dataset: Dataset, records: Sequence[Record], pictures: Pictures | None, skipped: Counter[str]
) -> Iterator[ProbedRecord]:
    """Each record as it reaches the connector, one by one; those that cannot be opened are counted in `skipped`.

    Raises:
        UsageError: the model has no connector of ours.
    """
    model = connected(bundle)
    with progress("encoding", len(records)) as bar:
        for record in records:
            bar.step(1)
            try:
                assert pictures is not None  # a model of ours with a connector takes pictures
                pixels, features = pictures.fill(dataset, record)
            except RecordError as error:
                skipped[error.reason] += 1
                continue
            yield ProbedRecord(record.id, features_of(model, pixels, features), pixels)


def features_of(model: SightlineForConditionalGeneration, pixels: object, features: object) -> torch.Tensor:
    """The encoder's outputs of a record's crops, computed or stored."""
    if features is not None:
        return torch.tensor(features).to(model.device, model.dtype)  # a copy: rows of a store are read-only
    with torch.no_grad():
        return model.encode_pixels(model.normalise(torch.as_tensor(pixels).to(model.device)))


def connected(bundle: ModelBundle) -> SightlineForConditionalGeneration:
    """The model, if it has a connector of ours.

    Raises:
        UsageError: it is a stock model or a decoder alone.
    """
    if not isinstance(bundle.model, SightlineForConditionalGeneration):
        raise UsageError("this model has no connector of Sightline's.", "Name a run of a vision-language model.")
    return bundle.model


def words(opened: Opened) -> Findings:
    """`words`: what the visual tokens of an ALIGN connector are mixtures of."""
    model = connected(opened.bundle)
    _ = model.connector.word_mixer  # refuses another kind before anything is encoded
    skipped: Counter[str] = Counter()
    seen = seen_records(opened.bundle, opened.dataset, opened.records, opened.pictures, skipped)
    return probe_words(model.connector, seen, lambda word: word_text(opened.bundle, word), opened.request.shown, skipped)


def gain(opened: Opened) -> Findings:
    """`gain`: how much the picture raises each token of the texts, for own and for exchanged pictures."""
    return probe_gain(opened.bundle, opened.dataset, opened.records, opened.pictures, opened.request.shown, opened.bf16)


def noise(opened: Opened) -> Findings:
    """`noise`: how far noise on the features moves the connector's outputs."""
    model = connected(opened.bundle)
    skipped: Counter[str] = Counter()
    seen = seen_records(opened.bundle, opened.dataset, opened.records, opened.pictures, skipped)
    return probe_noise(model.connector, model.words, seen, opened.request.sigmas, skipped)


def word_text(bundle: ModelBundle, word: int) -> str:
    """A word as it is read; the tokenizer's own sign for it where it is only a part of a character."""
    text = bundle.tokenizer.decode([word])
    if isinstance(text, str) and text and "\ufffd" not in text:
        return text
    return str(bundle.tokenizer.convert_ids_to_tokens(word))


def write_page(findings: Findings, request: ProbeRequest, out: Path) -> None:
    """Writes the findings as an HTML page."""
    storage.write_text(out, findings.page(f"{request.what}: {request.model} on {Path(request.data).name} ({request.split})"))


WHAT: dict[str, Callable[[Opened], Findings]] = {
    "gain": gain,
    "noise": noise,
    "words": words,
}
