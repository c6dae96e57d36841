"""Contrastive losses over pairs of images and captions: `info_nce` (CLIP, NegCLIP) and `pairwise_sigmoid` (SigLIP).

Every image of a step is compared with every text of it, over all ranks. Another caption of the same image and an equal caption of
another image are no negatives; they are left out. The losses do not add over micro-batches: see docs/design/pairs.md.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, cast

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.utils.checkpoint import checkpoint

from sightline.objectives.base import HiddenStateModel, ObjectiveConfig
from sightline.ops.gather import gather_rows
from sightline.types import Batch, Embeddings, Loss, PairBatch

Gather = Callable[[Tensor], tuple[Tensor, int]]


def local_rows(rows: Tensor) -> tuple[Tensor, int]:
    """Takes the place of `gather_rows` where each rank computes on its own."""
    return rows, 0


class EmbeddingModel(Protocol):
    """The part of a dual encoder that contrastive objectives use."""

    def embeddings(self, batch: PairBatch) -> Embeddings:
        """Returns unit vectors of images and texts, with scale and bias."""
        ...


class ContrastiveConfig(ObjectiveConfig):
    """Fields that all contrastive losses have."""

    hard_negatives: int = Field(default=0, ge=0, le=64)
    """Hard-negative captions per pair, taken from the records' `negatives` (NegCLIP: 1)."""

    @property
    def compares_pairs(self) -> bool:
        return True

    @property
    def needs_padded_rows(self) -> bool:
        return True

    @property
    def compares_components(self) -> bool:
        """Whether it compares components, which only a model with light networks has."""
        return False


class ContrastiveObjective:
    """A loss over the embeddings of a step; called with a batch or with embeddings that exist already."""

    def __call__(self, model: HiddenStateModel, batch: Batch) -> Loss:
        """Embeds this rank's pairs and compares them with those of all ranks."""
        pairs = cast(PairBatch, batch)
        return self.loss(cast(EmbeddingModel, model).embeddings(pairs), pairs)

    def loss(self, embeddings: Embeddings, batch: PairBatch, gather: Gather = gather_rows) -> Loss:
        """Returns the loss of this rank's images and captions against all of them.

        Args:
            embeddings: of the batch.
            batch: who describes whom.
            gather: makes one tensor of the rows of all ranks.
        """
        raise NotImplementedError


# Who is compared with whom ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidates:
    """All texts and images of a step, and where this rank's are.

    Attributes:
        text_AW: unit vectors of all texts.
        own_text_N: index in them of each local image's caption.
        ignored_NA: texts that describe a local image beside its caption, or that equal its caption: no negatives.
    """

    text_AW: Float[Tensor, "A W"]
    own_text_N: Int[Tensor, " N"]
    ignored_NA: Bool[Tensor, "N A"]


def text_candidates(embeddings: Embeddings, batch: PairBatch, gather: Gather) -> Candidates:
    """Returns what the local images are compared with: the captions and hard negatives of all ranks."""
    count = len(batch.image_N)
    text_AW, first = gather(embeddings.text_CW)
    owner_A, _ = gather(batch.owner_C)
    text_A, _ = gather(batch.text_C)
    own_N = first + torch.arange(count, device=text_AW.device)
    ignored = (owner_A[None] == batch.image_N[:, None]) | (text_A[None] == batch.text_C[:count, None])
    return Candidates(text_AW, own_N, _without_own(ignored, own_N))


def image_candidates(embeddings: Embeddings, batch: PairBatch, gather: Gather) -> Candidates:
    """Returns what the local captions are compared with: the images of all ranks; hard negatives are not compared."""
    count = len(batch.image_N)
    image_BW, first = gather(embeddings.image_NW)
    owner_B, _ = gather(batch.image_N)
    caption_B, _ = gather(batch.text_C[:count])
    own_N = first + torch.arange(count, device=image_BW.device)
    ignored = (owner_B[None] == batch.owner_C[:count, None]) | (caption_B[None] == batch.text_C[:count, None])
    return Candidates(image_BW, own_N, _without_own(ignored, own_N))


def _without_own(ignored_NA: Tensor, own_N: Tensor) -> Tensor:
    return ignored_NA.scatter(1, own_N[:, None], False)


# Losses -----------------------------------------------------------------------------------------------------------------------


class InfoNCEConfig(ContrastiveConfig):
    """`L = sum_i (-log p(t_i | v_i) - log p(v_i | t_i)) / 2N`, a softmax over all texts or images of the step (CLIP)."""

    kind: Literal["info_nce"] = "info_nce"

    def build(self) -> "InfoNCE":
        return InfoNCE()


class InfoNCE(ContrastiveObjective):
    """CLIP's loss (Radford et al. 2021, fig. 3); with hard negatives NegCLIP's (Yuksekgonul et al. 2023)."""

    def loss(self, embeddings: Embeddings, batch: PairBatch, gather: Gather = gather_rows) -> Loss:
        count = len(batch.image_N)
        to_text = self._direction(embeddings.image_NW, text_candidates(embeddings, batch, gather), embeddings.scale)
        captions_NW = embeddings.text_CW[:count]
        to_image = self._direction(captions_NW, image_candidates(embeddings, batch, gather), embeddings.scale)
        weight = torch.tensor(float(count), device=to_text.device)
        parts = {"image_to_text": (to_text.detach(), weight), "text_to_image": (to_image.detach(), weight)}
        return Loss(0.5 * (to_text + to_image), weight, parts)

    def _direction(self, query_NW: Tensor, candidates: Candidates, scale: Tensor) -> Float[Tensor, ""]:
        logits_NA = _logits(query_NW, candidates.text_AW, scale)
        return cross_entropy(logits_NA, candidates)


def cross_entropy(logits_NA: Float[Tensor, "N A"], candidates: Candidates) -> Float[Tensor, ""]:
    """Returns the sum of `-log p(own)` over a softmax of all candidates but those that are ignored."""
    own_N = logits_NA.gather(1, candidates.own_text_N[:, None])[:, 0]
    return (logits_NA.masked_fill(candidates.ignored_NA, float("-inf")).logsumexp(1) - own_N).sum()


def _logits(query_NW: Tensor, candidate_AW: Tensor, scale: Tensor) -> Float[Tensor, "N A"]:
    """Returns scaled cosines in the vectors' own dtype: in bf16 a logit near 100 would be off by up to 0.25."""
    with torch.autocast(query_NW.device.type, enabled=False):
        return scale * query_NW @ candidate_AW.T


class PairwiseSigmoidConfig(ContrastiveConfig):
    """`L = sum_ij -log sigmoid(z_ij (t s_ij + b)) / N` with `z = 1` for a pair and -1 for all others (SigLIP)."""

    kind: Literal["pairwise_sigmoid"] = "pairwise_sigmoid"
    chunk: int = Field(default=1024, ge=1)
    """Texts that are compared at once; memory grows with this number and not with the size of the step."""

    def build(self) -> "PairwiseSigmoid":
        return PairwiseSigmoid(self.chunk)


class PairwiseSigmoid(ContrastiveObjective):
    """SigLIP's loss (Zhai et al. 2023, algorithm 1).

    Args:
        chunk: texts that are compared at once.
    """

    def __init__(self, chunk: int = 1024) -> None:
        self.chunk = chunk

    def loss(self, embeddings: Embeddings, batch: PairBatch, gather: Gather = gather_rows) -> Loss:
        candidates = text_candidates(embeddings, batch, gather)
        bias = embeddings.scale.new_zeros(()) if embeddings.bias is None else embeddings.bias
        total = embeddings.image_NW.new_zeros(())
        number = len(candidates.text_AW)
        for begin in range(0, number, self.chunk):
            part = slice(begin, min(begin + self.chunk, number))
            inputs = (embeddings.image_NW, candidates.text_AW[part], embeddings.scale, bias)
            masks = (candidates.own_text_N - begin, candidates.ignored_NA[:, part])
            if number > self.chunk and torch.is_grad_enabled():  # logits of a chunk are computed again in the backward pass
                total = total + cast(Tensor, checkpoint(_sigmoid_sum, *inputs, *masks, use_reentrant=False))
            else:
                total = total + _sigmoid_sum(*inputs, *masks)
        weight = torch.tensor(float(len(batch.image_N)), device=total.device)
        return Loss(total, weight)


def _sigmoid_sum(
    image_NW: Tensor, text_AW: Tensor, scale: Tensor, bias: Tensor, own_N: Tensor, ignored_NA: Tensor
) -> Float[Tensor, ""]:
    logits_NA = _logits(image_NW, text_AW, scale) + bias
    is_own_NA = own_N[:, None] == torch.arange(len(text_AW), device=text_AW.device)[None]
    return -logsigmoid(torch.where(is_own_NA, logits_NA, -logits_NA)).masked_fill(ignored_NA, 0.0).sum()
