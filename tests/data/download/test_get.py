"""`data get`: nothing before the licence is accepted, whole files or an error, hashes known or recorded, the Hub by its client."""

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

import pytest

from sightline.data.download import DownloadOptions, parse_networks
from sightline.data.download import get as module
from sightline.data.download.catalogue import PUBLISHED, PublishedSet, WebFile
from sightline.data.download.get import get
from sightline.errors import DataError, StorageError, UsageError
from sightline.runtime import hub
from tests.data.download.file_server import FileServer, file_server
from tests.data.readers.hub_server import REVISION, hub_server

BIG = bytes(range(256)) * 400
LOCAL = DownloadOptions(tries=3, pause_seconds=0.001, allowed=parse_networks(["127.0.0.1"]))


def archive(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return buffer.getvalue()


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def server() -> Iterator[FileServer]:
    files = {
        "big.bin": BIG,
        "text.zip": archive({"a/captions_1.json": b"{}", "a/other.py": b"evil()", "__MACOSX/a/captions_1.json": b"x"}),
        "climbs.zip": archive({"../captions_1.json": b"{}"}),
        "moved": b"/big.bin",
    }
    with file_server(files) as found:
        yield found


@pytest.fixture
def published(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def one(*files: WebFile) -> PublishedSet:
        return PublishedSet("a set", "MIT", "http://terms", "OUT --format records", files)

    url = server.address
    sets = {
        "fixed": one(WebFile(f"{url}/big.bin", sha(BIG), len(BIG))),
        "first": one(WebFile(f"{url}/big.bin"), WebFile(f"{url}/text.zip", unpack=("*captions_*.json",))),
        "wrong": one(WebFile(f"{url}/big.bin", "0" * 64)),
        "small": one(WebFile(f"{url}/big.bin", sha(BIG), 1000)),
        "gone": one(WebFile(f"{url}/none.bin")),
        "moved": one(WebFile(f"{url}/moved", sha(BIG))),
        "climbs": one(WebFile(f"{url}/climbs.zip", unpack=("*.json",))),
    }
    monkeypatch.setattr(module, "PUBLISHED", MappingProxyType(sets))


@pytest.mark.usefixtures("published")
def test_nothing_is_downloaded_before_the_licence_is_accepted(tmp_path: Path, server: FileServer) -> None:
    with pytest.raises(UsageError, match=r"licence: MIT\. Read http://terms, then add --accept-licence"):
        get("fixed", tmp_path / "out", False, LOCAL)
    with pytest.raises(UsageError, match="did you mean 'fixed'"):
        get("fixd", tmp_path / "out", True, LOCAL)
    assert not server.ranges
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("published")
def test_broken_connections_are_gone_on_from_and_the_hash_is_checked(tmp_path: Path, server: FileServer) -> None:
    server.cuts = [1000, 0, 70_000]
    server.status = [503]
    found = get("fixed", tmp_path, True, LOCAL)
    assert (tmp_path / "big.bin").read_bytes() == BIG
    assert found["files"] == {"big.bin": {"sha256": sha(BIG), "size": len(BIG), "hash_from": "published"}}
    assert server.ranges == ["", "", "bytes=1000-", "bytes=1000-", "bytes=71000-"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["big.bin", "fixed.lock.json"]
    before = len(server.ranges)
    assert get("fixed", tmp_path, True, LOCAL) == found  # verified, not downloaded
    assert len(server.ranges) == before


@pytest.mark.usefixtures("published")
def test_a_part_of_an_earlier_run_is_gone_on_from_also_where_it_is_whole(tmp_path: Path, server: FileServer) -> None:
    for have in (5000, len(BIG)):
        out = tmp_path / str(have)
        out.mkdir()
        (out / "big.bin.part").write_bytes(BIG[:have])
        get("fixed", out, True, LOCAL)
        assert (out / "big.bin").read_bytes() == BIG
        assert server.ranges[-1] == f"bytes={have}-"
    server.takes_ranges = False  # then it begins again
    (tmp_path / "c").mkdir()
    (tmp_path / "c/big.bin.part").write_bytes(b"other")
    get("fixed", tmp_path / "c", True, LOCAL)
    assert (tmp_path / "c/big.bin").read_bytes() == BIG


@pytest.mark.usefixtures("published")
def test_a_hash_that_nobody_published_is_recorded_and_verified_later(tmp_path: Path, server: FileServer) -> None:
    found = get("first", tmp_path / "a", True, LOCAL)
    assert {entry["hash_from"] for entry in found["files"].values()} == {"first download"}
    assert (tmp_path / "a/a/captions_1.json").read_bytes() == b"{}"
    assert not list((tmp_path / "a").rglob("*.py"))
    assert not (tmp_path / "a/__MACOSX").exists()
    lock = tmp_path / "a/first.lock.json"
    assert json.loads(lock.read_text())["files"]["big.bin"]["sha256"] == sha(BIG)
    get("first", tmp_path / "b", True, LOCAL, lock)
    server.files = {**server.files, "big.bin": BIG[::-1]}
    with pytest.raises(StorageError, match=f"not {sha(BIG)}"):
        get("first", tmp_path / "c", True, LOCAL, lock)
    assert not (tmp_path / "c/big.bin").exists()
    (tmp_path / "a/big.bin").write_bytes(b"changed")
    with pytest.raises(StorageError, match=f"not {sha(BIG)}"):
        get("first", tmp_path / "a", True, LOCAL)
    with pytest.raises(UsageError, match="is of 'first', not of 'fixed'"):
        get("fixed", tmp_path / "d", True, LOCAL, lock)
    with pytest.raises(StorageError, match="no lock file"):
        get("first", tmp_path / "d", True, LOCAL, tmp_path / "none")


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("wrong", StorageError, "not 0000"),
        ("small", DataError, "more than 1000 bytes"),
        ("gone", DataError, "HTTP 404"),
        ("climbs", DataError, "must be relative"),
    ],
)
def test_what_is_not_the_file_is_an_error(tmp_path: Path, name: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        get(name, tmp_path / "out", True, LOCAL)
    assert not (tmp_path / "out/big.bin").exists()
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.usefixtures("published")
def test_redirects_are_followed_and_private_addresses_refused(tmp_path: Path, server: FileServer) -> None:
    get("moved", tmp_path / "a", True, LOCAL)
    assert (tmp_path / "a/moved").read_bytes() == BIG
    with pytest.raises(DataError, match="url_refused"):
        get("fixed", tmp_path / "b", True, DownloadOptions())
    server.files = {**server.files, "moved": b"http://169.254.169.254/latest"}
    with pytest.raises(DataError, match="url_refused"):
        get("moved", tmp_path / "c", True, LOCAL)


def test_a_set_of_the_hub_comes_from_the_mirror_at_a_recorded_commit(tmp_path: Path) -> None:
    """In a process of its own, since the address of the Hub is read once."""
    files = {"chat.json": b"[]", "images.zip": archive({"1.jpg": b"x"}), "README.md": b"---\nlicense: mit\n---\n"}
    with hub_server(files) as address:
        home = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        words = ["data", "get", "llava-595k", "--accept-licence", "--out", str(tmp_path / "out"), "--json"]
        done = subprocess.run(
            [sys.executable, "-m", "sightline", *words], env=os.environ | home, capture_output=True, text=True, timeout=120
        )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["revision"] == REVISION
    assert {name: entry["sha256"] for name, entry in found["files"].items()} == {
        name: sha(files[name]) for name in ("chat.json", "images.zip")
    }


def test_a_hub_that_cannot_be_reached_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "check_reachable", lambda: "no network")
    with pytest.raises(DataError, match=r"cannot be reached \(no network\)"):
        get("llava-595k", tmp_path, True, LOCAL)


def test_the_catalogue_is_whole() -> None:
    assert list(PUBLISHED) == sorted(PUBLISHED)
    for name, found in PUBLISHED.items():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
        assert found.about
        assert found.licence
        assert found.terms.startswith("https://")
        assert bool(found.files) != bool(found.repository)
        for file in found.files:
            assert re.fullmatch("([0-9a-f]{64})?", file.sha256)
            assert file.url.startswith("https://") or file.sha256, "an address without TLS needs a known hash"
