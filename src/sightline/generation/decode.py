"""Batched generation from prompts: rows are padded on the left, pictures encoded once per batch, text decoded without specials.

Greedy decoding in fp32 gives the same text for every batch size, up to ties that rounding decides.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sightline.config import Config
from sightline.data.samples.prompts import Prompt
from sightline.models.stock import StockModel
from sightline.models.vlm import SightlineForConditionalGeneration
from sightline.ops.splice import splice


class DecodingConfig(Config):
    """How text is drawn from the model."""

    max_new_tokens: int = Field(64, ge=1)
    num_beams: int = Field(1, ge=1)
    do_sample: bool = False
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0)

    def arguments(self) -> dict[str, Any]:
        """As `generate` takes them; what does not apply is left out."""
        out: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "num_beams": self.num_beams,
            "do_sample": self.do_sample,
            "repetition_penalty": self.repetition_penalty,
        }
        return out | ({"temperature": self.temperature, "top_p": self.top_p, "top_k": 0} if self.do_sample else {})


@dataclass(frozen=True)
class Text:
    """A generated text and the number of tokens it took, its end token included."""

    text: str
    num_tokens: int


VisionLanguageModel = SightlineForConditionalGeneration | StockModel


def generate(
    model: PreTrainedModel | StockModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    decoding: DecodingConfig,
    width: int = 0,
    streamer: Any = None,
) -> list[Text]:
    """Continues prompts in one batch.

    Args:
        model: on its device, in `eval` mode.
        tokenizer: decodes the answer.
        prompts: rows and pictures.
        decoding: greedy by default.
        width: pad rows to at least this many slots, so that a set is generated with one shape throughout.
        streamer: a transformers streamer, for a single prompt.

    Returns:
        One text per prompt, in order.

    Raises:
        ValueError: a model of text alone was given pictures.
    """
    pad = tokenizer.pad_token_id or 0
    length = max([width, *(len(prompt.row.ids) for prompt in prompts)])
    ids = torch.full((len(prompts), length), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for number, prompt in enumerate(prompts):
        ids[number, length - len(prompt.row.ids) :] = torch.from_numpy(prompt.row.ids)
        mask[number, length - len(prompt.row.ids) :] = 1
    ids, mask = ids.to(model.device), mask.to(model.device)
    shown = any(prompt.num_crops for prompt in prompts)
    with torch.no_grad():
        if not shown:
            inputs = {"input_ids": ids}
        elif isinstance(model, VisionLanguageModel):
            inputs = {"inputs_embeds": embeddings(model, ids, prompts, length)}
        else:
            raise ValueError(f"{type(model).__name__} takes text only, but the prompts hold pictures")
        call: Callable[..., Tensor] = model.generate  # pyrefly: ignore
        given = {**inputs, "attention_mask": mask, **decoding.arguments()}
        # Each process generates for itself, also where transformers sees a model in pieces: it is whole meanwhile.
        output = call(**given, streamer=streamer, use_cache=True, synced_gpus=False)
    new = output if shown else output[:, length:]  # given embeddings, `generate` returns the new tokens alone
    config = model.generation_config
    ends = config.eos_token_id if config is not None else None
    end_ids = set(ends if isinstance(ends, list) else [ends])
    return [_text(tokenizer, row, end_ids) for row in new.tolist()]


def embeddings(model: VisionLanguageModel, ids_BT: Tensor, prompts: Sequence[Prompt], length: int) -> Tensor:
    """Embeddings of left-padded rows with their visual tokens in place."""
    table = model.visual_tokens(_features(model, prompts))
    per_crop = model.tokens_per_crop if isinstance(model, StockModel) else model.connector.tokens_per_crop
    slots, sources, crops = [], [], 0
    for number, prompt in enumerate(prompts):
        if prompt.num_crops:
            begin = number * length + length - len(prompt.row.ids)
            slots.append(begin + prompt.row.slots)
            shift = crops * per_crop
            sources.append(np.where(prompt.source >= 0, prompt.source + shift, prompt.source))
            crops += prompt.num_crops
    slot_M = torch.from_numpy(np.concatenate(slots)).to(model.device)
    source_M = torch.from_numpy(np.concatenate(sources)).to(model.device)
    return splice(model.get_input_embeddings()(ids_BT), table, slot_M, source_M)


def _features(model: VisionLanguageModel, prompts: Sequence[Prompt]) -> Tensor:
    """Encoder outputs of all crops in order, stored ones or those of the pixels."""
    stored = [prompt.features for prompt in prompts if prompt.features is not None]
    if stored:
        return torch.from_numpy(np.concatenate(stored)).to(model.device, model.dtype)
    pixels = np.concatenate([prompt.pixels for prompt in prompts if prompt.pixels is not None])
    return model.encode_pixels(model.normalise(torch.from_numpy(pixels).to(model.device)))


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int], ends: set[int]) -> Text:
    stop = next((place for place, token in enumerate(ids) if token in ends), None)
    said = ids if stop is None else ids[:stop]
    text = tokenizer.decode(said, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return Text(text.strip(), len(said) + (stop is not None))
