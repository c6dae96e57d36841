"""Zip and tar roots against hostile archives; the tar parser against tarfile, and against every way to cut a tar."""

import contextlib
import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.data.readers import archives
from sightline.data.readers.archives import TarRoot, ZipRoot, open_root, tar_members
from sightline.data.readers.roots import ImageRoot
from sightline.errors import DataError, RecordError, UsageError
from tests.data.pictures import lines, picture, prepared, put


def make_zip(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def make_tar(path: Path, members: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def reason(root: ImageRoot, name: str) -> str:
    with pytest.raises(RecordError) as caught:
        root.fetch(name)
    return caught.value.reason


MAKERS = [("x.zip", make_zip), ("x.tar", make_tar)]


@pytest.mark.parametrize(("name", "make"), MAKERS)
def test_members_are_read_by_name_with_or_without_the_top_folder(tmp_path: Path, name: str, make: Callable) -> None:
    root = open_root(make(tmp_path / name, {"images/a/1.png": b"one", "images/2.JPG": b"two"}))
    assert root.fetch("images/a/1.png") == b"one"
    assert root.fetch("a/1.png") == b"one"
    assert root.fetch("2.JPG") == b"two"
    flat = open_root(make(tmp_path / f"flat-{name}", {"1.png": b"one", "b/2.png": b"two"}))
    assert flat.fetch("./1.png") == b"one"
    assert reason(flat, "2.png") == "image_missing"


@pytest.mark.parametrize(("name", "make"), MAKERS)
def test_only_images_inside_are_handed_out(tmp_path: Path, name: str, make: Callable) -> None:
    members = {"a.png": b"a", "../up.png": b"up", "/etc/x.png": b"abs", "run.sh": b"#!", "b.png.exe": b"MZ"}
    root = open_root(make(tmp_path / name, members))
    assert root.fetch("a.png") == b"a"
    assert reason(root, "../up.png") == "path_outside_root"
    assert reason(root, "/etc/x.png") == "path_outside_root"
    assert reason(root, "run.sh") == "image_suffix"
    assert reason(root, "b.png.exe") == "image_suffix"
    assert reason(root, "none.png") == "image_missing"
    assert sorted(os.listdir(tmp_path)) == [name]


@pytest.mark.parametrize(("name", "make"), MAKERS)
def test_a_member_larger_than_an_image_may_be_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, make: Callable
) -> None:
    monkeypatch.setattr(archives, "MAX_MEMBER", 1000)
    root = open_root(make(tmp_path / name, {"big.png": bytes(1001), "fits.png": bytes(1000)}))
    assert reason(root, "big.png") == "image_too_large"
    assert root.fetch("fits.png") == bytes(1000)


def test_a_zip_whose_directory_lies_about_a_size_gives_no_more_than_the_cap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bomb that claims to be small."""
    monkeypatch.setattr(archives, "MAX_MEMBER", 50_000)
    path = make_zip(tmp_path / "x.zip", {"a.png": bytes(1_000_000)})
    data = path.read_bytes()
    path.write_bytes(data.replace((1_000_000).to_bytes(4, "little"), (1000).to_bytes(4, "little")))
    assert reason(ZipRoot(path), "a.png") in ("image_unreadable", "image_too_large")


def test_links_devices_and_repeated_names_in_archives_are_not_images(tmp_path: Path) -> None:
    put(tmp_path / "secret.png", b"secret")
    with tarfile.open(tmp_path / "x.tar", "w") as file:
        for name, kind, target in [
            ("sym.png", tarfile.SYMTYPE, "../secret.png"),
            ("hard.png", tarfile.LNKTYPE, "twice.png"),
            ("fifo.png", tarfile.FIFOTYPE, ""),
            ("dev.png", tarfile.CHRTYPE, ""),
            ("folder.png", tarfile.DIRTYPE, ""),
        ]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            file.addfile(info)
        for data in (b"1", b"2"):
            info = tarfile.TarInfo("twice.png")
            info.size = 1
            file.addfile(info, io.BytesIO(data))
    root = TarRoot(tmp_path / "x.tar")
    assert {reason(root, f"{name}.png") for name in ("sym", "hard", "fifo", "dev", "folder")} == {"image_missing"}
    assert reason(root, "twice.png") == "image_ambiguous"
    link = zipfile.ZipInfo("sym.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr(link, "../secret.png")
    assert reason(ZipRoot(tmp_path / "x.zip"), "sym.png") == "image_missing"


def test_damaged_members_cost_themselves_and_damaged_archives_are_refused(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "x.zip", {"a.png": bytes(range(256)) * 50, "b.png": b"fine"})
    data = bytearray(path.read_bytes())
    data[60] ^= 255
    path.write_bytes(data)
    root = ZipRoot(path)
    assert reason(root, "a.png") == "image_unreadable"
    assert root.fetch("b.png") == b"fine"
    path.write_bytes(data[:-30])
    with pytest.raises(DataError, match="not a whole zip"):
        open_root(path)
    with pytest.raises(UsageError, match="--images"):
        open_root(put(tmp_path / "x.rar", b"Rar!"))


def test_an_encrypted_member_is_unreadable(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "x.zip", {"a.png": b"data"}, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    for marker in (b"PK\x03\x04", b"PK\x01\x02"):
        data[data.index(marker) + (6 if marker[2] == 3 else 8)] |= 1
    path.write_bytes(data)
    assert reason(ZipRoot(path), "a.png") == "image_unreadable"


# The tar parser -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_that_tarfile_finds(tmp_path: Path, form: int) -> None:
    names = ["a.png", "b/c d.png", "e" * 90 + ".png", "long/" * 18 + "f.png"]
    if form != tarfile.USTAR_FORMAT:
        names += ["x" * 300 + ".png", "ü/日本.png"]
    path = make_tar(tmp_path / "x.tar", {name: name.encode() * 7 for name in names}, form)
    with tarfile.open(path) as file:
        wanted = [(member.name, member.offset_data, member.size) for member in file.getmembers()]
    assert [tuple(member) for member in tar_members(path)] == wanted
    root = TarRoot(path)
    assert all(root.fetch(name) == name.encode() * 7 for name in names)


def test_a_tar_cut_anywhere_is_refused_with_the_members_before_the_cut(tmp_path: Path) -> None:
    """Whatever the cut leaves: half a header, no header, half an image, half of the end marker."""
    path = make_tar(tmp_path / "x.tar", {f"{index}.png": picture(index) for index in range(6)}, tarfile.USTAR_FORMAT)
    with tarfile.open(path) as file:
        ends = [member.offset_data + member.size for member in file.getmembers()]
    data = path.read_bytes()[: -(-ends[-1] // 512) * 512 + 1024]
    silent = 0
    for cut in range(1, len(data) - 1023, 101):
        path.write_bytes(data[:cut])
        with pytest.raises(DataError) as caught:
            list(tar_members(path))
        told = int(str(caught.value).rpartition(" whole members")[0].rpartition("after ")[2])
        assert told in (sum(end <= cut for end in ends), sum(end <= cut for end in ends) + 1), cut
        silent += _tarfile_is_content(data[:cut])
    assert silent > 3, "tarfile alone would have lost members without a word"


def _tarfile_is_content(data: bytes) -> bool:
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as file:
            return 0 < len(file.getmembers()) < 6
    except tarfile.TarError:
        return False


def test_zeros_in_the_middle_of_a_tar_are_damage_wherever_they_stand(tmp_path: Path) -> None:
    """A block of zeros in the place of any header, or of a member as a whole; tarfile ends there without a word."""
    path = make_tar(tmp_path / "x.tar", {f"{index}.png": picture(index) for index in range(6)}, tarfile.USTAR_FORMAT)
    with tarfile.open(path) as file:
        starts = [member.offset for member in file.getmembers()]
    data = path.read_bytes()
    for number, start in enumerate(starts):
        for end in (start + 512, *starts[number + 1 : number + 2]):
            path.write_bytes(data[:start] + bytes(end - start) + data[end:])
            follows = next(place for place in range(start, len(data)) if path.read_bytes()[place])
            if not any(data[end:]):
                continue
            told = rf"data follows at byte {follows}, after {follows - start} zero bytes .* after {number} whole members"
            with pytest.raises(DataError, match=told):
                list(tar_members(path))
            with pytest.raises(DataError, match=told):
                open_root(path)


def test_the_end_of_a_tar_is_zeros_to_the_end_of_the_file(tmp_path: Path) -> None:
    whole = make_tar(tmp_path / "x.tar", {"a.png": b"1", "b.png": b"2"}, tarfile.USTAR_FORMAT).read_bytes()
    end = len(whole.rstrip(b"\0")) + -len(whole.rstrip(b"\0")) % 512
    for zeros in (512, 1024, 3 << 20):
        path = put(tmp_path / "y.tar", whole[:end] + bytes(zeros))
        assert [member.name for member in tar_members(path)] == ["a.png", "b.png"]
    path = put(tmp_path / "y.tar", whole[:end] + bytes(2 << 20) + b"x")
    with pytest.raises(DataError, match=rf"data follows at byte {end + (2 << 20)}, .*after 2 whole members"):
        list(tar_members(path))


@pytest.mark.parametrize(("name", "make"), MAKERS)
def test_the_first_or_second_of_two_archives_in_one_file_does_not_vanish(tmp_path: Path, name: str, make: Callable) -> None:
    parts = [make(tmp_path / f"{index}-{name}", {f"{index}.png": picture(index)}).read_bytes() for index in range(2)]
    with pytest.raises(DataError, match=r"concatenated|two zips"):
        open_root(put(tmp_path / name, b"".join(parts)))


@settings(deadline=None, max_examples=200)
@given(at=st.integers(0, 6000), value=st.integers(0, 255), data=st.data())
def test_any_damage_gives_members_or_our_error(
    tmp_path_factory: pytest.TempPathFactory, at: int, value: int, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("tar")
    names = {"a.png": b"1" * 700, "n" * 150 + ".png": b"2" * 600, "c.png": b""}
    form = data.draw(st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    content = bytearray(make_tar(folder / "x.tar", names, form).read_bytes())
    content[at % len(content)] = value
    (folder / "x.tar").write_bytes(content)
    with contextlib.suppress(DataError):
        for member in tar_members(folder / "x.tar"):
            assert 0 <= member.size <= len(content)
            assert 0 <= member.offset <= len(content)


@pytest.mark.parametrize("at", [0, 130, 520, 156])
def test_a_header_that_fails_its_checksum_is_not_believed(tmp_path: Path, at: int) -> None:
    path = make_tar(tmp_path / "x.tar", {"a.png": b"", "b.png": b"1"}, tarfile.USTAR_FORMAT)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a header is damaged|this is not a tar"):
        list(tar_members(path))


@pytest.mark.parametrize("size", [b"77777777777\0", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"-0000000001\0"])
def test_sizes_that_cannot_be_end_at_once(tmp_path: Path, size: bytes) -> None:
    path = make_tar(tmp_path / "x.tar", {"a.png": b"1"}, tarfile.USTAR_FORMAT)
    header = bytearray(path.read_bytes())
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header[:512]):06o}\0 ".encode()
    path.write_bytes(header)
    with pytest.raises(DataError, match=r"x\.tar"):
        list(tar_members(path))


def test_a_compressed_tar_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w:gz") as file:
        file.addfile(tarfile.TarInfo("a.png"))
    with pytest.raises(DataError, match="unpacked first"):
        open_root(tmp_path / "x.tar")


@pytest.mark.parametrize(("name", "make"), MAKERS)
def test_a_set_prepares_the_same_from_a_folder_and_from_an_archive(tmp_path: Path, name: str, make: Callable) -> None:
    pictures = {f"{index}.png": picture(index) for index in range(5)}
    rows = [
        {
            "id": str(index),
            "image": f"{index}.png",
            "conversations": [{"from": "human", "value": "<image>\nQ"}, {"from": "gpt", "value": "A"}],
        }
        for index in range(6)
    ]
    for place in ("folder", "archive"):
        put(tmp_path / place / "chat.json", rows)
    for file, data in pictures.items():
        put(tmp_path / "folder/images" / file, data)
    make(tmp_path / "archive" / ("images" + name[1:]), {f"images/{file}": data for file, data in pictures.items()})
    summaries = [prepared("llava", tmp_path / place, tmp_path / f"{place}-out") for place in ("folder", "archive")]
    assert summaries[0]["fingerprint"] == summaries[1]["fingerprint"]
    assert summaries[0]["skipped"] == summaries[1]["skipped"] == {"image_missing": 1}
    assert lines(tmp_path / "folder-out/records.jsonl") == lines(tmp_path / "archive-out/records.jsonl")


def test_backslashes_in_a_path_are_slashes_and_cannot_lead_outside(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("photos/1.png", b"one")
        file.writestr("other/2.png", b"two")
    root = open_root(tmp_path / "a.zip")
    assert root.fetch(r"photos\1.png") == b"one"
    for name in (r"..\photos\1.png", r"C:\photos\1.png", r"\photos\1.png"):
        with pytest.raises(RecordError) as caught:
            root.fetch(name)
        assert caught.value.reason == "path_outside_root"
