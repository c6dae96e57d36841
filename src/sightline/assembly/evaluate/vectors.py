"""Retrieval with vectors that another program computed."""

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from sightline.assembly.evaluate.authors import is_release, read_release
from sightline.assembly.evaluate.components import ComponentGallery
from sightline.assembly.evaluate.evaluate import Evaluation, default_folder, write_result
from sightline.assembly.evaluate.opened import open_records
from sightline.assembly.evaluate.similarity import GalleryAnswers
from sightline.errors import DataError, UsageError
from sightline.evaluation.predict import ITEMS, SCORES, predict
from sightline.evaluation.spec import EvalSpec
from sightline.evaluation.tasks import task_by_name
from sightline.generation.decode import DecodingConfig
from sightline.runtime.arrays import read_npy, read_npz
from sightline.runtime.hdf5 import open_hdf5, plain_array
from sightline.runtime.inputs import ARCHIVE_ERRORS, open_input
from sightline.runtime.storage import sha256_file

_USED = ("task", "data", "split", "batch_size", "resamples")  # options of an evaluation that vectors take into account
SUFFIXES = (".npz", ".safetensors", ".h5", ".hdf5")
IMAGE, TEXT = "image", "text"


EVEN = {way: dict.fromkeys(("global", "entity", "relation"), 1 / 3) for way in ("t2i", "i2t")}  # as the paper's figure


def is_vectors(path: str) -> bool:
    """Tells whether what the user names as a model is a file or folder of vectors."""
    return (Path(path).suffix in SUFFIXES and Path(path).is_file()) or (Path(path) / f"{IMAGE}.npy").is_file()


def read_vectors(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads the arrays `image` and `text` of a .npz, .safetensors or .h5 file, or image.npy and text.npy of a folder.

    Raises:
        DataError: an array is missing, or is not a table of numbers.
    """
    file = Path(path)
    try:
        if file.is_dir():
            arrays: Any = {name: read_npy(file / f"{name}.npy") for name in (IMAGE, TEXT)}
        elif file.suffix == ".npz":
            arrays = read_npz(file, (IMAGE, TEXT))
        elif file.suffix == ".safetensors":
            open_input(file).close()  # refuses what is no regular file
            arrays = load_file(file)
        else:
            with open_hdf5(file, "a file of vectors in HDF5") as opened:
                arrays = {name: plain_array(opened, name, file)[()] for name in (IMAGE, TEXT)}
        found = tuple(np.asarray(arrays[name]) for name in (IMAGE, TEXT))
    except (*ARCHIVE_ERRORS, SafetensorError, TypeError) as error:  # h5py and safetensors raise any of them
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"{path}: cannot read the arrays 'image' and 'text' ({reason}).",
            "Write one row per image and per caption.",
        ) from error
    for name, array in zip((IMAGE, TEXT), found, strict=True):
        if array.ndim != 2 or array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise DataError(f"{path}: array {name!r} is {array.shape} of {array.dtype}, not a table of finite numbers.")
    return found[0], found[1]


def evaluate_vectors(spec: EvalSpec, path: str, out: Path | None = None) -> Evaluation:
    """Ranks stored vectors.

    Row `i` of `image` belongs to the i-th record of the split that has one image and captions, and the rows of `text` to the first
    five captions of these records, record after record. A folder with a checkpoint of ComAlign's authors is scored component by
    component, by their rule unless `spec.scoring` says otherwise.

    Raises:
        UsageError: another task is asked for, or the rows are not as many as images and captions.
        DataError: the file or the data set cannot be read.
    """
    task = task_by_name(spec.task, spec.resamples)
    dataset, records = open_records(spec.data, spec.split, task.asks, None, f"for task {spec.task!r}")
    queries = [query for record in records for query in task.queries(record, "")]
    if any(query.form != "embed" for query in queries):
        raise UsageError("stored vectors can only be asked for retrieval.", "Name a model.")
    used = (*_USED, "scoring") if is_release(Path(path)) else _USED
    given = [
        name for name in EvalSpec.model_fields if name not in used and getattr(spec, name) != EvalSpec.model_fields[name].default
    ]
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UsageError(
            f"stored vectors are ranked as they are, for a whole split; {options} would change nothing.", "Leave it out."
        )
    image, text = read_vectors(path)
    captions = sum(len(query.candidates) for query in queries)
    if (len(image), len(text)) != (len(queries), captions) or image.shape[1] != text.shape[1]:
        raise UsageError(
            f"{path} holds {image.shape} image and {text.shape} text vectors; split {spec.split!r} has {len(queries)} images with "
            f"{captions} captions (at most five of each count).",
            "Compute the vectors of this split, in the order of its records.",
        )
    folder = out or default_folder(spec, Path(path))
    digest = hashlib.sha256(np.ascontiguousarray(image).tobytes() + np.ascontiguousarray(text).tobytes()).hexdigest()
    settings: dict[str, Any] = {
        "model": digest,
        "data": dataset.fingerprint,
        "split": spec.split,
        "control": None,
        "task": spec.task,
    }
    if is_release(Path(path)):
        scoring = spec.scoring or "published"
        weights = None if scoring == "published" else EVEN
        gallery = partial(ComponentGallery, *read_release(Path(path), queries, image, text), weights=weights)
        answers = GalleryAnswers(queries, gallery)
        files = sorted(file for file in Path(path).iterdir() if file.suffix in (".h5", ".pt"))
        settings |= {"scoring": scoring, "files": {file.name: sha256_file(file) for file in files}}
    else:
        answers = GalleryAnswers.of_vectors(queries, image, text)
    predicted = predict(answers, queries, folder, settings, spec.batch_size, spec.task)
    done = Evaluation(spec, folder, queries, predicted, task.score(queries, predicted.predictions), "", DecodingConfig())
    write_result(folder / ITEMS, done.items_json())
    write_result(folder / SCORES, done.to_json() | {"spec": spec.model_dump(mode="json"), "settings": settings})
    return done
