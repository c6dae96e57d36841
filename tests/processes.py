"""Commands in processes of their own that can be killed, without paying for the imports each time.

    with Commands() as commands:
        run = commands.start(["train", ...], faults="step.end=kill@3")
        code = run.wait()          # as a shell says it: 0, 2, 5, 75, or -9 for SIGKILL

A server process imports everything once and forks for each command; it never computes itself, so that its children may.
"""

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sightline.runtime.fault_injection import VARIABLE

PATIENCE = 120.0


@dataclass
class Command:
    """A command that was started."""

    pid: int
    log: Path
    server: "Commands"

    def wait(self) -> int:
        """Its exit code; minus the number of the signal that ended it."""
        status = int(self.server.ask({"wait": self.pid}))
        return os.waitstatus_to_exitcode(status)

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    @property
    def said(self) -> str:
        """Its stdout and stderr."""
        return self.log.read_text("utf-8")

    def until(self, path: Path) -> None:
        """Waits for a file to appear."""
        end = time.monotonic() + PATIENCE
        while not path.exists():
            assert time.monotonic() < end, self.said
            time.sleep(0.005)


class Commands:
    """Starts `sightline` commands in processes of their own."""

    def __enter__(self) -> "Commands":
        self._home = tempfile.TemporaryDirectory(prefix="sightline-commands-")
        self._count = 0
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.processes"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.communicate()
        self._home.cleanup()

    def ask(self, question: dict[str, object]) -> str:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(question) + "\n")
        self._server.stdin.flush()
        return self._server.stdout.readline()

    def start(
        self, arguments: Sequence[object], faults: str = "", environment: Mapping[str, str] | None = None, function: str = ""
    ) -> Command:
        """Starts a command.

        Args:
            arguments: of `sightline`.
            faults: its fault plan.
            environment: further variables.
            function: `module:name` of a function to call with the arguments instead.
        """
        self._count += 1
        log = Path(self._home.name) / f"{self._count}.log"
        variables = {**(environment or {}), VARIABLE: faults}
        texts = [str(item) for item in arguments]
        pid = self.ask({"arguments": texts, "environment": variables, "log": str(log), "function": function})
        return Command(int(pid), log, self)

    def ranks(
        self, world: int, arguments: Sequence[object], faults: Mapping[int, str] | None = None, function: str = ""
    ) -> list[Command]:
        """Starts a command in several processes that know of each other as those of torchrun do."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        shared = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        return [
            self.start(arguments, (faults or {}).get(rank, ""), {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, function)
            for rank in range(world)
        ]

    def run(self, arguments: Sequence[object], faults: str = "") -> tuple[int, str]:
        """Runs a command to its end: its exit code and what it said."""
        command = self.start(arguments, faults)
        return command.wait(), command.said


def _serve() -> None:
    importlib.import_module("sightline.assembly.train.run")
    from sightline.cli import main

    for line in sys.stdin:
        question = json.loads(line)
        if "wait" in question:
            answer = os.waitpid(question["wait"], 0)[1]
        else:
            answer = os.fork()
            if not answer:
                log = os.open(question["log"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
                os.dup2(log, 1)
                os.dup2(log, 2)
                os.environ.update(question["environment"])
                signal.alarm(int(PATIENCE))
                module, _, name = question["function"].partition(":")
                call = getattr(importlib.import_module(module), name) if name else main
                call(question["arguments"])
                sys.exit(0)
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
