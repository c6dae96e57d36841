"""A chat template without an end token is known before training: `data check` and `train` warn of it."""

import logging
from pathlib import Path

import pytest

from sightline.assembly.inspect.rows import training_report
from sightline.assembly.model.blueprint import config_blueprint
from sightline.assembly.train.run import train
from sightline.data.check import CheckOptions, check
from sightline.data.check.report import DataReport
from tests.assembly.helpers import run_config
from tests.builders import load_tokenizer
from tests.data.check.planted import folder, png, record, scene

ENDLESS = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}\n{% endfor %}"
)


@pytest.mark.parametrize("ends", [True, False])
def test_check_and_train_warn_of_a_template_that_never_ends_an_answer(
    ends: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer("chatml")
    if not ends:
        tokenizer.chat_template = ENDLESS
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    pictures = {f"{index}.png": png(scene(index)) for index in range(3)}
    data = folder(tmp_path / "data", [record(f"r{index}", f"{index}.png") for index in range(3)], pictures)
    config = run_config(train={"steps": 1, "epochs": None}, path=str(data))
    language = config.model.language
    assert language is not None
    model = config.model.model_copy(update={"language": language.model_copy(update={"tokenizer": str(tmp_path / "tokenizer")})})
    config = config.model_copy(update={"model": model})

    blueprint = config_blueprint(config)
    assert (blueprint.closing_token() is not None) is ends
    checked = check([data], CheckOptions(workers=0))
    warnings = DataReport(checked, training_report(checked, blueprint, lambda *_: None)).warnings
    assert any("does not learn to stop" in warning for warning in warnings) is not ends

    monkeypatch.setattr(logging.getLogger("sightline"), "propagate", True)
    train(config, tmp_path / "run")
    assert ("does not learn to stop" in caplog.text) is not ends
