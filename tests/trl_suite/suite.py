"""TRL's SFTTrainer and `transformers serve` on an exported folder, in processes that cannot import Sightline.

Run by `make test-trl` in an environment of its own; the normal suite does not collect this file.
"""

import base64
import io
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sightline.assembly.evaluate.export import export_remote_code
from sightline.assembly.model.build import ModelBundle, read_model, write_model
from sightline.data.images.tilings import WholeConfig
from sightline.generation.decode import DecodingConfig, generate
from sightline.models.connectors.mlp import MLPConfig
from tests.assembly.model.helpers import noise, prompt, question
from tests.export.helpers import WITHOUT_SIGHTLINE, built, run_without_sightline

TRAIN = (Path(__file__).parent / "train.py").read_text("utf-8")
SERVE = "from transformers.cli.transformers import main\nmain()"
SERVER = "http://127.0.0.1:8477"
PATIENCE = 240.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelBundle, Path]:
    folder = tmp_path_factory.mktemp("exported")
    bundle = built(MLPConfig(shuffle=2), WholeConfig())
    (folder / "own").mkdir()
    write_model(bundle, folder / "own")
    export_remote_code(str(folder / "own"), folder / "model")
    return bundle, folder / "model"


@pytest.mark.parametrize("form", ["messages", "completion"])
def test_sft_trains_the_folder_with_its_own_collator(model: tuple[ModelBundle, Path], tmp_path: Path, form: str) -> None:
    bundle, folder = model
    printed = run_without_sightline(TRAIN, tmp_path, str(folder), str(tmp_path), form)
    assert printed.splitlines()[-1].startswith("transformers_modules.")
    before, after = bundle.inner.state_dict(), read_model(tmp_path / "checkpoint-2").inner.state_dict()
    changed = {name.split(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}
    assert {"vision", "connector", "language"} <= changed


@pytest.fixture(scope="module")
def server(model: tuple[ModelBundle, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`transformers serve` with the folder; its address."""
    home = tmp_path_factory.mktemp("server")
    command = ["serve", str(model[1]), "--trust-remote-code", "--host", "127.0.0.1", "--port", SERVER.rpartition(":")[2]]
    environment = os.environ | {"HF_MODULES_CACHE": str(home), "HF_HUB_OFFLINE": "1"}
    with (home / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", WITHOUT_SIGHTLINE + SERVE, *command, "--device", "cpu"],
            cwd=home,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    try:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                urllib.request.urlopen(f"{SERVER}/health", timeout=5).read()
                break
            except OSError:
                assert process.poll() is None, (home / "log").read_text()
                assert time.monotonic() < end, (home / "log").read_text()
                time.sleep(0.5)
        yield SERVER
    finally:
        process.terminate()
        process.wait(30)


def ask(server: str, folder: Path, image: str) -> str:
    content = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": "What is this?"}]
    body: dict[str, Any] = {
        "model": str(folder),
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 6,
        "temperature": 0.0,
        "stream": False,
    }
    request = urllib.request.Request(
        f"{server}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        return json.load(urllib.request.urlopen(request, timeout=PATIENCE))["choices"][0]["message"]["content"]
    except urllib.error.HTTPError as error:
        raise AssertionError(error.read().decode()) from error


def test_the_server_answers_with_an_image_as_sightline_does(server: str, model: tuple[ModelBundle, Path]) -> None:
    bundle, folder = model
    said = set()
    for number in range(3):
        packed = io.BytesIO()
        noise(number).save(packed, "PNG")
        answer = ask(server, folder, "data:image/png;base64," + base64.b64encode(packed.getvalue()).decode())
        asked = prompt(bundle, question(number, text="What is this?"))
        (ours,) = generate(bundle.model, bundle.tokenizer, [asked], DecodingConfig(max_new_tokens=6))
        assert answer.strip() == ours.text
        said.add(answer)
    assert len(said) > 1
