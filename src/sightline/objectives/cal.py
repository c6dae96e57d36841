"""`cal`: cross-entropy in which each label token is weighted by how much the image raises its logit.

Contrastive ALignment, Xiao et al. 2024 (arXiv 2405.17871), equations 3 to 5. With `z(t)` the logit of label token `t`:

    gain_s   = z(t_s | image, t_<s) - z(t_s | t_<s)
    weight_s = mean over a window of 3 of clamp(gain, 1, 5)
    L        = sum_s weight_s nll_s / sum_s weight_s

Differs from the paper (mode `clean`):
  - The loss is normalised over all supervised tokens of a step, ranks and micro-batches included (the paper: per sample; the
    authors' code: per micro-batch), so that gradient accumulation does not change it.
  - The averaging window stays within a contiguous run of supervised tokens of one branch (the authors' code averages over the
    flattened micro-batch, prompt, padding and other samples included).
  - The pass without image runs on the text tokens alone, at their original positions. That equals the masked full-length pass for
    every token but one: a token that follows an image token is predicted from the last text before the image, and has weight 1 if
    there is none.
  - A sample without image has gain 0 and weight 1, whatever the clamp.
Mode `published` keeps the authors' arithmetic, for comparison; it needs padded rows of one sample each.
"""

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from sightline.errors import ConfigError
from sightline.objectives.auxiliary import with_auxiliary
from sightline.objectives.base import HiddenStateModel, Objective, ObjectiveConfig
from sightline.objectives.changed_images import Contrast, with_changed_images
from sightline.objectives.next_token import by_source
from sightline.ops.cross_entropy import linear_cross_entropy, target_logits
from sightline.ops.pooling import pool_within_spans, published_loss, published_weights
from sightline.ops.text_only import text_only
from sightline.types import PADDING, Batch, Loss, Supervision


class CALConfig(ObjectiveConfig):
    """Contrastive alignment."""

    kind: Literal["cal"] = "cal"
    mode: Literal["clean", "published"] = "clean"
    """`clean`: exact under packing, prefix sharing and accumulation. `published`: the authors' arithmetic on padded rows."""
    low: float = Field(default=1.0, ge=0)
    """Smallest weight; the paper's alpha."""
    high: float = Field(default=5.0, gt=0)
    """Largest weight; the paper's beta, near the 90th percentile of a 7B model's gain. Measure yours with `probe --what gain`."""
    window: int = Field(default=3, ge=1)
    """Width of the moving average; 1 turns it off."""
    contrast: Contrast = "removed"
    """What the image is compared with: `removed` (no image), `masked` patches, a `blurred` image, or a `shuffled` one (the next
    crop of the micro-batch; the gain is 0 if there is only one)."""
    mask_ratio: float = Field(default=0.7, gt=0, le=1)
    """Share of patches that `masked` covers; the paper uses 0.5, 0.7 and 0.9 of a 20 x 10 grid."""
    blur_sigma: float = Field(default=10.0, gt=0)
    """Standard deviation of `blurred` in pixels, for an image of 336 pixels; the paper uses 1 and 10."""
    stored: bool = True
    """Compute the blind logits of a frozen decoder once per sample, before the first step; they do not change in training."""

    @model_validator(mode="after")
    def _consistent(self) -> "CALConfig":
        if self.low > self.high:
            raise ValueError(f"low={self.low} is above high={self.high}")
        if self.window % 2 == 0:
            raise ValueError(f"window={self.window} must be odd")
        if self.mode == "published" and self.contrast != "removed":
            raise ValueError("mode 'published' needs contrast='removed'")
        return self

    @property
    def stores_blind_logits(self) -> bool:
        """Whether storing the blind logits of a frozen decoder pays: only if they depend on the text alone."""
        return self.stored and self.mode == "clean" and self.contrast == "removed"

    @property
    def needs_padded_rows(self) -> bool:
        return self.mode == "published"

    def build(self) -> Objective:
        return PublishedCAL(self) if self.mode == "published" else CAL(self)


class CAL:
    """Contrastive alignment in its `clean` form.

    Args:
        config: clamp range, window and contrast.
    """

    def __init__(self, config: CALConfig) -> None:
        self.config = config

    def __call__(self, model: HiddenStateModel, batch: Batch) -> Loss:
        blind_S, counts_S = self.blind_logits(model, batch)
        hidden = model.hidden(batch)
        nll_S, logit_S = linear_cross_entropy(hidden.states_SD, hidden.head, batch.supervision.target_S)
        gain_S = torch.where(counts_S, logit_S.detach() - blind_S, torch.zeros_like(blind_S))
        clamped_S = torch.where(counts_S, gain_S.clamp(self.config.low, self.config.high), torch.ones_like(gain_S))
        weight_S = pool_within_spans(clamped_S, batch.supervision.span_S, self.config.window)
        parts = gain_parts(gain_S, weight_S, clamped_S, counts_S, nll_S.detach(), self.config)
        parts |= by_source(nll_S.detach(), batch, weight_S)
        return with_auxiliary(Loss(total=(nll_S * weight_S).sum(), weight=weight_S.sum(), parts=parts), hidden)

    def blind_logits(self, model: HiddenStateModel, batch: Batch) -> tuple[Float[Tensor, " S"], Bool[Tensor, " S"]]:
        """Returns the logit of each target without its image, and which targets have a gain.

        A target has no gain if its sample has no image, or if only the image precedes it.
        """
        target_S = batch.supervision.target_S
        has_image_S = has_image(batch)
        if batch.blind_logits_S is not None:
            return batch.blind_logits_S.nan_to_num(), has_image_S & ~batch.blind_logits_S.isnan()
        lone = self.config.contrast == "shuffled" and batch.visual is not None and batch.visual.num_crops < 2
        if lone or batch.visual is None:  # an epoch's last batch may hold a single image, with none to exchange
            return torch.zeros(len(target_S), device=target_S.device), torch.zeros_like(has_image_S)
        with torch.no_grad():
            if self.config.contrast == "removed":
                other = text_only(batch)
                known_S = other.supervision.slot_S >= 0
            else:
                other = with_changed_images(batch, self.config.contrast, self.config.mask_ratio, self.config.blur_sigma)
                known_S = torch.ones_like(has_image_S)
            hidden = model.hidden(other)
            return target_logits(hidden.states_SD, hidden.head, target_S), has_image_S & known_S


class PublishedCAL:
    """CAL with the authors' arithmetic, on padded rows of one sample each (`llava_llama.py` of their repository).

    Differs: the pass without image runs on the text alone, which gives the same logits at text positions; image positions get the
    logit 0. In the authors' code they have a logit, with flash attention too: it zero-fills each layer's attention output at masked
    rows, but the residual stream and the MLPs still carry the image. So the weight of a label that directly follows an image
    differs,
    and through the window that of its neighbours: emulated in float64 on random models, the loss of such rows differs by 0.6 to
        1.3 %
    in the median (3.1 % at most). With text between image and labels nothing differs.
    """

    def __init__(self, config: CALConfig) -> None:
        self.config = config

    def __call__(self, model: HiddenStateModel, batch: Batch) -> Loss:
        if not batch.tokens.is_plain:
            raise ConfigError(
                "objective.mode=published supports only one sample per row.", "Set data.pack=false and data.share_prefix=false."
            )
        everywhere, labelled_BT = every_position(batch)
        shape = labelled_BT.shape
        padding_BT = batch.tokens.sample_BT[:, :-1] == PADDING
        # Text positions first, and as many as text can fill: the host knows this number without reading their count.
        is_text_S = ~(image_positions(batch)[:, :-1] | padding_BT).flatten()
        text_width = shape[1] if batch.visual is None else batch.visual.text_width
        text_S = (~is_text_S).to(torch.uint8).argsort(stable=True)[: shape[0] * text_width]
        is_text_S = is_text_S[text_S]
        slot_S = torch.where(is_text_S, everywhere.supervision.slot_S[text_S], -1)
        target_S = everywhere.supervision.target_S[text_S]
        with torch.no_grad():
            hidden = model.hidden(text_only(supervised_at(batch, slot_S, target_S)))
            values = target_logits(hidden.states_SD, hidden.head, target_S)
            values = torch.where(is_text_S, values, torch.zeros_like(values))
            blind_BT = values.new_zeros(shape[0] * shape[1]).index_copy(0, text_S, values).view(shape)
        hidden = model.hidden(everywhere)
        nll, logit = linear_cross_entropy(hidden.states_SD, hidden.head, everywhere.supervision.target_S)
        nll_BT, logit_BT = nll.view(shape), logit.detach().view(shape)
        # Without an image both passes are the same; set the gain to exactly 0 instead of the rounding error of two computations.
        same_BT = padding_BT | ~image_positions(batch).any(1, keepdim=True)
        gain_BT = torch.where(same_BT, torch.zeros_like(blind_BT), logit_BT - blind_BT)
        weight_BT = published_weights(gain_BT, self.config.low, self.config.high, self.config.window)
        total = published_loss(nll_BT, weight_BT, labelled_BT)
        # The labelled positions in the order of the rows; every target has a token before it, so none is outside.
        place_S = batch.supervision.slot_S.sort().values
        place_S = place_S - place_S // (shape[1] + 1)
        gain_S, weight_S, nll_S = (values_BT.flatten()[place_S] for values_BT in (gain_BT, weight_BT, nll_BT.detach()))
        counts_S = torch.ones_like(gain_S, dtype=torch.bool)
        parts = gain_parts(gain_S, weight_S, gain_S.clamp(self.config.low, self.config.high), counts_S, nll_S, self.config)
        weight = labelled_BT.any().to(total.dtype)  # a micro-batch of padding only has no weight
        return with_auxiliary(Loss(total=total, weight=weight, parts=parts), hidden)


def every_position(batch: Batch) -> tuple[Batch, Bool[Tensor, "B T"]]:
    """Returns the batch with a target at every predicting position (id 0 where there is no label), and a mask of the labels."""
    num_rows, width = batch.tokens.ids_BT.shape
    device = batch.tokens.ids_BT.device
    labels = torch.full((num_rows, width), -1, dtype=torch.long, device=device)
    labels.view(-1)[batch.supervision.slot_S] = batch.supervision.target_S
    labels = labels[:, :-1]
    slots = torch.arange(num_rows * width, device=device).view(num_rows, width)[:, :-1]
    return supervised_at(batch, slots.flatten(), labels.clamp(min=0).flatten()), labels >= 0


def supervised_at(batch: Batch, slot_S: Int[Tensor, " S"], target_S: Int[Tensor, " S"]) -> Batch:
    """Returns the batch with these targets instead of its own; they belong to no sample, span or data source."""
    zeros = torch.zeros_like(target_S)
    return replace(batch, supervision=Supervision(slot_S, target_S, zeros, zeros, zeros, zeros, zeros), blind_logits_S=None)


def image_positions(batch: Batch) -> Bool[Tensor, "B T"]:
    """Returns a mask of the visual slots."""
    mask = torch.zeros(batch.tokens.ids_BT.numel(), dtype=torch.bool, device=batch.tokens.ids_BT.device)
    if batch.visual is not None:
        mask[batch.visual.slot_M] = True
    return mask.view_as(batch.tokens.ids_BT)


def has_image(batch: Batch) -> Bool[Tensor, " S"]:
    """Returns which targets belong to a sample with an image."""
    sample_S = batch.supervision.sample_S
    if batch.visual is None or not len(batch.visual.slot_M):
        return torch.zeros_like(sample_S, dtype=torch.bool)
    # By search, since the host would have to read the number of samples for a table of them.
    seen_M = batch.tokens.sample_BT.flatten()[batch.visual.slot_M].sort().values
    place_S = torch.searchsorted(seen_M, sample_S).clamp(max=len(seen_M) - 1)
    return seen_M[place_S] == sample_S


def gain_parts(
    gain_S: Tensor, weight_S: Tensor, clamped_S: Tensor, counts_S: Tensor, nll_S: Tensor, config: CALConfig
) -> dict[str, tuple[Tensor, Tensor]]:
    """Returns values for the log: plain cross-entropy, mean gain and weight, shares at both ends of the clamp and above 1."""
    ones, counted = torch.ones_like(nll_S), counts_S.to(nll_S.dtype)

    def share(hits: Tensor) -> tuple[Tensor, Tensor]:
        return (hits.to(nll_S.dtype) * counted).sum(), counted.sum()

    return {
        "cross_entropy": (nll_S.sum(), ones.sum()),
        "gain": ((gain_S * counted).sum(), counted.sum()),
        "weight_mean": (weight_S.sum(), ones.sum()),
        "share_low": share(gain_S <= config.low),
        "share_high": share(gain_S >= config.high),
        "share_above_1": share(clamped_S > 1),
    }
