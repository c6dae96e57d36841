"""A name is a path or an id on the Hub, by one rule; a path asks no network, and an id without a network is refused in seconds."""

import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sightline.assembly.config import locate
from sightline.assembly.model.tokenizer import load_tokenizer
from sightline.data.images.preparation import read_processor_file
from sightline.errors import ConfigError, DataError, SightlineError
from sightline.models.loading import read_config
from sightline.runtime import hub
from tests.data.pictures import read


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with `runs/first`, where the Hub is not switched off, and where its address refuses every connection."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/first").mkdir(parents=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]  # free again when the socket is closed: nothing listens there
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(hub, "_answers", {})
    return tmp_path


@pytest.fixture
def no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where anything looks up a host or connects."""

    def refuse(*arguments: object, **options: object) -> None:
        pytest.fail(f"the network was asked: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("name", ["runs/fist", "./fist", "../fist", "/nowhere/fist", "~/fist", "a/b/c", "rums/", "a\\b", ".hidden"])
@pytest.mark.parametrize("opens", [read_config, load_tokenizer, read_processor_file, locate.find_model])
@pytest.mark.usefixtures("here", "no_socket")
def test_a_path_that_does_not_exist_asks_no_network(name: str, opens: Callable[[str], object]) -> None:
    with pytest.raises(SightlineError, match="does not exist"):
        opens(name)


@pytest.mark.usefixtures("here", "no_socket")
def test_the_nearest_name_is_told() -> None:
    with pytest.raises(ConfigError) as caught:
        locate.find_model("runs/fist")
    assert str(caught.value) == "runs/fist does not exist. Did you mean runs/first?"
    with pytest.raises(ConfigError, match=r"Did you mean runs/first@align\?"):
        locate.find_model("runs/fist@align")
    with pytest.raises(SightlineError, match=r"rums does not exist\. Did you mean runs\?"):
        locate.run_of("rums")
    with pytest.raises(DataError, match=r"runs/fist does not exist\. Did you mean runs/first\?"):
        read("hf", Path("runs/fist"))


@pytest.mark.usefixtures("no_socket")
def test_a_home_folder_that_nobody_expanded_is_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    with pytest.raises(ConfigError, match=f"write {here}/runs/first"):
        read_config("~/runs/first")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("name", "kind"), [("nobody/nothing", "model"), ("gpt2", "model"), ("rums", "model")])
def test_an_id_without_a_network_is_refused_in_seconds_with_both_readings(name: str, kind: str) -> None:
    begin = time.perf_counter()
    with pytest.raises(ConfigError) as caught:
        read_config(name)
    assert time.perf_counter() - begin < 5
    message = str(caught.value)
    assert f"{name!r} is no path here, and as an id on the Hub it is not in the cache" in message
    assert "cannot be reached" in message
    assert ("Did you mean runs?" in message) == (name == "rums")
    for opens in (load_tokenizer, read_processor_file):
        with pytest.raises(ConfigError, match="is no path here, and as an id on the Hub"):
            opens(name)
    with pytest.raises(DataError, match="is no path here, and as an id on the Hub"):
        read("hf", Path(name))


@pytest.mark.usefixtures("here")
def test_a_hub_that_never_answers_counts_as_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "PATIENCE", 0.6)
    with socket.socket() as server:  # accepts connections and is silent
        server.bind(("127.0.0.1", 0))
        server.listen()
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        begin = time.perf_counter()
        assert hub.check_reachable() != ""
        assert time.perf_counter() - begin < 2
        assert hub.check_reachable() != ""  # remembered, and libraries are offline from now on
    from huggingface_hub import is_offline_mode

    assert is_offline_mode()
