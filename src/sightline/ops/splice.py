"""Inserts visual tokens into rows of text embeddings, and merges patches into fewer, wider tokens."""

from jaxtyping import Float, Int
from torch import Tensor


def splice(
    embeddings_BTD: Float[Tensor, "B T D"],
    visual_XD: Float[Tensor, "X D"],
    slot_M: Int[Tensor, " M"],
    visual_index_M: Int[Tensor, " M"],
) -> Float[Tensor, "B T D"]:
    """Replaces the embedding at each visual slot by its visual token.

    Args:
        embeddings_BTD: text embeddings of the rows; the values at the visual slots are ignored.
        visual_XD: table of visual tokens; learned separators come last, so that an index of -1 is the last separator.
        slot_M: flat index `row * T + position` of each visual slot.
        visual_index_M: index into the table for each slot; negative values count from its end.

    Returns:
        New rows; gradient flows to the text embeddings outside the slots and to the visual tokens.
    """
    flat = embeddings_BTD.flatten(0, 1)
    # index_select, not [...]: the latter's backward adds with atomics on a CPU, in an order that changes from run to run.
    chosen_MD = visual_XD.index_select(0, visual_index_M % visual_XD.shape[0]).to(flat.dtype)
    return flat.index_copy(0, slot_M, chosen_MD).view_as(embeddings_BTD)


def pixel_shuffle(features_NPE: Float[Tensor, "N P E"], grid: tuple[int, int], factor: int) -> Float[Tensor, "N K F"]:
    """Merges `factor x factor` blocks of neighbouring patches into one token: `[N, h w, E]` to `[N, (h w)/f^2, E f^2]`.

    Channels are ordered `(row in block, column in block, E)`, as in Idefics3 and SmolVLM.

    Args:
        features_NPE: patches of each crop in raster order.
        grid: rows and columns of patches; both must be divisible by `factor`.
        factor: side of a block.
    """
    if factor == 1:
        return features_NPE
    num, _, width = features_NPE.shape
    rows, columns = grid
    blocks = features_NPE.view(num, rows // factor, factor, columns // factor, factor, width)
    return blocks.permute(0, 1, 3, 2, 4, 5).reshape(num, rows * columns // factor**2, width * factor**2)


def raster_merge(features_NPE: Float[Tensor, "N P E"], count: int) -> Float[Tensor, "N K F"]:
    """Concatenates `count` consecutive patches in raster order, across rows.

    TinyVLM's reported run did this (`view(B, 49, 3072)`): strips wrap around rows if `count` does not divide the row length.
    """
    num, patches, width = features_NPE.shape
    return features_NPE.reshape(num, patches // count, width * count)
