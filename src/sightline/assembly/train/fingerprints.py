"""Fingerprints of the data of a run, so that it does not go on with other data under the same path.

They are stored in each checkpoint and compared when the run goes on: of a data set the hash of its records (which holds the hashes
of their images), of a feature store its key, and of both their index and files. Files are compared by name and size, and by content
where a folder has at most `CONTENT_BYTES` of them.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sightline.assembly.config.resolving import stage_plan
from sightline.assembly.config.schema import RunConfig
from sightline.assembly.config.sources import sources_of
from sightline.data.dataset import INDEX, RECORDS, Dataset, open_dataset
from sightline.data.features import store as features
from sightline.data.features.store import FeatureStore, open_store
from sightline.errors import ConfigError, DataError
from sightline.runtime.logs import logger
from sightline.runtime.storage import safe_join, sha256_file

CONTENT_BYTES = 256_000_000  # hashed in about a second
ALLOWED_BY = ("data", "data.features", "data.mixture", "data.path")


def data_fingerprints(config: RunConfig, first_stage: int = 0) -> dict[str, dict[str, str]]:
    """Fingerprints of every data set and feature store of a run from a stage on, by kind and path.

    What cannot be opened is left out: the stage that needs it will say so.
    """
    found: dict[str, dict[str, str]] = {}
    for number in range(first_stage, len(config.stages)):
        data = stage_plan(config, number).data
        try:
            paths = [source.path for source in sources_of(data)]
        except ConfigError:
            continue
        for kind, path, of in [
            *(("data set", path, _of_dataset) for path in paths),
            *([("feature store", data.features, _of_store)] if data.features is not None else []),
        ]:
            if (name := f"{kind} {path}") not in found:
                try:
                    found[name] = of(path)
                except (DataError, OSError):
                    continue
    return found


def refuse_other_data(
    run: Path, stored: Mapping[str, Any] | None, now: Mapping[str, Mapping[str, str]], allow_change: Sequence[str]
) -> None:
    """Compares the data of a run with what it began with.

    Args:
        run: the run folder, for messages.
        stored: the fingerprints that it began with; None where an earlier version began it.
        now: the present ones.
        allow_change: keys that may differ; `data.path`, `data.mixture` and `data.features` let other data pass.

    Raises:
        ConfigError: names each data set and feature store that differs, and what of it.
    """
    if stored is None:
        logger.warning(
            "%s was started by a version that stored no fingerprints; whether its data is the same cannot be checked", run
        )
        return
    differ = []
    for name in now.keys() & stored.keys():
        keys = [key for key, value in now[name].items() if stored[name].get(key) != value]
        if keys:
            differ.append(f"{name} ({', '.join(keys)})")
    if not differ:
        return
    if any(key in ALLOWED_BY for key in allow_change):
        logger.warning("%s goes on with other data, as allowed: %s", run, "; ".join(sorted(differ)))
        return
    raise ConfigError(
        f"{run} was started with other data; what differs now: {'; '.join(sorted(differ))}.",
        "Put the data back, choose another --out, or allow it: --allow-change data.path",
    )


def _of_dataset(path: str) -> dict[str, str]:
    dataset = open_dataset(path)
    return {
        "records": dataset.fingerprint,
        "index": sha256_file(dataset.path / INDEX),
        "files": _files_hash(_dataset_files(dataset)),
    }


def _dataset_files(dataset: Dataset) -> Iterator[Path]:
    if dataset.is_sharded:
        yield from (safe_join(dataset.path, shard["file"]) for shard in dataset.summary["shards"])
        return
    yield dataset.path / RECORDS
    if not dataset.is_without_images:
        for folder, _, names in os.walk(dataset.path / "images"):
            yield from (Path(folder) / name for name in names)


def _of_store(path: str) -> dict[str, str]:
    store: FeatureStore = open_store(path)
    shards = [safe_join(store.path, shard["file"]) for shard in store.summary["shards"]]
    return {"features": store.key, "index": sha256_file(store.path / features.INDEX), "files": _files_hash(iter(shards))}


def _files_hash(files: Iterator[Path]) -> str:
    """Returns one hash over the names and sizes of files, and over their contents where those are not too many bytes."""
    sizes = sorted((file, file.stat().st_size) for file in files)
    has_contents = sum(size for _, size in sizes) <= CONTENT_BYTES
    digest = hashlib.sha256()
    for file, size in sizes:
        digest.update(f"{file.parent.name}/{file.name} {size} {sha256_file(file) if has_contents else ''}\n".encode())
    return digest.hexdigest()
