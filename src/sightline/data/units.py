"""What an epoch is made of: units, each one sample of one or several branches, with its length known before training.

One pass over the records tokenises everything once, counts what cannot be trained on by reason, and groups branches that share a
picture. The table that comes out is cached beside the data set under a key of all that it depends on; the order and the rows of
every epoch are pure functions of it.
"""

import hashlib
import json
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Int

from sightline.data.dataset import Dataset
from sightline.data.samples import Row, RowBuilder, shared_prefix
from sightline.data.tilings import Layout
from sightline.errors import BudgetError, RecordError, StorageError
from sightline.runtime.logs import logger, progress
from sightline.runtime.storage import atomic_file
from sightline.types import Record

TABLE_VERSION = 3


@dataclass(frozen=True)
class Units:
    """The length table of one split of one data set.

    Attributes:
        record, branch: for each member of a unit the record's number in the data set and the number of its conversation.
        begin: where each unit's members begin; one entry more than units.
        tokens: length of each unit, a shared prefix counted once.
        alone: length of its branches as separate rows.
        supervised: supervised tokens of each unit.
        crops: images (tiles) of each unit.
        skipped: records or captions that cannot be trained on, by reason.
    """

    record: Int[np.ndarray, " members"]
    branch: Int[np.ndarray, " members"]
    begin: Int[np.ndarray, " units_and_end"]
    tokens: Int[np.ndarray, " units"]
    alone: Int[np.ndarray, " units"]
    supervised: Int[np.ndarray, " units"]
    crops: Int[np.ndarray, " units"]
    skipped: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    def subset(self, chosen: Int[np.ndarray, " some"]) -> "Units":
        """The table of some units, in the given order."""
        spans = [np.arange(self.begin[unit], self.begin[unit + 1]) for unit in chosen]
        places = np.concatenate(spans) if spans else np.zeros(0, dtype=np.int64)
        return Units(
            record=self.record[places],
            branch=self.branch[places],
            begin=np.concatenate([[0], np.cumsum([len(span) for span in spans], dtype=np.int64)]).astype(np.int64),
            tokens=self.tokens[chosen],
            alone=self.alone[chosen],
            supervised=self.supervised[chosen],
            crops=self.crops[chosen],
            skipped=self.skipped,
        )

    def members(self, unit: int) -> list[tuple[int, int]]:
        """`(record, conversation)` of each branch of a unit."""
        span = slice(int(self.begin[unit]), int(self.begin[unit + 1]))
        return list(zip(self.record[span].tolist(), self.branch[span].tolist(), strict=True))


@dataclass(frozen=True)
class UnitRules:
    """How branches become units.

    Attributes:
        share_prefix: branches of one picture (captions of a record, neighbouring records with the same images) form one unit.
        row_tokens: a unit is split before it grows longer.
        max_skipped: largest share of branches that may be skipped.
    """

    share_prefix: bool = True
    row_tokens: int = 2048
    max_skipped: float = 0.01


def table_key(dataset: Dataset, split: str, builder: RowBuilder, rules: UnitRules) -> str:
    """Identifies everything that a length table depends on."""
    tokenizer = builder.tokenizer
    parts = {
        "version": TABLE_VERSION,
        "dataset": dataset.fingerprint,
        "split": split,
        "tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "template": builder.template.source,
        "prompt": builder.rules.prompt,
        "supervise": builder.rules.supervise,
        "max_tokens": builder.rules.max_tokens,
        "too_long": builder.rules.too_long,
        "grid": list(builder.rules.grid),
        "tiling": builder.rules.tiling.key() if builder.rules.tiling else None,
        "captions": builder.rules.captions,
        "drop_images": builder.rules.drop_images,
        "share_prefix": rules.share_prefix,
        "row_tokens": rules.row_tokens,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def load_units(dataset: Dataset, split: str, builder: RowBuilder, rules: UnitRules, cache: Path | None) -> Units:
    """The length table from the cache, or made and cached.

    Args:
        cache: folder of tables; None keeps nothing.

    Raises:
        BudgetError: more than `rules.max_skipped` of the branches cannot be trained on, or none can.
    """
    path = cache / f"lengths-{table_key(dataset, split, builder, rules)}.npz" if cache is not None else None
    units = read_table(path) if path is not None else None
    if units is None:
        units = make_units(dataset, dataset.split_indices(split), builder, rules)
        if path is not None:
            write_table(path, units)
    check_budget(units, rules.max_skipped, split)
    return units


def check_budget(units: Units, max_skipped: float, split: str) -> None:
    """Refuses a split of which too much cannot be trained on."""
    lost, kept = sum(units.skipped.values()), len(units.record)
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(units.skipped.items(), key=lambda item: -item[1]))
    if not kept:
        raise BudgetError(
            f"nothing of split {split!r} can be trained on ({reasons or 'it is empty'}).", "See `sightline data check`."
        )
    if lost > max_skipped * (lost + kept):
        raise BudgetError(
            f"{lost} of {lost + kept} conversations of split {split!r} cannot be trained on ({reasons}).",
            "See `sightline data check`, or allow more with data.max_skipped.",
        )
    if lost:
        logger.info("%s: %d of %d conversations left out (%s)", split, lost, lost + kept, reasons)


class Watcher(Protocol):
    """Sees every conversation as it becomes a row, or why it does not."""

    def row(self, record: Record, branch: int, row: Row, layouts: Sequence[Layout]) -> None: ...

    def skip(self, record: Record, branch: int, error: RecordError) -> None: ...


def make_units(
    dataset: Dataset, indices: Iterable[int], builder: RowBuilder, rules: UnitRules, watcher: Watcher | None = None
) -> Units:
    """Tokenises the records of a split and groups their branches; `watcher` is shown each of them."""
    skipped: Counter[str] = Counter()
    table: list[tuple[list[tuple[int, int]], int, int, int, int]] = []
    indices = list(indices)
    with progress("tokenising", len(indices)) as bar:
        for group in _groups(dataset, indices, builder, rules, skipped, bar.step, watcher):
            table.extend(_split_group(group, rules))
    sizes = [len(members) for members, *_ in table]
    members = [member for row in table for member in row[0]]
    columns = np.array([row[1:] for row in table], dtype=np.int64).reshape(len(table), 4)
    return Units(
        record=np.array([record for record, _ in members], dtype=np.int64),
        branch=np.array([branch for _, branch in members], dtype=np.int64),
        begin=np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64),
        tokens=columns[:, 0],
        alone=columns[:, 1],
        supervised=columns[:, 2],
        crops=columns[:, 3],
        skipped=dict(skipped),
    )


def picture_keys(record: Record) -> tuple[str, ...]:
    """What two records with the same pictures have in common: the pictures' hashes (in shards every record has its own paths)."""
    return tuple(info.sha256 for info in record.image_info) or record.images


@dataclass
class _Group:
    """Rows that may share their pictures."""

    members: list[tuple[int, int]]
    rows: list[Row]
    crops: int


def _groups(
    dataset: Dataset,
    indices: Sequence[int],
    builder: RowBuilder,
    rules: UnitRules,
    skipped: Counter[str],
    step: Callable[[], None],
    watcher: Watcher | None,
) -> Iterator[_Group]:
    """Rows of neighbouring conversations with the same pictures, one group at a time."""
    group: _Group | None = None
    pictures: tuple[str, ...] = ()
    for index in indices:
        record = dataset.record(index)
        for branch, row, crops in _rows(record, builder, skipped, watcher):
            joins = rules.share_prefix and group is not None and crops > 0 and pictures == picture_keys(record)
            if group is not None and joins:
                group.members.append((index, branch))
                group.rows.append(row)
            else:
                if group is not None:
                    yield group
                group, pictures = _Group([(index, branch)], [row], crops), picture_keys(record)
        step()
    if group is not None:
        yield group


def _rows(record: Record, builder: RowBuilder, skipped: Counter[str], watcher: Watcher | None) -> Iterator[tuple[int, Row, int]]:
    for branch, messages in enumerate(builder.conversations(record)):
        try:
            layouts = builder.layouts(record)
            row = builder.row(messages, layouts, verify=True)
        except RecordError as error:
            skipped[error.reason] += 1
            if watcher is not None:
                watcher.skip(record, branch, error)
            continue
        if watcher is not None:
            watcher.row(record, branch, row, layouts)
        yield branch, row, sum(layout.num_crops for layout in layouts)


def _split_group(group: _Group, rules: UnitRules) -> Iterator[tuple[list[tuple[int, int]], int, int, int, int]]:
    """Units of a group: as many branches together as a row holds; members, tokens, tokens alone, supervised, crops."""
    at = 0
    while at < len(group.rows):
        take = 1
        while at + take < len(group.rows):
            rows = group.rows[at : at + take + 1]
            if shared_prefix(rows) == 0 or _shared_length(rows) > rules.row_tokens:
                break
            take += 1
        rows = group.rows[at : at + take]
        alone = sum(len(row.ids) for row in rows)
        supervised = sum(row.num_supervised for row in rows)
        yield group.members[at : at + take], _shared_length(rows), alone, supervised, group.crops
        at += take


def _shared_length(rows: Sequence[Row]) -> int:
    prefix = shared_prefix(rows) if len(rows) > 1 else 0
    return prefix + sum(len(row.ids) - prefix for row in rows)


def read_table(path: Path) -> Units | None:
    """A cached table, or None when there is none or it is torn."""
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files if name != "skipped"}
            return Units(**arrays, skipped=json.loads(str(data["skipped"])))
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        logger.info("the cached table %s is torn (%s); it is made again", path, error)
        return None


def write_table(path: Path, units: Units) -> None:
    """Caches a table; a folder that cannot be written costs a message and nothing else."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path, "wb") as file:
            np.savez(
                file,
                record=units.record,
                branch=units.branch,
                begin=units.begin,
                tokens=units.tokens,
                alone=units.alone,
                supervised=units.supervised,
                crops=units.crops,
                skipped=np.array(json.dumps(units.skipped)),
            )
    except (OSError, StorageError) as error:
        logger.info("the length table is not cached: %s", error)
