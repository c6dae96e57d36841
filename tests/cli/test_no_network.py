"""Commands that docs/downloads.md does not name as ones that connect open no connection, although nothing forbids it to them."""

import shutil
import socket
from pathlib import Path

import pytest

from sightline.config import to_yaml
from tests.assembly.helpers import run_config
from tests.cli.helpers import call
from tests.data.check.planted import folder, png, record, scene
from tests.golden import make


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Hosts that anything looks up or connects to; the Hub is not switched off."""
    found: list[str] = []

    def refuse(*arguments: object, **options: object) -> None:
        found.append(str(arguments))
        raise OSError("blocked by the test")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return found


def test_commands_with_local_parts_connect_to_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: list[str]) -> None:
    rows = [record(f"r{n}", f"{n}.png", "val" if n > 5 else "train", [f"a dog {n}", f"the dog {n}"]) for n in range(9)]
    folder(tmp_path / "set", rows, {f"{n}.png": png(scene(n, 64)) for n in range(9)})
    config = run_config(path=str(tmp_path / "set"), train={"epochs": None, "steps": 1})
    (tmp_path / "run.yaml").write_text(to_yaml(config), "utf-8")
    golden = shutil.copytree(make.HOME / make.RUN, tmp_path / "golden")
    held, image = make.HOME / make.DATA, next((make.HOME / make.DATA / "images").rglob("*.png"))
    few = ("--limit", 2, "--device", "cpu")
    commands: list[tuple[object, ...]] = [
        ("recipes",),
        ("recipes", "show", "scenes_tiny"),
        ("doctor",),
        ("data", "prepare", "-", "--format", "scenes", "--count", 3, "--workers", 0, "--out", tmp_path / "scenes"),
        ("data", "check", tmp_path / "set", "--workers", 0),
        ("data", "export", tmp_path / "set", "--format", "csv", "--out", tmp_path / "set.csv"),
        ("train", "--config", tmp_path / "run.yaml", "runtime.device=cpu", "--out", tmp_path / "run"),
        ("eval", golden, "--task", "caption", "--data", held, "--split", "held", "--max-new-tokens", 2, *few),
        ("generate", golden, "--image", image, "--max-new-tokens", 2, "--device", "cpu"),
        ("generate", "./typo"),
    ]
    for command in commands:
        code, _, err = call(capsys, *command)
        assert code == (2 if command == ("generate", "./typo") else 0), err
        assert asked == [], command


def test_the_blocker_sees_a_connection(
    capsys: pytest.CaptureFixture[str], asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sightline.runtime.hub._answers", {})
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://hub.invalid")
    code, _, err = call(capsys, "generate", "nobody/nothing")
    assert code == 2
    assert "cannot be reached" in err
    assert asked != []
