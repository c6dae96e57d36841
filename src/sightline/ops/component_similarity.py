"""Similarities of images and texts level by level: plain wholes, refined wholes, entities, relations (ComAlign)."""

import torch
from jaxtyping import Float
from torch import Tensor

from sightline.ops.late_interaction import LateInteraction, late_interaction
from sightline.types import ComponentVectors

TERMS = ("plain", "global", "entity", "relation")


def level_similarity(images: ComponentVectors, texts: ComponentVectors, level: str) -> LateInteraction:
    """Returns both directions of a level, `[images, texts]`; of wholes they are the same matrix of cosines.

    Args:
        images, texts: the vectors.
        level: one of `TERMS`.
    """
    if level in ("plain", "global"):
        name = "plain_NW" if level == "plain" else "whole_NW"
        cosines_IT = getattr(images, name) @ getattr(texts, name).T
        return LateInteraction(cosines_IT, cosines_IT)
    vectors, masks = f"{level}_NKW", f"{level}_NK"
    return late_interaction(getattr(images, vectors), getattr(texts, vectors), getattr(images, masks), getattr(texts, masks))


def weighted_similarity(
    images: ComponentVectors, texts: ComponentVectors, to_image: dict[str, float], to_text: dict[str, float]
) -> LateInteraction:
    """Returns both directions as weighted sums of the terms.

    Args:
        images, texts: the vectors.
        to_image, to_text: weight of each term for text to image and image to text; terms of weight 0 are not computed.
    """
    size = (len(images.plain_NW), len(texts.plain_NW))
    sums: list[Float[Tensor, "I T"]] = [images.plain_NW.new_zeros(size), images.plain_NW.new_zeros(size)]
    for term in TERMS:
        weights = (to_image.get(term, 0.0), to_text.get(term, 0.0))
        if any(weights):
            found = level_similarity(images, texts, term)
            sums = [total + weight * matrix for total, weight, matrix in zip(sums, weights, found, strict=True)]
    return LateInteraction(*sums)


def select_rows(vectors: ComponentVectors, rows: slice | Tensor) -> ComponentVectors:
    """Returns the vectors of some images or texts."""
    return ComponentVectors(*(getattr(vectors, name)[rows] for name in ComponentVectors.__slots__))


def join_rows(parts: list[ComponentVectors]) -> ComponentVectors:
    """Concatenates the vectors of several batches."""
    return ComponentVectors(*(torch.cat([getattr(part, name) for part in parts]) for name in ComponentVectors.__slots__))
