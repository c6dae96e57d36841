"""Model folders that a stranger made: each ends in one of our errors, in bounded time, in one process."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from sightline.assembly.config.schema import ModelConfig
from sightline.assembly.model import foreign
from sightline.assembly.model.blueprint import section_blueprint
from sightline.assembly.model.build import read_model
from sightline.assembly.model.tokenizer import load_tokenizer
from sightline.data.samples import tokenizing
from sightline.data.samples.templates import Template
from sightline.data.samples.tokenizing import tokenise
from sightline.errors import ConfigError, RecordError, SightlineError
from sightline.types import Message, Part
from tests.composites import stock_folder
from tests.duals import dual_folder
from tests.hostile_folders import CHANGES, HARMLESS, SOURCE, TEMPLATE, TOKENIZER, spoil

SECONDS = 20.0  # of wall time on a busy machine


def refused(folder: Path) -> str:
    """The error of a folder that is refused in time."""
    start = time.perf_counter()
    with pytest.raises(SightlineError) as caught:
        read_model(folder)
    assert time.perf_counter() - start < SECONDS
    assert caught.value.message
    assert "0x" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", CHANGES)
def test_a_hostile_folder_is_refused_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(foreign, "TRIAL_SECONDS", 2.0)
    refused(spoil(tmp_path / "model", name))


@pytest.mark.parametrize("name", HARMLESS)
def test_code_that_a_folder_names_is_not_run(tmp_path: Path, name: str) -> None:
    folder = spoil(tmp_path / "model", name)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert read_model(folder).model.takes_images
    assert not (tmp_path / "ran").exists()


def _changed(source: Path, target: Path, file: str, **values: Any) -> Path:
    shutil.copytree(source, target)
    known = json.loads((target / file).read_text()) if (target / file).exists() else {}
    (target / file).write_text(json.dumps(known | values))
    return target


LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("kind", "file", "values", "message"),
    [
        ("llava", "chat_template.json", {"chat_template": LOOPS}, "did not finish"),
        ("llava", "config.json", {"image_token_index": 10**9, "image_token_id": 10**9}, "image token is"),
        ("llava", "preprocessor_config.json", {"size": {"shortest_edge": 10**9}, "crop_size": 10**9}, "sides lie between"),
        ("llava_next", "config.json", {"image_grid_pinpoints": [[1, 1]] * 200_000}, "entries"),
        ("dual", "config.json", {"projection_dim": -5}, "projection_dim=-5 is outside"),
        ("dual", "config.json", {"projection_dim": 1 << 14}, "describes|shape|cannot load"),
    ],
)
def test_a_hostile_stock_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, file: str, values: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(foreign, "TRIAL_SECONDS", 2.0)
    source = dual_folder("clip") if kind == "dual" else stock_folder(kind)
    text = refused(_changed(source, tmp_path / "model", file, **values))
    assert any(part in text for part in message.split("|")), text


def test_the_sizes_of_a_decoder_are_checked_before_its_tokenizer_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = spoil(tmp_path / "model", "a million layers")
    monkeypatch.setattr("sightline.assembly.model.tokenizer.AutoTokenizer", None)  # loading it would be an AttributeError
    with pytest.raises(ConfigError, match="num_hidden_layers=1000000"):
        section_blueprint(ModelConfig.model_validate({"language": {"path": str(folder)}}))


def test_a_tokenizer_that_passed_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_tokenizer(str(SOURCE))
    monkeypatch.setattr(foreign, "GuardedPool", None)  # starting a child would be a TypeError
    shutil.copytree(SOURCE, tmp_path / "copy")
    load_tokenizer(str(tmp_path / "copy"))
    spoil(tmp_path / "other", "a pattern that backtracks")
    with pytest.raises(TypeError):
        load_tokenizer(str(tmp_path / "other"))


def test_a_text_that_a_tokenizer_gives_up_on_or_a_template_does_not_end_with_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both pass the trial: what they do wrong depends on words that it does not have."""
    folder = tmp_path / "model"
    shutil.copytree(SOURCE, folder)
    (folder / TEMPLATE).write_text("{% if 'zebra' in messages[0]['content'] %}" + LOOPS + "{% endif %}{{ messages[0]['content'] }}")
    values = json.loads((folder / TOKENIZER).read_text())
    values["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "z(e|ee)+(?=qq)"}, "behavior": "Isolated", "invert": False},
            values["pre_tokenizer"],
        ],
    }
    (folder / TOKENIZER).write_text(json.dumps(values))
    tokenizer = load_tokenizer(str(folder))
    assert tokenise(tokenizer, "a horse")["input_ids"] == load_tokenizer(str(SOURCE))("a horse")["input_ids"]
    with pytest.raises(RecordError) as caught:
        tokenise(tokenizer, "z" + "e" * 60)
    assert caught.value.reason == "tokenizer_failed"
    monkeypatch.setattr(tokenizing, "TEXT_SECONDS", 0.5)
    template = Template(tokenizer)
    assert template.render((Message("user", (Part("a horse"),)),)) == "a horse"
    start = time.perf_counter()
    with pytest.raises(ConfigError, match=r"chat template of .* did not finish a text of 7 characters"):
        template.render((Message("user", (Part("a zebra"),)),))
    assert time.perf_counter() - start < SECONDS
    assert template.render((Message("user", (Part("a horse"),)),)) == "a horse"
