"""Counts which experts the tokens of records choose, for the probe `experts`."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from sightline.assembly.evaluate.gain import record_samples
from sightline.assembly.evaluate.opened import OpenedModel
from sightline.data.batches.collate import collate
from sightline.data.dataset import Dataset
from sightline.data.images.pixels import VisualInputLoader
from sightline.errors import RecordError, UsageError
from sightline.evaluation.probes.experts import KINDS, ExpertFindings, expert_findings
from sightline.models.language import recorded_routers, text_config
from sightline.ops.load_balancing import choice_counts
from sightline.runtime.logs import progress
from sightline.types import PADDING, Record


def probe_experts(
    model: OpenedModel, dataset: Dataset, records: Sequence[Record], loader: VisualInputLoader | None
) -> ExpertFindings:
    """Counts the choices of every mixture of the decoder on records with their texts.

    Args:
        model: on its device, in `eval` mode.
        dataset, records: what it is shown.
        loader: fills visual slots.

    Raises:
        UsageError: the model takes no images, the decoder has no mixture of experts, or no record could be used.
    """
    bundle = model.bundle
    decoder = bundle.model.language
    if loader is None:
        raise UsageError("the model takes text only; the probe compares tokens of images and of text.", "Name another run.")
    conversation_encoder, skipped = bundle.conversation_encoder(), Counter[str]()
    per_token = int(getattr(text_config(decoder), "num_experts_per_tok", None) or 0)
    total: np.ndarray | None = None
    tokens, used = dict.fromkeys(KINDS, 0), 0
    with progress("experts", len(records)) as bar:
        for record in records:
            bar.step(1)
            try:
                samples = record_samples(bundle, dataset, record, conversation_encoder, loader)
            except RecordError as error:
                skipped[error.reason] += 1
                continue
            batch = collate([[sample] for sample in samples], bundle.pad_id).to_batch().to(bundle.inner.device)
            with torch.no_grad(), model.autocast(), recorded_routers(decoder) as passes:
                bundle.model.hidden(batch)
            routers = passes[-1] if passes else ()
            if not routers:
                raise UsageError("this decoder has no mixture of experts, or does not show its routers.", "Name another run.")
            counted_N = (batch.tokens.sample_BT != PADDING).flatten()
            is_image_N = torch.zeros_like(counted_N)
            if batch.visual is not None:
                is_image_N[batch.visual.slot_M] = True
            kinds = (counted_N & is_image_N, counted_N & ~is_image_N)
            found = np.array([[choice_counts(one, per_token, kind).tolist() for kind in kinds] for one in routers])
            total = found if total is None else total + found
            used += 1
            for name, kind in zip(KINDS, kinds, strict=True):
                tokens[name] += int(kind.sum())
    if total is None:
        raise UsageError("no record could be used.", "See data check for reasons.")
    return expert_findings(total, tokens, used, per_token, dict(skipped))
