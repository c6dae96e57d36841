"""What an epoch is made of: units, each one sample of one or several branches, with its length known before training.

One pass over the records tokenises everything once, counts what cannot be trained on by reason, and groups branches that share a
picture. The table that comes out is cached beside the data set under a key of all that it depends on, and with it the tokens; the
order and the rows of every epoch are pure functions of it.
"""

import hashlib
import json
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import IO, Protocol

import numpy as np
from jaxtyping import Int

from sightline.data.dataset import Dataset
from sightline.data.images.tilings import Layout
from sightline.data.samples.encoding import ConversationEncoder, EncodedConversation, TextEncoding, shared_prefix
from sightline.data.samples.token_table import TokenTable, TokenWriter, starts
from sightline.errors import DataError, RecordError, SkipLimitError, StorageError
from sightline.runtime.keyed import keyed_generator
from sightline.runtime.logs import logger, progress
from sightline.runtime.storage import atomic_file
from sightline.types import Record

TABLE_VERSION = 4


@dataclass(frozen=True)
class LengthTable:
    """The length table of one split of one data set.

    Attributes:
        record, branch: for each member of a unit the record's number in the data set and the number of its conversation.
        begin: where each unit's members begin; one entry more than units.
        tokens: length of each unit, a shared prefix counted once.
        alone: length of its branches as separate rows.
        supervised: supervised tokens of each unit.
        crops: images (tiles) of each unit.
        skipped: records or captions that cannot be trained on, by reason.
        texts: all conversations as they were tokenised; None where they were not kept.
        text: for each member the number of its conversation in `texts`, which counts all that can be trained on.
    """

    record: Int[np.ndarray, " members"]
    branch: Int[np.ndarray, " members"]
    begin: Int[np.ndarray, " units_and_end"]
    tokens: Int[np.ndarray, " units"]
    alone: Int[np.ndarray, " units"]
    supervised: Int[np.ndarray, " units"]
    crops: Int[np.ndarray, " units"]
    text: Int[np.ndarray, " members"]
    skipped: dict[str, int] = field(default_factory=dict)
    texts: TokenTable | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def subset(self, chosen: Int[np.ndarray, " some"]) -> "LengthTable":
        """The table of some units, in the given order."""
        spans = [np.arange(self.begin[unit], self.begin[unit + 1]) for unit in chosen]
        places = np.concatenate(spans) if spans else np.zeros(0, dtype=np.int64)
        return LengthTable(
            record=self.record[places],
            branch=self.branch[places],
            begin=starts(map(len, spans)),
            tokens=self.tokens[chosen],
            alone=self.alone[chosen],
            supervised=self.supervised[chosen],
            crops=self.crops[chosen],
            skipped=self.skipped,
            texts=self.texts,
            text=self.text[places],
        )

    def limited(self, limit: int | None) -> "LengthTable":
        """The table of at most `limit` samples, the same ones each time, in order; all of them with None."""
        if limit is None or limit >= len(self):
            return self
        return self.subset(np.sort(keyed_generator("limit", 0).permutation(len(self))[:limit]))

    def members(self, unit: int) -> list[tuple[int, int]]:
        """`(record, conversation)` of each branch of a unit."""
        span = self._span(unit)
        return list(zip(self.record[span].tolist(), self.branch[span].tolist(), strict=True))

    def encoded(self, unit: int) -> list[TextEncoding] | None:
        """Each branch of a unit as it was tokenised; None where that was not kept."""
        texts = self.texts
        return None if texts is None else [texts[number] for number in self.text[self._span(unit)].tolist()]

    def _span(self, unit: int) -> slice:
        return slice(int(self.begin[unit]), int(self.begin[unit + 1]))


@dataclass(frozen=True)
class SampleTotals:
    """What a stage has to train on, over all its data sets; `data check` announces it and training logs it.

    Attributes:
        samples: training samples.
        tokens: of all samples, a shared prefix counted once.
        tokens_unshared: of their conversations as separate rows.
        supervised: supervised tokens.
        skipped: conversations that cannot be trained on, by reason.
    """

    samples: int
    tokens: int
    tokens_unshared: int
    supervised: int
    skipped: dict[str, int]

    @classmethod
    def of(cls, tables: Sequence[LengthTable]) -> "SampleTotals":
        """Returns the totals of the length tables of a stage."""
        skipped = Counter[str]()
        for table in tables:
            skipped.update(table.skipped)
        return cls(
            samples=sum(map(len, tables)),
            tokens=sum(int(table.tokens.sum()) for table in tables),
            tokens_unshared=sum(int(table.alone.sum()) for table in tables),
            supervised=sum(int(table.supervised.sum()) for table in tables),
            skipped=dict(sorted(skipped.items())),
        )

    def lines(self) -> list[str]:
        """Returns the totals as text."""
        shares = self.tokens < self.tokens_unshared
        saved = f" ({1 - self.tokens / self.tokens_unshared:.0%} fewer by sharing images)" if shares else ""
        out = [f"data       {self.samples:>13,} samples, {self.tokens:,} tokens{saved}, {self.supervised:,} supervised"]
        if self.skipped:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.skipped.items())
            out.append(f"left out   {sum(self.skipped.values()):>13,} conversations: {reasons}")
        return out


@dataclass(frozen=True)
class LengthTableRules:
    """How branches become units.

    Attributes:
        share_prefix: branches of one picture (captions of a record, neighbouring records with the same images) form one unit.
        row_tokens: a unit is split before it grows longer.
        max_skipped: largest share of branches that may be skipped.
    """

    share_prefix: bool = True
    row_tokens: int = 2048
    max_skipped: float = 0.01


def table_key(dataset: Dataset, split: str, builder: ConversationEncoder, rules: LengthTableRules) -> str:
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


def load_length_table(
    dataset: Dataset, split: str, builder: ConversationEncoder, rules: LengthTableRules, cache: Path | None
) -> LengthTable:
    """The length table from the cache, or made and cached.

    Args:
        cache: folder of tables; None keeps nothing.

    Raises:
        SkipLimitError: more than `rules.max_skipped` of the branches cannot be trained on, or none can.
    """
    if cache is None:
        units = _made_in_memory(dataset, split, builder, rules)
    else:
        key = table_key(dataset, split, builder, rules)
        units = _cached(cache / f"lengths-{key}.npz", cache / f"tokens-{key}.bin", dataset, split, builder, rules)
    check_skip_limit(units, rules.max_skipped, split)
    return units


def _cached(
    lengths: Path, tokens: Path, dataset: Dataset, split: str, builder: ConversationEncoder, rules: LengthTableRules
) -> LengthTable:
    """The table as it lies in its two files, or made and written; a folder that cannot be written costs a message and memory."""
    units = read_table(lengths, tokens)
    if units is not None:
        return units
    try:
        lengths.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(tokens, "wb") as file:
            units, begin = _with_texts(dataset, split, builder, rules, file)
        _write_lengths(lengths, units, begin)
    except (OSError, StorageError) as error:
        logger.info("lengths and tokens are not cached but kept in memory: %s", error)
        return _made_in_memory(dataset, split, builder, rules)
    return replace(units, texts=TokenTable(tokens, begin))


def _made_in_memory(dataset: Dataset, split: str, builder: ConversationEncoder, rules: LengthTableRules) -> LengthTable:
    file = BytesIO()
    units, begin = _with_texts(dataset, split, builder, rules, file)
    return replace(units, texts=TokenTable(file.getvalue(), begin))


def _with_texts(
    dataset: Dataset, split: str, builder: ConversationEncoder, rules: LengthTableRules, file: IO[bytes]
) -> tuple[LengthTable, Int[np.ndarray, " conversations_and_end"]]:
    """The table, and where each conversation begins in the file."""
    writer = TokenWriter(file)
    units = make_length_table(dataset, dataset.split_indices(split), builder, rules, texts=writer)
    return units, writer.begin


def check_skip_limit(units: LengthTable, max_skipped: float, split: str) -> None:
    """Refuses a split of which too much cannot be trained on."""
    lost, kept = sum(units.skipped.values()), len(units.record)
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(units.skipped.items(), key=lambda item: -item[1]))
    if not kept:
        raise SkipLimitError(
            f"nothing of split {split!r} can be trained on ({reasons or 'it is empty'}).", "See `sightline data check`."
        )
    if lost > max_skipped * (lost + kept):
        raise SkipLimitError(
            f"{lost} of {lost + kept} conversations of split {split!r} cannot be trained on ({reasons}).",
            "See `sightline data check`, or allow more with data.max_skipped.",
        )
    if lost:
        logger.info("%s: %d of %d conversations left out (%s)", split, lost, lost + kept, reasons)


class LengthObserver(Protocol):
    """Sees every conversation as it becomes a row, or why it does not."""

    def row(self, record: Record, branch: int, row: EncodedConversation, layouts: Sequence[Layout]) -> None: ...

    def skip(self, record: Record, branch: int, error: RecordError) -> None: ...


def make_length_table(
    dataset: Dataset,
    indices: Iterable[int],
    builder: ConversationEncoder,
    rules: LengthTableRules,
    watcher: LengthObserver | None = None,
    texts: TokenWriter | None = None,
) -> LengthTable:
    """Tokenises the records of a split and groups their branches.

    Args:
        dataset: holds the records.
        indices: of the records, in order.
        builder: makes rows.
        rules: how conversations of one picture are grouped.
        watcher: is shown each conversation.
        texts: is given each that can be trained on as it was tokenised, in the order of the members.
    """
    reader = _Reader(dataset, builder, watcher, texts)
    table: list[tuple[list[tuple[int, int]], int, int, int, int]] = []
    indices = list(indices)
    with progress("tokenising", len(indices)) as bar:
        for group in _groups(reader, indices, rules.share_prefix, bar.step):
            table.extend(_split_group(group, rules))
    sizes = [len(members) for members, *_ in table]
    members = [member for row in table for member in row[0]]
    columns = np.array([row[1:] for row in table], dtype=np.int64).reshape(len(table), 4)
    return LengthTable(
        record=np.array([record for record, _ in members], dtype=np.int64),
        branch=np.array([branch for _, branch in members], dtype=np.int64),
        begin=starts(sizes),
        tokens=columns[:, 0],
        alone=columns[:, 1],
        supervised=columns[:, 2],
        crops=columns[:, 3],
        text=np.arange(len(members)),
        skipped=dict(reader.skipped),
    )


def image_keys(record: Record) -> tuple[str, ...]:
    """What two records with the same pictures have in common: the pictures' hashes (in shards every record has its own paths)."""
    return tuple(info.sha256 for info in record.image_info) or record.images


@dataclass
class _Group:
    """Rows that may share their pictures."""

    members: list[tuple[int, int]]
    rows: list[EncodedConversation]
    crops: int


@dataclass
class _Reader:
    """Makes the rows of records and counts those that cannot be made."""

    dataset: Dataset
    builder: ConversationEncoder
    watcher: LengthObserver | None
    texts: TokenWriter | None
    skipped: Counter[str] = field(default_factory=Counter)

    def rows(self, record: Record) -> Iterator[tuple[int, EncodedConversation, int]]:
        """Number, row and crops of each conversation of a record that can be trained on."""
        for branch, messages in enumerate(self.builder.conversations(record)):
            try:
                layouts = self.builder.layouts(record)
                encoded = self.builder.encode(messages, layouts, verify=True)
                row = self.builder.laid_out(encoded, layouts)
            except RecordError as error:
                self.skipped[error.reason] += 1
                if self.watcher is not None:
                    self.watcher.skip(record, branch, error)
                continue
            if self.watcher is not None:
                self.watcher.row(record, branch, row, layouts)
            if self.texts is not None:
                self.texts.write(encoded)
            yield branch, row, sum(layout.num_crops for layout in layouts)


def _groups(reader: _Reader, indices: Sequence[int], share_prefix: bool, step: Callable[[], None]) -> Iterator[_Group]:
    """Rows of neighbouring conversations with the same pictures, one group at a time."""
    group: _Group | None = None
    pictures: tuple[str, ...] = ()
    for index in indices:
        record = reader.dataset.record(index)
        for branch, row, crops in reader.rows(record):
            joins = share_prefix and group is not None and crops > 0 and pictures == image_keys(record)
            if group is not None and joins:
                group.members.append((index, branch))
                group.rows.append(row)
            else:
                if group is not None:
                    yield group
                group, pictures = _Group([(index, branch)], [row], crops), image_keys(record)
        step()
    if group is not None:
        yield group


def _split_group(group: _Group, rules: LengthTableRules) -> Iterator[tuple[list[tuple[int, int]], int, int, int, int]]:
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


def _shared_length(rows: Sequence[EncodedConversation]) -> int:
    prefix = shared_prefix(rows) if len(rows) > 1 else 0
    return prefix + sum(len(row.ids) - prefix for row in rows)


def read_table(lengths: Path, tokens: Path) -> LengthTable | None:
    """A cached table, or None when there is none or it is torn."""
    if not lengths.exists():
        return None
    try:
        with lengths.open("rb") as file, np.load(file, allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files if name not in ("skipped", "begin_text")}
            return LengthTable(**arrays, skipped=json.loads(str(data["skipped"])), texts=TokenTable(tokens, data["begin_text"]))
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, DataError) as error:
        logger.info("the cached table %s is torn (%s); it is made again", lengths, error)
        return None


def _write_lengths(path: Path, units: LengthTable, begin_text: Int[np.ndarray, " conversations_and_end"]) -> None:
    columns = {
        name: getattr(units, name) for name in ("record", "branch", "begin", "tokens", "alone", "supervised", "crops", "text")
    }
    with atomic_file(path, "wb") as file:
        np.savez(file, **columns, begin_text=begin_text, skipped=np.array(json.dumps(units.skipped)))
