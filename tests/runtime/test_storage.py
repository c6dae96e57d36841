"""What is written is whole or absent: writers killed at every fault point and at random, full disks, damage, locks, logs."""

import fcntl
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sightline.errors import DataError, StorageError
from sightline.runtime import fault_injection, storage
from sightline.runtime.storage import (
    JsonLines,
    Lock,
    atomic_dir,
    atomic_file,
    check_links,
    read_json_lines,
    safe_join,
    verify_dir,
    write_text,
)

HEAD = "import sys; from pathlib import Path; from sightline.runtime import storage; home = Path(sys.argv[1])\n"
OLD, NEW = "old " * 50_000, "new " * 60_000


def start(code: str, home: Path, plan: str = "") -> "subprocess.Popen[str]":
    """A second Python process that runs `code` with `home` as its folder and the fault plan in its environment."""
    environment = os.environ | {fault_injection.VARIABLE: plan}
    return subprocess.Popen(
        [sys.executable, "-c", HEAD + code, str(home)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: "subprocess.Popen[str]") -> tuple[int, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out + err


def killed(code: str, home: Path, plan: str) -> None:
    code_, text = finish(start(code, home, plan))
    assert code_ == -signal.SIGKILL, text


def leftovers(folder: Path) -> list[str]:
    return [item.name for item in folder.iterdir() if item.name.startswith(".writing-")]


@pytest.fixture(autouse=True)
def _fault_points_are_counted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fault_injection, "_passages", Counter())


# Killed -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["file.before_sync", "file.before_rename"])
def test_a_file_whose_writer_is_killed_is_the_old_one(tmp_path: Path, point: str) -> None:
    write_text(tmp_path / "f", OLD)
    killed(f"storage.write_text(home / 'f', {NEW[:4]!r} * 60_000)", tmp_path, f"{point}=kill")
    assert (tmp_path / "f").read_text() == OLD
    assert leftovers(tmp_path)
    storage.sweep(tmp_path)
    assert os.listdir(tmp_path) == ["f"]


DIRECTORY = """
with storage.atomic_dir(home / 'd', note={'step': 3}) as folder:
    (folder / 'sub').mkdir()
    (folder / 'sub/a').write_bytes(bytes(range(256)) * 99)
    storage.write_json(folder / 'b.json', {'b': 1})
"""


@pytest.mark.parametrize(
    ("plan", "there"),
    [
        ("file.before_rename=kill", False),  # a file in it
        ("dir.before_manifest=kill", False),
        ("file.before_sync=kill@2", False),  # the manifest itself
        ("file.before_rename=kill@2", False),
        ("dir.before_rename=kill", False),
        ("dir.after_rename=kill", True),
    ],
)
def test_a_directory_whose_writer_is_killed_is_complete_or_absent(tmp_path: Path, plan: str, there: bool) -> None:
    killed(DIRECTORY, tmp_path, plan)
    assert (tmp_path / "d").exists() == there
    storage.sweep(tmp_path)
    assert os.listdir(tmp_path) == (["d"] if there else [])
    if there:
        assert verify_dir(tmp_path / "d")["step"] == 3
    else:
        assert finish(start(DIRECTORY, tmp_path)) == (0, "")
        assert set(verify_dir(tmp_path / "d")["files"]) == {"sub/a", "b.json"}


def test_a_long_work_folder_that_is_killed_before_it_is_published_is_still_there(tmp_path: Path) -> None:
    code = (
        "(home / 'work').mkdir(exist_ok=True); (home / 'work/x').write_text('x'); storage.publish_dir(home / 'work', home / 'out')"
    )
    killed(code, tmp_path, "publish.before_rename=kill")
    assert os.listdir(tmp_path) == ["work"]
    assert finish(start(code, tmp_path)) == (0, "")
    assert os.listdir(tmp_path) == ["out"]
    code, text = finish(start(code, tmp_path))
    assert code == 1
    assert "StorageError" in text


WITHOUT_END = """
import itertools
print('begun', flush=True)
for number in itertools.count():
    storage.write_text(home / 'f', str(number % 10) * 300_000)
    with storage.atomic_dir(home / f'd{number}') as folder:
        for name in 'abc':
            (folder / name).write_bytes(bytes([number % 256]) * 50_000)
    if number > 2:
        storage.remove(home / f'd{number - 3}')
"""


def test_readers_see_whole_files_and_directories_while_a_writer_works_and_is_killed_at_random(tmp_path: Path) -> None:
    draw = random.Random(7)
    seen = set()
    for _ in range(3):
        process = start(WITHOUT_END, tmp_path)
        assert process.stdout is not None
        process.stdout.readline()
        until = time.monotonic() + draw.uniform(0.1, 0.5)
        while time.monotonic() < until:
            if (tmp_path / "f").exists():
                seen.add(whole(tmp_path / "f"))
        process.kill()
        process.communicate()
        seen.add(whole(tmp_path / "f"))
        storage.sweep(tmp_path)
        names = sorted(os.listdir(tmp_path))
        assert names[-1] == "f"
        for name in names[:-1]:
            assert len(verify_dir(tmp_path / name)["files"]) == 3
            shutil.rmtree(tmp_path / name)
    assert len(seen) > 1


def whole(file: Path) -> str:
    text = file.read_text()
    assert text == text[0] * 300_000
    return text[0]


def test_removing_a_directory_leaves_nothing_half_removed_under_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with atomic_dir(tmp_path / "d") as folder:
        (folder / "x").write_text("x")
    monkeypatch.setattr(shutil, "rmtree", lambda path, **_: None)  # as if killed before the first file went
    storage.remove(tmp_path / "d")
    assert not (tmp_path / "d").exists()
    monkeypatch.undo()
    storage.sweep(tmp_path)
    assert not os.listdir(tmp_path)


# Refused by the disk ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["enospc", "eio"])
@pytest.mark.parametrize("point", ["file.before_sync", "file.before_rename"])
def test_a_refused_write_is_one_error_and_the_old_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, action: str
) -> None:
    write_text(tmp_path / "f", OLD)
    monkeypatch.setenv(fault_injection.VARIABLE, f"{point}={action}@2")
    monkeypatch.setattr(fault_injection, "_passages", Counter({point: 1}))
    with pytest.raises(StorageError, match=r"f: (No space left|Input/output error).*Free space"):
        write_text(tmp_path / "f", NEW)
    assert (tmp_path / "f").read_text() == OLD
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize("point", ["dir.before_manifest", "file.before_sync", "dir.before_rename"])
def test_a_directory_that_the_disk_refuses_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    monkeypatch.setenv(fault_injection.VARIABLE, f"{point}=enospc")
    with pytest.raises(StorageError, match="No space left"), atomic_dir(tmp_path / "d") as folder:
        (folder / "x").write_text("x")
    assert not os.listdir(tmp_path)


FULL = """
import resource, torch
from safetensors.torch import save_file
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with storage.atomic_dir(home / 'd') as folder:
        save_file({'x': torch.zeros(1_000_000)}, folder / 'x.safetensors')
except storage.StorageError as error:
    print(error)
try:
    storage.write_text(home / 'f', 'y' * 1_000_000)
except storage.StorageError as error:
    print(error)
"""


def test_a_full_disk_is_a_storage_error_for_texts_and_for_tensors(tmp_path: Path) -> None:
    write_text(tmp_path / "f", OLD)
    code, text = finish(start(FULL, tmp_path))
    assert code == 0, text
    lines = text.splitlines()
    assert len(lines) == 2
    assert all("File too large" in line and "Free space or choose another folder" in line for line in lines)
    assert (tmp_path / "f").read_text() == OLD
    assert os.listdir(tmp_path) == ["f"]


def test_targets_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "x")
    (tmp_path / "full").mkdir()
    write_text(tmp_path / "full/x", "x")
    with pytest.raises(StorageError, match=r"none/f: No such file or directory"):
        write_text(tmp_path / "none/f", "x")
    with pytest.raises(StorageError, match=r"full: Is a directory"):
        write_text(tmp_path / "full", "x")
    with pytest.raises(StorageError, match=r"full exists already"), atomic_dir(tmp_path / "full"):
        pass
    with pytest.raises(StorageError, match=r"file/d: (Not a directory|File exists)"), atomic_dir(tmp_path / "file/d"):
        pass
    assert sorted(os.listdir(tmp_path)) == ["file", "full"]


@pytest.mark.parametrize("name", ["x" * 255, "\u6f22" * 85, "a b\n\u00e9"])
def test_any_name_that_the_file_system_takes_can_be_written(tmp_path: Path, name: str) -> None:
    write_text(tmp_path / name, "x")
    assert os.listdir(tmp_path) == [name]


def test_what_fails_inside_leaves_nothing_and_says_itself(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic_dir(tmp_path / "d") as folder:
        (folder / "x").write_bytes(bytes(1 // 0))
    with pytest.raises(ZeroDivisionError), atomic_file(tmp_path / "f") as file:
        file.write("x" * (1 // 0))
    with pytest.raises(ValueError, match="JSON compliant"):
        storage.write_json(tmp_path / "j", {"x": float("nan")})
    assert not os.listdir(tmp_path)


# Damage -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    with atomic_dir(tmp_path / "d") as folder:
        (folder / "sub").mkdir()
        (folder / "sub/a").write_bytes(bytes(range(256)))
        (folder / "b").write_bytes(b"bbbb")
    assert storage.has_all_files(tmp_path / "d")
    return tmp_path / "d"


def flip(file: Path, bit: int) -> None:
    data = bytearray(file.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)


def swap(folder: Path) -> None:
    (folder / "b").rename(folder / "c")
    (folder / "sub/a").rename(folder / "b")
    (folder / "c").rename(folder / "sub/a")


DAMAGE = {
    "added": (lambda folder: (folder / "sub/x").write_text("x"), r"sub/x: not in the manifest"),
    "emptied": (lambda folder: (folder / "b").write_bytes(b""), r"b: 0 bytes, 4 expected"),
    "flipped": (lambda folder: flip(folder / "sub/a", 777), r"sub/a: its hash is not that of the manifest"),
    "manifest gone": (lambda folder: (folder / "manifest.json").unlink(), r"manifest.json: missing or torn"),
    "manifest torn": (lambda folder: os.truncate(folder / "manifest.json", 90), r"manifest.json: missing or torn"),
    "removed": (lambda folder: (folder / "b").unlink(), r"b: missing"),
    "swapped": (swap, r"b: 256 bytes, 4 expected"),
    "truncated": (lambda folder: os.truncate(folder / "sub/a", 255), r"sub/a: 255 bytes, 256 expected"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_any_damage_is_found_and_its_file_named(directory: Path, kind: str) -> None:
    damage, message = DAMAGE[kind]
    damage(directory)
    with pytest.raises(StorageError, match=message):
        verify_dir(directory)


def test_every_flipped_bit_of_a_file_is_found(directory: Path) -> None:
    for bit in range(0, 256 * 8, 13):
        flip(directory / "sub/a", bit)
        with pytest.raises(StorageError):
            verify_dir(directory)
        flip(directory / "sub/a", bit)
    verify_dir(directory)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["schema", "files", "size", "sha256", "b"]), inner),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=60)
    | JSON.map(json.dumps).map(str.encode)
    | JSON.map(lambda v: json.dumps({"schema": 1, "files": v}).encode())
)
def test_any_manifest_is_the_right_one_or_a_storage_error(directory: Path, content: bytes) -> None:
    (directory / "manifest.json").write_bytes(content)
    with pytest.raises(StorageError):
        verify_dir(directory)
    assert not storage.has_all_files(directory) or json.loads(content)["files"] == {}


@pytest.mark.parametrize(
    ("name", "entry", "more"),
    [
        ("b", {"size": "1", "sha256": "0"}, {}),
        ("b", {"size": True, "sha256": "0"}, {}),
        ("b", {"size": 1, "sha256": 5}, {}),
        ("../b", {"size": 1, "sha256": "0"}, {}),
        ("/b", {"size": 1, "sha256": "0"}, {}),
        ("", {"size": 1, "sha256": "0"}, {}),
        ("b", {"size": 1, "sha256": "0"}, {"unread": "x"}),
        ("b", {"size": 1, "sha256": "0"}, {"unread": {"b": "x"}}),
    ],
)
def test_a_manifest_whose_entries_are_of_other_types_is_refused(tmp_path: Path, name: str, entry: Any, more: Any) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"schema": 1, "files": {name: entry}, **more}))
    with pytest.raises(StorageError, match="unknown schema"):
        storage.read_manifest(tmp_path)


def test_known_hashes_of_linked_files_are_taken_over_and_still_verified(tmp_path: Path, directory: Path) -> None:
    known = {"b": verify_dir(directory)["files"]["b"]["sha256"]}
    with atomic_dir(tmp_path / "e", known) as folder:
        storage.link_or_copy(directory / "b", folder / "b")
    assert (tmp_path / "e/b").stat().st_ino == (directory / "b").stat().st_ino
    verify_dir(tmp_path / "e")
    with atomic_dir(tmp_path / "g", {"b": "0" * 64}) as folder:
        storage.link_or_copy(directory / "b", folder / "b")
    with pytest.raises(StorageError, match="its hash"):
        verify_dir(tmp_path / "g")


# Paths ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["", "/etc/passwd", "../secret", "a/../../secret", "a\\b", "x\0", "link", "linked/secret", "none", "a", "loop", "x" * 300],
)
def test_a_path_from_data_stays_inside_its_root(tmp_path: Path, path: str) -> None:
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    write_text(root / "a/b", "x")
    write_text(tmp_path / "secret", "x")
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "linked").symlink_to(tmp_path)
    (root / "loop").symlink_to(root / "loop")
    (root / "fine").symlink_to(root / "a/b")
    with pytest.raises(DataError):
        safe_join(root, path)
    assert safe_join(root, "a/b") == root / "a/b"
    assert safe_join(root, "fine").read_text() == "x"


def test_a_path_and_a_link_may_lead_to_a_trusted_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, shared, other = tmp_path / "root", tmp_path / "shared", tmp_path / "other"
    for folder in (root, shared, other):
        folder.mkdir()
        write_text(folder / "a", folder.name)
        (root / f"to_{folder.name}").symlink_to(folder / "a")
    ways = [str(shared / "a"), "../shared/a", "to_shared"]
    for way in ways:
        assert safe_join(root, way, [shared]).read_text() == "shared"
        with pytest.raises(DataError):
            safe_join(root, way)
        with pytest.raises(DataError):
            safe_join(root, way, [other])
    monkeypatch.setenv("SIGHTLINE_ROOTS", os.pathsep.join(map(str, [other, shared])))
    assert [safe_join(root, way).read_text() for way in ways] == ["shared"] * 3
    check_links(root)
    with pytest.raises(DataError):
        safe_join(root, str(tmp_path / "none"))


def test_files_of_a_folder_that_are_links_out_of_it_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    write_text(root / "real", "x")
    write_text(tmp_path / "secret", "x")
    (root / "near").symlink_to("real")
    (tmp_path / "named").symlink_to(root)
    check_links(root)
    check_links(tmp_path / "named")  # what the user named may be a link itself
    for target in (tmp_path / "secret", tmp_path / "missing", root / "far", Path("/dev/zero")):
        (root / "far").symlink_to(target)
        with pytest.raises(DataError, match="far"):
            check_links(root)
        check_links(root, ["real", "near"])
        (root / "far").unlink()
    os.mkfifo(root / "pipe")
    with pytest.raises(DataError, match="pipe is not a regular file"):
        check_links(root)


def test_a_snapshot_of_the_hub_may_link_to_the_blobs_of_its_own_cache_only(tmp_path: Path) -> None:
    for name in ("models--a--b", "models--c--d"):
        (tmp_path / name / "snapshots/abc").mkdir(parents=True)
        (tmp_path / name / "blobs").mkdir()
        write_text(tmp_path / name / "blobs/1", "x")
    snapshot = tmp_path / "models--a--b/snapshots/abc"
    (snapshot / "config.json").symlink_to("../../blobs/1")
    check_links(snapshot)
    (snapshot / "other").symlink_to("../../../models--c--d/blobs/1")
    with pytest.raises(DataError, match="other leads to"):
        check_links(snapshot)
    (snapshot / "other").unlink()
    (tmp_path / "models--a--b/blobs").rename(tmp_path / "secret")
    (tmp_path / "models--a--b/blobs").symlink_to(tmp_path / "secret")
    with pytest.raises(DataError, match=r"config\.json leads to"):
        check_links(snapshot)


def test_files_that_sightline_writes_are_not_read_or_appended_to_through_a_link(tmp_path: Path) -> None:
    root, secret = tmp_path / "root", tmp_path / "secret"
    root.mkdir()
    write_text(secret, '{"a": 1}\n')
    for target in (secret, tmp_path / "missing"):
        (root / "file").symlink_to(target)
        for use in (storage.read_json, storage.read_json_lines, JsonLines):
            with pytest.raises(StorageError, match=rf"file leads to .*{target.name}, outside of"):
                use(root / "file")
        (root / "file").unlink()
    assert secret.read_text() == '{"a": 1}\n'
    assert not (tmp_path / "missing").exists()


def test_a_manifest_and_its_files_are_not_read_through_links(tmp_path: Path, directory: Path) -> None:
    (directory / "b").rename(tmp_path / "secret")
    (directory / "b").symlink_to(tmp_path / "secret")
    with pytest.raises(StorageError, match="outside of"):
        verify_dir(directory)
    assert not storage.has_all_files(directory)
    (directory / "manifest.json").rename(tmp_path / "manifest.json")
    (directory / "manifest.json").symlink_to(tmp_path / "manifest.json")
    with pytest.raises(StorageError, match=r"manifest.json leads to"):
        storage.read_manifest(directory)


# Logs -------------------------------------------------------------------------------------------------------------------------


def test_every_line_that_was_written_outlives_a_kill_and_a_torn_one_is_cut(tmp_path: Path) -> None:
    code = """
log = storage.JsonLines(home / 'log')
for number in range(100):
    log.write({'step': number, 'text': '\\u6f22\\n'})
import os; os.kill(os.getpid(), 9)
"""
    assert finish(start(code, tmp_path))[0] == -9
    with (tmp_path / "log").open("ab") as file:
        file.write(b'{"step": 100, "te')
    assert [line["step"] for line in read_json_lines(tmp_path / "log")] == list(range(100))
    log = JsonLines(tmp_path / "log")
    log.write({"step": 100, "value": float("inf")})
    log.sync()
    log.close()
    assert [line["step"] for line in read_json_lines(tmp_path / "log")] == list(range(101))


@pytest.mark.parametrize("torn", [b"", b"{", b"5", b'{"step": 9}', b"\xff\xff\n", b"\n", b'{"a": "b\n', b"\0" * 40])
def test_whatever_stands_at_the_torn_end_of_a_log_is_cut(tmp_path: Path, torn: bytes) -> None:
    (tmp_path / "log").write_bytes(b'{"step": 1}\n' + torn)
    log = JsonLines(tmp_path / "log")
    log.keep(lambda line: line["step"] < 5)
    log.write({"step": 2})
    log.close()
    assert read_json_lines(tmp_path / "log") == [{"step": 1}, {"step": 2}]


def test_lines_after_the_kept_ones_are_cut_and_writing_goes_on(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "log")
    for step in range(6):
        log.write({"step": step})
    log.keep(lambda line: line["step"] <= 2)
    log.write({"step": 9})
    log.close()
    assert [line["step"] for line in read_json_lines(tmp_path / "log")] == [0, 1, 2, 9]


NUMBERED = [{"step": number, "text": f"line {number}"} for number in range(7)]


def log_of(path: Path, checksum: bool = False) -> Path:
    log = JsonLines(path, checksum)
    for line in NUMBERED:
        log.write(line)
    log.close()
    return path


@pytest.mark.parametrize("number", [1, 4, 7])
@pytest.mark.parametrize("bad", [b"{", b"\xff\xfe", b"[1]", b"", b'{"text": "no step"}'])
def test_a_damaged_line_anywhere_is_moved_aside_with_its_number_and_all_others_stay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, number: int, bad: bytes
) -> None:
    path = log_of(tmp_path / "log")
    lines = path.read_bytes().splitlines(keepends=True)
    lines[number - 1] = bad + b"\n"
    path.write_bytes(b"".join(lines))
    whole = [line for line in NUMBERED if line["step"] != number - 1]
    assert [line for _, line in storage.whole_lines(path, storage.has_keys("step"))] == whole
    assert f"log: 1 damaged line (number {number}), left out" in caplog.text
    log = JsonLines(path, check=storage.has_keys("step"))
    assert f"log: 1 damaged line (number {number}), moved to log.damaged" in caplog.text
    log.write({"step": 7, "text": "new"})
    log.close()
    assert read_json_lines(path) == [*whole, {"step": 7, "text": "new"}]
    assert (tmp_path / "log.damaged").read_bytes() == bad + b"\n"


def test_many_damaged_lines_are_counted_and_the_first_ten_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "log").write_bytes(b"broken\n" * 14 + b'{"step": 1}\n{"step": 2')
    assert read_json_lines(tmp_path / "log") == [{"step": 1}]
    assert "14 damaged lines (number 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 4 more)" in caplog.text


def test_whatever_bit_flips_in_a_file_with_checksums_no_line_is_read_that_was_not_written(tmp_path: Path) -> None:
    """Every bit of every byte; a line is left out, and never changed."""
    written = log_of(tmp_path / "log", checksum=True).read_bytes()
    lengths = [len(line) for line in written.splitlines(keepends=True)]
    assert read_json_lines(tmp_path / "log") == NUMBERED
    for place in range(sum(lengths[:2])):
        for bit in range(8):
            data = bytearray(written[: sum(lengths[:3])])
            data[place] ^= 1 << bit
            (tmp_path / "flipped").write_bytes(data)
            found = read_json_lines(tmp_path / "flipped")
            assert len(found) in (1, 2), data  # a newline that is gone or new costs two lines
            assert all(line in NUMBERED for line in found), (data, found)


def test_lines_of_a_version_without_checksums_are_read_beside_new_ones(tmp_path: Path) -> None:
    log_of(tmp_path / "log")
    log = JsonLines(tmp_path / "log", checksum=True)
    log.write({"step": 7})
    log.close()
    assert read_json_lines(tmp_path / "log") == [*NUMBERED, {"step": 7}]
    assert not (tmp_path / "log.damaged").exists()


def test_a_line_that_is_not_wanted_takes_no_other_with_it(tmp_path: Path) -> None:
    """A step number that a flipped bit made larger than that of the checkpoint."""
    path = tmp_path / "log"
    path.write_bytes(b"".join(b'{"step": %d}\n' % step for step in (1, 6, 3, 4, 5)))
    log = JsonLines(path)
    log.keep(lambda line: line["step"] <= 4)
    log.write({"step": 5})
    log.close()
    assert [line["step"] for line in read_json_lines(path)] == [1, 3, 4, 5]


# Locks ------------------------------------------------------------------------------------------------------------------------

HOLD = "lock = storage.Lock(home / 'lock.json'); lock.__enter__(); print('held', flush=True); sys.stdin.read()"


def holder(home: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", HEAD + HOLD, str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_live_holder_is_named_and_a_dead_ones_lock_is_taken_over(tmp_path: Path) -> None:
    process = holder(tmp_path)
    with pytest.raises(StorageError, match=rf"in use by process {process.pid} on {socket.gethostname()}.*remove .*lock\.json"):
        Lock(tmp_path / "lock.json").__enter__()
    process.kill()
    process.communicate()
    assert (tmp_path / "lock.json").exists()
    with Lock(tmp_path / "lock.json"):
        assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()
    assert not os.listdir(tmp_path)


def test_a_holder_that_has_not_written_its_name_yet_is_a_holder(tmp_path: Path) -> None:
    process = holder(tmp_path)
    os.truncate(tmp_path / "lock.json", 0)  # between creation and write
    with pytest.raises(StorageError, match="in use by another process"):
        Lock(tmp_path / "lock.json").__enter__()
    process.kill()
    process.communicate()


def entry(**changes: Any) -> str:
    return json.dumps({"pid": os.getppid(), "host": socket.gethostname(), "start": "1", **changes})


@pytest.mark.parametrize("text", ["", "{", "[1]", "5", '{"pid": "x"}', entry(), entry(pid=2**22 + 1), entry(pid=os.getpid())])
def test_a_lock_of_nobody_is_taken_over(tmp_path: Path, text: str) -> None:
    """Torn, of a dead process, or of a process whose number another one has now (its start time differs)."""
    (tmp_path / "lock.json").write_text(text)
    with Lock(tmp_path / "lock.json"):
        pass


def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", no_locks)


def test_a_lock_that_another_host_left_is_taken_over_once_the_system_grants_it(tmp_path: Path) -> None:
    """A job that was killed on one node and goes on on another."""
    (tmp_path / "lock.json").write_text(entry(host="elsewhere"))
    with Lock(tmp_path / "lock.json"):
        assert json.loads((tmp_path / "lock.json").read_text())["host"] == socket.gethostname()


def test_a_lock_of_another_host_stands_where_files_have_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_locks(monkeypatch)
    (tmp_path / "lock.json").write_text(entry(host="elsewhere"))
    with pytest.raises(StorageError, match="on elsewhere"):
        Lock(tmp_path / "lock.json").__enter__()
    assert json.loads((tmp_path / "lock.json").read_text())["host"] == "elsewhere"


def test_where_files_have_no_locks_what_stands_in_them_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_locks(monkeypatch)
    process = holder(tmp_path)
    with pytest.raises(StorageError, match=f"process {process.pid}"):
        Lock(tmp_path / "lock.json").__enter__()
    process.kill()
    process.communicate()
    with Lock(tmp_path / "lock.json"):
        pass


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_lock_that_is_a_link_overwrites_nothing(tmp_path: Path, link: Any) -> None:
    (tmp_path / "precious").write_text("weights")
    link(tmp_path / "precious", tmp_path / "lock.json")
    with pytest.raises(StorageError, match=r"lock\.json is a link"):
        Lock(tmp_path / "lock.json").__enter__()
    assert (tmp_path / "precious").read_text() == "weights"
    assert os.path.lexists(tmp_path / "lock.json")


def test_a_link_to_nowhere_and_a_pipe_are_no_locks(tmp_path: Path) -> None:
    (tmp_path / "lock.json").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    for name in ("lock.json", "pipe"):
        with pytest.raises(StorageError, match="is a link or no regular file"):
            Lock(tmp_path / name).__enter__()
    assert not (tmp_path / "nowhere").exists()


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    with pytest.raises(StorageError, match=r"run/lock\.json: (File exists|Not a directory)"):
        Lock(tmp_path / "run/lock.json").__enter__()


RACE = """
import os, time
while time.time() < float(os.environ['SIGHTLINE_TEST_AT']):
    pass
for attempt in range(200):
    try:
        with storage.Lock(home / 'lock.json'):
            handle = os.open(home / 'inside', os.O_CREAT | os.O_EXCL)
            os.close(handle)
            os.unlink(home / 'inside')
    except storage.StorageError:
        pass
    except FileExistsError:
        sys.exit(3)
"""


def test_of_several_that_start_at_once_never_two_are_inside(tmp_path: Path) -> None:
    os.environ["SIGHTLINE_TEST_AT"] = str(time.time() + 1)
    (tmp_path / "lock.json").write_text(entry(pid=2**22 + 1))  # a dead holder's, so that all of them want to take it over
    try:
        processes = [start(RACE, tmp_path) for _ in range(3)]
    finally:
        del os.environ["SIGHTLINE_TEST_AT"]
    assert [finish(process) for process in processes] == [(0, "")] * 3
