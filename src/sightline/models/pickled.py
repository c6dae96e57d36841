"""Converts a model folder with pickled weights (`pytorch_model.bin`) to safetensors without running code that a pickle may hold.

`torch.load(weights_only=True)` restores tensors and plain containers only and refuses everything else. Tensors that share memory
(tied embeddings) are written out in full under each of their names, because safetensors has no shared tensors; a model ties them
again when it is loaded. Every tensor is read back from the new file and compared, bit by bit.
"""

import json
import shutil
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sightline.errors import DataError, StorageError, UsageError
from sightline.models.loading import PICKLES, first_line
from sightline.runtime.storage import MANIFEST, atomic_dir, safe_join, sha256_file

INDEX, NEW_INDEX = "pytorch_model.bin.index.json", "model.safetensors.index.json"
COPIED = (".json", ".jinja", ".md", ".model", ".tiktoken", ".txt")  # no code, no weights of other frameworks


def convert(folder: Path, out: Path, sha256: str | None = None) -> dict[str, Any]:
    """Writes a copy of a model folder whose weights are safetensors.

    Args:
        folder: holds `pytorch_model.bin`, or its index with shards, or a single file of another name.
        out: the new folder; must not exist.
        sha256: hash that the (single) weights file must have, checked before it is opened.

    Returns:
        `weights` (number of tensors), and `files`: for each source file its `sha256`, and name and `sha256` of the new one.

    Raises:
        UsageError: `out` exists, or the folder has no weights that need converting.
        StorageError: a file has another hash, holds more than tensors, or is damaged.
    """
    if out.exists():
        raise UsageError(f"{out} exists already; nothing is overwritten.", "Choose another --out, or remove it.")
    sources = _sources(folder)
    hashes = {source: sha256_file(source) for source in sources}
    if sha256 is not None and set(hashes.values()) != {sha256.lower()}:
        raise StorageError(f"{sources[0]}: sha256 is {hashes[sources[0]]}, not {sha256}.", "Download the file again.")
    files, place, total = [], {}, 0
    with atomic_dir(out) as work:
        for number, source in enumerate(sources, 1):
            name = "model.safetensors" if len(sources) == 1 else f"model-{number:05d}-of-{len(sources):05d}.safetensors"
            tensors = read_pickled(source)
            save_file(
                {key: value.clone(memory_format=torch.contiguous_format) for key, value in tensors.items()},
                work / name,
                {"format": "pt"},
            )
            _compare(tensors, work / name, source)
            place |= dict.fromkeys(tensors, name)
            total += sum(value.nbytes for value in tensors.values())
            files.append({"from": source.name, "from_sha256": hashes[source], "to": name, "sha256": sha256_file(work / name)})
        if len(sources) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(place.items()))}
            (work / NEW_INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
        for file in sorted(folder.iterdir()):
            if file.is_file() and file.suffix in COPIED and not file.name.endswith((".index.json", MANIFEST)):
                shutil.copyfile(file, work / file.name)
    return {"weights": len(place), "files": files}


def read_pickled(file: Path) -> dict[str, Tensor]:
    """Reads the tensors of a pickle file without running code; of a training checkpoint those under `state_dict` or `model`.

    Raises:
        StorageError: it holds more than tensors and plain containers, is damaged, or holds no tensors by name.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unusual protocols, which weights_only reads or refuses
            found = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # torch.load raises anything for damaged bytes
        raise StorageError(
            f"{file}: this is no file of plain tensors ({first_line(error)}).",
            "Do not open it otherwise: it may run code. Get the model as safetensors.",
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not found or not all(isinstance(key, str) for key in found):
        raise StorageError(f"{file}: it holds no tensors by name.", "Give the folder of a model.")
    others = sorted(key for key, value in found.items() if not isinstance(value, Tensor))
    if others:
        raise StorageError(f"{file}: {others[0]!r} is no tensor.", "Give the folder of a model.")
    return dict(found)


def _sources(folder: Path) -> list[Path]:
    """Returns the pickle files of a folder, in order of name."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder.", "Give the folder of a model.")
    if any(folder.glob("*.safetensors")):
        raise UsageError(f"{folder} has its weights as safetensors already.", "Use it as it is.")
    if (folder / INDEX).is_file():
        try:
            names = sorted(set(json.loads((folder / INDEX).read_text("utf-8"))["weight_map"].values()))
            return [safe_join(folder, name) for name in names]
        except DataError as error:
            raise StorageError(f"{folder / INDEX}: {error.message}", "Do not use this checkpoint.") from error
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise StorageError(f"{folder / INDEX}: this is not an index of weights ({first_line(error)}).") from error
    if (folder / "pytorch_model.bin").is_file():
        return [folder / "pytorch_model.bin"]
    found = sorted(file for file in folder.iterdir() if file.suffix in PICKLES and file.is_file())
    if len(found) != 1:
        what = f"{len(found)} files with pickled weights and no index" if found else "no pickled weights"
        raise UsageError(f"{folder} has {what}.", "Give a folder with pytorch_model.bin.")
    return found


def _compare(tensors: Mapping[str, Tensor], file: Path, source: Path) -> None:
    """Compares what was written with what was read.

    Raises:
        StorageError: a tensor differs.
    """
    with safe_open(file, "pt") as written:
        for name, value in tensors.items():
            copy = written.get_tensor(name)
            is_same = copy.dtype == value.dtype and copy.shape == value.shape
            if not is_same or not torch.equal(copy.view(-1).view(torch.uint8), value.contiguous().view(-1).view(torch.uint8)):
                raise StorageError(f"{file}: {name!r} is not what {source} holds.", "Try again; check the disk.")
