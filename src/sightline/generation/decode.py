"""Batched generation: rows are padded on the left, images encoded once per batch, text decoded without special tokens.

Greedy decoding in fp32 gives the same text for every batch size, except where rounding decides a tie.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from sightline.config import Config
from sightline.data.samples.prompts import Prompt
from sightline.data.samples.tokenizing import decode
from sightline.models.surface import SightModel
from sightline.ops.splice import splice
from sightline.types import Visual


class DecodingConfig(Config):
    """How text is generated; names and meanings are those of transformers' `generate`."""

    max_new_tokens: int = Field(64, ge=1)
    num_beams: int = Field(1, ge=1)
    do_sample: bool = False
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0)

    def arguments(self) -> dict[str, Any]:
        """Returns the arguments for `generate`; sampling parameters only if `do_sample` is set."""
        out: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "num_beams": self.num_beams,
            "do_sample": self.do_sample,
            "repetition_penalty": self.repetition_penalty,
        }
        return out | ({"temperature": self.temperature, "top_p": self.top_p, "top_k": 0} if self.do_sample else {})


@dataclass(frozen=True)
class GeneratedText:
    """A generated text and its number of tokens, including the end token."""

    text: str
    num_tokens: int


def generate(
    model: SightModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    decoding: DecodingConfig,
    width: int = 0,
    streamer: Any = None,
) -> list[GeneratedText]:
    """Continues prompts in one batch.

    Only `decoding` controls generation: settings that a downloaded model brings along (`no_repeat_ngram_size`, `min_new_tokens`,
    `bad_words_ids`, ...) do not apply. A repetition penalty counts the prompt, as in transformers' `generate`.

    Args:
        model: on its device, in `eval` mode.
        tokenizer: decodes the generated ids.
        prompts: token rows and images.
        decoding: greedy by default.
        width: pads rows to at least this many tokens, so that all batches of a dataset have the same shape.
        streamer: a transformers streamer, for a single prompt.

    Returns:
        One text per prompt, in order.

    Raises:
        RecordError: a prompt holds images and the model takes none.
    """
    pad = tokenizer.pad_token_id or 0
    length = max([width, *(len(prompt.row.ids) for prompt in prompts)])
    ids = torch.full((len(prompts), length), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for number, prompt in enumerate(prompts):
        ids[number, length - len(prompt.row.ids) :] = torch.from_numpy(prompt.row.ids)
        mask[number, length - len(prompt.row.ids) :] = 1
    ids, mask = ids.to(model.inner.device), mask.to(model.inner.device)
    shown = any(prompt.num_crops for prompt in prompts)
    with torch.no_grad():
        inputs = {"inputs_embeds": embeddings(model, ids, prompts, length)} if shown else {}
        with _settings_replaced(model, decoding) as settings:
            # Every rank generates for itself, also if transformers sees a sharded model; all weights are gathered here.
            output = model.generate(input_ids=ids, attention_mask=mask, **inputs, streamer=streamer, synced_gpus=False)
    ends = settings.eos_token_id
    end_ids = set(ends if isinstance(ends, list) else [ends])
    return [_text(tokenizer, row, end_ids) for row in output[:, length:].tolist()]


@contextlib.contextmanager
def _settings_replaced(model: SightModel, decoding: DecodingConfig) -> Iterator[GenerationConfig]:
    """Replaces the model's generation settings, which transformers uses for everything that a call does not set."""
    own = model.inner.generation_config
    kept = GenerationConfig() if own is None else own
    settings = GenerationConfig(
        **decoding.arguments(),
        use_cache=True,
        bos_token_id=kept.bos_token_id,
        eos_token_id=kept.eos_token_id,
        pad_token_id=kept.pad_token_id,
        # Image tokens: only a model with a Sightline connector lists them, and lists nothing else, there.
        suppress_tokens=kept.suppress_tokens if model.connector is not None else None,
    )
    model.inner.generation_config = settings
    try:
        yield settings
    finally:
        model.inner.generation_config = own


def embeddings(model: SightModel, ids_BT: Tensor, prompts: Sequence[Prompt], length: int) -> Tensor:
    """Returns the embeddings of left-padded rows with their visual tokens inserted."""
    slots, indices, crops = [], [], 0
    for number, prompt in enumerate(prompts):
        if prompt.num_crops:
            begin = number * length + length - len(prompt.row.ids)
            slots.append(begin + prompt.row.slots)
            shift = crops * model.tokens_per_crop
            indices.append(np.where(prompt.visual_index >= 0, prompt.visual_index + shift, prompt.visual_index))
            crops += prompt.num_crops
    device = model.inner.device
    visual = Visual(
        pixels_NHWC=_joined([prompt.pixels for prompt in prompts], device),
        features_NPE=_joined([prompt.features for prompt in prompts], device),
        slot_M=torch.from_numpy(np.concatenate(slots)).to(device),
        visual_index_M=torch.from_numpy(np.concatenate(indices)).to(device),
    )
    table = model.visual_tokens(model.features(visual))
    return splice(model.inner.get_input_embeddings()(ids_BT), table, visual.slot_M, visual.visual_index_M)


def _joined(arrays: Sequence[np.ndarray | None], device: torch.device) -> Tensor | None:
    found = [array for array in arrays if array is not None]
    return torch.from_numpy(np.concatenate(found)).to(device) if found else None


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int], ends: set[int]) -> GeneratedText:
    stop = next((place for place, token in enumerate(ids) if token in ends), None)
    generated = ids if stop is None else ids[:stop]
    text = decode(tokenizer, generated, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return GeneratedText(text.strip(), len(generated) + (stop is not None))
