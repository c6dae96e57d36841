"""The vision-language model: encoder, connector and decoder, with transformers' interface and Sightline's own.

`forward` keeps the contract of transformers (input ids, pixel values, labels, cache, loss, logits), so that `generate`, Trainer,
TRL and PEFT work with it. `hidden` takes a packed `Batch` and returns hidden states at the supervised slots; Sightline's training
loop uses only that.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal, Unpack

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.auto import modeling_auto
from transformers.utils import ModelOutput, TransformersKwargs

from sightline.models import gradient_checkpointing as checkpointing
from sightline.models.config_values import check_counts, check_normalisation, listed
from sightline.models.connectors import Connector, ConnectorShape, connector_from
from sightline.models.language import hidden_states
from sightline.models.transformers_private import (
    CACHE_NAME,
    CustomModel,
    attention_kernel,
    mark_initialised,
    named_cache,
    set_attention_kernel,
)
from sightline.models.vision import EncoderOutputs, encode, normalise
from sightline.ops.splice import splice
from sightline.types import Batch, Hidden, Visual

PARTS = ("vision", "connector", "language")


def part_of(name: str) -> str:
    """Returns the part of a vision-language model that a weight belongs to; separators belong to the connector."""
    part = name.partition(".")[0]
    return part if part in PARTS else "connector"


def parts_of(model: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """Returns parameters by part and full name, for a module with children `vision`, `connector` and `language`."""
    parts: dict[str, dict[str, nn.Parameter]] = {name: {} for name, _ in model.named_children()}
    for name, parameter in model.named_parameters():
        parts[part_of(name)][name] = parameter
    return parts


class SightlineConfig(PreTrainedConfig):
    """Everything needed to build the model without weights.

    Args:
        vision_config: the encoder's own configuration.
        text_config: the decoder's own configuration.
        connector: kind and fields of the connector (see `sightline.models.connectors`).
        vision_layer: hidden state of the encoder that is used: "last" or an index.
        vision_drop: number of leading encoder tokens that are removed (class and register tokens).
        grid: rows and columns of patches.
        vision_width: width of a patch.
        image_mean, image_std, rescale_factor: normalise `uint8` pixels for the encoder.
        image_token_id: token id that marks a visual slot.
        num_words: number of vocabulary entries of the decoder before image and tile tokens were added.
        num_separators: number of learned separator tokens between tiles.
    """

    model_type = "sightline"
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig}  # noqa: RUF012 (transformers' own form)

    def __init__(
        self,
        vision_config: dict[str, Any] | PreTrainedConfig | None = None,
        text_config: dict[str, Any] | PreTrainedConfig | None = None,
        connector: dict[str, Any] | None = None,
        vision_layer: Literal["last"] | int = "last",
        vision_drop: int = 0,
        grid: Iterable[int] = (7, 7),
        vision_width: int = 1280,
        image_mean: Iterable[float] = (0.5, 0.5, 0.5),
        image_std: Iterable[float] = (0.5, 0.5, 0.5),
        rescale_factor: float = 1 / 255,
        image_token_id: int = 0,
        num_words: int = 0,
        num_separators: int = 0,
        **kwargs: Any,
    ) -> None:
        grid, image_mean, image_std = listed("grid", grid), listed("image_mean", image_mean), listed("image_std", image_std)
        sizes = {"rows of grid": grid[0], "columns of grid": grid[-1], "vision_width": vision_width}
        check_counts({**sizes, "number of sides of grid": len(grid)}, 1)
        check_counts({"vision_drop": vision_drop, "num_separators": num_separators}, 0)
        check_normalisation(image_mean, image_std, rescale_factor)
        if len(grid) != 2:
            raise ValueError(f"grid={grid} is not rows and columns")
        if vision_layer != "last" and type(vision_layer) is not int:
            raise ValueError(f"vision_layer={vision_layer!r} is neither 'last' nor a whole number")
        self.vision_config = _sub_config(vision_config, "mobilenet_v2")
        self.text_config = _sub_config(text_config, "llama")
        vocabulary = self.text_config.vocab_size
        # It may lie beyond a vocabulary that was cut afterwards; a folder is refused whose tokenizer does not fit the decoder.
        if type(image_token_id) is not int or image_token_id < 0:
            raise ValueError(f"image_token_id={image_token_id!r} is no token id")
        if type(num_words) is not int or not 0 <= num_words <= vocabulary:
            raise ValueError(f"num_words={num_words!r} does not fit the decoder's vocabulary of {vocabulary} entries")
        self.connector = dict(connector or {"kind": "mlp"})
        self.vision_layer = vision_layer
        self.vision_drop = vision_drop
        self.grid = grid
        self.vision_width = vision_width
        self.image_mean, self.image_std = image_mean, image_std
        self.rescale_factor = rescale_factor
        self.image_token_id = image_token_id
        self.num_words = num_words or self.text_config.vocab_size
        self.num_separators = num_separators
        kwargs.setdefault("tie_word_embeddings", bool(self.text_config.tie_word_embeddings))
        parts = (self.vision_config, self.text_config)
        kernels = [attention_kernel(part) for part in parts]
        super().__init__(**kwargs)
        if attention_kernel(self) is None:  # the base class has just reset the kernels of existing parts
            for part, kernel in zip(parts, kernels, strict=True):
                set_attention_kernel(part, kernel)

    def connector_shape(self) -> ConnectorShape:
        """Returns the shapes that the connector is built for."""
        rows, columns = self.grid
        return ConnectorShape(rows, columns, self.vision_width, self.text_config.hidden_size, self.num_words)

    def with_parts(self, vision_config: PreTrainedConfig, text_config: PreTrainedConfig) -> "SightlineConfig":
        """Returns the same configuration with another encoder and decoder of the same shapes."""
        own = ("connector", "vision_layer", "vision_drop", "grid", "vision_width", "image_mean", "image_std", "rescale_factor")
        own += ("image_token_id", "num_words", "num_separators")
        return SightlineConfig(vision_config, text_config, **{name: getattr(self, name) for name in own})


def _is_filled(cache: Cache | None) -> bool:
    """Returns whether a cache holds tokens (which may include images)."""
    return cache is not None and cache.get_seq_length() > 0


def vlm_config(config: PreTrainedConfig) -> SightlineConfig | None:
    """Returns the configuration if it is a Sightline vision-language model, else None."""
    return config if isinstance(config, SightlineConfig) else None


def _sub_config(value: dict[str, Any] | PreTrainedConfig | None, default: str) -> PreTrainedConfig:
    if isinstance(value, PreTrainedConfig):
        return value
    values = dict(value or {})
    return AutoConfig.for_model(values.pop("model_type", default), **values)


class SightlineForConditionalGeneration(CustomModel):
    """Encoder, connector and decoder in one transformers model.

    Args:
        config: the model's configuration.
        vision, connector, language: existing parts with their weights; missing ones are built from `config`.
    """

    config_class = SightlineConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]  # noqa: RUF012
    supports_gradient_checkpointing = True

    def __init__(
        self,
        config: SightlineConfig,
        vision: PreTrainedModel | None = None,
        connector: Connector | None = None,
        language: PreTrainedModel | None = None,
    ) -> None:
        super().__init__(config)
        self.vision = vision if vision is not None else AutoModel.from_config(config.vision_config, trust_remote_code=False)
        if connector is None:
            connector = Connector(connector_from(config.connector), config.connector_shape())
        self.connector = connector
        self.language = (
            language if language is not None else AutoModelForCausalLM.from_config(config.text_config, trust_remote_code=False)
        )
        self.separators = nn.Parameter(torch.zeros(config.num_separators, config.text_config.hidden_size))
        if self.separators.device.type != "meta":
            mark_initialised(self)  # every part is initialised: given, or by its own constructor
        self.post_init()

    def init_missing(self, module: nn.Module) -> None:
        """Initialises weights that a checkpoint lacks as torch does; they would be uninitialised memory otherwise."""
        if module is self:
            nn.init.zeros_(self.separators)
        elif isinstance(module, nn.Linear | nn.LayerNorm | nn.Embedding | nn.Conv2d):
            module.reset_parameters()

    # Parts ------------------------------------------------------------------------------------------------------------

    takes_images = True

    @property
    def inner(self) -> PreTrainedModel:
        return self

    @property
    def tokens_per_crop(self) -> int:
        return self.connector.tokens_per_crop

    @property
    def token_grid(self) -> tuple[int, int]:
        return self.connector.token_grid

    @property
    def encoder_outputs(self) -> EncoderOutputs:
        """The encoder and which of its outputs the connector takes."""
        config = self.config
        return EncoderOutputs(
            self.vision, config.vision_layer, config.vision_drop, (config.grid[0], config.grid[1]), config.vision_width
        )

    def parts(self) -> dict[str, dict[str, nn.Parameter]]:
        """Returns the parameters of `vision`, `connector` and `language` by full name; separators belong to the connector."""
        return parts_of(self)

    def train(self, mode: bool = True) -> "SightlineForConditionalGeneration":
        """Sets the mode as in torch, but keeps parts without trainable parameters in eval mode (BatchNorm has statistics)."""
        super().train(mode)
        for name in PARTS:
            module = self.get_submodule(name)
            if mode and not any(parameter.requires_grad for parameter in module.parameters()):
                module.eval()
                if module is self.language:  # gradients may pass through it; they never pass through a frozen encoder
                    checkpointing.mark_frozen(module)
        return self

    def checkpointing_enabled(self) -> None:
        """Keeps frozen layers in eval mode during recomputation."""
        checkpointing.keep_frozen_in_eval(self)

    @property
    def vocab_size(self) -> int:
        """Number of entries of the decoder's vocabulary, including those added for images."""
        return self.config.text_config.vocab_size

    def get_input_embeddings(self) -> nn.Module:
        return self.language.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        return self.language.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.language.set_output_embeddings(value)

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Resizes as in transformers, through the decoder: some decoders (Gemma2) store the vocabulary size elsewhere.

        Raises:
            ValueError: the connector mixes vocabulary entries that would be removed.
        """
        if new_num_tokens is not None and new_num_tokens < self.config.num_words and self.connector.mixes_vocabulary:
            words = self.config.num_words
            raise ValueError(
                f"align mixes {words} vocabulary entries of the decoder, so the vocabulary cannot shrink to {new_num_tokens}"
            )
        resized = self.language.resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        self.config.text_config.vocab_size = resized.num_embeddings
        self.config.num_words = min(self.config.num_words, resized.num_embeddings)
        return resized

    def get_decoder(self) -> nn.Module:
        return self.language.get_decoder()

    def words(self) -> Float[Tensor, "V D"]:
        """Returns the decoder's input embeddings of its original vocabulary, as `embed_tokens(ids)` gives them, with gradient."""
        embedding = self.get_input_embeddings()
        num_words = self.config.num_words
        if type(embedding) is nn.Embedding:
            return embedding.weight[:num_words]
        return embedding(torch.arange(num_words, device=self.device))

    # Vision -----------------------------------------------------------------------------------------------------------

    def normalise(self, pixels_NHWC: UInt8[Tensor, "N h w 3"]) -> Float[Tensor, "N 3 h w"]:
        """Rescales and normalises prepared pixels as the encoder's processor does."""
        config = self.config
        return normalise(pixels_NHWC, config.rescale_factor, config.image_mean, config.image_std, self.vision.dtype)

    def encode_pixels(self, pixels_NCHW: Float[Tensor, "N 3 h w"]) -> Float[Tensor, "N P E"]:
        """Returns the features of normalised images; without autograd graph when the encoder is frozen."""
        trains = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.vision.parameters())
        with torch.set_grad_enabled(trains):
            return encode(self.vision, pixels_NCHW, self.config.vision_layer, self.config.vision_drop)

    def features(self, visual: Visual) -> Float[Tensor, "N P E"]:
        """Returns the encoder outputs of a batch's crops: stored ones, or computed from pixels."""
        if visual.features_NPE is not None:
            return visual.features_NPE.to(self.separators.dtype)
        assert visual.pixels_NHWC is not None
        return self.encode_pixels(self.normalise(visual.pixels_NHWC))

    def visual_tokens(self, features_NPE: Float[Tensor, "N P E"]) -> Float[Tensor, "X D"]:
        """Returns the table of visual tokens: those of all crops in order, then the separators."""
        return self._table(self.connector(features_NPE, self.words))

    def _table(self, tokens_NKD: Float[Tensor, "N K D"]) -> Float[Tensor, "X D"]:
        return torch.cat([tokens_NKD.flatten(0, 1), self.separators.to(tokens_NKD.dtype)])

    # Sightline's interface ----------------------------------------------------------------------------------------------

    def hidden(self, batch: Batch) -> Hidden:
        """Returns the hidden states of packed rows at the supervised slots.

        Args:
            batch: packed rows on the model's device.

        Raises:
            ConfigError: the decoder's attention cannot separate packed samples.
        """
        embeddings_BTD = self.get_input_embeddings()(batch.tokens.ids_BT)
        losses: dict[str, Tensor] = {}
        if batch.visual is not None:
            tokens_NKD, losses = self.connector.tokens_and_losses(self.features(batch.visual), self.words)
            embeddings_BTD = splice(embeddings_BTD, self._table(tokens_NKD), batch.visual.slot_M, batch.visual.visual_index_M)
        hidden = hidden_states(self.language, embeddings_BTD, batch)
        return replace(hidden, auxiliary={**losses, **hidden.auxiliary})

    # transformers' interface --------------------------------------------------------------------------------------------

    @property
    def base_model(self) -> "SightlineModel":
        """The same modules without the head; shares every parameter with this model."""
        view = self.__dict__.get("_without_head")  # not by setattr: its modules would be listed twice
        if view is None:
            view = self.__dict__["_without_head"] = SightlineModel.__new__(SightlineModel)
        # Trainers replace `forward` of an instance; the view keeps its own.
        view.__dict__.update({name: value for name, value in self.__dict__.items() if name not in ("_without_head", "forward")})
        return view

    def get_image_features(self, pixel_values: Float[Tensor, "*N 3 h w"], **kwargs: Any) -> BaseModelOutputWithPooling:
        """Returns the encoder outputs (`last_hidden_state`, `[N, P, E]`) and the visual tokens (`pooler_output`, `[N, K, D]`) of
        images that a processor has prepared.
        """
        features_NPE = self.encode_pixels(pixel_values.flatten(0, -4).to(self.vision.dtype))
        tokens_NKD = self.connector(features_NPE, self.words)
        return BaseModelOutputWithPooling(last_hidden_state=features_NPE, pooler_output=tokens_NKD)  # pyrefly: ignore

    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        pixel_values: Float[Tensor, "*N 3 h w"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "B T"] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Float[Tensor, "B T D"] | None = None,
        labels: Int[Tensor, "B T"] | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        visual_sources: Int[Tensor, "*M"] | None = None,
        mm_token_type_ids: Int[Tensor, "B T"] | None = None,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],  # pyrefly: ignore (as in transformers)
    ) -> ModelOutput | tuple[Any, ...]:
        """Runs the model with the contract of a transformers image-text-to-text model.

        Args:
            input_ids: token ids, with one `image_token_id` per visual token.
            pixel_values: images (or their tiles) in the order of their image tokens in `input_ids`: of all rows, `[N, 3, h, w]`, or
                equally many of each row, `[B, n, 3, h, w]`.
            attention_mask, position_ids, inputs_embeds, labels, use_cache, logits_to_keep: as everywhere in transformers; labels
                of -100 are ignored. `inputs_embeds` with `pixel_values` hold the image token's embedding at each visual slot,
                unless `input_ids` are given beside them (tile tokens have the same embedding until they are trained).
            past_key_values, cache: keys and values of earlier tokens, under the name before or since transformers 5.24.
            visual_sources: for each visual slot the row in the table of visual tokens, `[M]`; or counted within each row, `[B, m]`,
                with `[B, n, 3, h, w]` pixel values; by default the crops' tokens in order.
            mm_token_type_ids: ignored; some collators pass it.

        Raises:
            ValueError: neither of ids and embeddings is given, or both without pixel values; both cache names are given; image
                tokens and visual tokens differ in number; or the ids hold image tokens without pixel values.
        """
        named = named_cache({"cache": cache, "past_key_values": past_key_values})
        return self.language(
            inputs_embeds=self._filled(input_ids, inputs_embeds, pixel_values, visual_sources, named.get(CACHE_NAME)),
            attention_mask=attention_mask,
            position_ids=position_ids,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **named,
            **kwargs,
        )

    def _filled(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        pixel_values: Tensor | None,
        visual_sources: Tensor | None,
        cache: Cache | None,
    ) -> Float[Tensor, "B T D"]:
        """Returns the rows' embeddings with the visual tokens of their images; arguments as in `forward`."""
        num_given = (input_ids is not None) + (inputs_embeds is not None)
        if num_given == 0 or (num_given == 2 and pixel_values is None):
            raise ValueError("give either input_ids or inputs_embeds")
        embedding = self.get_input_embeddings()
        if pixel_values is None:
            if inputs_embeds is not None:
                return inputs_embeds
            assert input_ids is not None
            if not _is_filled(cache):
                self._check_no_images(input_ids)
            return embedding(input_ids)
        if input_ids is not None:
            is_slot_BT = input_ids == self.config.image_token_id
            inputs_embeds = embedding(input_ids) if inputs_embeds is None else inputs_embeds
        else:
            assert inputs_embeds is not None
            image_token = torch.tensor(self.config.image_token_id, device=inputs_embeds.device)
            is_slot_BT = (inputs_embeds == embedding(image_token).to(inputs_embeds.dtype)).all(-1)
        table = self.visual_tokens(self.encode_pixels(pixel_values.flatten(0, -4).to(self.vision.dtype)))
        slots = is_slot_BT.flatten().nonzero().squeeze(1)
        sources = self._sources(visual_sources, pixel_values)
        if sources is None:
            sources = torch.arange(len(table) - self.config.num_separators, device=slots.device)
        self._check_places(len(slots), len(sources))
        return splice(inputs_embeds, table, slots, sources)

    def _sources(self, visual_sources: Tensor | None, pixel_values: Tensor) -> Int[Tensor, " M"] | None:
        """Returns the visual sources of all rows, counted over the crops of all rows."""
        if visual_sources is None or visual_sources.dim() == 1:
            return visual_sources
        if pixel_values.dim() != 5 or len(pixel_values) != len(visual_sources):
            raise ValueError("visual_sources of each row need pixel_values of each row: [rows, crops, 3, height, width]")
        per_row = pixel_values.shape[1] * self.connector.tokens_per_crop
        first_B1 = torch.arange(len(visual_sources), device=visual_sources.device)[:, None] * per_row
        return torch.where(visual_sources >= 0, visual_sources + first_B1, visual_sources).flatten()

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generates as in transformers; the cache may be given under either name, whatever the installed version calls it.

        Raises:
            ValueError: the cache is given under both names.
        """
        return super().generate(*args, **named_cache(kwargs))  # pyrefly: ignore

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool | None = False,
        use_cache: bool | None = True,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Passes pixel values to the first step only: afterwards the cache holds their tokens."""
        kwargs |= {"inputs_embeds": inputs_embeds, "is_first_iteration": is_first_iteration, "use_cache": use_cache}
        prepare = super().prepare_inputs_for_generation
        inputs = prepare(input_ids, **named_cache(kwargs))  # pyrefly: ignore
        # transformers counts an assistant's first call as a later iteration; its cache is still empty, so it needs the images.
        seen = not is_first_iteration and use_cache and _is_filled(kwargs.get(CACHE_NAME))
        for name in ("pixel_values", "visual_sources"):
            inputs[name] = None if seen else kwargs.get(name)
        return inputs

    def expand_own_inputs(self, times: int, input_ids: Tensor | None, inputs: dict[str, Any]) -> dict[str, Any]:
        """Repeats the crops of each row for beams: a row's crops stay together, in the order of their visual slots."""
        pixels, sources = inputs.pop("pixel_values", None), inputs.pop("visual_sources", None)
        if pixels is not None:
            pixels, sources = pixels.flatten(0, -4), self._sources(sources, pixels)
        if times > 1 and pixels is not None and input_ids is not None:
            order, sources = self._beam_order(input_ids, len(pixels), sources, times)
            pixels = pixels[order]
        return {"pixel_values": pixels, "visual_sources": sources}

    def _beam_order(self, input_ids: Tensor, num_crops: int, sources: Tensor | None, expand_size: int) -> tuple[Tensor, Tensor]:
        """Returns the crops of all repeated rows, row after row, and the visual sources renumbered for them."""
        per_crop = self.connector.tokens_per_crop
        slots_B = (input_ids == self.config.image_token_id).sum(1).tolist()
        base = torch.arange(num_crops * per_crop, device=input_ids.device) if sources is None else sources
        self._check_places(sum(slots_B), len(base))
        crops: list[int] = []
        expanded: list[Tensor] = []
        for row in base.split(slots_B):
            own = torch.unique(row[row >= 0] // per_crop)
            place = torch.searchsorted(own, row // per_crop)
            for _ in range(expand_size):
                expanded.append(torch.where(row >= 0, (len(crops) + place) * per_crop + row % per_crop, row))
                crops.extend(own.tolist())
        return torch.tensor(crops, dtype=torch.long, device=input_ids.device), torch.cat(expanded)

    def _check_no_images(self, input_ids: Tensor) -> None:
        count = int((input_ids == self.config.image_token_id).sum())
        if count:
            raise ValueError(
                f"input_ids hold {count} image tokens, but pixel_values are missing, so the model would not see the image; "
                "build inputs with the model's own processor"
            )

    def _check_places(self, num_slots: int, num_sources: int) -> None:
        if num_slots != num_sources:
            raise ValueError(
                f"{num_slots} image tokens in input_ids, but {num_sources} visual tokens from pixel_values "
                f"({self.connector.tokens_per_crop} per crop); build inputs with the model's own processor"
            )


class SightlineModel(SightlineForConditionalGeneration):
    """The model without its head: returns hidden states. Modules, tensor names and files are those of the model with a head."""

    @property
    def base_model(self) -> "SightlineModel":
        return self

    @classmethod
    def can_generate(cls) -> bool:
        return False

    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        pixel_values: Float[Tensor, "*N 3 h w"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "B T"] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Float[Tensor, "B T D"] | None = None,
        use_cache: bool | None = None,
        visual_sources: Int[Tensor, "*M"] | None = None,
        mm_token_type_ids: Int[Tensor, "B T"] | None = None,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],  # pyrefly: ignore (as in transformers)
    ) -> ModelOutput | tuple[Any, ...]:
        """Returns the decoder's last hidden states; arguments and errors as in the model with a head."""
        named = named_cache({"cache": cache, "past_key_values": past_key_values})
        return self.get_decoder()(
            inputs_embeds=self._filled(input_ids, inputs_embeds, pixel_values, visual_sources, named.get(CACHE_NAME)),
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=use_cache,
            **named,
            **kwargs,
        )


# `transformers serve` and TRL find by these tables which models take images; releases before 5.24 lack some of them.
for _table in ("MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES", "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES"):
    getattr(modeling_auto, _table, {})[SightlineConfig.model_type] = SightlineForConditionalGeneration.__name__
