"""Changes the images of a batch for a contrast pass: masked, blurred, or exchanged between samples."""

from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from sightline.errors import ConfigError
from sightline.types import Batch

Contrast = Literal["blurred", "masked", "removed", "shuffled"]

GRID = (10, 20)  # rows and columns that `masked` covers, as in the paper
REFERENCE_SIDE = 336  # side in pixels of the images that the paper's blur widths refer to


def with_changed_images(batch: Batch, contrast: Contrast, mask_ratio: float, blur_sigma: float) -> Batch:
    """Returns the batch with changed images in its visual slots.

    Args:
        batch: has at least one image.
        contrast: `masked`, `blurred` or `shuffled`.
        mask_ratio: share of the cells of a 20 x 10 grid that `masked` covers with the mean colour.
        blur_sigma: standard deviation of the Gaussian of `blurred` in pixels, for an image of 336 pixels.

    Raises:
        ConfigError: features are stored, so that pixels cannot be changed, or `shuffled` has only one crop.
    """
    visual = batch.visual
    assert visual is not None
    if contrast == "shuffled":
        order = torch.arange(visual.num_crops).roll(1).to(visual.slot_M.device)
        if visual.num_crops < 2:
            raise ConfigError(
                "objective.contrast=shuffled needs at least two images in every micro-batch.", "Increase train.batch_size."
            )
        pixels = None if visual.pixels_NHWC is None else visual.pixels_NHWC[order]
        features = None if visual.features_NPE is None else visual.features_NPE[order]
        return replace(batch, visual=replace(visual, pixels_NHWC=pixels, features_NPE=features))
    if visual.pixels_NHWC is None:
        raise ConfigError(
            f"objective.contrast={contrast} changes pixels, but this run reads stored features (data.features).",
            "Set objective.contrast=removed.",
        )
    if contrast == "masked":
        pixels = mask_cells(visual.pixels_NHWC, mask_ratio)
    else:
        pixels = blur(visual.pixels_NHWC, blur_sigma * visual.pixels_NHWC.shape[1] / REFERENCE_SIDE)
    return replace(batch, visual=replace(visual, pixels_NHWC=pixels))


def mask_cells(pixels_NHWC: UInt8[Tensor, "N h w 3"], ratio: float) -> UInt8[Tensor, "N h w 3"]:
    """Covers a random share of grid cells of each image with the image's mean colour."""
    count, height, width, _ = pixels_NHWC.shape
    rows, columns = GRID
    cells = rows * columns
    covered = torch.rand(count, cells, device=pixels_NHWC.device).argsort(1).argsort(1) < round(ratio * cells)
    row = torch.arange(height, device=pixels_NHWC.device) * rows // height
    column = torch.arange(width, device=pixels_NHWC.device) * columns // width
    mask = covered.view(count, rows, columns)[:, row][:, :, column]
    mean = pixels_NHWC.float().mean((1, 2), keepdim=True).round().to(torch.uint8)
    return torch.where(mask[..., None], mean, pixels_NHWC)


def blur(pixels_NHWC: UInt8[Tensor, "N h w 3"], sigma: float) -> UInt8[Tensor, "N h w 3"]:
    """Applies a Gaussian blur, along rows and then columns, with repeated edges."""
    radius = min(max(1, round(3 * sigma)), min(pixels_NHWC.shape[1:3]) - 1)
    offsets = torch.arange(-radius, radius + 1, device=pixels_NHWC.device, dtype=torch.float32)
    kernel: Float[Tensor, " taps"] = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    planes = pixels_NHWC.permute(0, 3, 1, 2).float().flatten(0, 1)[:, None]
    planes = F.conv2d(F.pad(planes, (radius, radius, 0, 0), mode="replicate"), kernel.view(1, 1, 1, -1))
    planes = F.conv2d(F.pad(planes, (0, 0, radius, radius), mode="replicate"), kernel.view(1, 1, -1, 1))
    count = len(pixels_NHWC)
    return planes.view(count, 3, *planes.shape[-2:]).permute(0, 2, 3, 1).round().clamp(0, 255).to(torch.uint8)
