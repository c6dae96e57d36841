"""Visual gain of the texts of a data set under a model: how much the image raises the logit of each supervised token.

It is the number that CAL weighs tokens by (`objectives/cal.py`). Asked of texts with another record's image it shows what a text
looks like that does not belong to its image, which is what makes it a filter for noisy data.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from sightline.assembly.evaluate.answers import branch_samples
from sightline.assembly.model.bundle import ModelBundle
from sightline.data.batches.collate import collate
from sightline.data.check.thumbnails import shrunk
from sightline.data.dataset import Dataset
from sightline.data.images.pixels import VisualInputLoader
from sightline.data.images.reader import read_image
from sightline.data.samples.encoding import ConversationEncoder
from sightline.errors import RecordError, UsageError
from sightline.evaluation.controls import NOT_EXCHANGEABLE, exchange_images
from sightline.evaluation.probes.gain import GainExample, GainFindings, TextGain
from sightline.objectives.cal import CAL, CALConfig
from sightline.ops.cross_entropy import target_logits
from sightline.runtime.logs import progress
from sightline.types import Record, Sample

BATCH = 8  # records at a time
SIDE = 440  # of an image on the page, in pixels


def gains(
    bundle: ModelBundle,
    dataset: Dataset,
    records: Iterable[Record],
    loader: VisualInputLoader | None,
    skipped: Counter[str],
    bf16: bool = False,
    count: int = 0,
) -> Iterator[TextGain]:
    """The gain of every supervised token of all texts of some records, in their order.

    Args:
        bundle: the model, on its device and in `eval` mode.
        dataset: holds the images.
        records: those with images are asked.
        loader: fills visual slots.
        skipped: records that cannot be used are counted here, by reason.
        bf16: arithmetic of the machine.
        count: number of records, for the progress bar.

    Raises:
        UsageError: the model takes no images.
    """
    if not bundle.model.takes_images or loader is None:
        raise UsageError("visual gain needs a vision-language model; this one is a decoder alone.", "Name another run.")
    conversation_encoder = bundle.conversation_encoder()
    ready: list[tuple[Record, list[Sample]]] = []
    with progress("gain", count) as bar:
        for record in records:
            bar.step(1)
            try:
                ready.append((record, record_samples(bundle, dataset, record, conversation_encoder, loader)))
            except RecordError as error:
                skipped[error.reason] += 1
            if len(ready) == BATCH:
                yield from _gains_of(ready, bundle, conversation_encoder, bf16)
                ready = []
        if ready:
            yield from _gains_of(ready, bundle, conversation_encoder, bf16)


def probe_gain(
    bundle: ModelBundle,
    dataset: Dataset,
    records: Sequence[Record],
    loader: VisualInputLoader | None,
    shown: int = 12,
    bf16: bool = False,
) -> GainFindings:
    """Gains of the texts of some records with their own and with exchanged images.

    Args:
        bundle: the model, on its device and in `eval` mode.
        dataset, records: what it is shown; every record has an image.
        loader: fills visual slots.
        shown: records that are kept to be looked at.
        bf16: arithmetic of the machine.

    Raises:
        UsageError: the model takes no images, or no two records can exchange theirs.
    """
    exchanged = exchange_images(list(records))
    skipped, unseen = Counter[str](), Counter[str]()
    if len(exchanged) < len(records):  # the same texts on both sides
        skipped[NOT_EXCHANGEABLE] = len(records) - len(exchanged)
        partnered = {record.id for record in exchanged}
        records = [record for record in records if record.id in partnered]
    own = tuple(gains(bundle, dataset, records, loader, skipped, bf16, len(records)))
    foreign = tuple(gains(bundle, dataset, exchanged, loader, unseen, bf16, len(records)))
    return GainFindings(own, foreign, tuple(_shown(dataset, records, exchanged, own, foreign, shown)), skipped)


def _shown(
    dataset: Dataset,
    records: Sequence[Record],
    exchanged: Sequence[Record],
    own: Sequence[TextGain],
    foreign: Sequence[TextGain],
    count: int,
) -> Iterator[GainExample]:
    """The first records with their own texts, and the first text of the record that was asked about their image."""
    by_id: dict[str, list[TextGain]] = {}
    for text in own:
        by_id.setdefault(text.record_id, []).append(text)
    first_foreign = {text.record_id: text for text in foreign if text.text == 0}
    asked_about = {record.images: first_foreign.get(record.id) for record in exchanged}
    for record in [record for record in records if record.id in by_id][:count]:
        other = asked_about.get(record.images)
        yield GainExample(record.id, small_image(dataset, record), tuple(by_id[record.id]), () if other is None else (other,))


def small_image(dataset: Dataset, record: Record) -> bytes | None:
    """The first image as a small file; None where it is not there (features of an external table)."""
    try:
        return shrunk(read_image(dataset, record), SIDE, quality=85)
    except RecordError:
        return None


def record_samples(
    bundle: ModelBundle, dataset: Dataset, record: Record, conversation_encoder: ConversationEncoder, loader: VisualInputLoader
) -> list[Sample]:
    """All texts of a record as branches of one sample, or each as its own where they share no prefix with the images."""
    layouts = conversation_encoder.layouts(record)
    if not layouts:
        raise RecordError("no_image", "the record has no image")
    rows = [conversation_encoder.encode_conversation(messages, layouts) for messages in conversation_encoder.conversations(record)]
    return branch_samples(rows, record.id, layouts, loader.load(dataset, record), bundle.tokens_per_crop)


def _gains_of(
    ready: list[tuple[Record, list[Sample]]], bundle: ModelBundle, conversation_encoder: ConversationEncoder, bf16: bool
) -> Iterator[TextGain]:
    samples = [sample for _, own in ready for sample in own]
    values = _gain_of_targets(samples, bundle, bf16)
    at = 0
    for record, own in ready:
        layouts = conversation_encoder.layouts(record)
        branches = [branch for sample in own for branch in sample.branches]
        for number, (branch, messages) in enumerate(zip(branches, conversation_encoder.conversations(record), strict=True)):
            pieces = conversation_encoder.pieces(messages, layouts)
            places = [place for span in branch.spans for place in range(span.start, span.end)]
            found = values[at : at + len(places)]
            at += len(places)
            texts = tuple(pieces[place] if place < len(pieces) else "" for place in places)
            yield TextGain(record.id, number, texts, tuple(map(float, found)))


def _gain_of_targets(samples: list[Sample], bundle: ModelBundle, bf16: bool) -> np.ndarray:
    """Gain of every target of the samples in order, NaN where there is none."""
    device = bundle.inner.device
    batch = collate([[sample] for sample in samples], bundle.pad_id).to_batch().to(device)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        blind_S, known_S = CAL(CALConfig()).blind_logits(bundle.model, batch)
        hidden = bundle.model.hidden(batch)
        seen_S = target_logits(hidden.states_SD, hidden.head, batch.supervision.target_S)
    gain_S = torch.where(known_S, seen_S - blind_S, torch.full_like(seen_S, float("nan")))
    return gain_S.float().cpu().numpy()
