"""Tokenizers of every kind that decoders bring, each with the chat template that comes with it.

They are small and trained here, but their pipelines (normaliser, pre-tokenizer, model, decoder, special tokens) are those of the
named families, because a label mask goes wrong in exactly these: where spaces become letters, where one character is several
tokens, where a special token is not in the map of special tokens, where a template trims, renames roles or adds a turn.
"""

import json
from collections.abc import Callable, Sequence
from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sightline.assembly.model.tokenizer import add_tokens
from sightline.data.images.tilings import SplitConfig, TilingConfig, WholeConfig
from sightline.data.samples.encoding import ConversationEncoder, TextRules
from sightline.data.samples.templates import Template
from sightline.types import IMAGE
from tests.builders import CHATML, TEXTS

SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

SMOLLM2 = (  # a system turn of its own, unless the conversation brings one
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN3 = (  # thoughts stand before the last answer alone, and in the prompt where they are not wanted
    "{%- for message in messages %}{%- if message.role == 'assistant' and loop.last %}"
    "{{- '<|im_start|>assistant\n<think>\n\n</think>\n\n' + message.content + '<|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"
)
LLAMA3 = (
    "{{- bos_token }}{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] | trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system_message = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n\n' }}"
    "{{- system_message }}{{- '<|eot_id|>' }}"
    "{%- for message in messages %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{- message['content'] | trim }}{{- '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
LLAMA2 = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def _train(core: Tokenizer, special: Sequence[str], size: int, kind: str) -> Tokenizer:
    corpus = [text.replace("café", "cafe") for text in TEXTS]
    if kind == "byte_level":
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False)
    elif kind == "unigram":
        trainer = trainers.UnigramTrainer(vocab_size=size, special_tokens=list(special), unk_token="<unk>", show_progress=False)
    else:
        spelt = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
        trainer = trainers.BpeTrainer(
            vocab_size=size + 256, special_tokens=spelt, limit_alphabet=60, show_progress=False, max_token_length=8
        )
    core.train_from_iterator(corpus, trainer)
    if kind != "byte_fallback":
        return core
    state = json.loads(core.to_str())
    state["added_tokens"] = [entry for entry in state["added_tokens"] if entry["id"] < len(special)]  # bytes are words
    return Tokenizer.from_str(json.dumps(state))


def _byte_level(special: Sequence[str], pattern: str | None = None, normaliser: normalizers.Normalizer | None = None) -> Tokenizer:
    core = Tokenizer(models.BPE())
    if normaliser is not None:
        core.normalizer = normaliser
    if pattern is None:
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        core.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    core.decoder = decoders.ByteLevel()
    return _train(core, special, 300 + len(special), "byte_level")


def _sentencepiece(special: Sequence[str], space: str) -> Tokenizer:
    """`space` says how spaces become letters: `prepend` (Llama 1), `first` (Llama 2 as converted today), `plain` (Gemma)."""
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    strip = [decoders.Strip(" ", 1, 0)] if space != "plain" else []
    if space == "prepend":
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    elif space == "first":
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        core.normalizer = normalizers.Replace(" ", "▁")
        core.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return _train(core, special, 120, "byte_fallback")


def _gpt2() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=_byte_level(["<|endoftext|>"]), bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )


def _no_begin() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=_byte_level(["</s>"]), eos_token="</s>")


def _smollm2() -> PreTrainedTokenizerFast:
    core = _byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=SMOLLM2,
    )


def _tinyvlm() -> PreTrainedTokenizerFast:
    tokenizer = _smollm2()
    tokenizer.chat_template = CHATML
    return tokenizer


def _qwen() -> PreTrainedTokenizerFast:
    """Composed characters (NFC), no begin token, an end of turn beside the end of text, thoughts that are no special tokens."""
    core = _byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], SPLIT, normalizers.NFC())
    core.add_tokens([AddedToken(name, special=False, normalized=False) for name in ("<think>", "</think>")])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=QWEN3)


def _llama3() -> PreTrainedTokenizerFast:
    """Header tokens are special, and no entry of the map of special tokens names them."""
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    return PreTrainedTokenizerFast(
        tokenizer_object=_byte_level(special, SPLIT), bos_token=special[0], eos_token=special[-1], chat_template=LLAMA3
    )


def _vicuna() -> PreTrainedTokenizerFast:
    core = _sentencepiece(["<unk>", "<s>", "</s>"], "prepend")
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _llama2() -> PreTrainedTokenizerFast:
    core = _sentencepiece(["<unk>", "<s>", "</s>"], "first")
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=LLAMA2
    )


def _gemma() -> PreTrainedTokenizerFast:
    core = _sentencepiece(["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"], "plain")
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        chat_template=GEMMA,
    )


def _unigram() -> PreTrainedTokenizerFast:
    """T5's type: compatibility forms, a metaspace before every piece of text, and one token for all that is unknown."""
    core = Tokenizer(models.Unigram())
    core.normalizer = normalizers.NFKC()
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    core = _train(core, ["<pad>", "</s>", "<unk>"], 150, "unigram")
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


# Name -> the tokenizer, and the kind of template that is used with it.
KINDS: dict[str, tuple[Callable[[], PreTrainedTokenizerFast], str]] = {
    "gemma": (_gemma, "auto"),
    "gpt2": (_gpt2, "plain"),
    "gpt2_chatml": (_tinyvlm, "chatml"),
    "llama2": (_llama2, "auto"),
    "llama3": (_llama3, "auto"),
    "no_begin": (_no_begin, "plain"),
    "qwen3": (_qwen, "auto"),
    "smollm2": (_smollm2, "auto"),
    "stories": (_vicuna, "plain"),  # stories260K's pipeline is Llama 1's
    "tinyvlm": (_tinyvlm, "auto"),
    "unigram": (_unigram, "plain"),
    "vicuna": (_vicuna, "vicuna"),
}
SPLIT_TILING = SplitConfig(tile=8, longest_edge=16)


@cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a kind; it knows `<image>` and the tokens of tiles."""
    tokenizer = KINDS[kind][0]()
    add_tokens(tokenizer, (IMAGE, *SPLIT_TILING.tokens))
    return tokenizer


def builder_of(kind: str, rules: TextRules | None = None, tiling: TilingConfig | None = None) -> ConversationEncoder:
    """Makes rows as a model with this tokenizer would; 2 x 2 visual tokens an image by default."""
    tokenizer = tokenizer_of(kind)
    wanted = rules or TextRules(grid=(2, 2), tiling=tiling or WholeConfig())
    return ConversationEncoder(tokenizer, Template(tokenizer, KINDS[kind][1]), wanted)
