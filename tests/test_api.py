"""The Python API: light to import, the same as the commands, and an example that runs."""

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sightline as sl
from sightline.errors import ConfigError, UsageError

EXAMPLE = Path(__file__).parents[1] / "examples/does_it_look.py"
LIGHT = """
import sys, time
begin = time.process_time()
import sightline
seconds = time.process_time() - begin
heavy = [name for name in ("torch", "transformers", "numpy", "pydantic", "PIL") if name in sys.modules]
print(seconds, heavy, [name for name in sightline.__all__ if not name in dir(sightline)])
"""


def test_the_import_is_light() -> None:
    said = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True).stdout
    seconds, rest = said.split(" ", 1)
    assert rest.strip() == "[] []"
    assert float(seconds) < 0.3


def test_names_are_those_of_the_api_and_others_do_not_exist() -> None:
    from sightline import api

    for name in sl.__all__:
        assert getattr(sl, name) is getattr(api, name)
    with pytest.raises(AttributeError, match="'sightline' has no attribute 'lok'"):
        sl.lok  # noqa: B018


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the example leaves after two steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(EXAMPLE), str(tmp_path_factory.mktemp("example")), "2"])
        return runpy.run_path(str(EXAMPLE), run_name="__main__")


def test_the_example_trains_asks_evaluates_looks_and_compares(example: dict[str, Any]) -> None:
    out, found, result = example["out"], example["found"], example["result"]
    assert (example["seeing"].step, example["misled"].step) == (2, 2)
    assert [step.control for step in found.ladder] == ["blur:8", "shuffled"]
    assert (out / "looking.html").read_text("utf-8").startswith("<!doctype html>")
    told = result.to_json()
    assert told["report"] == str(out / "compared/report.html")
    rows = {row["name"]: row for row in told["tables"][0]["rows"]}
    assert list(rows) == ["seeing", "misled"]
    assert rows["seeing"]["value"] == pytest.approx(example["score"].value)
    assert told["evaluations_reused"] >= 2  # `evaluate` and `look` have asked `seeing` the same
    assert "blur:8" in rows["seeing"]["others"]
    assert told["settings"] == {"data.noise": {"seeing": 0.0, "misled": 1.0}}
    assert result.sentences() == told["verdicts"]


def test_a_model_answers_about_paths_images_and_arrays_alike(example: dict[str, Any]) -> None:
    model, image = example["model"], example["data"] / example["record"].images[0]
    opened = Image.open(image).convert("RGB")
    answers = [model.generate(form, max_new_tokens=5) for form in (image, str(image), opened, np.asarray(opened), [opened])]
    assert len({answer.text for answer in answers}) == 1
    assert str(answers[0]) == answers[0].text
    assert 0 < answers[0].num_tokens <= 5
    with pytest.raises(ConfigError, match="max_new_token: unknown key; did you mean 'max_new_tokens'"):
        model.generate(image, max_new_token=5)
    with pytest.raises(UsageError, match="no-such-file"):
        model.generate("no-such-file.png")


def test_an_evaluation_is_that_of_the_command(example: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sightline.cli import main

    model, data, run = example["model"], example["data"], example["seeing"].run
    done = sl.evaluate(model, data, limit=8, max_new_tokens=4, control="blind", out=tmp_path / "a")
    words = [
        "--task",
        "caption",
        "--data",
        data,
        "--limit",
        8,
        "--max-new-tokens",
        4,
        "--control",
        "blind",
        "--out",
        tmp_path / "b",
    ]
    with pytest.raises(SystemExit):
        main([str(word) for word in ["eval", run, *words, "--json"]])
    told = json.loads(capsys.readouterr().out)
    assert {name: score["value"] for name, score in told["scores"].items()} == {
        name: score.value for name, score in done.scores.items()
    }
    assert (tmp_path / "a/predictions.jsonl").read_bytes() == (tmp_path / "b/predictions.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="limits: unknown key; did you mean 'limit'"):
        sl.evaluate(model, data, limits=8)


def test_settings_of_a_run_may_be_paths_texts_and_numbers(example: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.step: unknown key"):
        sl.train("scenes_tiny", tmp_path / "run", {"data.path": example["data"], "train.step": 2})
    again = sl.train("scenes_tiny", example["seeing"].run, example["settings"])
    assert again == example["seeing"]  # finished: the same call trains nothing
