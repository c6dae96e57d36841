"""Writes files atomically. Every artefact reaches the disk through `atomic_file`, `atomic_dir` or `JsonLines`.

A directory is written under a temporary name beside its target, each file is synced, a manifest with size and sha256 of every
file is synced after them, and only then does a rename publish it. A directory is valid when its manifest is complete and the
hashes match; nothing else (time, name, link) is looked at. A crash leaves either the old state or the new one.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import tempfile
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from sightline.errors import DataError, StorageError
from sightline.runtime import fault_injection
from sightline.runtime.inputs import open_input, parse_json, read_json_input
from sightline.runtime.logs import logger

MANIFEST = "manifest.json"
TRUSTED = "SIGHTLINE_ROOTS"  # environment variable: folders, separated as in PATH
SCHEMA = 1
_TEMPORARY = ".writing-"
LOCK_SECONDS = 0.2  # of waiting: its last holder may be removing it just now
_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}
_FAILURES = (OSError, SafetensorError)  # safetensors has an error of its own for a full disk


# Hashes and paths -----------------------------------------------------------------------------------------------------------


def sha256_file(path: Path) -> str:
    """Returns the hash of a file's bytes."""
    with open_input(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def trusted_folders() -> tuple[Path, ...]:
    """Returns the folders outside of a data or model folder that its paths and links may lead to (`SIGHTLINE_ROOTS`).

    They stand in the environment so that worker processes know them too; empty by default.
    """
    return tuple(Path(folder) for folder in os.environ.get(TRUSTED, "").split(os.pathsep) if folder)


def safe_join(root: Path, relative: str, trusted: Sequence[Path] | None = None) -> Path:
    """Joins a path that comes from data to `root`.

    Args:
        root: the folder that holds the file with that path in it.
        relative: the path.
        trusted: folders that an absolute path, `..` or a link may lead to; by default those of `trusted_folders`.

    Raises:
        DataError: it is absolute, climbs out of `root` (by `..` or a link), or is no regular file.
    """
    trusted = trusted_folders() if trusted is None else trusted
    pure = PurePosixPath(relative)
    is_inside = not pure.is_absolute() and ".." not in pure.parts
    if not relative or "\0" in relative or "\\" in relative or not (is_inside or trusted):
        raise DataError(f"{relative!r} is not a relative path inside {root}.")
    path = root / pure
    if is_inside and _is_plain_file(str(root), pure.parts):
        return path
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{path}: {getattr(error, 'strerror', None) or error}.") from error
    _check_place(root, path, str(real), trusted)
    if not real.is_file():
        raise DataError(f"{path} is not a file.")
    return path


def _check_place(root: Path, path: Path, real: str, trusted: Sequence[Path]) -> None:
    """Raises a DataError where a resolved path is neither in `root` nor in a trusted folder."""
    if not any(Path(real).is_relative_to(os.path.realpath(folder)) for folder in (root, *trusted)):
        raise DataError(
            f"{path} leads to {real}, outside of {root}.", "Put the file itself there, or trust its folder (--root DIR)."
        )


def check_links(folder: Path, names: Iterable[str] | None = None) -> None:
    """Refuses a folder in which a file is a link out of it, or no regular file (a pipe or device could block its reader).

    A snapshot in the cache of the Hub is a folder of links to `../../blobs`, which belong to it. Links to trusted folders are
    followed. What lies in folders below is left out; no loader reads it, or it is named by a file and joined by `safe_join`.

    Args:
        folder: the folder; it may be a link itself.
        names: of the files to look at; all by default.

    Raises:
        DataError: names the file, and where it leads to.
    """
    real = Path(os.path.realpath(folder))
    blobs = [place.parents[1] / "blobs" for place in (real, real.parent) if place.parent.name == "snapshots"]
    # `blobs` must be a folder of that cache; were it a link, its files would lie elsewhere.
    trusted = (*(place for place in blobs if not place.is_symlink()), *trusted_folders())
    try:
        for name in sorted(os.listdir(folder)) if names is None else names:
            path = folder / name
            with contextlib.suppress(FileNotFoundError):
                mode = os.lstat(path).st_mode
                if stat.S_ISLNK(mode):
                    _check_place(folder, path, os.path.realpath(path), trusted)
                    mode = os.stat(path).st_mode
                if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                    raise DataError(f"{path} is not a regular file.", "Remove it.")
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        place = getattr(error, "filename", None) or folder
        raise DataError(f"{place}: {getattr(error, 'strerror', None) or error}.") from error


def _check_own(path: Path) -> None:
    """Raises a StorageError where a file that Sightline writes itself is a link out of its folder, or no regular file."""
    try:
        check_links(path.parent, (path.name,))
    except DataError as error:
        raise StorageError(error.message, error.remedy) from error


def _is_plain_file(root: str, parts: Sequence[str]) -> bool:
    """Returns whether a regular file lies there and nothing on the way from the root is a link, so that it cannot lead out of it.

    Asks the system once a part, where resolving both paths asks for every part of their whole length.
    """
    at, mode = root, 0
    try:
        for part in parts:
            at = os.path.join(at, part)
            mode = os.lstat(at).st_mode
            if stat.S_ISLNK(mode):
                return False
    except OSError:
        return False
    return stat.S_ISREG(mode)


# Atomic writes --------------------------------------------------------------------------------------------------------------


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _refused(path: Path, error: Exception, remedy: str = "Free space or choose another folder.") -> StorageError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return StorageError(f"{path}: {reason}.", remedy)


def open_to_append(path: Path) -> IO[bytes]:
    """Opens an unfinished file, such as a part of a download; its content is checked by a hash before it gets its name."""
    return path.open("ab")


@contextlib.contextmanager
def atomic_file(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Yields a file that appears under `path` complete or not at all; an existing one is replaced.

    Raises:
        StorageError: the disk refuses (full, read-only, no such folder); the old file is intact.
    """
    path = Path(path)
    temporary = temporary_beside(path)
    try:
        encoding, newline = (None, None) if "b" in mode else ("utf-8", "\n")
        with temporary.open(mode, encoding=encoding, newline=newline) as file:
            yield file
            file.flush()
            fault_injection.hit("file.before_sync")
            os.fsync(file.fileno())
        fault_injection.hit("file.before_rename")
        temporary.replace(path)
        _sync_directory(path.parent)
    except _FAILURES as error:
        raise _refused(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def temporary_beside(path: Path) -> Path:
    """Returns a name in the same folder for what is not complete yet; `sweep` removes such files."""
    short = os.fsdecode(os.fsencode(path.name)[-200:])  # a name has at most 255 bytes
    return path.with_name(f"{_TEMPORARY}{os.getpid()}-{short}")


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file atomically."""
    with atomic_file(path) as file:
        file.write(text)


def write_json(path: str | Path, value: Any) -> None:
    """Writes a JSON file atomically; NaN and infinity are refused, JSON has no word for them."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


@contextlib.contextmanager
def atomic_dir(
    path: str | Path, known: Mapping[str, str] | None = None, note: Mapping[str, Any] | None = None, replace: bool = False
) -> Iterator[Path]:
    """Yields a directory that appears under `path` complete, with a manifest, or not at all.

    Args:
        path: must not exist, unless it is to be replaced.
        known: sha256 of files that need no hashing because they are hard links to files of a verified directory.
        note: further keys of the manifest.
        replace: an existing directory makes way for the new one once that is complete.

    Raises:
        StorageError: the target exists or the disk refuses.
    """
    path = Path(path)
    if path.exists() and not replace:
        raise StorageError(f"{path} exists already.", "Choose another folder or remove it.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"{_TEMPORARY}{os.getpid()}-", dir=path.parent))
        temporary.chmod(0o755)
    except OSError as error:
        raise _refused(path, error) from error
    try:
        yield temporary
        fault_injection.hit("dir.before_manifest")
        entries = {}
        for file in sorted(item for item in temporary.rglob("*") if item.is_file()):
            name = file.relative_to(temporary).as_posix()
            digest = (known or {}).get(name)
            if digest is None:
                _sync_file(file)
                digest = sha256_file(file)
            entries[name] = {"size": file.stat().st_size, "sha256": digest}
        write_json(temporary / MANIFEST, {"schema": SCHEMA, **(note or {}), "files": entries})
        for folder in [item for item in temporary.rglob("*") if item.is_dir()]:
            _sync_directory(folder)
        _sync_directory(temporary)
        fault_injection.hit("dir.before_rename")
        if replace and path.exists():
            remove(path)
        temporary.rename(path)
        fault_injection.hit("dir.after_rename")
        _sync_directory(path.parent)
    except _FAILURES as error:
        raise _refused(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish_dir(temporary: Path, path: Path) -> None:
    """Renames a folder that was written over many steps (and resumes) to its final name, once all of it is on the disk.

    For folders of very many files, whose hashes stand in a file of their own: one `sync` of the file system takes the place of
    one a file.

    Raises:
        StorageError: the target exists, or the disk refuses.
    """
    try:
        os.sync()
        fault_injection.hit("publish.before_rename")
        temporary.rename(path)  # onto an empty folder it works, onto anything else it fails
        _sync_directory(path.parent)
    except OSError as error:
        raise _refused(path, error, "Choose another folder or remove it.") from error


def read_manifest(path: Path) -> dict[str, Any]:
    """Reads the manifest of a directory.

    Raises:
        StorageError: it is missing or torn.
    """
    _check_own(path / MANIFEST)
    try:
        manifest = read_json_input(path / MANIFEST)
        is_whole = all(_is_entry(name, entry) for name, entry in manifest["files"].items())
        unread = manifest.get("unread", {})
        is_whole = is_whole and isinstance(unread, dict) and all(type(count) is int for count in unread.values())
        if manifest["schema"] != SCHEMA or not is_whole:
            raise StorageError(f"{path / MANIFEST}: unknown schema.")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StorageError(f"{path / MANIFEST}: missing or torn ({error}).") from error
    return manifest


def _is_entry(name: str, entry: object) -> bool:
    """Returns whether a manifest may hold this entry: size and hash of a file inside the directory."""
    parts = PurePosixPath(name).parts
    is_inside = bool(parts) and ".." not in parts and not name.startswith("/")
    return is_inside and isinstance(entry, dict) and type(entry.get("size")) is int and isinstance(entry.get("sha256"), str)


def verify_dir(path: Path) -> dict[str, Any]:
    """Checks every file of a directory against its manifest, which it returns.

    Raises:
        StorageError: a file is missing, added, of another size or another hash, or cannot be read.
    """
    manifest = read_manifest(path)
    for _, fault in damaged_files(path, manifest):
        raise StorageError(fault)
    return manifest


def damaged_files(path: Path, manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields each file of a directory that is not as its manifest states: its name, and what is wrong with it.

    A file that the manifest does not list is one of them.
    """
    try:
        files = [file for file in path.rglob("*") if file.is_file() and not file.name.startswith(_TEMPORARY)]
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}.") from error
    present = {file.relative_to(path).as_posix() for file in files} - {MANIFEST}
    for name in sorted(present - set(manifest["files"])):
        yield name, f"{path / name}: not in the manifest."
    for name, entry in manifest["files"].items():
        fault = _fault_of(path, name, entry) if name in present else f"{path / name}: missing."
        if fault:
            yield name, fault


def _fault_of(folder: Path, name: str, entry: Mapping[str, Any]) -> str:
    file = folder / name
    try:
        safe_join(folder, name)
        size = file.stat().st_size
        if size != entry["size"]:
            return f"{file}: {size} bytes, {entry['size']} expected."
        return "" if sha256_file(file) == entry["sha256"] else f"{file}: its hash is not that of the manifest."
    except DataError as error:
        return error.message
    except OSError as error:
        return f"{file}: {error.strerror or error}."


def has_all_files(path: Path) -> bool:
    """Returns whether a directory has a manifest and every file in it has its size; hashes are left to `verify_dir`."""
    try:
        entries = read_manifest(path)["files"]
        return all(safe_join(path, name).stat().st_size == entry["size"] for name, entry in entries.items())
    except (StorageError, DataError, OSError, ValueError):  # ValueError: a damaged name that no file can have
        return False


def sweep(folder: Path) -> None:
    """Removes what a killed writer left half done in `folder`."""
    if folder.is_dir():
        for item in folder.iterdir():
            if item.name.startswith(_TEMPORARY):
                shutil.rmtree(item, ignore_errors=True) if item.is_dir() else item.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Removes a directory so that a crash on the way leaves nothing under its name."""
    aside = path.with_name(f"{_TEMPORARY}{os.getpid()}-removed-{path.name}")
    path.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def read_json(path: Path) -> Any:
    """Reads a JSON file that one of these functions wrote.

    Raises:
        StorageError: it is missing or torn.
    """
    _check_own(path)
    try:
        return read_json_input(path)
    except (OSError, ValueError, RecursionError) as error:
        raise StorageError(f"{path}: missing or torn ({error}).") from error


def link_or_copy(source: Path, target: Path) -> None:
    """Makes a hard link where the file system allows it, else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


# Line files -----------------------------------------------------------------------------------------------------------------

_CHECKSUM = "crc32"
_BEFORE_CHECKSUM = b', "crc32": "'
# A line that ends so had a checksum once, whatever a flipped bit has made of its name.
_LOOKS_CHECKED = re.compile(rb'"[0-9a-f]{8}"\}\n\Z')


LineCheck = Callable[[dict[str, Any]], object]


def has_keys(*keys: str) -> LineCheck:
    """Returns a check of lines that accepts those with all of these keys."""

    def check(line: dict[str, Any]) -> None:
        if missing := set(keys) - line.keys():
            raise ValueError(f"without {', '.join(sorted(missing))}")

    return check


def _accept(line: dict[str, Any]) -> None:
    pass


class JsonLines:
    """An append-only file of JSON objects, one per line; each line reaches the file when it is written.

    What a killed writer left of a last line is cut off when the file is opened. Damaged lines elsewhere are moved to `NAME.damaged`
    and reported with their numbers; all others stay.

    Args:
        path: the file.
        checksum: end each line with a key `crc32`, so that a changed line is noticed even if it is still JSON.
        check: raises ValueError for a line that is not one of this file's, which is then damaged; see `has_keys`.

    Raises:
        StorageError: the file cannot be read or written.
    """

    def __init__(self, path: Path, checksum: bool = False, check: LineCheck = _accept) -> None:
        self.path = path
        self._checksum, self._check = checksum, check
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _check_own(path)
            if path.exists():
                self._mend()
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise _refused(path, error) from error

    def write(self, line: Mapping[str, Any]) -> None:
        """Appends a line.

        Raises:
            StorageError: the disk refuses.
        """
        data = json.dumps(line, ensure_ascii=False, allow_nan=True).encode()
        if self._checksum:
            data = data[:-1] + _BEFORE_CHECKSUM + b'%08x"}' % zlib.crc32(data)
        data += b"\n"
        try:
            fault_injection.hit("log.write")
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            raise _refused(self.path, error) from error

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Removes the lines that are not `wanted`.

        Raises:
            StorageError: the disk refuses.
        """
        self._file.close()
        try:
            first, is_last = None, True  # of the lines to remove, and whether only such lines follow it
            for offset, _, value in _scan(self.path, self._check):
                if value is None or not wanted(value):
                    first = offset if first is None else first
                elif first is not None:
                    is_last = False
            if first is not None and is_last:
                os.truncate(self.path, first)
            elif first is not None:
                self._rewrite(wanted)
            self._file = self.path.open("ab", buffering=0)
        except OSError as error:
            raise _refused(self.path, error) from error

    def sync(self) -> None:
        """Waits until all lines are on the disk.

        Raises:
            StorageError: the disk refuses.
        """
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _refused(self.path, error) from error

    def close(self) -> None:
        self._file.close()

    def _mend(self) -> None:
        end, damaged = 0, []
        for number, (offset, line, value) in enumerate(_scan(self.path, self._check), 1):
            if line.endswith(b"\n"):
                end = offset + len(line)
                if value is None:
                    damaged.append(number)
        if end < self.path.stat().st_size:
            os.truncate(self.path, end)
        if damaged:
            aside = self.path.with_name(f"{self.path.name}.damaged")
            _report_damaged(self.path, damaged, f"moved to {aside.name}")
            self._rewrite(lambda value: True, aside)

    def _rewrite(self, wanted: Callable[[dict[str, Any]], bool], damaged: Path | None = None) -> None:
        """Writes the file anew with the whole lines that are wanted; damaged ones are appended to another file, if one is given."""
        with contextlib.ExitStack() as files:
            kept = files.enter_context(atomic_file(self.path, "wb"))
            aside = files.enter_context(damaged.open("ab")) if damaged is not None else None
            for _, line, value in _scan(self.path, self._check):
                if value is not None and wanted(value):
                    kept.write(line)
                elif value is None and aside is not None:
                    aside.write(line)


def whole_lines(
    path: Path, check: LineCheck = _accept, end: int | None = None
) -> Generator[tuple[int, dict[str, Any]], None, None]:
    """Yields the whole lines of a line file, each with its offset in bytes; the checksum is compared and left out.

    A torn last line is left out without a word, since its writer may still be at it. Damaged lines elsewhere are reported by number
    after the last whole one.

    Args:
        path: the file.
        check: as in `JsonLines`.
        end: stop at this offset.

    Raises:
        StorageError: the file cannot be read.
    """
    _check_own(path)
    damaged = []
    try:
        for number, (offset, line, value) in enumerate(_scan(path, check, end), 1):
            if value is not None:
                yield offset, value
            elif line.endswith(b"\n"):
                damaged.append(number)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}.") from error
    if damaged:
        _report_damaged(path, damaged, "left out")


def read_json_lines(path: Path, check: LineCheck = _accept) -> list[dict[str, Any]]:
    """Reads all whole lines of a line file; see `whole_lines`."""
    return [value for _, value in whole_lines(path, check)]


def _scan(path: Path, check: LineCheck, end: int | None = None) -> Iterator[tuple[int, bytes, dict[str, Any] | None]]:
    """Yields offset, bytes and value of every line; None for one that is torn or damaged."""
    offset = 0
    with open_input(path) as file:
        for line in file:
            if end is not None and offset >= end:
                return
            yield offset, line, _value_of(line, check)
            offset += len(line)


def _value_of(line: bytes, check: LineCheck) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        value = parse_json(line)
        if not isinstance(value, dict):
            return None
        check(value)
    except (ValueError, RecursionError):
        return None
    if _CHECKSUM not in value:
        return None if _LOOKS_CHECKED.search(line) else value  # a line of an earlier version has none
    return value if checksum_fits(line, value) else None


def checksum_fits(line: bytes, value: dict[str, Any]) -> bool:
    """Takes the key `crc32` out of the value of a line and says whether it is that of the line; True where there is none."""
    checksum = value.pop(_CHECKSUM, None)
    content, found, _ = line.rpartition(_BEFORE_CHECKSUM)
    return checksum is None or (bool(found) and checksum == f"{zlib.crc32(content + b'}'):08x}")


def _report_damaged(path: Path, numbers: Sequence[int], outcome: str) -> None:
    shown = ", ".join(map(str, numbers[:10])) + (f" and {len(numbers) - 10} more" if len(numbers) > 10 else "")
    count = "1 damaged line" if len(numbers) == 1 else f"{len(numbers)} damaged lines"
    logger.warning("%s: %s (number %s), %s; the other lines are kept", path, count, shown, outcome)


# Locks ----------------------------------------------------------------------------------------------------------------------


class Lock:
    """One writer per folder: locks a file in it (`filelock`) and writes process id and host into that file for the message.

    When the operating system grants the lock, what another host left in the file is of a process that is gone. Where the file
    system has no locks, the entry in the file decides, and one of another host stands.

    Raises:
        StorageError: another process holds it, or the file is a link or no regular file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path, timeout=LOCK_SECONDS, thread_local=False, fallback_to_soft=False)

    def __enter__(self) -> "Lock":
        me = {"pid": os.getpid(), "host": socket.gethostname(), "start": _start_time(os.getpid())}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._refuse_links()
            is_granted = self._acquire()
            holder = self._holder()
            if holder is not None and (not is_granted or holder[1] == me["host"]):
                raise self._in_use(*holder)
            self.path.write_text(json.dumps(me), encoding="utf-8")
        except OSError as error:
            self._lock.release()
            raise _refused(self.path, error, "Choose a folder that can be written.") from error
        except StorageError:
            self._lock.release()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.path.unlink(missing_ok=True)
        self._lock.release()

    def _acquire(self) -> bool:
        """Takes the lock and returns whether it was granted; False where the file system has no locks."""
        try:
            self._lock.acquire()
        except Timeout:
            raise self._in_use(*(self._holder() or (None, None))) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return False
        return True

    def _refuse_links(self) -> None:
        """Refuses a file that is somebody else's: writing into it would overwrite what it is linked to."""
        with contextlib.suppress(FileNotFoundError):
            state = self.path.lstat()
            if not stat.S_ISREG(state.st_mode) or state.st_nlink > 1:
                raise StorageError(f"{self.path} is a link or no regular file, so no lock can be written there.", "Remove it.")

    def _holder(self) -> tuple[int, str] | None:
        """Process id and host of the entry in the file; None when there is none, or when that process is surely gone."""
        try:
            entry = json.loads(self.path.read_bytes()[:4096])
            pid, host, start = int(entry["pid"]), str(entry["host"]), entry.get("start")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None  # new, or torn by a kill between creation and write
        is_gone = host == socket.gethostname() and (pid == os.getpid() or _start_time(pid) is None or _start_time(pid) != start)
        return None if is_gone else (pid, host)

    def _in_use(self, pid: int | None, host: str | None) -> StorageError:
        who = "another process" if pid is None else f"process {pid} on {host}"
        remedy = f"Wait for it, or choose another folder; if that process is gone, remove {self.path}."
        return StorageError(f"{self.path.parent} is in use by {who}.", remedy)


def _start_time(pid: int) -> str | None:
    """Returns the start time of a process in clock ticks since boot: a reused process id has another one."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def dump_line(value: dict[str, Any]) -> bytes:
    """Returns a JSON line without spaces; NaN is refused.

    Raises:
        ValueError: a number is not finite, or a text has half a surrogate pair.
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8") + b"\n"
