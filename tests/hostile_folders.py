"""Model folders that a stranger made: each is a tiny real one (the golden run's) with one change.

spoil(folder, "a million layers")
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parent / "golden" / "run" / "checkpoints" / "step-370" / "model"
CONFIG, TOKENIZER, TOKENIZER_CONFIG, PROCESSING = "config.json", "tokenizer.json", "tokenizer_config.json", "sightline.json"
TEMPLATE, INDEX, WEIGHTS = "chat_template.jinja", "model.safetensors.index.json", "language.safetensors"

Change = Callable[[Path], None]


def spoil(target: Path, name: str) -> Path:
    """Copies the real folder to `target` and makes one of `CHANGES` or `HARMLESS`."""
    shutil.copytree(SOURCE, target)
    (CHANGES | HARMLESS)[name](target)
    return target


def _set(file: str, *path: str | int, to: Any) -> Change:
    """Sets one value of a JSON file."""

    def change(folder: Path) -> None:
        values = json.loads((folder / file).read_text("utf-8"))
        at = values
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = to
        (folder / file).write_text(json.dumps(values), "utf-8")

    return change


def _text(file: str, text: str | bytes) -> Change:
    return lambda folder: (folder / file).write_bytes(text.encode() if isinstance(text, str) else text) and None


def _link(file: str) -> Change:
    def change(folder: Path) -> None:
        outside = folder.parent / f"{folder.name}-outside"
        (folder / file).rename(outside)
        (folder / file).symlink_to(outside)

    return change


def _pattern(pattern: str, kind: str = "pre_tokenizer") -> Change:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    replace = {"type": "Replace", "pattern": {"Regex": pattern}, "content": "x"}
    return _set(TOKENIZER, kind, to=split if kind == "pre_tokenizer" else replace)


def _added_tokens(folder: Path) -> None:
    entry = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    tokens = {str(1000 + number): {"content": f"<{number}>", **entry} for number in range(100_000)}
    _set(TOKENIZER_CONFIG, "added_tokens_decoder", to=tokens)(folder)


def _pipe(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    os.mkfifo(folder / "generation_config.json")


def _header(folder: Path) -> None:
    """A header of weights that states another shape than its bytes hold."""
    data = (folder / WEIGHTS).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    first = next(name for name in header if name != "__metadata__")
    header[first]["shape"] = [1 << 40, 1 << 20]
    changed = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(len(changed).to_bytes(8, "little") + changed + data[8 + length :])


_LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
_TEXT = ("text_config",)
_EYE = ("vision_config",)

# Code of others that is named but never run; the folder opens.
HARMLESS: dict[str, Change] = {
    "remote code": _set(CONFIG, "auto_map", to={"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}),
    "a tokenizer of remote code": _set(TOKENIZER_CONFIG, "tokenizer_class", to="Evil"),
    "a tokenizer with a map": _set(TOKENIZER_CONFIG, "auto_map", to={"AutoTokenizer": ["evil.Tokenizer", None]}),
}

CHANGES: dict[str, Change] = {
    # sizes
    "a million layers": _set(CONFIG, *_TEXT, "num_hidden_layers", to=1_000_000),
    "0 layers": _set(CONFIG, *_TEXT, "num_hidden_layers", to=0),
    "0 heads": _set(CONFIG, *_TEXT, "num_attention_heads", to=0),
    "0 key heads": _set(CONFIG, *_TEXT, "num_key_value_heads", to=0),
    "heads that do not divide": _set(CONFIG, *_TEXT, "num_key_value_heads", to=7),
    "negative heads": _set(CONFIG, *_TEXT, "num_attention_heads", to=-2),
    "a huge width": _set(CONFIG, *_TEXT, "hidden_size", to=1 << 40),
    "a large width": _set(CONFIG, *_TEXT, "hidden_size", to=1 << 15),
    "a huge vocabulary": _set(CONFIG, *_TEXT, "vocab_size", to=10**12),
    "a negative vocabulary": _set(CONFIG, *_TEXT, "vocab_size", to=-1),
    "a vocabulary that is a text": _set(CONFIG, *_TEXT, "vocab_size", to="301"),
    "a vocabulary smaller than the tokenizer": _set(CONFIG, *_TEXT, "vocab_size", to=12),
    "endless positions": _set(CONFIG, *_TEXT, "max_position_embeddings", to=10**15),
    "a million encoder stages": _set(CONFIG, *_EYE, "num_stages", to=1_000_000),
    "negative depths": _set(CONFIG, *_EYE, "depths", to=[-1, -1]),
    "endless depths": _set(CONFIG, *_EYE, "depths", to=[10**9, 1]),
    "negative channels": _set(CONFIG, *_EYE, "num_channels", to=-3),
    "a huge image": _set(CONFIG, *_EYE, "image_size", to=10**9),
    "patches of 0": _set(CONFIG, *_EYE, "patch_size", to=0),
    "100,001 entries": _set(CONFIG, *_TEXT, "more", to=[0] * 100_001),
    "no number": _set(CONFIG, *_TEXT, "hidden_size", to=float("nan")),
    # values of our own configuration
    "no grid": _set(CONFIG, "grid", to=None),
    "a negative grid": _set(CONFIG, "grid", to=[-4, 4]),
    "a grid of texts": _set(CONFIG, "grid", to=["4", "4"]),
    "a huge grid": _set(CONFIG, "grid", to=[10**6, 10**6]),
    "another grid": _set(CONFIG, "grid", to=[4, 4, 4]),
    "an image token out of range": _set(CONFIG, "image_token_id", to=10**6),
    "a negative image token": _set(CONFIG, "image_token_id", to=-1),
    "another image token": _set(CONFIG, "image_token_id", to=5),
    "more words than the vocabulary": _set(CONFIG, "num_words", to=10**6),
    "negative words": _set(CONFIG, "num_words", to=-1),
    "negative separators": _set(CONFIG, "num_separators", to=-1),
    "endless separators": _set(CONFIG, "num_separators", to=10**12),
    "no standard deviation": _set(CONFIG, "image_std", to=[0, 0, 0]),
    "a width of nothing": _set(CONFIG, "vision_width", to=0),
    "an unknown connector": _set(CONFIG, "connector", "kind", to="pickle"),
    "an endless connector": _set(CONFIG, "connector", "depth", to=10**9),
    "a connector that is a list": _set(CONFIG, "connector", to=[]),
    "an unknown architecture": _set(CONFIG, *_TEXT, "model_type", to="../../evil"),
    "an end token that is a text": _set("generation_config.json", "eos_token_id", to="x"),
    "negative beams": _set("generation_config.json", "num_beams", to=-1),
    # sightline.json
    "an unknown schema": _set(PROCESSING, "schema_version", to=99),
    "a schema of text": _set(PROCESSING, "schema_version", to="1; DROP"),
    "negative tokens": _set(PROCESSING, "max_tokens", to=-1),
    "an unknown tiling": _set(PROCESSING, "tiling", "kind", to="evil"),
    "a huge image to prepare": _set(PROCESSING, "preparation", "resize", to=[10**6, 10**6]),
    # tokenizer
    "a pattern that backtracks": _pattern(r"(a+)+$"),
    "a pattern that backtracks over spaces": _pattern(r"(\s|\s\s)+!"),
    "a pattern that backtracks in steps": _pattern(r"(?:a?){30}a{30}(?=!!)|(a|aa)+(?=\d\d)"),
    "a normaliser that backtracks": _pattern(r"(a|aa)+$", "normalizer"),
    "a normaliser that grows texts": _set(
        TOKENIZER,
        "normalizer",
        to={
            "type": "Sequence",
            "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 64} for _ in range(8)],
        },
    ),
    "a tokenizer that is no JSON": _text(TOKENIZER, "{"),
    "a tokenizer of deep lists": _text(TOKENIZER, "[" * 100_000),
    "a tokenizer without a model": _set(TOKENIZER, "model", to=None),
    "100,000 added tokens": _added_tokens,
    # chat template
    "nested loops": _text(TEMPLATE, _LOOPS),
    "nested loops for images only": _text(
        TEMPLATE,
        "{% for message in messages %}{% if message['content'] is not string %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}" + _LOOPS + "{% endif %}{% endfor %}{% endif %}{% endfor %}",
    ),
    "endless text": _text(TEMPLATE, "{% for a in range(99999) %}{{ 'a' * 99999 }}{% endfor %}"),
    "a text of all memory": _text(TEMPLATE, "{{ 'a' * 99999999999 }}"),
    "a growing text": _text(
        TEMPLATE, "{% set n = namespace(t='a') %}{% for a in range(99) %}{% set n.t = n.t + n.t %}{% endfor %}"
    ),
    "a large template": _text(TEMPLATE, "a" * (2 << 20)),
    # files
    "a linked configuration": _link(CONFIG),
    "a linked tokenizer": _link(TOKENIZER),
    "a linked template": _link(TEMPLATE),
    "linked weights": _link(WEIGHTS),
    "a linked sightline.json": _link(PROCESSING),
    "a pipe": _pipe,
    "no configuration": lambda folder: (folder / CONFIG).unlink(),
    "a configuration that is a list": _text(CONFIG, "[]"),
    "a large configuration": _text(CONFIG, '{"a": "' + "a" * (5 << 20) + '"}'),
    "an index that leads out": _set(INDEX, "weight_map", "separators", to="../../../../outside.safetensors"),
    "a header that lies": _header,
    "weights that are a pickle": _text(WEIGHTS, b"\x80\x04cos\nsystem\n(S'id'\ntR."),
}
