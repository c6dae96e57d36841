"""Pickled weights: refused by name with the command that converts them, and converted without running what they hold."""

import json
import os
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from sightline.errors import SightlineError, StorageError, UsageError
from sightline.models import loading
from sightline.models.pickled import convert
from sightline.runtime.storage import sha256_file


class Evil:
    """Runs a command when a pickle of it is opened carelessly."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.fixture
def model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=17, n_positions=8))


def pickled(model: GPT2LMHeadModel, folder: Path, num_files: int = 1) -> Path:
    """The folder of a model as transformers wrote it before safetensors; the tied head shares the memory of the embedding."""
    model.config.save_pretrained(folder)
    state = model.state_dict()
    assert state["lm_head.weight"].data_ptr() == state["transformer.wte.weight"].data_ptr()
    names = sorted(state)
    if num_files == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return folder
    place = {}
    for number in range(num_files):
        part = {name: state[name] for name in names[number::num_files]}
        place |= dict.fromkeys(part, f"pytorch_model-{number}.bin")
        torch.save(part, folder / f"pytorch_model-{number}.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": place}))
    return folder


def load(folder: Path) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    return loading.load(AutoModelForCausalLM, str(folder), loading.read_config(str(folder)), "eager")


@pytest.mark.parametrize("num_files", [1, 3])
def test_a_pickled_model_is_refused_with_the_command_that_converts_it(
    model: GPT2LMHeadModel, tmp_path: Path, num_files: int
) -> None:
    old, new = pickled(model, tmp_path / "old", num_files), tmp_path / "old-safetensors"
    with pytest.raises(StorageError, match=f"sightline convert {old} --out {new}"):
        load(old)
    found = convert(old, new)
    assert found["weights"] == len(model.state_dict())
    assert [file["from_sha256"] for file in found["files"]] == [sha256_file(file) for file in sorted(old.glob("*.bin"))]
    assert [sha256_file(new / file["to"]) for file in found["files"]] == [file["sha256"] for file in found["files"]]
    assert not list(new.glob("*.bin*"))
    read = load(new).state_dict()
    assert read.keys() == model.state_dict().keys()
    assert all(torch.equal(value, read[name]) for name, value in model.state_dict().items())


def test_types_and_views_are_kept_bit_by_bit(tmp_path: Path) -> None:
    base = torch.arange(12.0)
    state = {
        "half": torch.tensor([1.5, float("nan")], dtype=torch.bfloat16),
        "count": torch.tensor(3),
        "turned": base.view(3, 4).t(),
        "part": base[4:6],
        "flag": torch.tensor([True, False]),
        "empty": torch.zeros(0, 2),
    }
    (tmp_path / "old").mkdir()
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "old/weights.pt")
    convert(tmp_path / "old", tmp_path / "new")
    from safetensors.torch import load_file

    read = load_file(tmp_path / "new/model.safetensors")
    assert read.keys() == state.keys()
    for name, value in state.items():
        assert read[name].dtype == value.dtype
        torch.testing.assert_close(read[name], value, rtol=0, atol=0, equal_nan=True)


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    torch.save({"w": torch.zeros(2), "x": Evil(tmp_path / "mark")}, tmp_path / "old/pytorch_model.bin")
    with pytest.raises(StorageError, match="no file of plain tensors"):
        convert(tmp_path / "old", tmp_path / "new")
    assert not (tmp_path / "mark").exists()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no file of plain tensors"),
        (b"PK\x03\x04 torn", "no file of plain tensors"),
        (b"\x80\x04junk", "no file of plain tensors"),
        ([torch.zeros(2)], "no tensors by name"),
        ({"w": "text"}, "'w' is no tensor"),
        ({}, "no tensors by name"),
    ],
)
def test_damaged_and_foreign_files_are_errors_of_ours(tmp_path: Path, content: object, says: str) -> None:
    (tmp_path / "old").mkdir()
    file = tmp_path / "old/pytorch_model.bin"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(StorageError, match=says):
        convert(tmp_path / "old", tmp_path / "new")


def test_a_hash_is_checked_before_the_file_is_opened(model: GPT2LMHeadModel, tmp_path: Path) -> None:
    old = pickled(model, tmp_path / "old")
    with pytest.raises(StorageError, match="not 00"):
        convert(old, tmp_path / "new", "0" * 64)
    assert convert(old, tmp_path / "new", sha256_file(old / "pytorch_model.bin").upper())["weights"]
    with pytest.raises(UsageError, match="exists already"):
        convert(old, tmp_path / "new")
    with pytest.raises(UsageError, match="safetensors already"):
        convert(tmp_path / "new", tmp_path / "newer")


def test_an_index_cannot_lead_outside(model: GPT2LMHeadModel, tmp_path: Path) -> None:
    old = pickled(model, tmp_path / "old")
    (old / "pytorch_model.bin").rename(tmp_path / "outside.bin")
    (old / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"w": "../outside.bin"}}))
    with pytest.raises(SightlineError, match="outside"):
        convert(old, tmp_path / "new")
