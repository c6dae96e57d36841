"""LLaVA's json: a list of rows with `id`, `image` (a name, or a list of names) and `conversations` of human and gpt.

`<image>` marks the place of an image anywhere in any turn. Rows without image are text. The images of a row without any mark stand
before its first question; a row with marks, but more or fewer than images, is skipped.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sightline.data.readers.base import Item, Skip, SourceOptions, Tally
from sightline.data.readers.rows import JSON_SUFFIXES, Keys, TableRow, find_file, image_root, items, json_rows
from sightline.errors import RecordError

KEYS: Keys = {"conversations": "conversations", "id": "id", "image": ("image", "images"), "split": "split"}
FILES = ("chat.json", "blip_laion_cc_sbu_558k.json", "llava_instruct_150k.json", "llava_v1_5_mix665k.json")
PLACES = ("images", "images.zip", "images.tar")  # looked into after the folder of the file


def read(path: Path, options: SourceOptions, tally: Tally) -> Iterator[Item | Skip]:
    """Items of a LLaVA json or jsonl file, or of a folder that holds one."""
    file = find_file(path, FILES, JSON_SUFFIXES, tally)
    root = image_root(options, file.parent, *PLACES)

    def build(values: dict[str, Any], number: int, where: str) -> Item:
        if values.get("video") is not None:
            raise RecordError("video", "the row is about a video")
        return TableRow(values, KEYS, options).item(number, where, root, tally)

    return items(json_rows(file, tally), build)
