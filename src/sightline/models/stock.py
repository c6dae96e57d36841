"""Runs a vision-language model of transformers unchanged, as a baseline for comparisons.

All computation is done by the model's own modules. It gets the same inputs as a Sightline model (crops, and visual slots in rows
of tokens), so that evaluation, chat and controls treat both alike. Rows of embeddings are filled here and not by the model's
`forward`, which accepts images only in the shapes of its processor and, in beam search, mixes up the crops of a row.
"""

from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from transformers import PreTrainedModel

from sightline.errors import ConfigError
from sightline.models import composites
from sightline.models.language import hidden_states
from sightline.models.vision import raw_output
from sightline.models.vlm import PARTS
from sightline.ops.splice import splice
from sightline.types import Batch, Hidden, Visual


class StockModel(nn.Module):
    """A vision-language model of transformers as a `SightModel`; it has no Sightline connector.

    Args:
        inner: LLaVA, LLaVA-NeXT, Idefics3 or SmolVLM, as transformers loads it.
        mean, std, rescale: normalise `uint8` pixels for the encoder.
        side: height and width of a crop.

    Raises:
        ConfigError: the architecture is not in `COMPOSITES`.
    """

    takes_images = True
    connector = encoder_outputs = None

    def __init__(
        self, inner: PreTrainedModel, mean: tuple[float, ...], std: tuple[float, ...], rescale: float, side: tuple[int, int]
    ) -> None:
        super().__init__()
        composites.find(inner.config, str(inner.name_or_path or ""))
        self.inner = inner
        self.mean, self.std, self.rescale = mean, std, rescale
        self.tokens_per_crop, self.token_grid = self._probe(side)

    def parts(self) -> dict[str, dict[str, nn.Parameter]]:
        """Returns the parameters of `vision` and `language` by their full names; all others belong to `connector`."""
        modules = {"vision": composites.vision_of(self.inner), "language": composites.language_of(self.inner)}
        part_of = {id(parameter): part for part, module in modules.items() for parameter in module.parameters()}
        parts: dict[str, dict[str, nn.Parameter]] = {part: {} for part in PARTS}
        for name, parameter in self.named_parameters():
            parts[part_of.get(id(parameter), "connector")][name] = parameter
        return parts

    def _probe(self, side: tuple[int, int]) -> tuple[int, tuple[int, int]]:
        """Returns the number of visual tokens of a crop, and their rows and columns (one row if they form no grid)."""
        with torch.no_grad():
            crop = torch.zeros(1, 3, *side, dtype=self.inner.dtype, device=self.inner.device)
            count = self._connected(self.encode_pixels(crop)).shape[1]
        patch = composites.vision_of(self.inner).config.to_dict().get("patch_size")
        factor = self.inner.config.to_dict().get("scale_factor", 1)
        if not isinstance(patch, int):
            return count, (1, count)
        rows, columns = side[0] // patch // factor, side[1] // patch // factor
        return count, (rows, columns) if rows * columns == count else (1, count)

    @property
    def language(self) -> PreTrainedModel:
        """The model that runs on rows of embeddings: the complete model, which passes them to its decoder."""
        return self.inner

    def generate(self, **arguments: Any) -> Any:
        """Calls the model's own `generate`."""
        return self.inner.generate(**arguments)  # pyrefly: ignore

    def normalise(self, pixels_NHWC: UInt8[Tensor, "N h w 3"]) -> Float[Tensor, "N 3 h w"]:
        """Rescales and normalises prepared pixels as the model's processor does."""
        mean, std = (torch.tensor(value, device=pixels_NHWC.device) for value in (self.mean, self.std))
        values = (pixels_NHWC.to(torch.float32) * self.rescale - mean) / std
        return values.to(self.inner.dtype).permute(0, 3, 1, 2)

    def encode_pixels(self, pixels_NCHW: Float[Tensor, "N 3 h w"]) -> Float[Tensor, "N P E"]:
        """Returns the encoder outputs of each crop as the model's own connector takes them."""
        config = self.inner.config.to_dict()
        encoder, layers = composites.vision_of(self.inner), config.get("vision_feature_layer", "last")
        joined = [raw_output(encoder, pixels_NCHW, layer) for layer in (layers if isinstance(layers, list | tuple) else [layers])]
        if config.get("vision_feature_select_strategy") == "default":
            joined = [states[:, 1:] for states in joined]
        return torch.cat(joined, dim=-1)

    def features(self, visual: Visual) -> Float[Tensor, "N P E"]:
        """Returns the encoder outputs of a batch's crops.

        Raises:
            ConfigError: the batch holds stored features.
        """
        if visual.pixels_NHWC is None:
            raise ConfigError("a model of transformers reads images, not stored features.", "Leave data.features out.")
        return self.encode_pixels(self.normalise(visual.pixels_NHWC))

    def visual_tokens(self, features_NPE: Float[Tensor, "N P E"]) -> Float[Tensor, "X D"]:
        """Returns the table of visual tokens: those of all crops in order, then the model's learned separators."""
        tokens_NKD = self._connected(features_NPE)
        separators = composites.separators_of(self.inner).to(tokens_NKD)
        return torch.cat([tokens_NKD.flatten(0, 1), separators])

    def hidden(self, batch: Batch) -> Hidden:
        """Returns the hidden states of packed rows at the supervised slots."""
        embeddings_BTD = self.inner.get_input_embeddings()(batch.tokens.ids_BT)
        if batch.visual is not None:
            table = self.visual_tokens(self.features(batch.visual))
            embeddings_BTD = splice(embeddings_BTD, table, batch.visual.slot_M, batch.visual.visual_index_M)
        return hidden_states(self.inner, embeddings_BTD, batch)

    def _connected(self, features_NPE: Float[Tensor, "N P E"]) -> Float[Tensor, "N K D"]:
        return composites.connector_of(self.inner)(features_NPE)
