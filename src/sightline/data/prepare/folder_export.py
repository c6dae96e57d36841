"""Writes a dataset folder in the form of LLaVA, COCO or a data set of the Hub; `data prepare` reads each of them back.

A record that a form cannot hold is left out and counted by reason; a field that it cannot hold is dropped and counted by its name.
"""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sightline.data.dataset import Dataset
from sightline.data.images.opener import open_with_orientation
from sightline.data.records import record_to_json
from sightline.errors import DataError, UsageError
from sightline.runtime.optional import require
from sightline.runtime.storage import atomic_file, publish_dir, write_json, write_text
from sightline.types import Message, Record

UNFINISHED = ".exporting"
SPEAKERS = {"assistant": "gpt", "system": "system", "user": "human"}
MARK = "<image>"
FILE_BYTES = 500_000_000  # images in a parquet file
BATCH_BYTES = 50_000_000  # images that are held at a time
_HUB_SPLIT = re.compile(r"\w+(\.\w+)*\Z")


class FolderExport:
    """One export: what was written, left out and dropped.

    Args:
        dataset: the folder.
        out: the folder to write; must not exist.
        split: only this one; all by default.
    """

    def __init__(self, dataset: Dataset, out: Path, split: str | None) -> None:
        self.dataset, self.out, self.split = dataset, out, split
        self.work = out.with_name(out.name + UNFINISHED)
        self.count = 0
        self.skipped = Counter[str]()
        self.dropped = Counter[str]()

    def run(self, write: Callable[["FolderExport"], None]) -> dict[str, Any]:
        """Writes the folder with `write`, publishes it, and returns the counts.

        Raises:
            DataError: no record fits, there is no such split, or an image cannot be read.
            UsageError: the folder exists.
            StorageError: the disk refuses.
        """
        if self.out.exists():
            raise UsageError(f"{self.out} exists already; nothing is overwritten.", "Choose another --out, or remove it.")
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        try:
            write(self)
            if not self.count:
                reasons = ", ".join(f"{reason} {count}" for reason, count in self.skipped.items())
                raise DataError(f"{self.dataset.path}: no record fits this format ({reasons or 'there is none'}).")
            publish_dir(self.work, self.out)
        finally:
            shutil.rmtree(self.work, ignore_errors=True)
        return {"records": self.count, "skipped": dict(self.skipped), "dropped": dict(self.dropped)}

    def records(self, unfit: Callable[[Record], str], kept: tuple[str, ...]) -> Iterator[Record]:
        """Yields the records that fit, and counts what the others lack and which fields are lost.

        Args:
            unfit: returns why a record does not fit; empty if it does.
            kept: further fields that the form holds.
        """
        for record in self.dataset.records(self.split):
            if reason := unfit(record):
                self.skipped[reason] += 1
                continue
            self.count += 1
            told = {"id", "images", "image_info", "split", "captions", "messages", *kept}
            self.dropped.update(record_to_json(record).keys() - told)
            yield record

    def image_file(self, record: Record, k: int) -> str:
        """Writes image `k` of a record unchanged, once, and returns its name in the folder."""
        name = record.images[k]
        name = name if name.startswith("images/") else f"images/{name}"
        if not (self.work / name).exists():
            (self.work / name).parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(self.work / name, "wb") as file:
                file.write(self.dataset.image_bytes(record, k))
        return name


# LLaVA ----------------------------------------------------------------------------------------------------------------------


def write_llava(export: FolderExport) -> None:
    """Writes `chat.json` and `images/`: conversations with `<image>` marks."""
    with atomic_file(export.work / "chat.json") as file:
        for number, record in enumerate(export.records(_unfit_llava, ())):
            names = [export.image_file(record, k) for k in range(len(record.images))]
            row: dict[str, Any] = {"id": record.id, "split": record.split}
            row |= {"image": names[0] if len(names) == 1 else names} if names else {}
            row["conversations"] = [{"from": SPEAKERS[m.role], "value": marked_text(m)} for m in record.messages]
            file.write((",\n" if number else "[\n") + json.dumps(row, ensure_ascii=False))
        file.write("\n]\n")


def marked_text(message: Message) -> str:
    """Returns the text of a turn with a mark for each image, on lines of their own, which a reader takes away with the mark."""
    out = ""
    for place, part in enumerate(message.content):
        if part.is_image:
            before = "\n" if place and not message.content[place - 1].is_image else ""
            after = "\n" if place + 1 < len(message.content) else ""
            out += f"{before}{MARK}{after}"
        else:
            out += part.text or ""
    return out


def _unfit_llava(record: Record) -> str:
    texts = [part.text or "" for message in record.messages for part in message.content if not part.is_image]
    several = any(
        not first.is_image and not second.is_image
        for message in record.messages
        for first, second in zip(message.content, message.content[1:], strict=False)
    )
    reasons = {
        "captions": bool(record.captions),
        "image_mark_in_text": any(MARK in text for text in texts),
        "several_texts_in_a_turn": several,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


# COCO -----------------------------------------------------------------------------------------------------------------------


def write_coco(export: FolderExport) -> None:
    """Writes `annotations/captions_SPLIT.json`, for boxes `instances_SPLIT.json`, and `images/`."""
    splits: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
    licences: dict[str, int] = {}
    for record in export.records(lambda record: _unfit_coco(export.dataset, record), ("boxes",)):
        captions, instances = splits.setdefault(record.split, (_annotations(), {**_annotations(), "categories": {}}))
        info = record.image_info[0]
        key = int(record.id) if record.id.isdecimal() and str(int(record.id)) == record.id else record.id
        image = {
            "id": key,
            "file_name": export.image_file(record, 0).removeprefix("images/"),
            "width": info.width,
            "height": info.height,
        }
        crowd = record.meta.get("crowd", [])
        if isinstance(licence := record.meta.get("license"), str):
            image["license"] = licences.setdefault(licence, len(licences) + 1)
        export.dropped.update(f"meta.{name}" for name in record.meta.keys() - {"crowd", "license"})
        captions["images"].append(image)
        for text in record.captions:
            captions["annotations"].append({"id": len(captions["annotations"]) + 1, "image_id": key, "caption": text})
        if record.boxes:
            instances["images"].append(image)
        for place, box in enumerate(record.boxes):
            export.dropped.update(["boxes.score"] if box.score != 1.0 else [])
            left, top, right, bottom = box.xyxy
            category = instances["categories"].setdefault(box.label, len(instances["categories"]) + 1)
            sides = [left * info.width, top * info.height, (right - left) * info.width, (bottom - top) * info.height]
            line = {"id": len(instances["annotations"]) + 1, "image_id": key, "category_id": category, "bbox": sides}
            instances["annotations"].append(line | {"area": sides[2] * sides[3], "iscrowd": int(place in crowd)})
    del export.dropped["meta"]
    (export.work / "annotations").mkdir(exist_ok=True)
    told = [{"id": number, "name": name} for name, number in licences.items()]
    for split, (captions, instances) in splits.items():
        write_json(export.work / f"annotations/captions_{split}.json", captions | {"licenses": told})
        if instances["annotations"]:
            names = [{"id": number, "name": name} for name, number in instances["categories"].items()]
            write_json(export.work / f"annotations/instances_{split}.json", instances | {"categories": names, "licenses": told})


def _annotations() -> dict[str, Any]:
    return {"images": [], "annotations": []}


def _unfit_coco(dataset: Dataset, record: Record) -> str:
    if record.messages:
        return "conversation"
    if len(record.images) != 1:
        return "several_images" if record.images else "no_image"
    if record.boxes:
        orientation = open_with_orientation(dataset.image_bytes(record))[1]
        info = record.image_info[0]
        if orientation > 1 and (orientation < 5 or info.width == info.height):
            return "turned_image_with_boxes"  # COCO's boxes are those of the stored pixels, and the size does not tell which
    return ""


# The Hub --------------------------------------------------------------------------------------------------------------------


def write_hub(export: FolderExport) -> None:
    """Writes parquet files with the images in them, and a card, as the Hub and the `datasets` library read them."""
    datasets = require("datasets", "data", "Export to hf")
    parquet = require("pyarrow.parquet", "data", "Export to hf")
    arrow = require("pyarrow", "data", "Export to hf")
    text = datasets.Value("string")
    parts = [{"type": text, "text": text}]
    features = datasets.Features(
        {"id": text, "images": [datasets.Image()], "captions": [text], "messages": [{"role": text, "content": parts}]}
    )
    schema = features.arrow_schema
    splits = [name for name in export.dataset.splits if export.split in (None, name)]
    if bad := [name for name in splits if not _HUB_SPLIT.match(name)]:
        raise UsageError(f"The Hub has no splits named {bad[0]!r}.", "Letters, digits, '_' and '.' are allowed.")
    (export.work / "data").mkdir()
    whole, written = export.split, {}
    for export.split in splits:
        files: list[Path] = []
        for rows in _files(export):
            files.append(export.work / f"data/{export.split}-{len(files):05d}.parquet")
            with parquet.ParquetWriter(files[-1], schema) as file:
                for batch in rows:
                    file.write_table(arrow.Table.from_pylist(batch, schema))
        for number, file in enumerate(files):
            file.rename(file.with_name(f"{export.split}-{number:05d}-of-{len(files):05d}.parquet"))
        written[export.split] = len(files)
    export.split = whole
    names = [name for name, count in written.items() if count]
    configs = "".join(f"  - split: {name}\n    path: data/{name}-*\n" for name in names)
    licence = " ".join(str(export.dataset.summary.get("licence") or "not stated").split())
    card = f"---\nconfigs:\n- config_name: default\n  data_files:\n{configs}---\n\nLicence of the data: {licence}\n"
    write_text(export.work / "README.md", card)


def _files(export: FolderExport) -> Iterator[Iterator[list[dict[str, Any]]]]:
    """Yields, for each file, batches of rows; both are bounded by the bytes of their images."""
    rows = (_hub_row(export, record) for record in export.records(lambda record: "", ()))
    waiting = next(rows, None)

    def batches() -> Iterator[list[dict[str, Any]]]:
        nonlocal waiting
        total = 0
        while waiting is not None and total < FILE_BYTES:
            batch, size = [], 0
            while waiting is not None and size < BATCH_BYTES:
                batch.append(waiting)
                size += sum(len(image["bytes"]) for image in waiting["images"])
                waiting = next(rows, None)
            total += size
            yield batch

    while waiting is not None:
        yield batches()


def _hub_row(export: FolderExport, record: Record) -> dict[str, Any]:
    images = [{"bytes": export.dataset.image_bytes(record, k), "path": Path(name).name} for k, name in enumerate(record.images)]
    turns = [
        {
            "role": message.role,
            "content": [{"type": "image" if part.is_image else "text", "text": part.text} for part in message.content],
        }
        for message in record.messages
    ]
    return {"id": record.id, "images": images, "captions": list(record.captions) or None, "messages": turns or None}


def push(folder: Path, repository: str, is_public: bool) -> str:
    """Uploads an exported folder as a data set of the Hub, and returns its address.

    Raises:
        DataError: the Hub cannot be reached or refuses.
    """
    library = require("huggingface_hub", "data", "--push")
    try:
        api = library.HfApi()
        address = api.create_repo(repository, repo_type="dataset", private=not is_public, exist_ok=True)
        api.upload_folder(repo_id=repository, repo_type="dataset", folder_path=str(folder), commit_message="Upload a dataset")
    except Exception as error:  # the client raises errors of its own, of its HTTP library and of the disk
        text = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(f"{repository}: {text}", f"The export is whole in {folder}. Log in with `hf auth login`.") from error
    return str(address)


WRITERS = {"coco": write_coco, "hf": write_hub, "llava": write_llava}


def export_folder(format_name: str, dataset: Dataset, out: Path, split: str | None = None) -> dict[str, Any]:
    """Writes a dataset folder as a folder of another format.

    Args:
        format_name: `coco`, `hf` or `llava`.
        dataset: the folder.
        out: the folder to write; must not exist.
        split: only this one; all by default.

    Returns:
        Number of `records` written, those left out by reason in `skipped`, and fields that were dropped in `dropped`.

    Raises:
        DataError: no record fits, there is no such split, or an image cannot be read.
        UsageError: the folder exists.
        StorageError: the disk refuses.
    """
    return FolderExport(dataset, out, split).run(WRITERS[format_name])
