"""Runs one reader on changed files, in this process, and keeps what escapes.

An escape is any exception that is not an error of Sightline, a read that takes longer or more memory than the limits, the end of
the process, or, where a checksum is stored elsewhere, a change that is read without an error and gives another result.
"""

import contextlib
import logging
import os
import random
import re
import resource
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.fuzz.mutations import mutate
from benchmarks.fuzz.readers import READERS, SOURCE, Reader, clean
from benchmarks.fuzz.samples import Files
from sightline.errors import SightlineError

SECONDS = 5.0  # of one read
MEMORY = 1 << 30  # bytes that one read may ask for above what the process holds
RESIDENT = 400 << 20  # bytes that one read may use
SPECIAL = 0.02  # share of inputs with a file that is no regular file, or missing
_ADDRESS = re.compile(r"0x[0-9a-f]{6,}")


class _Hang(BaseException):
    """Raised by the alarm; no handler of exceptions catches it."""


@dataclass
class Escape:
    """One kind of escape: how often, and its smallest input."""

    kind: str
    count: int = 0
    seed: int = -1
    size: int = -1
    trace: str = ""
    saved: str = ""

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "count": self.count, "seed": self.seed, "bytes": self.size, "saved": self.saved}


@dataclass
class Outcome:
    """What happened with one reader."""

    reader: str
    inputs: int = 0
    seconds: float = 0.0
    refused: int = 0
    escapes: dict[str, Escape] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        rate = self.inputs / self.seconds if self.seconds else 0.0
        return {
            "reader": self.reader,
            "inputs": self.inputs,
            "seconds": round(self.seconds, 1),
            "per_second": round(rate, 1),
            "refused": self.refused,
            "escapes": [escape.to_json() for escape in self.escapes.values()],
        }


def fuzz(name: str, first: int, inputs: int, save: Path | None = None, at: Any = None) -> Outcome:
    """Runs a reader on `inputs` changed files.

    Args:
        name: of `READERS`.
        first: seed of the first input; the next ones follow, so that a run can be continued or cut in parts.
        inputs: number of inputs.
        save: folder for the smallest input of each kind of escape.
        at: receives the number of the input at hand in its `value`.
    """
    reader = READERS[name]
    variants = reader.files()
    outcome = Outcome(name)
    with tempfile.TemporaryDirectory(prefix=f"fuzz-{name}-") as place, _quiet():
        homes = [_Home(Path(place) / str(number), files) for number, files in enumerate(variants)]
        intact = []
        for home in homes:
            try:
                intact.append(reader.read(home.path))
            except SightlineError:  # a sample that is refused as it is
                intact.append(None)
            clean(home.path)
        begin = time.monotonic()
        for seed in range(first, first + inputs):
            if at is not None:
                at.value = seed
            draw = random.Random(f"{name} {seed}")
            number = draw.randrange(len(homes))
            changed, is_checked = homes[number].change(reader, draw)
            try:
                kind, trace = _read(reader, homes[number].path, intact[number] if is_checked else None, outcome)
            finally:
                clean(homes[number].path)
            outcome.inputs += 1
            if kind:
                _keep(outcome, kind, trace, seed, changed, homes[number], save)
            homes[number].restore()
        outcome.seconds = time.monotonic() - begin
    return outcome


def _read(reader: Reader, home: Path, intact: Any, outcome: Outcome) -> tuple[str, str]:
    """Returns the kind of the escape and its trace; empty where there is none."""
    begin, before = time.monotonic(), _resident()
    try:
        with _limits():
            found = reader.read(home)
    except SightlineError as error:
        outcome.refused += 1
        if _ADDRESS.search(str(error)):
            return f"address of an object in a message of {type(error).__name__} {_place(error)}", str(error)
    except _Hang as error:
        return f"hang {_place(error)}", "".join(traceback.format_exception(error))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return f"{type(error).__name__} {_place(error)}", "".join(traceback.format_exception(error))
    else:
        if intact is not None and found != intact:
            return "silently different", f"{str(intact)[:300]}\n{str(found)[:300]}"
    if time.monotonic() - begin > SECONDS:
        return "hang", f"{time.monotonic() - begin:.1f} s"
    if (grown := _resident() - before) > RESIDENT:
        return "memory", f"{grown >> 20} MB"
    return "", ""


def _place(error: BaseException) -> str:
    """Returns the innermost function of the package in which an exception arose."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if f"{os.sep}sightline{os.sep}" in frame.filename]
    if not ours:
        return ""
    return f"in {ours[-1].filename.rpartition('sightline' + os.sep)[2]}:{ours[-1].name}"


# Inputs ---------------------------------------------------------------------------------------------------------------------


class _Home:
    """The folder of one whole input, in which some files are changed for one read and then restored."""

    def __init__(self, path: Path, files: Files) -> None:
        self.path, self.files = path, files
        self._changed: list[str] = []
        for name, data in files.items():
            (path / SOURCE / name).parent.mkdir(parents=True, exist_ok=True)
            (path / SOURCE / name).write_bytes(data)

    def change(self, reader: Reader, draw: random.Random) -> tuple[Files, bool]:
        """Changes one file, seldom two; returns the new contents, and whether a checksum of each is stored elsewhere."""
        names = [name for name in sorted(self.files) if name.startswith(reader.changed)] if reader.changed else sorted(self.files)
        self._changed = draw.sample(names, min(len(names), draw.choice((1, 1, 1, 1, 2))))
        changed: Files = {}
        for name in self._changed:
            file = self.path / SOURCE / name
            if draw.random() < SPECIAL:
                changed[name] = _replace(file, draw)
                continue
            changed[name] = mutate(name, self.files[name], draw)
            file.write_bytes(changed[name])
        return changed, bool(reader.checked) and all(name.startswith(reader.checked) for name in self._changed)

    def restore(self) -> None:
        for name in self._changed:
            file = self.path / SOURCE / name
            if file.is_symlink() or not file.is_file():
                shutil.rmtree(file) if file.is_dir() and not file.is_symlink() else file.unlink(missing_ok=True)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(self.files[name])
        known = {self.path / SOURCE / name for name in self.files}
        for file in [file for file in (self.path / SOURCE).rglob("*") if file not in known and not file.is_dir()]:
            file.unlink()
        for name in self.files:
            if not (self.path / SOURCE / name).exists():  # a reader that renames what is damaged
                (self.path / SOURCE / name).parent.mkdir(parents=True, exist_ok=True)
                (self.path / SOURCE / name).write_bytes(self.files[name])


def _replace(file: Path, draw: random.Random) -> bytes:
    """Puts something that is no regular file in the place of one; returns its name."""
    file.unlink()
    kind = draw.choice(("missing", "folder", "pipe", "endless", "outside", "loop"))
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "endless":
        file.symlink_to("/dev/zero")
    elif kind == "outside":
        file.symlink_to("/etc/hostname")
    elif kind == "loop":
        file.symlink_to(file.name)
    return f"({kind})".encode()


def _keep(outcome: Outcome, kind: str, trace: str, seed: int, changed: Files, home: _Home, save: Path | None) -> None:
    size = sum(map(len, changed.values()))
    known = outcome.escapes.get(kind)
    if known is None:
        known = outcome.escapes[kind] = Escape(kind)
    known.count += 1
    if known.seed < 0 or size < known.size:
        known.seed, known.size, known.trace = seed, size, trace
        if save is not None:
            folder = save / outcome.reader / re.sub(r"[^A-Za-z0-9_.-]+", "-", kind)[:120]
            shutil.rmtree(folder, ignore_errors=True)
            for name, data in changed.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(data)
            (folder / "trace.txt").write_text(f"{outcome.reader} seed {seed}\n{trace}", encoding="utf-8", errors="replace")
            known.saved = str(folder)


# Limits ---------------------------------------------------------------------------------------------------------------------


def _raise_hang(number: int, frame: object) -> None:
    raise _Hang


@contextlib.contextmanager
def _limits() -> Iterator[None]:
    """Ends what takes too long, and lets memory run out early."""
    before = signal.signal(signal.SIGALRM, _raise_hang)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_statm(0) + MEMORY, hard))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, before)


def _statm(column: int) -> int:
    return int(Path("/proc/self/statm").read_text("ascii").split()[column]) * resource.getpagesize()


def _resident() -> int:
    """Returns the highest use of memory since the last call, in bytes."""
    status = Path("/proc/self/status").read_text("utf-8")
    highest = int(status.partition("VmHWM:")[2].split()[0]) << 10
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return highest


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides warnings and progress, and leaves out waiting for the disk."""
    import faulthandler

    faulthandler.enable()
    os.environ["SIGHTLINE_PROGRESS"] = "0"
    sync, fsync = os.sync, os.fsync
    os.sync, os.fsync = (lambda: None), (lambda fd: None)
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.sync, os.fsync = sync, fsync
        logging.disable(disabled)
