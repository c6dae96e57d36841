"""A run on two hosts, each a `torchrun` of its own on the loopback device: the losses of one process, and what a dead host does."""

import json
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import sightline
from tests.builders import decoder_folder, encoder_folder
from tests.data.pictures import picture, prepared, put
from tests.processes import PATIENCE, Command, Commands

STEPS = 4
DEADLINE = PATIENCE / 2


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps that trains connector and decoder."""
    folder = tmp_path_factory.mktemp("hosts")
    rows = []
    for n in range(6):
        put(folder / f"in/{n}.png", picture(n, size=(40, 30 + n)))
        rows.append({"id": f"r{n}", "images": [f"{n}.png"], "captions": [f"A brown dog number {n} runs."], "split": "train"})
    put(folder / "in/records.jsonl", rows)
    prepared("records", folder / "in", folder / "set")
    run = {
        "model": {"vision": {"path": str(encoder_folder("siglip"))}, "language": {"path": str(decoder_folder("llama"))}},
        "data": {"path": str(folder / "set"), "max_tokens": 160, "pack": False},
        "train": {"batch_size": 2, "lr": 0.001, "checkpoint_every": 2, "steps": STEPS},
        "runtime": {"device": "cpu", "threads": 1, "deadline": DEADLINE},
        "stages": [{"name": "instruct", "parts": {"connector": "train", "language": "train"}}],
    }
    return put(folder / "config.yaml", run)


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    with Commands() as server:
        yield server


@pytest.fixture(scope="module")
def alone(commands: Commands, config: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    code, said = commands.run(train(config, out))
    assert code == 0, said
    return losses(out)


def train(config: Path, out: Path, *settings: str) -> list[str]:
    return ["train", "--config", str(config), "--out", str(out), *settings]


def hosts(commands: Commands, words: list[str], faults: Mapping[int, str] | None = None) -> list[Command]:
    """Starts a command with torchrun on two hosts of one process each; its processes are forked, which saves their imports."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    both = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", port]
    program = ["--start-method", "fork", "--run-path", str(Path(sightline.__file__).with_name("__main__.py")), *words]
    return [
        commands.start(
            [*both, "--node-rank", number, *program], (faults or {}).get(number, ""), function="torch.distributed.run:main"
        )
        for number in range(2)
    ]


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("shard", "dead"), [("false", 1), ("true", 0)])
def test_two_hosts_train_like_one_process_and_go_on_after_one_has_died(
    commands: Commands, config: Path, alone: list[float], tmp_path: Path, shard: str, dead: int
) -> None:
    words = train(config, tmp_path / "run", f"runtime.shard={shard}")
    both = hosts(commands, words, {dead: "step.end=kill@3"})
    assert all(host.wait() != 0 for host in both), [host.said for host in both]
    living = both[1 - dead].said
    assert "error[distributed]: another process of this run died" in living, living
    assert "exitcode  : 6" in living, living  # torchrun itself ends with 1, whatever its processes end with
    both = hosts(commands, words)
    assert [host.wait() for host in both] == [0, 0], [host.said for host in both]
    assert losses(tmp_path / "run") == pytest.approx(alone, rel=1e-4)
    assert len(alone) == STEPS
