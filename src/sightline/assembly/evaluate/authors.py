"""Reads what the authors of ComAlign released: their checkpoint, and stored vectors of components in their HDF5 layout.

A folder holds one checkpoint (`*.pt`) and the files of their inference script, found by their names: `*noun*.h5` and `*rel*.h5`
with the vectors of ten boxes and ten pairs of each image, `*att_sentence*.h5` and `*relation_sentence*.h5` with the vectors of the
phrases of each caption, all by the id of the image. Vectors of whole images and captions, which the script computes itself, lie
beside them as `image.npy` and `text.npy`. All are CLIP's outputs, not of unit length.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from sightline.errors import DataError
from sightline.evaluation.tasks import Query
from sightline.models.light_network import AlignmentConfig, LightNetwork, published_state
from sightline.models.pickled import read_pickled
from sightline.runtime.logs import logger
from sightline.runtime.optional import require
from sightline.types import ComponentVectors

BOXES = 10  # of each level


def is_release(folder: Path) -> bool:
    """Tells whether a folder of vectors holds a checkpoint of the authors' form too."""
    return folder.is_dir() and any(folder.glob("*.pt"))


def read_network(path: Path) -> LightNetwork:
    """Reads a checkpoint: the state dict of the authors' `RetrievalModel`, loaded without running any code of the file.

    Raises:
        StorageError: it holds anything but tensors.
        DataError: they are of another model.
    """
    state = read_pickled(path)
    try:
        weights = published_state(state)
        network = LightNetwork(AlignmentConfig(variant="published"), int(weights["project.weight"].shape[0]))
        network.load_state_dict(weights)
    except (RuntimeError, KeyError, IndexError, AssertionError) as error:  # names, shapes, a width without four heads
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{path}: not a checkpoint of ComAlign's image network ({reason}).", "Give the state dict that the authors released."
        ) from error
    return network.eval()


def read_release(
    folder: Path, queries: Sequence[Query], image_NW: np.ndarray, text_CW: np.ndarray
) -> tuple[ComponentVectors, ComponentVectors]:
    """Returns the vectors of images and texts as the authors' script has them; phrases of texts are not refined.

    Images that a file lacks have zeros in place of their boxes, as in the script.

    Args:
        folder: the folder.
        queries: one per image, with its captions; their ids are those of the files.
        image_NW, text_CW: vectors of whole images and captions.

    Raises:
        DataError: a file is missing, or an entry has another shape.
    """
    checkpoints = sorted(folder.glob("*.pt"))
    if len(checkpoints) != 1:
        raise DataError(f"{folder} holds {len(checkpoints)} checkpoints (*.pt).", "Leave one, that of the image network.")
    network, width = read_network(checkpoints[0]), image_NW.shape[1]
    ids = [query.record.id for query in queries]
    counts = [len(query.candidates) for query in queries]
    nouns, relations = (np.stack(_entries(_file(folder, name), ids, (BOXES, width))) for name in ("noun", "rel"))
    boxes = torch.from_numpy(np.concatenate([nouns, relations], axis=1)).float()
    whole = torch.from_numpy(image_NW).float()
    with torch.no_grad():
        refined = network(torch.cat([boxes, whole[:, None]], dim=1), torch.ones(len(ids), 2 * BOXES + 1, dtype=torch.bool))
    images = _vectors(whole, refined[:, -1], refined[:, :BOXES], refined[:, BOXES:-1])
    phrases = [_phrases(_file(folder, name), ids, counts, width) for name in ("att_sentence", "relation_sentence")]
    texts = torch.from_numpy(text_CW).float()
    return images, _vectors(texts, texts, *phrases)


def _vectors(plain: Tensor, whole: Tensor, entities: Tensor, relations: Tensor) -> ComponentVectors:
    plain, whole = normalize(plain, dim=-1), normalize(whole, dim=-1)
    fine = (values / (values.norm(dim=-1, keepdim=True) + 1e-8) for values in (entities, relations))
    entity, relation = fine
    masks = (torch.ones(values.shape[:2], dtype=torch.bool) for values in (entities, relations))
    return ComponentVectors(plain, whole, entity, next(masks), relation, next(masks))


def _file(folder: Path, name: str) -> Path:
    is_of_boxes = name in ("noun", "rel")
    found = [file for file in sorted(folder.glob(f"*{name}*.h5")) if not (is_of_boxes and "sentence" in file.name)]
    if len(found) != 1:
        raise DataError(f"{folder} holds {len(found)} files *{name}*.h5.", "Keep the names of the authors' files.")
    return found[0]


def _entries(path: Path, ids: Sequence[str], shape: tuple[int, int]) -> list[np.ndarray]:
    """Returns the entry of each image, zeros where there is none."""
    out, missing = [], 0
    with _opened(path) as file:
        for name in ids:
            if name not in file:
                missing += 1
                out.append(np.zeros(shape, dtype=np.float32))
                continue
            entry = np.asarray(file[name])
            if entry.shape != shape:
                raise DataError(f"{path}: entry {name!r} is {entry.shape}, {shape} expected.", "Store the ten boxes of an image.")
            out.append(entry)
    if missing:
        logger.warning("%s has no entry for %d of %d images; their boxes are zeros", path.name, missing, len(ids))
    return out


def _phrases(path: Path, ids: Sequence[str], counts: Sequence[int], width: int) -> Tensor:
    """Returns the vectors of the phrases of each caption, `[captions, phrases, width]`.

    An entry is `[captions, 1, phrases, width]` or `[captions, phrases, width]`; with a further axis before the last
    (phrase, subject, object) its first index is the phrase.
    """
    rows = []
    with _opened(path) as file:
        for name, count in zip(ids, counts, strict=True):
            if name not in file:
                raise DataError(f"{path}: no entry for image {name!r}.", "Store the phrases of all captions of the split.")
            entry = np.asarray(file[name])
            if entry.ndim >= 4 and entry.shape[1] == 1:
                entry = entry[:, 0]
            if entry.ndim == 4:
                entry = entry[:, :, 0]
            if entry.ndim != 3 or entry.shape[2] != width or len(entry) < count:
                raise DataError(
                    f"{path}: entry {name!r} is {entry.shape}; [captions, phrases, {width}] of at least {count} captions expected.",
                    "Store the phrases of each caption, padded with zeros.",
                )
            rows.append(entry[:count])
    try:
        return torch.from_numpy(np.concatenate(rows)).float()
    except ValueError as error:
        raise DataError(f"{path}: images have different numbers of phrases.", "Pad all captions to one number.") from error


def _opened(path: Path) -> Any:
    try:
        return require("h5py", "data", "a file of vectors in HDF5").File(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read as HDF5 ({error}).", "Write it again.") from error
