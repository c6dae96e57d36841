"""Opens HDF5 files of others: nothing outside of the file is read, and no array may claim more than the file can hold."""

import math
from pathlib import Path
from typing import Any

from sightline.errors import DataError
from sightline.runtime.inputs import MAX_RATIO, open_input
from sightline.runtime.optional import require

_INTO_ONE_FILE = "Copy its content into one file: h5repack does."


def open_hdf5(path: Path, what: str) -> Any:
    """Opens an HDF5 file.

    Args:
        path: a regular file.
        what: what it is opened for, for the message where `h5py` is not installed.

    Raises:
        OSError: it is no HDF5 file.
        UsageError: `h5py` is not installed.
    """
    h5py = require("h5py", "data", what)
    open_input(path).close()
    return h5py.File(path, "r")


def array_names(file: Any) -> list[str]:
    """Returns the names of all arrays of an open file; links to other files are not followed."""
    from h5py import Dataset

    names: list[str] = []
    file.visititems(lambda name, item: names.append(name) if isinstance(item, Dataset) else None)
    return names


def plain_array(file: Any, key: str, path: Path) -> Any:
    """Returns an array of an open file whose numbers all lie in this file.

    Raises:
        DataError: it is stored in other files or virtual, or claims more bytes than the file can hold.
        KeyError: there is none of this name.
    """
    refuse_link(file, key, path)
    data = file[key]
    if not hasattr(data, "is_virtual"):
        raise KeyError(f"{key!r} is no array")
    if data.is_virtual or data.external:
        kind = "a virtual data set" if data.is_virtual else "stored"
        raise DataError(f"{path}: {key!r} is {kind} in other files, which are not read.", _INTO_ONE_FILE)
    claimed, length = math.prod(data.shape or ()) * data.dtype.itemsize, path.stat().st_size
    if claimed > MAX_RATIO * length:
        raise DataError(f"{path}: {key!r} would be {data.shape} of {data.dtype}, {claimed} bytes in a file of {length}.")
    return data


def refuse_link(file: Any, key: str, path: Path) -> None:
    """Raises a DataError where a part of a key is a link to another file."""
    from h5py import ExternalLink

    parts = key.strip("/").split("/")
    for count in range(1, len(parts) + 1):
        if isinstance(file.get("/".join(parts[:count]), getlink=True), ExternalLink):
            raise DataError(f"{path}: {key!r} is a link to another file, which is not read.", _INTO_ONE_FILE)
