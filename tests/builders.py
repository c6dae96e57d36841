"""Tiny real models of real architectures, in folders as `save_pretrained` writes them and a user loads them.

    encoder_folder("siglip")      decoder_folder("gemma2")      tokenizer_folder("chatml")      composite_folder("clip")

make a folder once per test session. The loaders go through Sightline's own code, and give a new model at each call, so a test may
change what it gets:

    encoder("dinov2")             decoder("llama")              vlm("siglip", "qwen3")          load_tokenizer("plain")

Weights are drawn wide (`WIDE`), so that attention looks at few keys and a token that leaks from one sample into another moves
everything by far more than rounding does. Images are `SIDE` pixels square, encoders give a grid of `GRID` rows and columns.
`branch`, `sample` and `batch_of` make packed batches of random tokens; `Exact` keeps float64 models in float64 throughout.
"""

import functools
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch.overrides import TorchFunctionMode
from transformers import (
    AutoModelForCausalLM,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MobileNetV2Config,
    MobileNetV2Model,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)

from sightline.assembly.model.tokenizer import load_tokenizer as load_tokenizer_folder
from sightline.data.batches.collate import collate
from sightline.models import language, vision
from sightline.models.connectors import Connector, ConnectorConfig
from sightline.models.connectors.mlp import MLPConfig
from sightline.models.scratch.shell import ScratchDecoderConfig, ScratchViTConfig, ScratchViTModel
from sightline.models.vlm import SightlineConfig, SightlineForConditionalGeneration
from sightline.types import Batch, EncodedConversation, Sample, Span

SIDE, PATCH, GRID = 32, 8, 4
WIDE = 0.3
WORDS = 300
TEXTS = [
    "A brown dog runs across the green field.",
    "Two children play with a red ball on the beach.",
    "What colour is the bicycle? It is blue.",
    "The woman in a white coat reads a newspaper; 3 people wait behind her.",
    "Ein Café am Fluß, naïve façade — 東京.",
] * 3
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_ROOT = tempfile.TemporaryDirectory(prefix="sightline-tests-")


def _folder(name: str) -> Path:
    return Path(_ROOT.name) / name


# Tokenizers -------------------------------------------------------------------------------------------------------------------


def _byte_level(special: list[str]) -> Tokenizer:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=WORDS, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(TEXTS, trainer)
    return core


def _plain_tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=_byte_level(["<|endoftext|>"]), bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )


def _chatml_tokenizer() -> PreTrainedTokenizerFast:
    core = _byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=CHATML,
    )


def _sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """As the tokenizers of Llama 1, Vicuna and Gemma: metaspaces, and bytes for what the vocabulary lacks."""
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS + 60, special_tokens=special, limit_alphabet=60, show_progress=False, max_token_length=8
    )
    core.train_from_iterator(TEXTS, trainer)
    state = json.loads(core.to_str())
    state["added_tokens"] = [entry for entry in state["added_tokens"] if entry["id"] < 3]  # bytes are words, not specials
    core = Tokenizer.from_str(json.dumps(state))
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "chatml": _chatml_tokenizer,
    "plain": _plain_tokenizer,
    "sentencepiece": _sentencepiece_tokenizer,
}


@functools.cache
def tokenizer_folder(kind: str) -> Path:
    """The folder of a tokenizer: `plain` (GPT-2's type), `chatml` (SmolLM2's type, with a chat template), `sentencepiece`."""
    folder = _folder(f"tokenizer-{kind}")
    TOKENIZERS[kind]().save_pretrained(folder)
    return folder


def load_tokenizer(kind: str) -> PreTrainedTokenizerBase:
    """A new tokenizer, loaded through our own code."""
    return load_tokenizer_folder(str(tokenizer_folder(kind)))


# Decoders ---------------------------------------------------------------------------------------------------------------------

_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": WIDE,
}
_ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
WINDOW = 6  # slots that a sliding layer sees: fewer than any sample of the tests has

DECODERS: dict[str, tuple[type[PreTrainedConfig], dict[str, Any], str]] = {
    "gemma": (GemmaConfig, {**_SIZES, "head_dim": 8}, "sentencepiece"),
    "gemma2": (
        Gemma2Config,
        {**_SIZES, "head_dim": 8, "sliding_window": WINDOW, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0},
        "sentencepiece",
    ),
    "gemma3": (
        Gemma3TextConfig,
        {**_SIZES, "head_dim": 8, "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
        "sentencepiece",
    ),
    "gpt2": (
        GPT2Config,
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "initializer_range": WIDE}
        | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        "plain",
    ),
    "llama": (LlamaConfig, {**_SIZES, "tie_word_embeddings": True}, "chatml"),  # SmolLM2's type
    "llama_untied": (LlamaConfig, {**_SIZES, "tie_word_embeddings": False}, "sentencepiece"),
    "mistral": (MistralConfig, {**_SIZES, "sliding_window": WINDOW}, "sentencepiece"),
    "scratch": (
        ScratchDecoderConfig,
        {key: value for key, value in _SIZES.items() if key != "num_key_value_heads"},
        "plain",
    ),
    "qwen2": (Qwen2Config, {**_SIZES, "tie_word_embeddings": True}, "chatml"),
    "qwen3": (Qwen3Config, {**_SIZES, "head_dim": 8, "tie_word_embeddings": False}, "chatml"),
}


def decoder_folder(kind: str, spare: int = 0) -> Path:
    """The folder of a decoder with its tokenizer.

    Args:
        kind: a key of `DECODERS`.
        spare: rows of the embedding beyond the tokenizer's vocabulary (Qwen2 has some).
    """
    return _decoder_folder(kind, spare)


@functools.cache
def _decoder_folder(kind: str, spare: int) -> Path:
    config_class, sizes, tokenizer = DECODERS[kind]
    folder = _folder(f"decoder-{kind}-{spare}")
    shutil.copytree(tokenizer_folder(tokenizer), folder)
    vocabulary = len(load_tokenizer(tokenizer)) + spare
    torch.manual_seed(11)
    model = AutoModelForCausalLM.from_config(config_class(vocab_size=vocabulary, **sizes, **_ENDS))
    _spread(model)
    model.save_pretrained(folder)
    return folder


def decoder(kind: str, attention: str = "sdpa", spare: int = 0) -> PreTrainedModel:
    """A new decoder, loaded through our own code."""
    config = language.LanguageConfig(path=str(decoder_folder(kind, spare)))
    return language.build_decoder(config, attention=attention).eval()


EXPERTS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "router_aux_loss_coef": 0.02},
    "qwen3_moe": {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 16, "router_aux_loss_coef": 0.001},
}


def experts(kind: str, **changes: Any) -> PreTrainedModel:
    """A new mixture-of-experts decoder, a key of `EXPERTS`; its experts run one by one, for the fused kernel has no float64.

    Args:
        kind: a key of `EXPERTS`.
        changes: other fields of `LanguageConfig`.
    """
    torch.manual_seed(5)
    config = {"model_type": kind, "vocab_size": 320, **_SIZES, **EXPERTS[kind]}
    model = language.build_decoder(language.LanguageConfig(config=config, tokenizer="here", **changes))
    model.set_experts_implementation("eager")
    return model


def _spread(model: PreTrainedModel) -> None:
    """Moves biases and norms off their 0 and 1, so that a forgotten one is seen."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)


# Encoders ---------------------------------------------------------------------------------------------------------------------

_VIT: dict[str, Any] = {
    "image_size": SIDE,
    "patch_size": PATCH,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "initializer_range": WIDE,
}
_DINO = {key: value for key, value in _VIT.items() if key != "intermediate_size"} | {"mlp_ratio": 2}
_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}

ENCODERS: dict[str, tuple[type[PreTrainedModel], PreTrainedConfig]] = {
    "clip": (CLIPVisionModel, CLIPVisionConfig(**_VIT)),
    "dinov2": (Dinov2Model, Dinov2Config(**_DINO, **_DROPOUT)),
    "dinov2_registers": (Dinov2WithRegistersModel, Dinov2WithRegistersConfig(**_DINO, **_DROPOUT, num_register_tokens=4)),
    "mobilenet_v2": (
        MobileNetV2Model,
        MobileNetV2Config(image_size=SIDE * 4, depth_multiplier=0.1, min_depth=4, finegrained_output=False),
    ),
    "scratch": (ScratchViTModel, ScratchViTConfig(**_VIT)),
    "siglip": (SiglipVisionModel, SiglipVisionConfig(**_VIT)),  # SigLIP2 of fixed resolution has the same architecture
    "siglip_headless": (SiglipVisionModel, SiglipVisionConfig(**_VIT, vision_use_head=False)),
    "vit": (ViTModel, ViTConfig(**_VIT, **_DROPOUT)),
}
_HALF, _IMAGENET = ([0.5] * 3, [0.5] * 3), ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
PREFIX = {
    "clip": 1,
    "dinov2": 1,
    "dinov2_registers": 5,
    "mobilenet_v2": 0,
    "scratch": 1,
    "siglip": 0,
    "siglip_headless": 0,
    "vit": 1,
}
"""Class and register tokens before the patches."""


def side_of(kind: str) -> int:
    """Height and width of an encoder's images; a MobileNetV2 shrinks them 32 times."""
    return SIDE * 4 if kind == "mobilenet_v2" else SIDE


@functools.cache
def encoder_folder(kind: str) -> Path:
    """The folder of a vision encoder, a key of `ENCODERS`, with its processor's settings."""
    model_class, config = ENCODERS[kind]
    folder = _folder(f"encoder-{kind}")
    torch.manual_seed(12)
    model = model_class(config)
    _spread(model)
    if kind == "mobilenet_v2":
        _settle(model)
    model.save_pretrained(folder)
    _write_processor(folder, side_of(kind), "Siglip" if kind.startswith("siglip") else "ViT", _IMAGENET if "net" in kind else _HALF)
    return folder


@functools.cache
def composite_folder(kind: str) -> Path:
    """The folder of a whole dual encoder, `siglip` or `clip`, of which a vision encoder is one half."""
    text: dict[str, Any] = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    torch.manual_seed(13)
    if kind == "siglip":
        model: PreTrainedModel = SiglipModel(SiglipConfig(text_config=text, vision_config=_VIT))
    else:
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=_VIT, projection_dim=16))
    _spread(model)
    folder = _folder(f"composite-{kind}")
    model.save_pretrained(folder)
    _write_processor(folder, SIDE, "Siglip", _HALF)
    return folder


def encoder(kind: str, attention: str = "sdpa") -> PreTrainedModel:
    """A new encoder, loaded through our own code."""
    return vision.build_encoder(vision.VisionConfig(path=str(encoder_folder(kind))), attention).eval()


def _settle(model: PreTrainedModel) -> None:
    """Gives BatchNorms statistics of real size: a fresh CNN of small weights is nearly constant."""
    model.train()
    with torch.no_grad():
        for _ in range(4):
            model(torch.randn(8, 3, SIDE * 4, SIDE * 4))
    model.eval()


def _write_processor(folder: Path, side: int, family: str, normalise: tuple[list[float], list[float]]) -> None:
    settings = {
        "image_processor_type": f"{family}ImageProcessor",
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": normalise[0],
        "image_std": normalise[1],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


# Vision-language models ---------------------------------------------------------------------------------------------------------


def vlm(
    eye: str = "siglip",
    kind: str = "llama",
    connector: ConnectorConfig | None = None,
    *,
    attention: str = "sdpa",
    layer: Any = "last",
    drop_class_token: bool = True,
    num_separators: int = 0,
) -> SightlineForConditionalGeneration:
    """A new vision-language model of an encoder and a decoder from their folders; 16 or 4 visual tokens an image.

    The image token is the last row of the vocabulary; `num_words` does not count it.

    Args:
        eye: a key of `ENCODERS`.
        kind: a key of `DECODERS`.
        connector: by default an mlp after a pixel shuffle of 2 (4 visual tokens).
        attention: kernel of both.
        layer, drop_class_token: as in `VisionConfig`.
        num_separators: learned visual tokens.
    """
    decoder_part = decoder(kind, attention, spare=1)
    encoder_part = encoder(eye, attention)
    shape = vision.probe_shape(encoder_part, (side_of(eye), side_of(eye)), layer)
    kept = 0 if drop_class_token else shape.prefix
    vocabulary = decoder_part.get_input_embeddings().weight.shape[0]
    wanted = connector or MLPConfig(shuffle=1 if kept else 2)
    config = SightlineConfig(
        vision_config=encoder_part.config,
        text_config=decoder_part.config,
        connector=wanted.model_dump(mode="json"),
        vision_layer=layer,
        vision_drop=shape.prefix - kept,
        grid=(1, shape.rows * shape.columns + kept) if kept else (shape.rows, shape.columns),
        vision_width=shape.width,
        image_token_id=vocabulary - 1,
        num_words=vocabulary - 1,
        num_separators=num_separators,
    )
    torch.manual_seed(14)
    part = Connector(wanted, config.connector_shape())
    model = SightlineForConditionalGeneration(config, encoder_part, part, decoder_part)
    with torch.no_grad():
        model.separators.normal_()
    return model.eval()


# Batches ----------------------------------------------------------------------------------------------------------------------


def pictures(seed: int, count: int, side: int = SIDE) -> np.ndarray:
    """Prepared images of noise, `[count, side, side, 3]` bytes."""
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def branch(ids: Sequence[int], *spans: tuple[int, int], slots: Sequence[int] = (), record_id: str = "r") -> EncodedConversation:
    """A branch whose supervised tokens are those of `spans` (start, end)."""
    turns = tuple(Span(start, end, turn) for turn, (start, end) in enumerate(spans))
    return EncodedConversation(np.array(ids, dtype=np.int64), turns, np.array(slots, dtype=np.int64), record_id)


def sample(
    seed: int,
    texts: Sequence[int],
    *,
    num_images: int = 1,
    tokens_per_crop: int = 4,
    prompt: int = 2,
    vocabulary: int = WORDS,
    side: int = SIDE,
) -> Sample:
    """A sample of random tokens: images, a prompt, and one supervised text for each entry of `texts`.

    A word stands before each image, so that every target has text before it.

    Args:
        seed: of tokens and images.
        texts: length of each branch's supervised text.
        num_images, tokens_per_crop: images at the beginning and the visual tokens of each.
        prompt: tokens between images and texts.
        vocabulary: ids are drawn below it.
        side: of the images.
    """
    draw = np.random.default_rng(seed)
    ids: list[int] = []
    slots: list[int] = []
    for _ in range(num_images):
        ids.append(int(draw.integers(3, vocabulary)))
        slots.extend(range(len(ids), len(ids) + tokens_per_crop))
        ids.extend([0] * tokens_per_crop)
    ids.extend(draw.integers(3, vocabulary, prompt).tolist())
    branches = tuple(
        branch(
            [*ids, *draw.integers(3, vocabulary, length).tolist()],
            (len(ids), len(ids) + length),
            slots=slots,
            record_id=f"{seed}-{number}",
        )
        for number, length in enumerate(texts)
    )
    return Sample(
        branches=branches,
        prefix=len(ids) if len(branches) > 1 else 0,
        visual_index=np.arange(len(slots), dtype=np.int64),
        images=pictures(seed, num_images, side) if num_images else None,
        tokens_per_crop=tokens_per_crop,
    )


def apart(sample: Sample) -> list[Sample]:
    """Each branch of a sample as a sample of its own."""
    return [
        Sample(
            branches=(part,),
            prefix=0,
            visual_index=sample.visual_index,
            images=sample.images,
            features=sample.features,
            tokens_per_crop=sample.tokens_per_crop,
            source=sample.source,
        )
        for part in sample.branches
    ]


def batch_of(*rows: Sequence[Sample], min_width: int = 1) -> Batch:
    """A batch with the given samples in each row."""
    return collate(rows, pad_id=0, min_width=min_width).to_batch()


# Precision --------------------------------------------------------------------------------------------------------------------


class Exact(TorchFunctionMode):
    """Within it, what is float64 stays float64.

    transformers computes norms and eager softmax in float32 whatever the model's type; a comparison at 1e-10 needs them in float64.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.float and not args[0].is_floating_point():
            return args[0].double()  # positions, which transformers 5.17 multiplies with what is float64
        if args and isinstance(args[0], torch.Tensor) and args[0].dtype == torch.float64:
            if func is torch.Tensor.float:
                return args[0]
            if func is torch.Tensor.to:
                args = tuple(torch.float64 if value is torch.float32 else value for value in args)
            if kwargs.get("dtype") is torch.float32:
                kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)
