"""`data get`: downloads a published data set, and checks every file against a known hash or that of the first download.

Files on the web come through the gate of all downloads (public addresses only), are resumed where a broken connection or a kill
left them, and get their name only when their hash is right. Data sets of the Hub come through its own client. `NAME.lock.json` in
the folder holds the hash of each file, and the commit of a repository: the same command verifies the folder later, and another
folder with `--lock`.
"""

import asyncio
import fnmatch
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpcore
import httpx

from sightline.data.download.catalogue import PUBLISHED, PublishedSet, WebFile
from sightline.data.download.fetch import AGENT, BUSY, REDIRECTS, TEMPORARY_STATUS
from sightline.data.download.gate import Gate, parse_url
from sightline.data.download.options import MAX_REDIRECTS, DownloadOptions
from sightline.data.readers.roots import check_name
from sightline.errors import DataError, RecordError, StorageError, UsageError
from sightline.registry import suggestion
from sightline.runtime import hub
from sightline.runtime.logs import progress
from sightline.runtime.optional import require
from sightline.runtime.storage import atomic_file, open_to_append, sha256_file, write_json

LOCK = ".lock.json"  # after the name of the data set: several may share a folder
PART = ".part"
CHUNK = 1 << 20
MAX_UNPACKED = 4 << 30  # bytes of a member of an archive
FIXED, FIRST_USE = "published", "first download"  # where the hash of a file comes from


class _Broken(Exception):
    """A failure after which another attempt may go on."""


def find(name: str) -> PublishedSet:
    """Returns a published data set.

    Raises:
        UsageError: there is none of this name.
    """
    if name not in PUBLISHED:
        raise UsageError(f"There is no data set {name!r}{suggestion(name, tuple(PUBLISHED))}.", "See sightline data get --list.")
    return PUBLISHED[name]


def get(
    name: str,
    out: Path,
    accepted: bool,
    options: DownloadOptions,
    lock: Path | None = None,
) -> dict[str, Any]:
    """Downloads a published data set into a folder, or verifies the folder where it is complete.

    Args:
        name: of the data set.
        out: the folder; files that are there are kept and verified.
        accepted: whether the user accepts the licence.
        options: limits of connections.
        lock: a lock file whose hashes must be met, instead of that of the folder.

    Returns:
        What the lock file holds.

    Raises:
        UsageError: no such data set, or its licence is not accepted.
        DataError: a file cannot be downloaded.
        StorageError: a file has another hash than is known, or the disk refuses.
    """
    found = find(name)
    if not accepted:
        raise UsageError(f"{name} is under this licence: {found.licence}.", f"Read {found.terms}, then add --accept-licence.")
    own = out / f"{name}{LOCK}"
    known = _read_lock(own if lock is None else lock, name, is_needed=lock is not None)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if found.repository:
            revision, hashes = _from_hub(found, out, known)
            files = {file: _entry(out / file, digest, FIRST_USE) for file, digest in hashes.items()}
        else:
            revision, files = "", {}
            for file in found.files:
                origin = FIXED if file.sha256 else FIRST_USE
                expected = file.sha256 or known.get("files", {}).get(file.name, {}).get("sha256", "")
                files[file.name] = _entry(out / file.name, _from_web(file, out / file.name, expected, options), origin)
                _unpack(file, out)
    except OSError as error:
        raise StorageError(
            f"{error.filename or out}: {error.strerror or error}.", "Free space or choose another folder."
        ) from error
    result = {
        "name": name,
        "licence": found.licence,
        "terms": found.terms,
        **({"repository": found.repository, "revision": revision} if found.repository else {}),
        "files": files,
    }
    write_json(own, result)
    return result


def _entry(path: Path, sha256: str, origin: str) -> dict[str, Any]:
    return {"sha256": sha256, "size": path.stat().st_size, "hash_from": origin}


def _read_lock(path: Path, name: str, is_needed: bool) -> Mapping[str, Any]:
    if not is_needed and not path.exists():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
        if found["name"] != name:
            raise UsageError(f"{path} is of {found['name']!r}, not of {name!r}.", "Choose another --out.")
        for entry in found["files"].values():
            int(entry["sha256"], 16)
        str(found.get("revision", ""))
        return found
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise StorageError(f"{path}: this is no lock file of data get ({error}).", "Remove it, or give another --lock.") from error


def _check_hash(path: Path, expected: str, name: str) -> str:
    """Returns the hash of a file.

    Raises:
        StorageError: it is another one than expected.
    """
    found = sha256_file(path)
    if expected and found != expected:
        raise StorageError(
            f"{name}: sha256 is {found}, not {expected}.",
            f"Remove {path} and give the same command again, or its source has changed.",
        )
    return found


# From the web ---------------------------------------------------------------------------------------------------------------


def _from_web(file: WebFile, path: Path, expected: str, options: DownloadOptions) -> str:
    """Downloads a file unless it is there, and returns its hash."""
    require("httpx", "data", "data get")
    if not path.exists():
        part = path.with_name(path.name + PART)
        asyncio.run(_download(file, part, options))
        if file.size and part.stat().st_size != file.size:
            raise StorageError(f"{file.url}: {part.stat().st_size} bytes, not {file.size}.", f"Remove {part} and try again.")
        found = _check_hash(part, expected, file.url)
        os.replace(part, path)
        return found
    return _check_hash(path, expected, str(path))


async def _download(file: WebFile, part: Path, options: DownloadOptions) -> None:
    """Appends to a partial file until it is complete; goes on after broken connections.

    Raises:
        DataError: the file is not there, or too many attempts failed without a single byte.
    """
    failures = 0
    pool = httpcore.AsyncConnectionPool(ssl_context=httpx.create_ssl_context(), network_backend=Gate(options))
    async with pool:
        with progress(file.name, file.size or None) as bar:
            while True:
                before = part.stat().st_size if part.exists() else 0
                try:
                    await _append(pool, file, part, options, bar.step)
                    return
                except RecordError as error:
                    raise DataError(f"{file.url}: {error.message} ({error.reason}).", "Try again later.") from error
                except (_Broken, httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, TimeoutError) as error:
                    gained = part.exists() and part.stat().st_size > before
                    failures = 0 if gained else failures + 1
                    if failures >= options.tries:
                        message = f"{file.url}: {error or type(error).__name__}."
                        raise DataError(message, "Give the same command again to go on.") from error
                    await asyncio.sleep(options.pause_seconds * 2**failures)


async def _append(pool: httpcore.AsyncConnectionPool, file: WebFile, part: Path, options: DownloadOptions, step: Any) -> None:
    """Makes one request with its redirects for what is missing of a file."""
    target = parse_url(file.url)
    times = {"connect": options.connect_seconds, "read": options.silence_seconds, "write": options.silence_seconds, "pool": 60.0}
    for _ in range(MAX_REDIRECTS + 1):
        have = part.stat().st_size if part.exists() else 0
        headers = [(b"Host", target.url.netloc), (b"User-Agent", AGENT.encode("ascii")), (b"Accept-Encoding", b"identity")]
        if have:
            headers.append((b"Range", f"bytes={have}-".encode("ascii")))
        async with pool.stream("GET", target.parts, headers=headers, extensions={"timeout": times}) as response:
            fields = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in response.headers}
            if response.status in REDIRECTS and "location" in fields:
                target = parse_url(fields["location"], target.url)
                continue
            if response.status in BUSY | TEMPORARY_STATUS:
                raise _Broken(f"HTTP {response.status}")
            total = fields.get("content-range", "").rpartition("/")[2]
            if response.status == 416 and total == str(have):
                return  # all of it is there
            if response.status not in (200, 206) or fields.get("content-encoding", "identity") != "identity":
                raise RecordError(f"http_{response.status}", f"HTTP {response.status}")
            if response.status == 206 and not fields.get("content-range", "").startswith(f"bytes {have}-"):
                raise RecordError("download_protocol", "the server sends another part than was asked for")
            if response.status == 200 and have:
                part.unlink()  # it cannot go on
                have = 0
            length = int(fields["content-length"]) if fields.get("content-length", "").isdecimal() else None
            got = 0
            with open_to_append(part) as out:
                async for chunk in response.aiter_stream():
                    got += len(chunk)
                    if file.size and have + got > file.size:
                        raise RecordError("download_too_large", f"more than {file.size} bytes")
                    out.write(chunk)
                    step(len(chunk))
            if length is not None and got < length:
                raise _Broken("the connection ended before the file did")
            return
    raise RecordError("download_redirects", f"more than {MAX_REDIRECTS} redirects")


def _unpack(file: WebFile, out: Path) -> None:
    """Writes the members of a zip that are asked for; one that is there with the right size is left.

    Raises:
        DataError: the archive is damaged, or has none of them.
    """
    if not file.unpack:
        return
    path = out / file.name
    try:
        with zipfile.ZipFile(path) as archive:
            infos = [info for info in archive.infolist() if any(fnmatch.fnmatch(info.filename, mask) for mask in file.unpack)]
            infos = [info for info in infos if not info.is_dir() and not info.filename.startswith("__MACOSX")]
            if not infos:
                raise DataError(f"{path}: it holds none of {', '.join(file.unpack)}.")
            for info in infos:
                target = out / check_name(info.filename)
                if target.is_file() and target.stat().st_size == info.file_size:
                    continue
                if info.file_size > MAX_UNPACKED:
                    raise DataError(f"{path}: member {info.filename!r} would take {info.file_size} bytes.")
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(info) as member, atomic_file(target, "wb") as written:
                    left = info.file_size
                    while chunk := member.read(CHUNK):
                        left -= len(chunk)
                        if left < 0:
                            raise DataError(f"{path}: member {info.filename!r} is larger than its header says.")
                        written.write(chunk)
    except RecordError as error:
        raise DataError(f"{path}: {error.message}.") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{path}: it is no whole zip ({error}).", f"Remove {path} and try again.") from error


# From the Hub ---------------------------------------------------------------------------------------------------------------


def _from_hub(found: PublishedSet, out: Path, known: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """Downloads files of a data set of the Hub; returns its commit and the hashes of the files.

    Raises:
        DataError: the Hub cannot be reached or refuses.
        StorageError: a file has another hash than the lock says.
    """
    library = require("huggingface_hub", "data", "data get")
    if reason := hub.check_reachable():
        raise DataError(f"the Hub cannot be reached ({reason}).", "Connect, or name a mirror with HF_ENDPOINT.")
    patterns = list(found.patterns) or None
    try:
        commit = known.get("revision") or library.HfApi().dataset_info(found.repository).sha
        library.snapshot_download(
            found.repository, repo_type="dataset", revision=commit, local_dir=str(out), allow_patterns=patterns
        )
    except Exception as error:  # the client raises errors of its own, of its HTTP library and of the disk
        text = " ".join(str(error).split())[:300]
        raise DataError(f"{found.repository}: {text}", found.note or "Give the same command again to go on.") from error
    names = (file.relative_to(out).as_posix() for file in sorted(out.rglob("*")) if file.is_file())
    names = [name for name in names if not name.startswith(".") and not name.endswith(LOCK)]
    if found.patterns and (missing := [mask for mask in found.patterns if not fnmatch.filter(names, mask)]):
        raise DataError(f"{found.repository} has no file {missing[0]!r} at commit {commit}.", "Is it another data set now?")
    hashes = known.get("files", {})
    return commit, {name: _check_hash(out / name, hashes.get(name, {}).get("sha256", ""), name) for name in names}
