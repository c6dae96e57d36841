"""Guesses the format of a source from its name and beginning, for a call that names none."""

import itertools
import json
import os
import re
from pathlib import Path
from typing import Any

from sightline.data.readers import FORMATS, flickr8k
from sightline.data.readers.tables import PRESETS
from sightline.errors import UsageError

MAX_BYTES = 1 << 16  # read of a file
MAX_NAMES = 1000  # looked at in a folder
_IMAGE = re.compile(r".+\.(jpe?g|png|webp|gif|bmp|tiff?)\Z", re.IGNORECASE)
_BY_SUFFIX = {".tar": "webdataset", ".parquet": "parquet", ".txt": "text", ".md": "text"}


def format_needed(path: Path) -> UsageError:
    """Returns the error of a call without a format: the likely one, and all of them."""
    likely = likely_formats(path)
    guess = f"{path} looks like {' or '.join(map(repr, likely))}: --format {likely[0]}. " if likely else ""
    return UsageError("data prepare needs --format.", f"{guess}Formats are {', '.join(FORMATS)}.")


def likely_formats(path: Path) -> list[str]:
    """Returns the names of the formats that a source is most likely in, the likeliest first; none where nothing speaks for one."""
    if str(path) == "-":
        return ["scenes"]
    try:
        if path.is_dir():
            return _of_folder(path)
        if path.is_file():
            found = _of_file(path)
            return [found] if found else []
    except OSError:
        return []
    is_hub_name = re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)) and not path.parent.exists()
    return ["hf"] if is_hub_name else []


def _of_folder(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        names = sorted(entry.name for entry in itertools.islice(entries, MAX_NAMES))
    if "records.jsonl" in names:
        return ["records"]
    if {flickr8k.TOKENS, flickr8k.KAGGLE, "Flickr8k_text"} & set(names):
        return ["flickr8k"]
    if "captions.jsonl" in names:
        return ["flickr8k", "coco"]
    if presets := [name for name, preset in PRESETS.items() if set(preset.files) & set(names)]:
        return presets
    for pattern, name in ((r"metadata\.(csv|jsonl)", "imagefolder"), (r".*\.tar", "webdataset"), (r".*\.parquet", "parquet")):
        if any(re.fullmatch(pattern, entry) for entry in names):
            return [name]
    if any(re.fullmatch(r"(captions|instances)_.*\.json|annotations", entry) for entry in names):
        return ["coco"]
    if any(_IMAGE.match(entry) for entry in names) or any(_has_image(path / entry) for entry in names[:20]):
        return ["imagefolder"]
    return []


def _has_image(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return any(_IMAGE.match(entry.name) for entry in itertools.islice(entries, MAX_NAMES))


def _of_file(path: Path) -> str | None:
    if path.name in (flickr8k.TOKENS, flickr8k.KAGGLE):
        return "flickr8k"
    suffix = path.suffix.lower()
    if suffix in _BY_SUFFIX:
        return _BY_SUFFIX[suffix]
    if suffix not in (".csv", ".tsv", ".json", ".jsonl"):
        return None
    with path.open("rb") as file:
        begin = file.read(MAX_BYTES).decode("utf-8", "replace")
    if suffix in (".csv", ".tsv"):
        columns = {column.strip().strip('"').lower() for column in re.split(r"[,;\t]", begin.partition("\n")[0])}
        return "urls" if columns & {"url", "image_url"} else "csv"
    if suffix == ".json" and begin.lstrip().startswith("{") and re.search(r'"(annotations|images|licenses)"\s*:', begin):
        return "coco"
    first = _first_keys(begin)
    if "conversations" in first:
        return "llava"
    return "urls" if first & {"url", "image_url"} else "records" if first & {"captions", "messages"} else None


def _first_keys(begin: str) -> set[str]:
    """Returns the keys of the first object of a list or of JSON lines; those that can be seen where it is longer."""
    try:
        value: Any = json.JSONDecoder().raw_decode(begin.lstrip().removeprefix("[").lstrip())[0]
    except (ValueError, RecursionError):
        return set(re.findall(r'"(\w+)"\s*:', begin[:4096]))
    return set(value) if isinstance(value, dict) else set()
