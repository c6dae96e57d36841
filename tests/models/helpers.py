"""Inputs of small vision-language models, for tests."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sightline.models.vlm import SightlineForConditionalGeneration
from tests.builders import SIDE

PER_IMAGE = 4


def prompt(model: SightlineForConditionalGeneration, seed: int, images: int, words: int = 5) -> tuple[Tensor, Tensor | None]:
    """Ids of a row with its images first and a word between them, and the images as a processor gives them."""
    draw = torch.Generator().manual_seed(seed)
    ids: list[int] = []
    for _ in range(images):
        ids += [int(torch.randint(3, 290, (), generator=draw)), *[model.config.image_token_id] * PER_IMAGE]
    ids += torch.randint(3, 290, (words,), generator=draw).tolist()
    pixels = torch.randn(images, 3, SIDE, SIDE, generator=draw, dtype=torch.float64).to(model.dtype) if images else None
    return torch.tensor([ids]), pixels


def left_padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and positions of rows of different length."""
    width = max(row.shape[1] for row in rows)
    ids = torch.cat([F.pad(row, (width - row.shape[1], 0)) for row in rows])
    mask = torch.cat([F.pad(torch.ones_like(row), (width - row.shape[1], 0)) for row in rows])
    return ids, mask, (mask.cumsum(1) - 1).clamp(min=0)


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-10) -> bool:
    return bool((ours - theirs).abs().max() <= tolerance * theirs.abs().max())
