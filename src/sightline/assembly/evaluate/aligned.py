"""Collects what the probe `aligned` measures: encoder outputs, visual tokens, text embeddings, and texts' log-probabilities."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from sightline.assembly.evaluate.answers import ModelAnswers
from sightline.assembly.evaluate.opened import OpenedModel
from sightline.data.dataset import Dataset
from sightline.data.images.pixels import VisualInputLoader
from sightline.data.records import prompt_messages
from sightline.data.samples.tokenizing import tokenise
from sightline.errors import UsageError
from sightline.evaluation.controls import exchange_images
from sightline.evaluation.probes.aligned import AlignedFindings, Representations, measure
from sightline.evaluation.tasks import Query
from sightline.evaluation.tasks.caption import captions_of
from sightline.generation.decode import DecodingConfig
from sightline.runtime.keyed import keyed_generator
from sightline.types import Record

TOKENS = 4  # of each record that the effective rank is computed from
BATCH = 8


def probe_aligned(
    model: OpenedModel, dataset: Dataset, records: Sequence[Record], loader: VisualInputLoader | None
) -> AlignedFindings:
    """Measures how well visual tokens are aligned with the texts of their records.

    Args:
        model: on its device, in `eval` mode.
        dataset, records: what it is shown; records without a text are left out.
        loader: fills visual slots.

    Raises:
        UsageError: the model takes no images, or fewer than three records have an image that can be read and a text.
    """
    if loader is None:
        raise UsageError("the model takes text only; there is nothing to align.", "Name a vision-language model.")
    skipped = Counter[str]()
    with_text = [record for record in records if (record.captions or record.messages) and captions_of(record)]
    skipped["no_text"] += len(records) - len(with_text)
    bundle, sight = model.bundle, model.bundle.model
    texts = {record.id: captions_of(record)[0] for record in with_text}
    rows: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = {}
    for seen in model.probed_records(dataset, with_text, loader, skipped):
        with torch.no_grad(), model.autocast():
            features = seen.features_NPE
            tokens = sight.visual_tokens(features)[: len(features) * sight.tokens_per_crop]
            ids = tokenise(bundle.tokenizer, texts[seen.record_id], add_special_tokens=False)["input_ids"]
            text = sight.inner.get_input_embeddings()(torch.tensor(ids, device=bundle.inner.device))
        chosen = keyed_generator("aligned", seen.record_id).integers(len(tokens), size=TOKENS)
        means = (features.flatten(0, 1), tokens, text)
        encoder, visual, words = (values.double().mean(dim=0).cpu().numpy() for values in means)
        rows[seen.record_id] = encoder, visual, words, tokens[torch.from_numpy(chosen)].double().cpu().numpy()
    if len(rows) < 3:
        raise UsageError(f"{len(rows)} records have an image that can be read and a text; the probe needs three.", "Give more.")
    own, other = _likelihoods(model, dataset, [record for record in with_text if record.id in rows], texts, loader)
    encoder, visual, text, tokens = (np.stack(part) for part in zip(*rows.values(), strict=True))
    return measure(
        Representations(encoder, visual, text, tokens, own, other), {reason: count for reason, count in skipped.items() if count}
    )


def _likelihoods(
    model: OpenedModel, dataset: Dataset, records: Sequence[Record], texts: dict[str, str], loader: VisualInputLoader
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the log-probability of each text with its own image and with another record's, for records that have both."""
    bundle = model.bundle
    prompt = bundle.processing.prompt
    answers = ModelAnswers(bundle, dataset, loader, DecodingConfig(), bundle.conversation_encoder(prompt), model.runtime.bf16)

    def scores(shown: Sequence[Record]) -> dict[str, float]:
        queries = [Query(r.id, r, prompt_messages(r, prompt), "likelihood", (texts[r.id],)) for r in shown]
        batches = (queries[begin : begin + BATCH] for begin in range(0, len(queries), BATCH))
        found = [prediction for batch in batches for prediction in answers.answer(batch, 0)]
        return {prediction.id: prediction.scores[0] for prediction in found if prediction.scores is not None}

    own = scores(records)
    other = scores([record for record in exchange_images(list(records)) if record.id in own])
    both = [key for key in own if key in other]
    return np.array([own[key] for key in both]), np.array([other[key] for key in both])
