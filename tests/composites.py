"""Tiny stock vision-language models of transformers, in folders with tokenizer, processor and chat template as on the Hub.

    stock_folder("llava")      stock("idefics3")      reference("llava_next", texts, images)

Files lie where real checkpoints have them: LLaVA's template in `chat_template.json` of old processors, LLaVA-NeXT's in
`chat_template.jinja` beside a unified `processor_config.json`, that of Idefics3 and SmolVLM in the tokenizer.
"""

import functools
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers.processors import TemplateProcessing
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    PreTrainedModel,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.llava.processing_llava import LlavaProcessor
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from sightline.models.loading import load as gate
from sightline.models.loading import read_config
from tests.builders import _VIT, GRID, PATCH, SIDE, WIDE, _spread, load_tokenizer

STOCK = ("idefics3", "llava", "llava_next", "smolvlm")
PINPOINTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE], [3 * SIDE, SIDE], [SIDE, 3 * SIDE]]
SCALE = 2  # of Idefics3's pixel shuffle

_PARTS = (
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
)
VICUNA = (  # images first, no begin token, as llava-1.5-7b-hf
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    + _PARTS
    + "{{ part['text'] + ' ' }}{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
MISTRAL = (  # as llava-v1.6-mistral-7b-hf
    "{% for message in messages %}{% if message['role'] == 'user' %}[INST] "
    + _PARTS
    + "{{ part['text'] }}{% endfor %} [/INST]{% else %} {{ message['content'][0]['text'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
SMOLVLM = (  # as SmolVLM-Instruct
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)

_TEXT: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": WIDE,
}
_ROOT = tempfile.TemporaryDirectory(prefix="sightline-stock-")


def _tokenizer(kind: str) -> Any:
    if kind.startswith("llava"):  # Llama's: the begin token comes before every text
        made = load_tokenizer("sentencepiece")
        made.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", made.bos_token_id)])
        made.add_special_tokens({"extra_special_tokens": ["<image>"], "pad_token": "<pad>"})
        return made
    made = load_tokenizer("chatml")
    places = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    tokens = ["<global-img>", *places, "<fake_token_around_image>", "<image>", "<end_of_utterance>"]
    made.add_special_tokens({"extra_special_tokens": tokens, "eos_token": "<end_of_utterance>"})
    made.chat_template = SMOLVLM
    return made


def _processor(kind: str, tokenizer: Any) -> Any:
    square = {"height": SIDE, "width": SIDE}
    llava = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    if kind == "llava":
        return LlavaProcessor(CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=square), tokenizer, **llava)
    if kind == "llava_next":
        images = LlavaNextImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=square, image_grid_pinpoints=PINPOINTS)
        return LlavaNextProcessor(images, tokenizer, chat_template=MISTRAL, **llava)
    family = Idefics3ImageProcessorPil if kind == "idefics3" else SmolVLMImageProcessorPil
    images = family(size={"longest_edge": 3 * SIDE}, max_image_size={"longest_edge": SIDE})
    return Idefics3Processor(images, tokenizer, image_seq_len=(GRID // SCALE) ** 2)


def _model(kind: str, tokenizer: Any, tied: bool) -> PreTrainedModel:
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    text = {**_TEXT, **ends, "vocab_size": len(tokenizer) + 5}  # some rows to spare, as LLaVA has
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    clip = {"model_type": "clip_vision_model", **_VIT}
    match kind:
        case "llava":
            config = LlavaConfig(vision_config=clip, text_config=text, image_token_index=image_id)
            return LlavaForConditionalGeneration(config)
        case "llava_next":
            config = LlavaNextConfig(
                vision_config=clip, text_config=text, image_token_index=image_id, image_grid_pinpoints=PINPOINTS
            )
            return LlavaNextForConditionalGeneration(config)
        case "idefics3":
            config = Idefics3Config(
                vision_config=_VIT, text_config=text, image_token_id=image_id, scale_factor=SCALE, tie_word_embeddings=tied
            )
            return Idefics3ForConditionalGeneration(config)
    config = SmolVLMConfig(
        vision_config=_VIT, text_config=text, image_token_id=image_id, scale_factor=SCALE, tie_word_embeddings=not tied
    )
    return SmolVLMForConditionalGeneration(config)


@functools.cache
def stock_folder(kind: str, tied: bool = False) -> Path:
    """The folder of a stock model, one of `STOCK`; SmolVLM's head is tied unless `tied`, Idefics3's is not."""
    folder = Path(_ROOT.name) / f"{kind}-{tied}"
    tokenizer = _tokenizer(kind)
    torch.manual_seed(21)
    model = _model(kind, tokenizer, tied)
    _spread(model)
    model.save_pretrained(folder)
    processor = _processor(kind, tokenizer)
    if kind == "llava_next":
        processor.save_pretrained(folder)
        return folder
    processor.image_processor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if kind == "llava":
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": VICUNA}))
    return folder


def stock(kind: str) -> PreTrainedModel:
    """A new stock model, in `eval` mode."""
    from transformers import AutoModelForImageTextToText

    folder = str(stock_folder(kind))
    return gate(AutoModelForImageTextToText, folder, read_config(folder), "sdpa").eval()


@functools.cache
def processor_of(kind: str) -> Any:
    """transformers' own processor of the model; SmolVLM's wants torchvision, Idefics3's makes the same ids and pixels."""
    return _processor(kind, _tokenizer(kind))


def reference(kind: str, text: str, pictures: Sequence[Image.Image]) -> dict[str, Any]:
    """What the processor makes of one text with `<image>` at its images' places."""
    return dict(processor_of(kind)(images=list(pictures) or None, text=text, return_tensors="pt"))
