"""Our own format: `records.jsonl` with its images beside it, or a whole dataset folder (also one of shards).

Images are checked and stored anew. A hash that the records carry must still be true of the image: this is where silent damage
is found.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sightline.data.dataset import DATASET, DOWNLOADS, IMAGE_INDEX, INDEX, RECORDS, SKIPPED, Dataset
from sightline.data.readers.base import ImageInRoot, Item, Skip, SourceOptions, Tally, count_ignored, make_id, refuse_mapping
from sightline.data.readers.rows import find_file, image_root, items, json_rows
from sightline.data.records import record_from_json
from sightline.runtime.storage import check_links, trusted_folders

USED_BELOW = {
    "boxes": ("label", "xyxy", "score"),
    "messages": ("role", "content"),
    "components": ("text", "entities", "relations"),
}


def read(path: Path, options: SourceOptions, tally: Tally) -> Iterator[Item | Skip]:
    """Items of a records file, or of the folder that holds one."""
    folder = path.parent if path.is_file() else path
    if (folder / DATASET).is_file():
        own = (DATASET, RECORDS, INDEX, IMAGE_INDEX, SKIPPED, DOWNLOADS)
        check_links(folder, own)
        tally.use(*(folder / name for name in own), *folder.glob("shards/*.tar"))
        if path == folder and not (path / RECORDS).exists():
            return _sharded(Dataset(path), options)
    file = find_file(path, (RECORDS,), (".jsonl",), tally)
    root = image_root(options, file.parent)

    def build(values: dict[str, Any], number: int, where: str) -> Item:
        captions = values.get("captions")
        if isinstance(captions, list) and len(captions) > 1:  # an empty caption among several is dropped
            filled = [caption for caption in captions if not isinstance(caption, str) or caption.strip()]
            if filled and len(filled) < len(captions):
                values["captions"] = filled
                if isinstance(values.get("components"), list):
                    values["components"] = [item for item in values["components"] if not _is_of_empty_text(item)]
                tally.notes["empty_caption"] += len(captions) - len(filled)
        if "id" in options.mapping:  # --map id= numbers the rows, --map id=key takes another key
            values["id"] = make_id(values.pop(options.mapping["id"], None), number)
        record = record_from_json(values, may_lead_outside=bool(trusted_folders()))
        for name, used in USED_BELOW.items():
            for entry in values.get(name, ()):
                count_ignored(entry, used, tally, f"{name}.")
        return Item(
            record,
            tuple(ImageInRoot(root, name) for name in record.images),
            where,
            sizes=tuple((info.width, info.height) for info in record.image_info),
            hashes=tuple(info.sha256 for info in record.image_info),
            has_shown_boxes=True,
        )

    return items(json_rows(file, tally), build)


def _is_of_empty_text(item: Any) -> bool:
    text = item.get("text") if isinstance(item, dict) else None
    return isinstance(text, str) and not text.strip()


def _sharded(dataset: Dataset, options: SourceOptions) -> Iterator[Item | Skip]:
    refuse_mapping(options, "a dataset folder")
    for number, record in enumerate(dataset.records()):
        yield Item(
            record,
            tuple(dataset.image_bytes(record, k) for k in range(len(record.images))),
            f"{dataset.path.name}[{number}]",
            hashes=tuple(info.sha256 for info in record.image_info),
            has_shown_boxes=True,
        )
