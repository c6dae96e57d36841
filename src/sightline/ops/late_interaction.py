"""Late interaction: similarities of sets of vectors by max, then mean, in bounded memory (ColBERT, FILIP, ComAlign).

    text_to_image[i, t] = mean_j max_k <text[t, j], image[i, k]>        image_to_text[i, t] = mean_k max_j <text[t, j], image[i, k]>

Both directions come from one product. Components lie on the leading axes of a block (`[K, images, J, texts]`), so that both maxima
are elementwise over contiguous memory. Masked components take part in neither maximum nor mean; without masks every component
counts, also one of zeros, which is how the authors of ComAlign count padding.
"""

from collections.abc import Iterator
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

MAX_BYTES = 32 * 2**20  # products of a block; larger ones leave the cache


class LateInteraction(NamedTuple):
    """Similarities of all images and texts; the two directions are different matrices, not transposes."""

    text_to_image_IT: Float[Tensor, "I T"]
    image_to_text_IT: Float[Tensor, "I T"]


def late_interaction_reference(
    image_IKW: Float[Tensor, "I K W"],
    text_TJW: Float[Tensor, "T J W"],
    image_mask_IK: Bool[Tensor, "I K"] | None = None,
    text_mask_TJ: Bool[Tensor, "T J"] | None = None,
) -> LateInteraction:
    """Computes the plain formula with the full `[I, K, T, J]` tensor; arguments as in `late_interaction`."""
    products_IKTJ = torch.einsum("ikw,tjw->iktj", image_IKW, text_TJW)
    is_image = torch.ones_like(image_IKW[..., 0], dtype=torch.bool) if image_mask_IK is None else image_mask_IK
    is_text = torch.ones_like(text_TJW[..., 0], dtype=torch.bool) if text_mask_TJ is None else text_mask_TJ
    of_text_ITJ = products_IKTJ.masked_fill(~is_image[:, :, None, None], float("-inf")).amax(1)
    of_image_IKT = products_IKTJ.masked_fill(~is_text, float("-inf")).amax(3)
    to_image = torch.where(is_text, of_text_ITJ, 0.0).sum(2) / is_text.sum(1)
    to_text = torch.where(is_image[:, :, None], of_image_IKT, 0.0).sum(1) / is_image.sum(1)[:, None]
    return LateInteraction(to_image, to_text)


def late_interaction(
    image_IKW: Float[Tensor, "I K W"],
    text_TJW: Float[Tensor, "T J W"],
    image_mask_IK: Bool[Tensor, "I K"] | None = None,
    text_mask_TJ: Bool[Tensor, "T J"] | None = None,
    max_bytes: int = MAX_BYTES,
) -> LateInteraction:
    """Computes both directions in blocks.

    With gradients each block is computed again in the backward pass, so memory is bounded there too.

    Args:
        image_IKW, text_TJW: component vectors, of unit length for cosines.
        image_mask_IK, text_mask_TJ: which components exist; at least one of each row.
        max_bytes: size of the products of a block; the smallest block is one image and one text.
    """
    components = image_IKW.shape[1] * text_TJW.shape[1] * image_IKW.element_size()
    pairs = max(1, max_bytes // components)
    texts = min(len(text_TJW), max(1, min(pairs, 512)))
    images = max(1, min(len(image_IKW), pairs // texts))
    has_gradient = torch.is_grad_enabled() and (image_IKW.requires_grad or text_TJW.requires_grad)
    rows = []
    for block in _blocks(len(image_IKW), images):
        image, image_mask = image_IKW[block].transpose(0, 1), None if image_mask_IK is None else image_mask_IK[block]
        row = []
        for other in _blocks(len(text_TJW), texts):
            text, text_mask = text_TJW[other].transpose(0, 1), None if text_mask_TJ is None else text_mask_TJ[other]
            arguments = (image, text, image_mask, text_mask)
            row.append(checkpoint(_block, *arguments, use_reentrant=False) if has_gradient else _block(*arguments))
        rows.append([torch.cat(parts, dim=1) for parts in zip(*cast(list[tuple[Tensor, Tensor]], row), strict=True)])
    return LateInteraction(*(torch.cat(parts) for parts in zip(*rows, strict=True)))


def _blocks(count: int, size: int) -> Iterator[slice]:
    for begin in range(0, count, size):
        yield slice(begin, begin + size)


def _block(
    image_KIW: Tensor, text_JTW: Tensor, image_mask_IK: Tensor | None, text_mask_TJ: Tensor | None
) -> tuple[Float[Tensor, "I T"], Float[Tensor, "I T"]]:
    """Returns both directions of one block."""
    K, I, _ = image_KIW.shape  # noqa: E741 (the names of the shapes)
    J, T, _ = text_JTW.shape
    products = image_KIW.flatten(0, 1) @ text_JTW.flatten(0, 1).T
    if image_mask_IK is not None:
        products = products.masked_fill(~image_mask_IK.T.reshape(-1, 1), float("-inf"))
    if text_mask_TJ is not None:
        products = products.masked_fill(~text_mask_TJ.T.reshape(1, -1), float("-inf"))
    products_KIJT = products.view(K, I, J, T)
    of_text_IJT, of_image_KIT = products_KIJT.amax(0), products_KIJT.amax(2)
    if text_mask_TJ is None:
        to_image = of_text_IJT.mean(1)
    else:
        to_image = torch.where(text_mask_TJ.T, of_text_IJT, 0.0).sum(1) / text_mask_TJ.sum(1)
    if image_mask_IK is None:
        return to_image, of_image_KIT.mean(0)
    return to_image, torch.where(image_mask_IK.T[:, :, None], of_image_KIT, 0.0).sum(0) / image_mask_IK.sum(1)[:, None]
