"""Runs a probe on the model and the data set that the user names."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sightline.assembly.evaluate.aligned import probe_aligned
from sightline.assembly.evaluate.experts import probe_experts
from sightline.assembly.evaluate.gain import probe_gain
from sightline.assembly.evaluate.looking import look
from sightline.assembly.evaluate.opened import OpenedModel, has_images, open_model, open_records
from sightline.assembly.model.bundle import ModelBundle
from sightline.data.dataset import Dataset
from sightline.data.images.pixels import VisualInputLoader
from sightline.data.samples.tokenizing import decode
from sightline.errors import UsageError
from sightline.evaluation.probes import Findings, ProbedRecord, probe_noise, probe_words
from sightline.evaluation.probes.noise import SIGMAS
from sightline.evaluation.spec import EvalSpec
from sightline.evaluation.tasks.base import Likelihood
from sightline.reporting.aligned_page import aligned_page
from sightline.reporting.experts_page import experts_page
from sightline.reporting.gain_page import gain_page
from sightline.reporting.looking_page import looking_page
from sightline.reporting.noise_page import noise_page
from sightline.reporting.words_page import words_page
from sightline.runtime import storage
from sightline.runtime.device import process_settings_restored
from sightline.types import Record

LOOKING = "looking"


@dataclass(frozen=True)
class ProbeRequest:
    """What is to be probed.

    Attributes:
        model: a run, a model folder.
        data, split: records.
        what: `looking`, or a key of `WHAT`.
        checkpoint: of a run.
        count: look at this many records, drawn with seed 0.
        shown: records that a page shows one by one.
        sigmas: sizes of noise, for `noise`.
        features: a feature store instead of images.
        device, threads: the machine.
        task, prompt, likelihood, alpha, batch_size, max_new_tokens, floor: of `looking`; see `EvalSpec` and `look`.
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
    task: str = "caption"
    prompt: str | None = None
    likelihood: Likelihood | None = None
    alpha: float | None = None
    batch_size: int = 16
    max_new_tokens: int | None = None
    floor: str | None = None


@dataclass(frozen=True)
class ProbeInputs:
    """A request with everything that it names opened.

    Attributes:
        model: on its device, in `eval` mode.
        dataset, records: what it is shown.
        visual_loader: fills visual slots; None for a model of text alone.
    """

    request: ProbeRequest
    model: OpenedModel
    dataset: Dataset
    records: Sequence[Record]
    visual_loader: VisualInputLoader | None

    def encoded(self, skipped: Counter[str]) -> Iterator[ProbedRecord]:
        """Encoder outputs of each record; records that cannot be used are counted in `skipped`."""
        return self.model.probed_records(self.dataset, self.records, self.visual_loader, skipped)


@process_settings_restored()
def probe(request: ProbeRequest) -> Findings:
    """Opens the model and the data and asks.

    Raises:
        UsageError: there is no such probe, or the split has no record with an image.
        ConfigError: the model has not what the probe looks at.
        DataError: the data set or the split does not exist.
    """
    if request.what not in PAGES:
        raise UsageError(f"there is no probe {request.what!r}.", f"There are {', '.join(PAGES)}.")
    return looking(request) if request.what == LOOKING else WHAT[request.what](open_probe(request))


def looking(request: ProbeRequest) -> Findings:
    """`looking`: the score of a task under a ladder of controls, and the preference for true texts."""
    spec = EvalSpec(
        task=request.task,
        data=request.data,
        split=request.split,
        limit=request.count,
        prompt=request.prompt,
        likelihood=request.likelihood,
        alpha=request.alpha,
        features=request.features,
        batch_size=request.batch_size,
        max_new_tokens=request.max_new_tokens,
    )
    machine = request.device, request.threads
    return look(spec, request.model, request.checkpoint, *machine, floor=request.floor, shown=request.shown)


def open_probe(request: ProbeRequest) -> ProbeInputs:
    """Opens the model and the data of a request; raises as `probe` does."""
    dataset, records = open_records(request.data, request.split, has_images, request.count, "with an image")
    model = open_model(request.model, request.checkpoint, request.features, request.device, request.threads)
    if model.bundle.pairs is not None:
        raise UsageError(
            "a dual encoder has neither a connector nor a decoder that a probe could look at.",
            "Use eval --task retrieval or composition, with --control.",
        )
    model.runtime.apply()
    return ProbeInputs(request, model, dataset, records, model.visual_loader())


def words(inputs: ProbeInputs) -> Findings:
    """`words`: what the visual tokens of an ALIGN connector are mixtures of."""
    connector, bundle, skipped = inputs.model.connector, inputs.model.bundle, Counter[str]()
    _ = connector.vocabulary_mixer  # refuses another kind before anything is encoded
    return probe_words(connector, inputs.encoded(skipped), lambda word: word_text(bundle, word), inputs.request.shown, skipped)


def experts(inputs: ProbeInputs) -> Findings:
    """`experts`: how many tokens of images and of text each expert of the decoder gets."""
    return probe_experts(inputs.model, inputs.dataset, inputs.records, inputs.visual_loader)


def gain(inputs: ProbeInputs) -> Findings:
    """`gain`: how much the image raises each token of the texts, for own and for exchanged images."""
    bundle, bf16 = inputs.model.bundle, inputs.model.runtime.bf16
    return probe_gain(bundle, inputs.dataset, inputs.records, inputs.visual_loader, inputs.request.shown, bf16)


def aligned(inputs: ProbeInputs) -> Findings:
    """`aligned`: whether visual tokens go with the texts of their images."""
    return probe_aligned(inputs.model, inputs.dataset, inputs.records, inputs.visual_loader)


def noise(inputs: ProbeInputs) -> Findings:
    """`noise`: how far noise on the features moves the connector's outputs."""
    model, skipped = inputs.model.bundle.model, Counter[str]()
    per_crop = inputs.model.connector.tokens_per_crop

    def connected(features_NPE: torch.Tensor) -> torch.Tensor:
        return model.visual_tokens(features_NPE)[: len(features_NPE) * per_crop]  # without separators

    return probe_noise(connected, inputs.encoded(skipped), inputs.request.sigmas, skipped)


def word_text(bundle: ModelBundle, word: int) -> str:
    """A word as it is read; the tokenizer's own sign for it where it is only a part of a character."""
    text = decode(bundle.tokenizer, [word])
    if isinstance(text, str) and text and "\ufffd" not in text:
        return text
    return str(bundle.tokenizer.convert_ids_to_tokens(word))


def write_page(findings: Findings, request: ProbeRequest, out: Path) -> None:
    """Writes the findings as an HTML page."""
    title = f"{request.what}: {request.model} on {Path(request.data).name} ({request.split})"
    storage.write_text(out, PAGES[request.what](title, findings))


WHAT: dict[str, Callable[[ProbeInputs], Findings]] = {
    "aligned": aligned,
    "experts": experts,
    "gain": gain,
    "noise": noise,
    "words": words,
}
PAGES: dict[str, Callable[[str, Any], str]] = {
    LOOKING: looking_page,
    "aligned": aligned_page,
    "experts": experts_page,
    "gain": gain_page,
    "noise": noise_page,
    "words": words_page,
}
