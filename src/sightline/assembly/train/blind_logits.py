"""Image-free logits of a frozen decoder, computed once per supervised token before the first step.

They depend on the text alone, so they are the same in every epoch; filling them on the way would make a resumed run differ from
one that was never stopped. The pass runs on rows of text only and asks for one logit per token.
"""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from sightline.assembly.model.build import ModelBundle
from sightline.data.batches.collate import collate
from sightline.data.batches.corpus import Corpus
from sightline.data.batches.plan import BatchRules, EpochPlan, Rows
from sightline.ops.cross_entropy import target_logits
from sightline.ops.text_only import text_only
from sightline.runtime.arrays import read_npz
from sightline.runtime.logs import logger, progress
from sightline.runtime.storage import atomic_file

ROW_TOKENS, ROWS = 2048, 4


def with_blind_logits(corpus: Corpus, bundle: ModelBundle, accelerator: Accelerator, cache: Path) -> Corpus:
    """Returns the corpus with its blind logits, from `cache` or computed and stored there; a damaged file is made again.

    Args:
        corpus: the units of a stage.
        bundle: the model, with a frozen decoder in `eval` mode.
        accelerator: ranks share the work.
        cache: a file of the run folder.
    """
    key = blind_logits_key(corpus, bundle)
    found = _read(cache, key, int(corpus.first_target[-1]))
    if found is None:
        found = _compute(corpus, bundle, accelerator)
        if accelerator.is_main_process:
            cache.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(cache, "wb") as file:
                np.savez(file, key=np.array(key), logits=found)
        accelerator.wait_for_everyone()
    return replace(corpus, blind_logits=found)


def blind_logits_key(corpus: Corpus, bundle: ModelBundle) -> str:
    """Returns a hash of what the logits depend on: the decoder's weights, and the texts of all samples."""
    digest = hashlib.sha256()
    for name, value in bundle.inner.state_dict().items():
        if "language" in name:
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    for source in corpus.sources:
        rules = source.conversation_encoder.rules
        digest.update(f"{source.dataset.fingerprint} {rules} {source.conversation_encoder.template.source}".encode())
        digest.update(source.table.record.tobytes() + source.table.branch.tobytes())
    return digest.hexdigest()


def _read(cache: Path, key: str, count: int) -> np.ndarray | None:
    """Returns the stored logits, `count` of them; None where they are of other texts or another decoder, or cannot be read."""
    if not cache.exists():
        return None
    try:
        stored = read_npz(cache, ("key", "logits"))
        found_key, logits = str(stored["key"]), stored["logits"]
        if found_key == key and (logits.dtype != np.float32 or logits.shape != (count,)):
            raise ValueError(f"{logits.shape} logits of {logits.dtype}, {count} of float32 expected")
        return logits if found_key == key else None
    except ValueError as error:
        logger.warning("%s is damaged (%s); the blind logits are computed again", cache, error)
        return None


def _compute(corpus: Corpus, bundle: ModelBundle, accelerator: Accelerator) -> np.ndarray:
    logits = np.full(int(corpus.first_target[-1]), np.nan, dtype=np.float32)
    units = np.arange(len(corpus.tokens))
    text_tokens = np.minimum(corpus.tokens, ROW_TOKENS)  # visual slots count too, which only makes rows shorter
    world = accelerator.num_processes
    rules = BatchRules(
        pack=True, row_tokens=ROW_TOKENS, row_images=1, rows_per_step=ROWS * world, accumulate=1, sort_by_length=False
    )
    plan = EpochPlan(text_tokens, np.zeros_like(units), lambda epoch: units, rules)
    mine: list[tuple[int, np.ndarray]] = []
    with progress("blind logits", plan.steps(0), show=accelerator.is_main_process) as bar:
        for (rows,) in plan.next_steps(0, 0, plan.steps(0), accelerator.process_index, world):
            filled = tuple(row for row in rows if row)
            if filled:
                mine.extend(_logits_of(filled, corpus, bundle, accelerator))
            bar.step(1)
    parts = gather_object([mine]) if accelerator.num_processes > 1 else [mine]
    for part in parts:
        for unit, values in part:
            logits[corpus.first_target[unit] : corpus.first_target[unit + 1]] = values
    return logits


def _logits_of(rows: Rows, corpus: Corpus, bundle: ModelBundle, accelerator: Accelerator) -> list[tuple[int, np.ndarray]]:
    samples = [[corpus.text(unit) for unit in row] for row in rows]
    batch = collate(samples, bundle.pad_id).to_batch().to(accelerator.device)
    text = text_only(batch)
    # In a packed row several samples stand side by side, so the mask is needed even where no image was.
    with torch.no_grad(), accelerator.autocast():
        hidden = bundle.model.hidden(text)
        values = target_logits(hidden.states_SD, hidden.head, text.supervision.target_S)
    values = torch.where(text.supervision.slot_S >= 0, values, torch.full_like(values, float("nan"))).float().cpu().numpy()
    order = [unit for row in rows for unit in row]
    sizes = [int(corpus.supervised[unit]) for unit in order]
    return list(zip(order, np.split(values, np.cumsum(sizes)[:-1]), strict=True))
