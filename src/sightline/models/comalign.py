"""ComAlign: a dual encoder with light networks that refine the vectors of images, captions and their components.

The folder of such a model holds the whole dual encoder and the networks. `AlignedModel` is a `DualModel` with the part `alignment`
and `embeddings` that hold the vectors of components.
"""

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from sightline.errors import ConfigError
from sightline.models.dual import DualModel, SightlineDualConfig
from sightline.models.light_network import AlignmentConfig, LightNetwork
from sightline.models.stored import StoredFeaturesConfig
from sightline.models.transformers_private import CustomModel, mark_initialised
from sightline.types import ComponentEmbeddings, ComponentInputs, ComponentVectors, PairBatch

PART = "alignment"
LEVELS = ("global", "entity", "relation")


class SightlineComAlignConfig(PreTrainedConfig):
    """Everything needed to build a `SightlineComAlign` without weights.

    Args:
        dual_config: configuration of the dual encoder.
        alignment: the fields of `AlignmentConfig`.
        score_weights: for `t2i` and `i2t` the weight of each term (`plain`: the encoder's own cosine, `global`, `entity`,
            `relation`); None where they were not chosen.
    """

    model_type = "sightline_comalign"
    sub_configs: ClassVar = {"dual_config": AutoConfig}

    def __init__(
        self,
        dual_config: dict[str, Any] | PreTrainedConfig | None = None,
        alignment: dict[str, Any] | None = None,
        score_weights: dict[str, dict[str, float]] | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(dual_config, PreTrainedConfig):
            values = dict(dual_config or {})
            dual_config = AutoConfig.for_model(values.pop("model_type", SightlineDualConfig.model_type), **values)
        self.dual_config = dual_config
        self.alignment = AlignmentConfig.model_validate(alignment or {}, strict=False).model_dump(mode="json")
        self.score_weights = score_weights
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)

    @property
    def choice(self) -> AlignmentConfig:
        """The networks and components."""
        return AlignmentConfig.model_validate(self.alignment, strict=False)

    @property
    def text_config(self) -> Any:
        """Configuration of the text encoder."""
        return self.dual_config.text_config

    @property
    def vision_config(self) -> Any:
        """Configuration of the vision encoder."""
        return self.dual_config.vision_config


def space_width(config: Any) -> int:
    """Returns the width of the space in which a dual encoder compares images and texts."""
    if config.model_type == "siglip":
        return int(config.vision_config.hidden_size)
    return int(config.projection_dim)


def encodes_crops(config: Any, choice: AlignmentConfig) -> bool:
    """Returns whether the encoder sees each box as an image of its own; else its tokens are averaged over each box.

    Raises:
        ConfigError: `encode: grid`, or an external table, and there is no square grid of tokens.
    """
    tokens = int(config.vision_tokens) if config.model_type == SightlineDualConfig.model_type else 1
    rows, columns = grid_of(config)
    is_table = isinstance(config.vision_config, StoredFeaturesConfig)
    has_grid = tokens > 1 and rows * columns == tokens
    if choice.components == 0 or (choice.encode == "auto" and has_grid):
        return False
    if choice.encode == "grid" or is_table:
        if not has_grid:
            raise ConfigError(
                f"the vision encoder gives {tokens} tokens, not a grid from which boxes could be pooled.",
                "Use model.dual.pooling=mean with an encoder whose tokens are a square grid, or encode=crops.",
            )
        return False
    return True


def grid_of(config: Any) -> tuple[int, int]:
    """Returns rows and columns of the vision encoder's tokens, if they are a grid; (1, 1) for one vector."""
    if config.model_type != SightlineDualConfig.model_type:
        return 1, 1
    if isinstance(config.vision_config, StoredFeaturesConfig):
        return config.vision_config.rows, config.vision_config.columns
    side = round(int(config.vision_tokens) ** 0.5)
    return side, side


class SightlineComAlign(CustomModel):
    """A dual encoder and light networks as one transformers model; used through `AlignedModel`.

    Args:
        config: the model's configuration.
        dual: an existing dual encoder with its weights; built from `config` if missing.
    """

    config_class = SightlineComAlignConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities: ClassVar = ["image", "text"]
    supports_gradient_checkpointing = True

    def __init__(self, config: SightlineComAlignConfig, dual: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self.dual = dual if dual is not None else AutoModel.from_config(config.dual_config, trust_remote_code=False)
        choice, width = config.choice, space_width(config.dual_config)
        if width % choice.heads:
            raise ConfigError(
                f"model.dual.alignment.heads={choice.heads} does not divide the width {width} of the dual encoder's space.",
                "Choose a divisor.",
            )
        self.image_network = LightNetwork(choice, width)
        self.text_network = LightNetwork(choice, width) if choice.sides == "both" else None
        value = None if choice.temperature is None else torch.tensor(1 / choice.temperature).log()
        self.alignment_scale = None if value is None else nn.Parameter(value)
        if self.image_network.project.weight.device.type != "meta":
            mark_initialised(self)
        self.post_init()

    def init_missing(self, module: nn.Module) -> None:
        """Does nothing: a checkpoint that lacks a weight is refused."""

    def can_generate(self) -> bool:  # the base class is made for decoders
        return False


AutoConfig.register(SightlineComAlignConfig.model_type, SightlineComAlignConfig)
AutoModel.register(SightlineComAlignConfig, SightlineComAlign)


class AlignedModel(DualModel):
    """A `DualModel` that compares components too.

    Args:
        inner: the model.
        mean, std, rescale: normalise `uint8` pixels for the vision encoder.
    """

    def __init__(
        self,
        inner: SightlineComAlign,
        mean: Iterable[float] = (0.5,) * 3,
        std: Iterable[float] = (0.5,) * 3,
        rescale: float = 1 / 255,
    ) -> None:
        super().__init__(inner, mean, std, rescale, dual=inner.dual)
        self.alignment: AlignmentConfig = inner.config.choice
        self.encodes_crops = encodes_crops(inner.config.dual_config, self.alignment)
        self.grid = grid_of(inner.config.dual_config)

    def parts(self) -> dict[str, dict[str, nn.Parameter]]:
        """Returns the parameters of `vision`, `text`, `projection` and `alignment` by their full names."""
        parts = super().parts()
        own = {name for name in parts["projection"] if not name.startswith("inner.dual.")}
        networks = {name: parts["projection"].pop(name) for name in sorted(own)}
        return {**parts, PART: networks}

    def alignment_scale(self) -> Float[Tensor, ""]:
        """Returns the inverse temperature of the losses: the networks' own, else that of the dual encoder."""
        own = self.inner.alignment_scale
        return self.logit_scale() if own is None else own.clamp(max=4.6052).exp()  # at most 100, as CLIP's

    def log_values(self) -> dict[str, float]:
        """Returns the scale of the losses for the log."""
        return {"scale": float(self.alignment_scale().detach())}

    # Vectors ------------------------------------------------------------------------------------------------------------

    def embeddings(self, batch: PairBatch) -> ComponentEmbeddings:
        """Returns the vectors of the images and texts of a batch and of their components."""
        components = batch.components
        assert components is not None
        images = self.image_components(self.features(batch), components.boxes_NK4)
        texts = self.text_components(self.text_states(batch.texts), components)
        return ComponentEmbeddings(images.whole_NW, texts.whole_NW, self.alignment_scale(), images=images, texts=texts)

    def image_components(self, features_XPE: Float[Tensor, "X P E"], boxes_NK4: Float[Tensor, "N K 4"]) -> ComponentVectors:
        """Returns the vectors of images and of their boxes.

        Args:
            features_XPE: outputs of the vision encoder: one row per image, or with `encodes_crops` the image and then its boxes.
            boxes_NK4: in fractions of what the encoder sees; no area is padding.
        """
        count, K = boxes_NK4.shape[:2]
        mask_NK = ((boxes_NK4[..., 2] > boxes_NK4[..., 0]) & (boxes_NK4[..., 3] > boxes_NK4[..., 1])).to(features_XPE.device)
        if self.encodes_crops:
            states_NKE = features_XPE.mean(1).reshape(count, 1 + K, -1)
            states_NKE = torch.cat([states_NKE[:, 1:], states_NKE[:, :1]], dim=1)
        else:
            whole_NE = features_XPE.mean(1)[:, None]
            weights_NKP = pooling_weights(boxes_NK4.to(features_XPE), self.grid)
            states_NKE = torch.cat([weights_NKP @ features_XPE, whole_NE], dim=1) if K else whole_NE
        head = self.image_head
        projected_NKW = states_NKE if head is None else head(states_NKE)
        return self._components(_wide(projected_NKW), mask_NK, self.inner.image_network)

    def text_components(self, states_CU: Float[Tensor, "C U"], components: ComponentInputs) -> ComponentVectors:
        """Returns the vectors of texts and of their phrases.

        Args:
            states_CU: outputs of the text encoder for the whole texts.
            components: their phrases, as tokens or stored outputs of the text encoder.
        """
        head = self.text_head
        whole_CW = _wide(states_CU if head is None else head(states_CU))
        mask_CJ = components.phrase_CJ >= 0
        states_PU = self.text_states(components.phrases)
        phrases_PW = _wide(states_PU if head is None else head(states_PU))
        phrases_CJW = torch.where(mask_CJ[..., None], phrases_PW[components.phrase_CJ.clamp(min=0)], 0.0)
        return self._components(torch.cat([phrases_CJW, whole_CW[:, None]], dim=1), mask_CJ, self.inner.text_network)

    def _components(self, projected_NKW: Tensor, mask_NK: Bool[Tensor, "N K"], network: nn.Module | None) -> ComponentVectors:
        """Refines projected vectors of components, then of the whole, and splits them into levels."""
        plain_NW = normalize(projected_NKW[:, -1], dim=-1)
        exists_NK = torch.cat([mask_NK, mask_NK.new_ones(len(mask_NK), 1)], dim=1)
        projected_NKW = torch.where(exists_NK[..., None], projected_NKW, 0.0)
        refined_NKW = projected_NKW if network is None else _wide(network(projected_NKW, exists_NK))
        unit_NKW = normalize(refined_NKW, dim=-1, eps=1e-8)
        whole_NW, first = unit_NKW[:, -1], self.alignment.entities
        levels = []
        for level in (slice(0, first), slice(first, self.alignment.components)):
            levels += self._level(unit_NKW[:, level], mask_NK[:, level], whole_NW)
        return ComponentVectors(plain_NW, whole_NW, *levels)

    def _level(self, vectors_NKW: Tensor, mask_NK: Tensor, whole_NW: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the vectors of a level and which are compared: all as published, else those that exist, or the whole for none."""
        if self.alignment.variant == "published" or mask_NK.shape[1] == 0:
            return vectors_NKW, torch.ones_like(mask_NK)
        is_empty_N = ~mask_NK.any(1)
        first_NW = torch.where(is_empty_N[:, None], whole_NW, vectors_NKW[:, 0])
        first_N = mask_NK[:, 0] | is_empty_N
        return torch.cat([first_NW[:, None], vectors_NKW[:, 1:]], dim=1), torch.cat([first_N[:, None], mask_NK[:, 1:]], dim=1)


def _wide(vectors: Tensor) -> Tensor:
    """Returns vectors in float32 or wider whatever the autocast."""
    return vectors if vectors.dtype == torch.float64 else vectors.float()


def pooling_weights(boxes_NK4: Float[Tensor, "N K 4"], grid: tuple[int, int]) -> Float[Tensor, "N K P"]:
    """Returns the share of each box that lies in each cell of a grid, in raster order; 0 for a box without area."""
    rows, columns = grid
    across_NKc, down_NKr = (
        _overlap(boxes_NK4[..., axis], boxes_NK4[..., axis + 2], count) for axis, count in ((0, columns), (1, rows))
    )
    return (down_NKr[..., :, None] * across_NKc[..., None, :]).flatten(2)


def _overlap(start_NK: Tensor, end_NK: Tensor, count: int) -> Float[Tensor, "N K count"]:
    """Returns the share of intervals that lies in each of `count` equal parts of 0 to 1."""
    edge = torch.arange(count, device=start_NK.device, dtype=start_NK.dtype) / count
    inside = torch.minimum(end_NK[..., None], edge + 1 / count) - torch.maximum(start_NK[..., None], edge)
    length = (end_NK - start_NK)[..., None]
    return torch.where(length > 0, inside.clamp(min=0) / length.clamp(min=1e-6), 0.0)
