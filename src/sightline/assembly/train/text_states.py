"""Outputs of a frozen text encoder, computed once per text before the first step, as blind logits of a frozen decoder are."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from sightline.assembly.encode.features import weights_key
from sightline.assembly.model.bundle import ModelBundle
from sightline.data.batches.pairs import PairCorpus, TextStates, TextTokens
from sightline.runtime.arrays import read_npz
from sightline.runtime.logs import logger, progress
from sightline.runtime.storage import atomic_file
from sightline.types import Texts

ROWS = 64  # texts per batch; fixed, so that outputs computed again are equal to the bit


def with_text_states(corpus: PairCorpus, bundle: ModelBundle, accelerator: Accelerator, cache: Path) -> PairCorpus:
    """Returns the corpus with the text encoder's outputs, from `cache` or computed and stored there.

    Args:
        corpus: the pairs of a stage.
        bundle: a dual encoder with a frozen text encoder in `eval` mode.
        accelerator: ranks share the work.
        cache: a file of the run folder; a damaged one is written anew.
    """
    texts = corpus.texts()
    key = _key(texts, bundle, corpus.tokens)
    found = _read(cache, key, len(texts))
    if found is None:
        found = _compute(texts, bundle, corpus.tokens, accelerator)
        if accelerator.is_main_process:
            cache.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(cache, "wb") as file:
                np.savez(file, key=np.array(key), states=found)
        accelerator.wait_for_everyone()
    return replace(corpus, states=TextStates({text: row for row, text in enumerate(texts)}, found))


def _key(texts: Sequence[str], bundle: ModelBundle, tokens: TextTokens) -> str:
    """Returns a hash of everything that the outputs depend on: the text encoder's weights, the texts, and how they are cut."""
    assert bundle.pairs is not None
    digest = hashlib.sha256(weights_key(bundle.module.get_submodule("text")).encode())
    digest.update(f"{tokens.limit} {tokens.is_fixed} {len(texts)}\n".encode())
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()


def _read(cache: Path, key: str, count: int) -> np.ndarray | None:
    """Returns the stored outputs; None where they are of other texts or weights, or cannot be read."""
    if not cache.exists():
        return None
    try:
        stored = read_npz(cache, ("key", "states"))
        found_key, states = str(stored["key"]), stored["states"]
        if found_key == key and (states.dtype != np.float32 or states.ndim != 2 or len(states) != count):
            raise ValueError(f"{states.shape} outputs of {states.dtype}, {count} rows of float32 expected")
        return states if found_key == key else None
    except ValueError as error:
        logger.warning("%s is damaged (%s); the text vectors are computed again", cache, error)
        return None


def _compute(texts: Sequence[str], bundle: ModelBundle, tokens: TextTokens, accelerator: Accelerator) -> np.ndarray:
    model = bundle.pairs
    assert model is not None
    rank, world = accelerator.process_index, accelerator.num_processes
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))  # neighbours need little padding
    blocks = range(0, len(texts), ROWS)
    mine: list[tuple[list[int], np.ndarray]] = []
    with progress("text vectors", len(texts), show=accelerator.is_main_process) as bar:
        for begin in blocks[rank::world]:
            rows = order[begin : begin + ROWS]
            ids, mask = tokens([texts[row] for row in rows])
            batch = Texts(*(torch.from_numpy(value).to(accelerator.device) for value in (ids, mask)))
            with torch.no_grad(), accelerator.autocast():
                mine.append((rows, model.text_states(batch).float().cpu().numpy()))
            bar.step(min(ROWS * world, len(texts) - begin))
    parts = gather_object(mine) if world > 1 else mine
    found = np.concatenate([states for _, states in parts])
    out = np.empty_like(found)
    out[[row for rows, _ in parts for row in rows]] = found
    return out
