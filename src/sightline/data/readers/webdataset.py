"""WebDataset tars: members that share their name up to the first dot are one sample.

The pictures of a sample are its images, `.txt` its caption; the keys of `.json` stand beside them (`caption`, `conversations`,
`question`, ...) and can be mapped. Members are read one at a time in place. A tar that is cut or damaged is refused before any of
its samples is used.
"""

import os
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from sightline.data.readers.archives import Member, is_picture, open_tar, read_member, tar_members
from sightline.data.readers.base import Item, Skip, SourceOptions, Tally
from sightline.data.readers.roots import FirstOf
from sightline.data.readers.rows import Keys, Numbered, TableRow, items
from sightline.data.readers.strict_json import parse_json
from sightline.data.readers.tables import GENERAL, split_of_file, table_files
from sightline.errors import RecordError

KEYS: Keys = {**GENERAL, "caption": (".txt", "caption", "text"), "id": "__key__", "image": "__images__"}


def read(path: Path, options: SourceOptions, tally: Tally) -> Iterator[Item | Skip]:
    """Items of a tar, or of all tars in a folder, in the order of their names."""
    number = 0
    for file in table_files(path, ("**/*.tar",)):
        for entry in _tar_items(file, split_of_file(file, path), options, tally, number):
            yield entry
            number += 1


def _tar_items(file: Path, split: str, options: SourceOptions, tally: Tally, first: int) -> Iterator[Item | Skip]:
    nowhere = FirstOf([])

    def build(values: dict[str, Any], number: int, where: str) -> Item:
        if not values["__images__"] and not options.text_only:
            raise RecordError("image_missing", f"sample {values['__key__']!r} has no picture")
        return TableRow(values, KEYS, options).item(number, where, nowhere, tally, split=split)

    return items(_samples(file, first, tally), build)


def _samples(file: Path, first: int, tally: Tally) -> Iterator[Numbered]:
    members = [member for member in tar_members(file) if not os.path.basename(member.name).startswith(".")]
    with open_tar(file) as descriptor:
        for number, (key, group) in enumerate(groupby(members, _key), start=first):
            yield number, f"{file.name}:{key}", _sample(descriptor, key, list(group), tally)


def _key(member: Member) -> str:
    """The name up to the first dot of its last part, as webdataset cuts it."""
    folder, name = os.path.split(member.name)
    return os.path.join(folder, name.partition(".")[0])


def _sample(descriptor: int, key: str, members: list[Member], tally: Tally) -> dict[str, Any] | RecordError:
    values: dict[str, Any] = {"__key__": key, "__images__": []}
    try:
        for member in members:
            suffix = os.path.splitext(member.name)[1].lower()
            if is_picture(member.name):
                values["__images__"].append(read_member(descriptor, member))
            elif suffix == ".txt":
                values[".txt"] = _text(read_member(descriptor, member), member)
            elif suffix == ".json":
                fields = parse_json(_text(read_member(descriptor, member), member))
                if not isinstance(fields, dict):
                    raise RecordError("not_an_object", f"{member.name} is no JSON object")
                values = {**fields, **values}
            else:
                tally.ignored[suffix or member.name] += 1
    except RecordError as error:
        return error
    except OSError as error:
        return RecordError("image_unreadable", f"sample {key!r}: {error.strerror}")
    return values


def _text(data: bytes, member: Member) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecordError("bad_utf8", f"byte {error.start} of {member.name} is not UTF-8") from error
