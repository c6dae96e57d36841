"""Reads .npy and .npz files whose headers may be damaged or hostile: a header is checked against the file's own length first."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from sightline.runtime.inputs import ARCHIVE_ERRORS, check_member_size, open_input, open_zip

MAX_AXES = 16


class ArrayHeader(NamedTuple):
    """Header of a .npy file."""

    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_npy_header(stream: IO[bytes], length: int) -> ArrayHeader:
    """Reads the header of a .npy file; the stream is then at its first number.

    Args:
        stream: at the beginning of the file.
        length: of the file in bytes.

    Raises:
        ValueError: it is no header, or describes Python objects or more bytes than follow it.
        OSError: it cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy warns of headers that Python 2 wrote, and of odd ones
            version = np.lib.format.read_magic(stream)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"version {version} of .npy")
            is_first = version == (1, 0)
            read = np.lib.format.read_array_header_1_0 if is_first else np.lib.format.read_array_header_2_0
            shape, is_fortran, dtype = read(stream)
        at = stream.tell()
    except OSError:
        raise
    except Exception as error:  # numpy evaluates the header as Python and may raise anything
        text = str(error).splitlines() or [""]
        raise ValueError(f"no .npy header ({type(error).__name__}: {text[0][:200]})") from error
    if dtype.hasobject or dtype.itemsize == 0:
        raise ValueError(f"numbers of type {dtype}; save plain numbers or texts")
    if len(shape) > MAX_AXES or not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError(f"no shape: {str(shape)[:100]}")
    header = ArrayHeader(shape, bool(is_fortran), dtype)
    if header.num_bytes > length - at:
        raise ValueError(f"{shape} of {dtype} are {header.num_bytes} bytes; {max(0, length - at)} follow the header")
    return header


def read_npy(path: Path, is_mapped: bool = False) -> np.ndarray:
    """Reads a .npy file.

    Args:
        path: the file.
        is_mapped: map it instead of reading it; an empty array is read.

    Raises:
        OSError: it cannot be read.
        ValueError: as in `read_npy_header`.
    """
    with open_input(path) as file:
        length = file.seek(0, 2)
        file.seek(0)
        header = read_npy_header(file, length)
        order = "F" if header.is_fortran else "C"
        if is_mapped and header.num_bytes:
            return np.memmap(file, header.dtype, "r", file.tell(), header.shape, order)
        data = bytearray(header.num_bytes)  # arrays over bytes could not be written to
        found = file.readinto(data)
    if found < header.num_bytes:
        raise ValueError(f"it ends after {found} of {header.num_bytes} bytes")
    return np.frombuffer(data, header.dtype).reshape(header.shape, order=order)


def read_npz(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Reads arrays of a .npz file.

    Args:
        path: the file.
        names: of the arrays.

    Raises:
        ValueError: it cannot be read, or an array is not there or as in `read_npy_header`.
    """
    try:
        with open_zip(path) as archive:
            arrays = {}
            for name in names:
                info = archive.getinfo(f"{name}.npy")
                check_member_size(info)
                with archive.open(info) as stream:
                    header = read_npy_header(stream, info.file_size)
                    data = bytearray(stream.read(header.num_bytes))
                    stream.read(1)  # the checksum is compared at the end of the member
                if len(data) < header.num_bytes:
                    raise ValueError(f"array {name!r} ends after {len(data)} of {header.num_bytes} bytes")
                arrays[name] = np.frombuffer(data, header.dtype).reshape(header.shape, order="F" if header.is_fortran else "C")
            return arrays
    except ARCHIVE_ERRORS as error:
        raise ValueError(f"{error or type(error).__name__}") from error
