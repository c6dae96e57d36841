"""The light network of ComAlign (Abdollah et al. 2024, arXiv 2409.08206): refines the vectors of components and of the whole.

One network sees the vectors of the boxes of an image (entities), of pairs of boxes (relations) and of the whole image, all from a
frozen encoder; another may see those of the phrases of a caption. How the authors trained theirs was never published. What is
certain about its form is in their inference code, which `variant: published` follows; every other choice is an option here.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import normalize

from sightline.config import Config
from sightline.types import BoxChoice, PhraseChoice, RegionChoice


class AlignmentConfig(Config):
    """The light networks of ComAlign over a dual encoder, and which components of images and captions they see."""

    variant: Literal["published", "residual"] = "residual"
    """`published`: linear, ReLU, positions and post-norm layers without mask; padding is counted. `residual` masks padding and adds
    to the encoder's unit vectors, 0 at the beginning: training starts at the encoder's own scores. Differs from the authors'."""
    sides: Literal["image", "both"] = "image"
    """Refine images only, as the published checkpoint does, or captions too (by a network of their own)."""
    entities: int = Field(default=10, ge=0, le=64)
    """Boxes of an image, and entity phrases of a caption; 0 leaves the level out."""
    relations: int = Field(default=10, ge=0, le=64)
    """Pairs of boxes of an image, and relation phrases of a caption; 0 leaves the level out."""
    boxes: BoxChoice = "cells"
    """`cells`: ten fixed cells, and ten larger ones as pairs. `record`: boxes of the records by score, and unions of pairs by the
    product of scores. `random`: random ones of each image, for a control. Differs: the authors ran a YOLO detector."""
    encode: Literal["auto", "grid", "crops"] = "auto"
    """`grid`: a box is the mean of the encoder's tokens in it. `crops`: the encoder sees each box as an image of its own, as the
    authors' does. `auto`: `grid` if the encoder gives several tokens (`model.dual.pooling=mean`), else `crops`."""
    region: RegionChoice = "crop"
    """With `crops`: cut the box out, or paint everything outside of it `grey`, as the paper's figure does; it states neither."""
    phrases: PhraseChoice = "record"
    """`record`: the records' `components`. `random`: as many random spans of the caption, of the same lengths, for a control."""
    template: str = Field(default="{}", pattern=r"\{\}")
    """Text around each phrase, such as `a photo of {}`. The paper does not state one."""
    layers: int = Field(default=2, ge=1, le=16)
    """Transformer layers."""
    heads: int = Field(default=4, ge=1, le=64)
    """Attention heads."""
    feedforward: int | None = Field(default=None, ge=1)
    """Width of the layers' hidden layer; that of the vectors by default, as published."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout after the positions and in the layers."""
    temperature: float | None = Field(default=None, gt=0)
    """A temperature of its own that is learned from this value on; by default the encoder's, which stays fixed (CLIP's is 0.01)."""

    @model_validator(mode="after")
    def _whole_cells(self) -> "AlignmentConfig":
        if self.boxes == "cells" and max(self.entities, self.relations) > 10:
            raise ValueError("boxes=cells has ten cells and ten larger ones; set entities and relations to at most 10")
        return self

    @property
    def components(self) -> int:
        """Components beside the whole image or caption."""
        return self.entities + self.relations


class LightNetwork(nn.Module):
    """Refines components and whole together; the whole comes last.

    Args:
        config: sizes and variant.
        width: of the vectors.
    """

    def __init__(self, config: AlignmentConfig, width: int) -> None:
        super().__init__()
        self.is_residual = config.variant == "residual"
        self.project = nn.Linear(width, width)
        layer = nn.TransformerEncoderLayer(width, config.heads, config.feedforward or width, config.dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self.dropout = nn.Dropout(config.dropout)
        self.out = nn.Linear(width, width, bias=False) if self.is_residual else None
        if self.out is not None:
            nn.init.zeros_(self.out.weight)

    def forward(self, vectors_NKW: Float[Tensor, "N K W"], mask_NK: Bool[Tensor, "N K"]) -> Float[Tensor, "N K W"]:
        """Returns refined vectors, not of unit length.

        Args:
            vectors_NKW: projected outputs of the encoder, not of unit length; zeros for padding.
            mask_NK: which of them exist; `published` ignores it.
        """
        if self.out is None:
            return self._encoded(vectors_NKW, None)
        unit_NKW = normalize(vectors_NKW, dim=-1)
        # Coordinates of about 1, as after the layers' norms.
        return unit_NKW + self.out(self._encoded(unit_NKW * vectors_NKW.shape[2] ** 0.5, ~mask_NK))

    def _encoded(self, vectors_NKW: Tensor, padding_NK: Tensor | None) -> Tensor:
        states = self.project(vectors_NKW).relu()
        states = self.dropout(states + positions(states.shape[1], states.shape[2]).to(states))
        return self.encoder(states, src_key_padding_mask=padding_NK)


def positions(count: int, width: int) -> Float[Tensor, "count width"]:
    """Returns the authors' positions: cosines in even, sines in odd dimensions, of `position / 10000^(2 dimension / width)`."""
    dimension = torch.arange(width, dtype=torch.float64)
    angle = torch.arange(count)[:, None] / 10000 ** (2 * dimension / width)
    return torch.where(dimension % 2 == 0, angle.cos(), angle.sin())


PUBLISHED_NAMES = {"bottleneck_box.0.": "project.", "transformer_encoder_box.": "encoder."}
PUBLISHED_UNUSED = ("bottleneck_encoder.", "encoder_pos_embedding.")  # a layer that inference never calls; the fixed positions


def published_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights of the authors' `RetrievalModel` under the names of `LightNetwork`, without those that are never used.

    Raises:
        KeyError: a weight has another name.
    """
    out = {}
    for name, value in state.items():
        if name.startswith(PUBLISHED_UNUSED):
            continue
        prefix = next((prefix for prefix in PUBLISHED_NAMES if name.startswith(prefix)), None)
        if prefix is None:
            raise KeyError(name)
        out[PUBLISHED_NAMES[prefix] + name.removeprefix(prefix)] = value
    return out
