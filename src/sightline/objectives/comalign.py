"""ComAlign's loss: CLIP's at each level, with max-then-mean similarities of components (arXiv 2409.08206).

The authors published no training code, and the body of the paper could not be read. What is certain is the similarity (their
inference code and figure); that the loss is symmetric InfoNCE at each level with equal weights is our reconstruction.
"""

from typing import Literal, cast

import torch
from pydantic import Field, field_validator
from torch import Tensor

from sightline.objectives.contrastive import (
    ContrastiveConfig,
    ContrastiveObjective,
    Gather,
    cross_entropy,
    gather_rows,
    image_candidates,
    text_candidates,
)
from sightline.ops.component_similarity import level_similarity, select_rows
from sightline.types import ComponentEmbeddings, ComponentVectors, Embeddings, Loss, PairBatch

Level = Literal["global", "entity", "relation"]


class ComAlignObjectiveConfig(ContrastiveConfig):
    """`L = sum_l (CE(S_l,i2t / tau) + CE(S_l,t2i / tau)) / 2` over the levels, for a model with `model.dual.alignment`."""

    kind: Literal["comalign"] = "comalign"
    levels: tuple[Level, ...] = Field(default=("global", "entity", "relation"), min_length=1, strict=False)
    """Levels with a loss, with equal weights. `[global]` is the control: the same network without the losses of components."""
    held_out: int = Field(default=500, ge=0)
    """Images of the training split, at most a tenth of it, that are not trained on; the weights of the score are chosen on them.
    0 trains on all and weighs levels equally. Differs: the authors' weights are constants of unknown origin."""

    @field_validator("levels")
    @classmethod
    def _each_once(cls, value: tuple[Level, ...]) -> tuple[Level, ...]:
        if len(set(value)) < len(value):
            raise ValueError("a level is named twice")
        return value

    @property
    def compares_components(self) -> bool:
        return True

    def build(self) -> "ComAlign":
        return ComAlign(self.levels)


class ComAlign(ContrastiveObjective):
    """The sum of the losses of the levels.

    Args:
        levels: those with a loss.
    """

    def __init__(self, levels: tuple[Level, ...]) -> None:
        self.levels = levels

    def loss(self, embeddings: Embeddings, batch: PairBatch, gather: Gather = gather_rows) -> Loss:
        found = cast(ComponentEmbeddings, embeddings)
        count = len(batch.image_N)
        captions = select_rows(found.texts, slice(count))
        all_texts, all_images = gathered(found.texts, gather), gathered(found.images, gather)
        to_text, to_image = text_candidates(embeddings, batch, gather), image_candidates(embeddings, batch, gather)
        weight = torch.tensor(float(count), device=embeddings.image_NW.device)
        total, parts = embeddings.image_NW.new_zeros(()), {}
        with torch.autocast(embeddings.image_NW.device.type, enabled=False):
            for level in self.levels:
                of_images = level_similarity(found.images, all_texts, level)
                if len(all_images.plain_NW) == count:  # one rank: all captions are among the texts compared already
                    of_captions = of_images.text_to_image_IT[:, :count]
                else:
                    of_captions = level_similarity(all_images, captions, level).text_to_image_IT
                image_loss = cross_entropy(found.scale * of_images.image_to_text_IT, to_text)
                text_loss = cross_entropy(found.scale * of_captions.T, to_image)
                value = 0.5 * (image_loss + text_loss)
                total, parts[level] = total + value, (value.detach(), weight)
        return Loss(total, weight, parts)


def gathered(vectors: ComponentVectors, gather: Gather) -> ComponentVectors:
    """Returns the vectors of all ranks."""

    def rows(value: Tensor) -> Tensor:
        return gather(value.byte())[0].bool() if value.dtype == torch.bool else gather(value)[0]

    return ComponentVectors(*(rows(getattr(vectors, name)) for name in ComponentVectors.__slots__))
