"""Tokenizers that are trained: one token per character, or byte-level BPE."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from sightline.assembly.model.tokenizer import train_tokenizer
from sightline.config import Tree, validate_tree
from sightline.errors import ConfigError
from sightline.models.language import TokenizerConfig

TEXTS = ["A red square.\n", "naïve façade — 東京", "a  double  space and a tab\t"]


def test_characters_are_tokens_and_unknown_ones_are_one_unknown_token(tmp_path: Path) -> None:
    made = train_tokenizer(TEXTS, TokenizerConfig(kind="characters"))
    assert len(made) == 4 + len(set("".join(TEXTS)))
    for tokenizer in (made, reopened(made, tmp_path)):
        for text in TEXTS:
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.convert_ids_to_tokens(ids) == list(text)
            assert tokenizer.decode(ids) == text
        encoded = tokenizer("a🙂z", return_offsets_mapping=True)
        assert tokenizer.convert_ids_to_tokens(encoded["input_ids"]) == ["a", "<unk>", "<unk>"]  # z is in no text
        assert encoded["offset_mapping"] == [(0, 1), (1, 2), (2, 3)]
        assert tokenizer.convert_ids_to_tokens(tokenizer("<s>ab</s>")["input_ids"])[::3] == ["<s>", "</s>"]
        assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.unk_token) == ("<pad>", "</s>", "<unk>")


def reopened(tokenizer, folder: Path):
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def test_only_the_most_frequent_characters_are_kept_and_case_is_folded() -> None:
    few = train_tokenizer(["aaabbc"], TokenizerConfig(kind="characters", vocabulary=8))
    assert few.get_vocab() == {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "a": 4, "b": 5, "c": 6}
    fewer = train_tokenizer(["aaaabbbccddefgh"], TokenizerConfig(kind="characters", vocabulary=8))
    assert set(fewer.get_vocab()) - {"<pad>", "<s>", "</s>", "<unk>"} == {"a", "b", "c", "d"}
    folded = train_tokenizer(["Ab"], TokenizerConfig(kind="characters", lowercase=True))
    assert folded.decode(folded("AB")["input_ids"]) == "ab"


def test_bpe_is_the_default_and_needs_all_bytes() -> None:
    assert TokenizerConfig().kind == "bpe"
    assert validate_tree(TokenizerConfig, Tree({"vocabulary": 300})) == TokenizerConfig(vocabulary=300)
    with pytest.raises(ConfigError, match="vocabulary=299 must be at least 300 for kind 'bpe'"):
        validate_tree(TokenizerConfig, Tree({"vocabulary": 299}))
