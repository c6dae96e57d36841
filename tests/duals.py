"""Tiny dual encoders: whole ones in folders as a user loads them, parts to be joined, and random embeddings."""

import functools
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    PreTrainedModel,
    SiglipConfig,
    SiglipModel,
)

from sightline.types import Embeddings, PairBatch, Texts
from tests.builders import _HALF, _ROOT, _VIT, SIDE, _spread, _write_processor, load_tokenizer, tokenizer_folder  # fmt: skip

LENGTH = 24
_TEXT: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": LENGTH,
}


@functools.cache
def dual_folder(kind: str) -> Path:
    """The folder of a whole `clip` or `siglip` with its tokenizer and image processor."""
    tokenizer = load_tokenizer("plain")
    end = int(tokenizer.eos_token_id)
    text = {**_TEXT, "vocab_size": len(tokenizer), "bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    torch.manual_seed(21)
    if kind == "siglip":
        model: PreTrainedModel = SiglipModel(SiglipConfig(text_config={**text, "projection_size": 24}, vision_config=_VIT))
        with torch.no_grad():
            model.logit_scale.fill_(2.3)
            model.logit_bias.fill_(-10.0)
    else:
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=_VIT, projection_dim=16))
    _spread_but_scalars(model)
    folder = Path(_ROOT.name) / f"dual-{kind}"
    shutil.copytree(tokenizer_folder("plain"), folder)
    model.save_pretrained(folder)
    _write_processor(folder, SIDE, "Siglip", _HALF)
    return folder


def _spread_but_scalars(model: PreTrainedModel) -> None:
    kept = {name: value.detach().clone() for name, value in model.named_parameters() if name.startswith("logit_")}
    _spread(model)
    with torch.no_grad():
        for name, value in kept.items():
            model.get_parameter(name).copy_(value)


@functools.cache
def text_folder() -> Path:
    """The folder of a small BERT with a tokenizer."""
    tokenizer = load_tokenizer("plain")
    torch.manual_seed(22)
    model = BertModel(BertConfig(vocab_size=len(tokenizer), **_TEXT, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
    _spread(model)
    folder = Path(_ROOT.name) / "text-bert"
    shutil.copytree(tokenizer_folder("plain"), folder)
    model.save_pretrained(folder)
    return folder


def pairs(
    images: list[int],
    texts: list[int],
    negatives: list[int] | None = None,
    width: int = 8,
    seed: int = 0,
    bias: float | None = None,
) -> tuple[Embeddings, PairBatch]:
    """Random unit vectors in float64 that require gradients, of pairs with these identities, then of hard negatives."""
    generator = torch.Generator().manual_seed(seed)
    extra = negatives or []
    rows = [torch.randn(count, width, generator=generator, dtype=torch.float64) for count in (len(images), len(texts + extra))]
    vectors = [normalize(row, dim=-1).requires_grad_() for row in rows]
    scale = torch.tensor(7.0, dtype=torch.float64, requires_grad=True)
    offset = None if bias is None else torch.tensor(bias, dtype=torch.float64, requires_grad=True)
    return Embeddings(vectors[0], vectors[1], scale, offset), identities(images, texts, extra)


def identities(images: list[int], texts: list[int], negatives: list[int]) -> PairBatch:
    """A batch that says who describes whom and nothing else."""
    image = torch.tensor(images)
    owner = torch.cat([image, torch.full((len(negatives),), -1)])
    return PairBatch(None, None, Texts(), image, owner, torch.tensor(texts + negatives))


def leaves(embeddings: Embeddings) -> list[Tensor]:
    """The tensors whose gradients are compared."""
    return [value for value in (embeddings.image_NW, embeddings.text_CW, embeddings.scale, embeddings.bias) if value is not None]
