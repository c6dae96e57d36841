"""Files of others: no device, no unbounded memory, one kind of error for damaged JSON, arrays and archives."""

import io
import json
import os
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from sightline.config import read_yaml
from sightline.data.features.tables import _Hdf5
from sightline.data.readers.archives import open_root, tar_members
from sightline.data.readers.base import SourceOptions, Tally
from sightline.data.readers.strict_json import parse_json as parse_strict
from sightline.data.readers.tables import PRESETS, read_table
from sightline.errors import ConfigError, DataError, RecordError
from sightline.metrics.files import read_predictions
from sightline.runtime.arrays import read_npy, read_npz
from sightline.runtime.inputs import open_input, parse_json


@pytest.mark.parametrize("kind", ["device", "pipe", "folder", "long", "null"])
def test_only_regular_files_of_a_bounded_size_are_opened(kind: str, tmp_path: Path) -> None:
    path = {"device": Path("/dev/zero"), "null": Path("a\0b")}.get(kind, tmp_path / "x")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "long":
        path.write_bytes(b"x" * 11)
    with pytest.raises(OSError, match=r"regular|directory|at most 10|name"):
        open_input(path, 10)


def test_a_device_is_no_configuration_and_no_predictions() -> None:
    with pytest.raises(ConfigError, match="not a regular file"):
        read_yaml("/dev/zero")
    with pytest.raises(DataError, match="not a regular file"):
        read_predictions(Path("/dev/zero"))


@pytest.mark.parametrize("text", ["[" * 100_000, '"\\ud800"', "9" * 5000, "{", b"\xff"])
def test_json_that_cannot_be_used_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)
    assert parse_json('"\\ud83e\\udd86"') == "🦆"


def test_many_keys_are_compared_in_linear_time() -> None:
    text = json.dumps({f"k{number}": number for number in range(50_000)})
    begin = time.perf_counter()
    assert len(parse_strict(text)) == 50_000
    with pytest.raises(RecordError, match="twice"):
        parse_strict(text[:-1] + ', "k7": 1}')
    assert time.perf_counter() - begin < 1.0


def saved(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"(4, 3)", b"(4,999999999999)"),
        (b"(4, 3)", b"(-4,3)"),
        (b"(4, 3)", b"((((("),
        (b"'<f4'", b"'|O' "),
        (b"'<f4'", b"'<U0'"),
        (b"\x93NUMPY\x01", b"\x93NUMPY\x07"),
    ],
)
def test_a_header_that_claims_what_is_not_there_is_a_value_error(old: bytes, new: bytes, tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.float32).reshape(4, 3)
    whole = saved(array)
    assert old in whole
    grown = len(new) - len(old)
    damaged = (
        whole.replace(old, new).replace(b" " * (grown + 1) + b"\n", b" \n", 1)
        if grown > 0
        else whole.replace(old, new.ljust(len(old)))
    )
    (tmp_path / "x.npy").write_bytes(damaged)
    for is_mapped in (False, True):
        with pytest.raises(ValueError, match=r"."):
            read_npy(tmp_path / "x.npy", is_mapped)
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", damaged)
    with pytest.raises(ValueError, match=r"."):
        read_npz(tmp_path / "x.npz", ["x"])


@pytest.mark.parametrize("order", ["C", "F"])
def test_whole_arrays_are_what_numpy_reads(order: str, tmp_path: Path) -> None:
    array = np.asarray(np.arange(12, dtype=np.float32).reshape(4, 3), order=order)  # type: ignore[call-overload]
    np.save(tmp_path / "x.npy", array)
    np.savez_compressed(tmp_path / "x.npz", x=array, y=np.array("text"), z=np.zeros((0, 3)))
    for found in (read_npy(tmp_path / "x.npy"), read_npy(tmp_path / "x.npy", is_mapped=True)):
        np.testing.assert_array_equal(found, array)
    stored = read_npz(tmp_path / "x.npz", ["x", "y", "z"])
    np.testing.assert_array_equal(stored["x"], array)
    assert str(stored["y"]) == "text"
    assert stored["z"].shape == (0, 3)


def test_every_damage_of_an_lzma_zip_skips_the_image(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.png", bytes(range(256)) * 4)
    whole = path.read_bytes()
    refused = 0
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            open_root(path).fetch("a.png")
        except (DataError, RecordError):
            refused += 1
    assert refused > len(whole) // 2


def test_a_size_of_thousands_of_digits_in_a_tar_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.txt")
    info.pax_headers = {"size": "9" * 5000}
    (tmp_path / "x.tar").write_bytes(info.tobuf(tarfile.PAX_FORMAT) + bytes(1024))
    with pytest.raises(DataError, match="gives the size"):
        list(tar_members(tmp_path / "x.tar"))


def test_an_hdf5_file_that_asks_for_more_than_it_can_hold_is_refused(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("v", shape=(10_000, 1_000, 1_900), dtype="f4", chunks=(1, 10, 10))  # 76 GB, none of them written
    assert (tmp_path / "x.h5").stat().st_size < 5000
    with _Hdf5(tmp_path / "x.h5") as table, pytest.raises(DataError, match="76000000000 bytes in a file of"):
        table.column("v", "--values")


def test_a_text_of_500_megabytes_in_a_row_of_parquet_is_refused(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    text = arrow.repeat(arrow.scalar("x" * 70_000_000), 1)
    table = arrow.table({"image": ["a.png"], "caption": text})
    parquet.write_table(table, tmp_path / "x.parquet", compression="zstd")
    with pytest.raises(DataError, match="claims 7"):
        list(read_table(tmp_path / "x.parquet", PRESETS["parquet"], SourceOptions(), Tally()))
