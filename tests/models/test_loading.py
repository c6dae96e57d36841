"""The gate for foreign model folders: each attack and each damage is one clear error, nothing is executed, nothing hangs."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText

from sightline.assembly.model.tokenizer import load_tokenizer
from sightline.errors import ConfigError, SightlineError, StorageError
from sightline.models import language, loading, vision
from sightline.models.loading import check_sizes, config_from, read_config
from tests import builders
from tests.builders import decoder, decoder_folder, encoder_folder, tokenizer_folder, vlm

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
PARTS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A llama that may be spoilt."""
    return Path(shutil.copytree(decoder_folder("llama"), tmp_path / "model"))


def load(folder: Path | str) -> None:
    language.build_decoder(language.LanguageConfig(path=str(folder)))


def weights(folder: Path) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in load_file(folder / WEIGHTS).items()}


def store(folder: Path, tensors: dict[str, Tensor], name: str = WEIGHTS) -> None:
    save_file(tensors, folder / name, metadata={"format": "pt"})


def configure(folder: Path, **values: Any) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | values))


def shard(folder: Path) -> dict[str, str]:
    """Splits the weights into two files with an index; returns its map."""
    tensors = weights(folder)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    where = {name: PARTS[number >= len(names) // 2] for number, name in enumerate(names)}
    for part in PARTS:
        store(folder, {name: tensors[name] for name in names if where[name] == part}, part)
    write_index(folder, where)
    return where


def write_index(folder: Path, where: dict[str, Any]) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))


# Good folders -----------------------------------------------------------------------------------------------------------------


def same_as_source(folder: Path) -> bool:
    mine = language.build_decoder(language.LanguageConfig(path=str(folder))).state_dict()
    theirs = decoder("llama").state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_whole_sharded_and_half_precision_folders_load(folder: Path) -> None:
    assert same_as_source(folder)
    shard(folder)
    assert same_as_source(folder)
    for part in PARTS:
        save_file({name: value.half() for name, value in load_file(folder / part).items()}, folder / "new", {"format": "pt"})
        (folder / "new").replace(folder / part)
    loaded = decoder_of(folder)
    assert {value.dtype for value in loaded.parameters()} == {torch.float32}


def decoder_of(folder: Path) -> Any:
    return language.build_decoder(language.LanguageConfig(path=str(folder)))


def test_a_snapshot_in_the_cache_of_the_hub_loads_though_its_files_are_links(folder: Path, tmp_path: Path) -> None:
    shard(folder)
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "abc", tmp_path / "models--a--b" / "blobs"
    snapshot.parent.mkdir(parents=True)
    blobs.mkdir()
    folder.rename(snapshot)
    for part in PARTS:
        (snapshot / part).rename(blobs / part[:11])
        (snapshot / part).symlink_to(f"../../blobs/{part[:11]}")
    assert same_as_source(snapshot)


def test_every_file_of_a_snapshot_in_the_cache_of_the_hub_may_be_a_link(tmp_path: Path) -> None:
    cache = tmp_path / "models--a--b"
    snapshot = cache / "snapshots/abc"
    shutil.copytree(tokenizer_folder("chatml"), snapshot)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(decoder_folder("llama") / name, snapshot)
    (snapshot / "additional_chat_templates").mkdir()
    (snapshot / "additional_chat_templates/tools.jinja").write_text("tools")
    (cache / "blobs").mkdir()
    files = [file for file in snapshot.rglob("*") if file.is_file()]
    for number, file in enumerate(files):
        file.rename(cache / "blobs" / str(number))
        file.symlink_to(os.path.relpath(cache / "blobs" / str(number), file.parent))
    assert len(files) > 4
    assert same_as_source(snapshot)
    assert load_tokenizer(str(snapshot))("two dogs")["input_ids"] == builders.load_tokenizer("chatml")("two dogs")["input_ids"]


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json", "model.safetensors", "other.json"])
def test_a_file_that_is_a_link_out_of_its_folder_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    outside = tmp_path / "outside"
    (copy / name).rename(outside) if (copy / name).exists() else outside.write_text("{}")
    (copy / name).symlink_to(outside)
    for read in (read_config, load_tokenizer):
        with pytest.raises(StorageError, match=rf"{name} leads to .*outside"):
            read(str(copy))


def test_a_folder_of_chat_templates_that_is_a_link_out_of_a_model_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    (tmp_path / "secret.jinja").write_text("secret")
    (folder / "additional_chat_templates/a.jinja").symlink_to(tmp_path / "secret.jinja")
    with pytest.raises(StorageError, match=r"a\.jinja leads to"):
        read_config(str(folder))


def test_a_model_folder_that_is_a_link_itself_loads(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    assert same_as_source(tmp_path / "link")


# Indexes ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["../outside.safetensors", "/{}/outside.safetensors", "sub/../../outside.safetensors"])
def test_an_index_that_leads_out_of_its_folder_is_refused(folder: Path, way: str) -> None:
    where = shard(folder)
    (folder / "sub").mkdir()
    (folder / PARTS[1]).rename(folder.parent / "outside.safetensors")
    write_index(folder, {name: way.format(folder.parent) if part == PARTS[1] else part for name, part in where.items()})
    with pytest.raises(StorageError, match="is not a relative path inside"):
        load(folder)


def test_a_shard_that_is_a_link_out_of_its_folder_is_refused(folder: Path) -> None:
    shard(folder)
    (folder / PARTS[1]).rename(folder.parent / "outside.safetensors")
    (folder / PARTS[1]).symlink_to(folder.parent / "outside.safetensors")
    with pytest.raises(StorageError, match="outside of"):
        load(folder)


@pytest.mark.parametrize(
    "content",
    [b"{oops", b"[]", b"5", b'"x"', b"\xff\xfe\0", b"[" * 100_000, b"{}", b'{"weight_map": 3}', b'{"weight_map": {"a": []}}'],
)
def test_a_damaged_index_is_named(folder: Path, content: bytes) -> None:
    shard(folder)
    (folder / INDEX).write_bytes(content)
    with pytest.raises(StorageError, match=rf"{INDEX}: this is not an index of weights"):
        load(folder)


def test_a_shard_that_is_not_there_is_named(folder: Path) -> None:
    where = shard(folder)
    (folder / PARTS[1]).unlink()
    with pytest.raises(StorageError, match=rf"{PARTS[1]}: No such file"):
        load(folder)
    write_index(folder, dict.fromkeys(where, 5))
    with pytest.raises(StorageError, match="5: No such file"):
        load(folder)


# Weights ----------------------------------------------------------------------------------------------------------------------

UP, NORM = "model.layers.0.mlp.up_proj.weight", "model.norm.weight"


def change(folder: Path, edit: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = weights(folder)
    edit(tensors)
    store(folder, tensors)


def test_missing_left_over_and_misshapen_weights_are_named(folder: Path) -> None:
    change(folder, lambda tensors: tensors.update(extra=torch.zeros(10_000)))
    with pytest.raises(StorageError, match="holds 1 weights that the model does not have; the first is 'extra'"):
        load(folder)
    change(folder, lambda tensors: tensors.pop(UP))
    with pytest.raises(StorageError, match=f"lacks 1 weights of the model; the first is '{UP}'"):
        load(folder)
    change(folder, lambda tensors: (tensors.pop("extra"), tensors.update({UP: torch.zeros(3, 1000)})))
    with pytest.raises(StorageError, match=rf"'{UP}' has the shape \(3, 1000\); the model needs \(48, 32\)"):
        load(folder)


def test_leftovers_that_are_known_by_name_are_let_pass(folder: Path) -> None:
    change(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}))
    load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_named(folder: Path, value: float) -> None:
    change(folder, lambda tensors: tensors[NORM].__setitem__(3, value))
    with pytest.raises(StorageError, match=f"'{NORM}' holds NaN or infinity"):
        load(folder)


def test_buffers_that_are_not_finite_are_named(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(encoder_folder("mobilenet_v2"), tmp_path / "model"))
    name = "conv_stem.first_conv.normalization.running_var"
    change(folder, lambda tensors: tensors[name].fill_(float("nan")))
    with pytest.raises(StorageError, match=f"'{name}' holds NaN or infinity"):
        vision.build_encoder(vision.VisionConfig(path=str(folder)))


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", ["pytorch_model.bin", WEIGHTS, "model.bin", "pytorch_model.safetensors"])
def test_pickles_under_any_name_are_never_opened(folder: Path, name: str) -> None:
    tensors = weights(folder)
    (folder / WEIGHTS).unlink()
    torch.save({**tensors, "bomb": Bomb(folder / "exploded")}, folder / name)
    with pytest.raises(StorageError, match="safetensors"):
        load(folder)
    assert not (folder / "exploded").exists()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: data[:-100],
        lambda data: data[:100],
        lambda data: (2**62).to_bytes(8, "little") + data[8:],
        lambda data: data[:8] + b"\xff" * 40 + data[48:],
        lambda data: data + b"more",
        lambda data: b"<html>not found</html>" * 40,
    ],
)
def test_a_damaged_file_of_weights_is_named(folder: Path, spoil: Callable[[bytes], bytes]) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(spoil(data))
    with pytest.raises(StorageError, match=rf"{WEIGHTS}: this is not a safetensors file"):
        load(folder)


# Configurations ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"[1]", b"null", b"5", b"{}", b"\xff\xfe\0\1", b'{"a":' * 100_000, b'{"model_type": ["llama"]}']
)
def test_a_damaged_configuration_is_one_error(folder: Path, content: bytes) -> None:
    (folder / CONFIG).write_bytes(content)
    with pytest.raises(ConfigError, match="configuration"):
        load(folder)


@pytest.mark.parametrize("path", ["/no/such/folder", "a b/c/d:e", "nul\0", "someone/some-model", ""])
def test_a_place_that_is_none_is_one_error(path: str) -> None:
    with pytest.raises(ConfigError, match=r"does not exist|is no path and no id|is no path here, and as an id on the Hub"):
        read_config(path)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model_type": "nonesuch"}, "does not recognize this architecture"),
        ({"model_type": 5}, "does not recognize this architecture"),
        ({"hidden_size": "big"}, "Field 'hidden_size' expected int, got str"),
        ({"num_attention_heads": 5}, r"not a multiple of the number of attention heads \(5\)"),
        ({"num_attention_heads": 0}, "num_attention_heads=0 is outside of 1"),
        ({"num_key_value_heads": 0}, "num_key_value_heads=0 is outside of 1"),
        ({"hidden_size": -4}, "hidden_size=-4 is outside of 1"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000 is outside of 1..512"),
        ({"num_hidden_layers": 1e9}, "num_hidden_layers"),
        ({"head_dim": 10**9}, "head_dim=1000000000 is outside"),
        ({"nested": [{"vocab_size": 10**12}]}, "vocab_size=1000000000000 is outside"),
        ({"many": list(range(100_001))}, "more than 100000 entries"),
        ({"model_type": "gpt2", "n_layer": 10**9}, "n_layer=1000000000 is outside of 1..512"),
        ({"model_type": "gpt2", "n_positions": 10**12}, "n_positions=1000000000000 is outside"),
        ({"model_type": "qwen3", "num_hidden_layers": 10**9}, "num_hidden_layers=1000000000 is outside"),
        ({"model_type": "siglip_vision_model"}, "is not a causal language model"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "are quantised"),
        ({"quantization_config": {"quant_method": "nonesuch"}}, "are quantised"),
        ({"dtype": "evil"}, "cannot read a model configuration"),
        ({"rope_parameters": {"rope_type": "nonesuch"}}, "'nonesuch' is not known"),
    ],
)
def test_values_that_cannot_be_are_refused_at_once(folder: Path, values: dict[str, Any], words: str) -> None:
    configure(folder, **values)
    begin = time.perf_counter()
    with pytest.raises(SightlineError, match=words):
        load(folder)
    assert time.perf_counter() - begin < 5


@pytest.mark.parametrize(
    "values",
    [
        {"hidden_size": 16384, "vocab_size": 1 << 20, "num_attention_heads": 64, "num_key_value_heads": 64},  # 95 GB
        {"num_hidden_layers": 512, "hidden_size": 65536, "vocab_size": 1 << 21, "intermediate_size": 1 << 20},  # 470 TB
        {"num_hidden_layers": 3},
    ],
)
def test_more_weights_than_the_files_hold_are_refused_before_memory_is_taken(folder: Path, values: dict[str, Any]) -> None:
    configure(folder, **values)
    with pytest.raises(StorageError, match=r"describes [\d,]+ weights, but the files hold 25,120"):
        load(folder)


def trap(folder: Path) -> dict[str, str]:
    """A module that makes a file when it is imported, and the entries that point to it."""
    code = f"open({str(folder / 'exploded')!r}, 'w').close()\nclass Evil: pass\n"
    (folder / "evil.py").write_text(code)
    return {name: "evil.Evil" for name in ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer")}


def test_code_in_a_folder_is_never_run(folder: Path) -> None:
    configure(folder, auto_map=trap(folder))
    load(folder)  # an architecture that transformers has itself
    configure(folder, model_type="nonesuch")
    with pytest.raises(ConfigError, match="custom code"):
        load(folder)
    assert not (folder / "exploded").exists()


@pytest.mark.parametrize(
    "key", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal", "experts_implementation"]
)
def test_kernels_that_a_configuration_names_are_ignored(folder: Path, key: str) -> None:
    configure(folder, **{key: "someone/kernel"})
    loaded = decoder_of(folder)
    assert loaded.config._attn_implementation == "sdpa"
    assert read_config(str(folder))._experts_implementation is None


def test_kernels_and_code_named_inside_a_vision_language_model_are_ignored(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    vlm("siglip", "llama").save_pretrained(folder)
    content = json.loads((folder / CONFIG).read_text())
    evil = {"attn_implementation": "someone/kernel", "_attn_implementation": "someone/kernel", "auto_map": trap(folder)}
    content |= evil
    content["vision_config"] |= evil
    content["text_config"] |= evil
    (folder / CONFIG).write_text(json.dumps(content))
    config = read_config(str(folder))
    for part in (config, config.vision_config, config.text_config):
        assert part._attn_implementation is None
    loaded = loading.load(AutoModelForImageTextToText, str(folder), config, None)
    assert loaded.language.config._attn_implementation == "sdpa"
    assert not (folder / "exploded").exists()


def test_an_adapter_is_refused_since_it_names_another_model_to_load(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "../other", "peft_type": "LORA"}))
    with pytest.raises(ConfigError, match="Merge it into its base model"):
        load(folder)


# Configurations from values -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "'model_type' must be the name"),
        ({"model_type": 5}, "'model_type' must be the name"),
        ({"model_type": "nonesuch"}, "nonesuch"),
        ({"model_type": "llama", "hiden_size": 4}, "llama configuration has no key 'hiden_size'. Did you mean 'hidden_size'"),
        ({"model_type": "llama", "hidden_size": "big"}, "expected int, got str"),
        ({"model_type": "llama", "hidden_size": 30, "num_attention_heads": 4}, "not a multiple"),
        ({"model_type": "llama", "num_hidden_layers": 10**9}, "is outside of"),
        ({"model_type": "qwen3", "num_hidden_layers": 10**9}, "is outside of"),
    ],
)
def test_sizes_for_a_new_model_are_checked(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=f"here.*{words}"):
        config_from(values, "here")


@pytest.mark.parametrize("kind", ["gemma3", "gpt2", "llama", "mobilenet_v2", "qwen2", "siglip"])
def test_real_configurations_pass(kind: str) -> None:
    source = encoder_folder(kind) if kind in ("mobilenet_v2", "siglip") else decoder_folder(kind)
    check_sizes(read_config(str(source)).to_dict(), "here")


def test_the_first_line_of_an_error_says_what_is_wrong() -> None:
    assert loading.first_line(ValueError("one\ntwo")) == "one"
    assert loading.first_line(ValueError("in a field:\n    too big")) == "in a field: too big"
    assert loading.first_line(ValueError()) == "ValueError"
    assert loading.first_line(KeyError("x")) == "'x' is not known"
