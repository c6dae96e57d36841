"""Kill: a run that is killed at random points and resumed each time, against an undisturbed run.

Both train with the same settings in their own processes. The second run is killed with SIGKILL: most times in the middle of
training, at a random fraction of a random step, one time in five during start-up. Its weights, its log without times, and its
predictions are then compared with those of the first run.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.findings import Finding, fixed, say

CLOCK = {"seconds", "tokens_per_s", "wait_share"}  # keys of metrics.jsonl that are times
SCENES = 240
WHILE_STARTING = 0.2
POLL_SECONDS = 0.005
PATIENCE_SECONDS = 600.0
# Used with `scenes_tiny` if no recipe is given: two stages, validation, and stored blind logits for the second.
SETTINGS: dict[str, Any] = {
    "train": {"checkpoint_every": 9, "evaluate_every": 20, "evaluate_samples": 8, "generate_samples": 1, "warmup": 5},
    "stages": [
        {"name": "full", "parts": {"vision": "train", "connector": "train", "language": "train"}, "train": {"steps": 90}},
        {"name": "align", "parts": {"connector": "train"}, "objective": {"kind": "cal"}, "train": {"steps": 60}},
    ],
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds what is trained, on what, and how often it is killed."""
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="changed settings of the run")
    parser.add_argument("--recipe", help="recipe to train (default: scenes_tiny in two short stages)")
    parser.add_argument("--data", type=Path, help=f"a dataset folder (default: {SCENES} scenes made for it)")
    parser.add_argument("--split", default="val", help="split of the data to predict on (default val)")
    parser.add_argument("--kills", type=int, default=12, help="how often the run is killed (default 12)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the kill points (default 0)")


def run(options: argparse.Namespace) -> list[Finding]:
    """Measures whether the two runs are the same, and the cost of being killed. `--repeats` is not used."""
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as name:
        home = Path(name)
        commands = _Commands(home, options)
        begin = time.perf_counter()
        undisturbed = commands.train(home / "whole")
        seconds = time.perf_counter() - begin
        say(f"  undisturbed: {undisturbed['step']} steps in {seconds:.1f} s, weights_sha256 {undisturbed['weights_sha256']}")
        pace = Pace.of(home / "whole", seconds)
        points = draw_points(random.Random(options.seed), options.kills, undisturbed["step"], pace)
        begin = time.perf_counter()
        killed = sum(commands.train_and_kill(home / "killed", point) for point in points)
        resumed = commands.train(home / "killed")
        spent = time.perf_counter() - begin
        say(f"  killed {killed} times: {resumed['step']} steps in {spent:.1f} s, weights_sha256 {resumed['weights_sha256']}")
        same = {
            "weights": resumed["weights_sha256"] == undisturbed["weights_sha256"],
            "log": read_log(home / "killed") == read_log(home / "whole"),
            "predictions": commands.predictions(home / "killed") == commands.predictions(home / "whole"),
        }
    out = [fixed("kill_count", killed, "times that the run was killed", at_least=options.kills)]
    out += [
        fixed(f"kill_same_{what}", float(is_same), f"1 if it has the same {what}", at_least=1) for what, is_same in same.items()
    ]
    return [*out, fixed("kill_time", spent / seconds, "time with all kills and restarts, over that of the undisturbed run")]


# Kill points ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pace:
    """Seconds of an undisturbed run until its first step, and per step."""

    start: float
    step: float

    @classmethod
    def of(cls, folder: Path, seconds: float) -> "Pace":
        steps = [line["seconds"] for line in read_lines(folder / "metrics.jsonl") if "loss" in line]
        return cls(max(seconds - sum(steps), 0.0), sum(steps) / len(steps))


@dataclass(frozen=True)
class Point:
    """A kill point: `delay` seconds after the process has logged `step` or a later one, or after its start if `step` is 0."""

    step: int
    delay: float


def draw_points(draw: random.Random, count: int, steps: int, pace: Pace) -> list[Point]:
    """Draws points sorted by step, so that the run proceeds between them; points during start-up are anywhere in the order."""
    starting = set(draw.sample(range(count), round(WHILE_STARTING * count)))
    rising = iter(sorted(draw.randrange(1, steps) for _ in range(count - len(starting))))
    return [
        Point(0, draw.uniform(0, pace.start)) if number in starting else Point(next(rising), draw.uniform(0, pace.step))
        for number in range(count)
    ]


# Commands -------------------------------------------------------------------------------------------------------------------------


class _Commands:
    """The commands of one benchmark, all with the same settings."""

    def __init__(self, home: Path, options: argparse.Namespace) -> None:
        self.split, self.threads = options.split, str(options.threads)
        self.data = options.data or home / "scenes"
        if options.data is None:
            self._json(
                "data", "prepare", "-", "--format", "scenes", "--count", str(SCENES), "--level", "1", "--out", str(self.data)
            )
        self.settings = [options.recipe or "scenes_tiny", f"data.path={self.data}", f"runtime.threads={self.threads}"]
        if options.recipe is None:
            (home / "settings.yaml").write_text(json.dumps(SETTINGS))
            self.settings += ["--config", str(home / "settings.yaml")]
        self.settings += options.settings

    def train(self, out: Path) -> dict[str, Any]:
        """Trains to the end, from the current state of the run in this folder."""
        return self._json("train", *self.settings, "--out", str(out))

    def train_and_kill(self, out: Path, point: Point) -> bool:
        """Trains until a kill point; returns whether the run was killed there (it may end before).

        Raises:
            RuntimeError: the run failed by itself.
        """
        log = out / "metrics.jsonl"
        before = _changed(log)
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                _words("train", *self.settings, "--out", str(out)), stdout=subprocess.DEVNULL, stderr=errors, env=_environment()
            )
            end = time.monotonic() + PATIENCE_SECONDS
            while point.step and process.poll() is None and not (_changed(log) != before and last_step(log) >= point.step):
                if time.monotonic() > end:
                    process.kill()
                    process.wait()
                    raise RuntimeError(f"step {point.step} was not reached within {PATIENCE_SECONDS:.0f} s")
                time.sleep(POLL_SECONDS)
            time.sleep(point.delay)
            process.send_signal(signal.SIGKILL)
            code = process.wait()
            if code not in (0, -signal.SIGKILL):
                errors.seek(0)
                raise RuntimeError(f"the resumed run failed with exit code {code}:\n{errors.read().decode()}")
        where = f"at step {last_step(log)}" if point.step else "while it started"
        say(f"  killed {where}" if code else "  ended before it could be killed")
        return code != 0

    def predictions(self, run: Path) -> list[dict[str, Any]]:
        """Returns captions of the last checkpoint."""
        words = ["eval", str(run), "--task", "caption", "--data", str(self.data), "--split", self.split, "--limit", "64"]
        folder = self._json(*words, "--resamples", "1", "--threads", self.threads)["folder"]
        return read_lines(Path(folder) / "predictions.jsonl")

    def _json(self, *arguments: str) -> dict[str, Any]:
        words = _words(*arguments, "--json")
        done = subprocess.run(words, capture_output=True, text=True, env=_environment())
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)} failed:\n{done.stderr}")
        return json.loads(done.stdout)


def _words(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "sightline", *arguments]


def _environment() -> dict[str, str]:
    return os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}


# Logs -----------------------------------------------------------------------------------------------------------------------------


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Reads the complete lines of a JSON lines file that may be growing; none if there is no file."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def read_log(run: Path) -> list[dict[str, Any]]:
    """Returns the log of a run without its times."""
    return [{key: value for key, value in line.items() if key not in CLOCK} for line in read_lines(run / "metrics.jsonl")]


def last_step(log: Path) -> int:
    """Returns the last step of a log, 0 if there is none."""
    lines = read_lines(log)
    return lines[-1]["step"] if lines else 0


def _changed(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0
