"""WebDataset tars: members that follow each other and share their name up to the first dot are one sample.

The images of a sample are its images, `.txt` its caption; the keys of `.json` stand beside them (`caption`, `conversations`,
`question`, ...) and can be mapped. Members are read one at a time in place. A tar that is cut or damaged is refused before any of
its samples is used.

Names that have dots themselves (`22.05.jpg`, `22.05.txt`, `22.06.jpg`, `22.06.txt`) would become one sample by that rule. Where a
image and a text agree in a name with a dot, the members of that key are cut at their last dot instead. A member whose name stands
in its sample already begins a new sample.
"""

import os
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from sightline.data.readers.archives import Member, has_image_suffix, open_tar, read_member, tar_members
from sightline.data.readers.base import Item, Skip, SourceOptions, Tally
from sightline.data.readers.roots import FirstOf, is_hidden
from sightline.data.readers.rows import Keys, Numbered, TableRow, add_side_file, items
from sightline.data.readers.tables import GENERAL, split_of_file, table_files
from sightline.errors import RecordError

TEXT_SUFFIXES = (".json", ".txt")
KEYS: Keys = {**GENERAL, "caption": (".txt", "caption", "text"), "id": "__key__", "image": "__images__"}


def read(path: Path, options: SourceOptions, tally: Tally) -> Iterator[Item | Skip]:
    """Items of a tar, or of all tars in a folder, in the order of their names."""
    number = 0
    for file in table_files(path, ("**/*.tar",), tally):
        for entry in _tar_items(file, split_of_file(file, path), options, tally, number):
            yield entry
            number += 1


def _tar_items(file: Path, split: str, options: SourceOptions, tally: Tally, first: int) -> Iterator[Item | Skip]:
    nowhere = FirstOf([])

    def build(values: dict[str, Any], number: int, where: str) -> Item:
        if not values["__images__"] and not options.text_only:
            raise RecordError("image_missing", f"sample {values['__key__']!r} has no image")
        return TableRow(values, KEYS, options).item(number, where, nowhere, tally, split=split)

    return items(_samples(file, first, tally), build)


def _samples(file: Path, first: int, tally: Tally) -> Iterator[Numbered]:
    members: list[Member] = []
    for member in tar_members(file, lambda name: tally.ignore("member_not_regular", f"{file.name}/{name}")):
        if is_hidden(member.name):
            tally.ignore("hidden", f"{file.name}/{member.name}")
        else:
            members.append(member)
    with open_tar(file) as descriptor:
        samples = (sample for key, group in groupby(members, _key) for sample in _cut(key, list(group)))
        for number, (key, group) in enumerate(samples, start=first):
            yield number, f"{file.name}:{key}", _sample(descriptor, file, key, group, tally)


def _key(member: Member) -> str:
    """Returns the name up to the first dot of its last part, as webdataset cuts it."""
    folder, name = os.path.split(member.name)
    return os.path.join(folder, name.partition(".")[0])


def _stem(member: Member) -> str:
    """Returns the name up to its last dot."""
    return os.path.splitext(member.name)[0]


def _suffix(member: Member) -> str:
    return os.path.splitext(member.name)[1].lower()


def _cut(key: str, members: list[Member]) -> Iterator[tuple[str, list[Member]]]:
    """Yields the samples that members of one key are: one, unless their names have dots or repeat."""
    images = {_stem(member) for member in members if has_image_suffix(member.name)}
    others = [_stem(member) for member in members if not has_image_suffix(member.name)]
    texts = [_stem(member) for member in members if _suffix(member) in TEXT_SUFFIXES]
    has_dots = any(stem != key and stem in images for stem in others)
    if has_dots or (not images and key not in texts and len(set(texts)) > 1):
        for stem, group in groupby(members, _stem):
            yield from _unrepeated(stem, list(group))
    else:
        yield from _unrepeated(key, members)


def _unrepeated(key: str, members: list[Member]) -> Iterator[tuple[str, list[Member]]]:
    sample: list[Member] = []
    for member in members:
        if any(member.name == known.name for known in sample):
            yield key, sample
            sample = []
        sample.append(member)
    yield key, sample


def _sample(descriptor: int, file: Path, key: str, members: list[Member], tally: Tally) -> dict[str, Any] | RecordError:
    values: dict[str, Any] = {"__key__": key, "__images__": []}
    texts: dict[str, list[Member]] = {suffix: [] for suffix in TEXT_SUFFIXES}
    try:
        for member in members:
            if has_image_suffix(member.name):
                values["__images__"].append(read_member(descriptor, member))
            elif _suffix(member) in texts:
                texts[_suffix(member)].append(member)
            else:
                tally.ignore(_suffix(member) or "member_without_suffix", f"{file.name}/{member.name}")
        for found in texts.values():
            found.sort(key=lambda member: _stem(member) != key)  # `x.txt` before `x.long.txt`
            for member in found[1:]:
                tally.ignore("." + member.name[len(key) + 1 :], f"{file.name}/{member.name}")
            for member in found[:1]:
                add_side_file(values, member.name, read_member(descriptor, member))
    except RecordError as error:
        return error
    except OSError as error:
        return RecordError("image_unreadable", f"sample {key!r}: {error.strerror}")
    return values
