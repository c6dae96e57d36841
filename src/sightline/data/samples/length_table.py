"""The length table: all samples of a split, each of one or several branches, with their lengths known before training.

One pass over the records tokenises every conversation once, counts by reason those that cannot be trained on, and groups branches
about the same image. The table and the tokens are cached beside the data set under a key of everything they depend on; the order
and the rows of every epoch are pure functions of the table.
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
from sightline.data.skip_limit import check_skip_limit, reasons_text
from sightline.errors import DataError, RecordError, SkipLimitError, StorageError
from sightline.runtime.keyed import keyed_generator
from sightline.runtime.logs import logger, progress
from sightline.runtime.storage import atomic_file
from sightline.types import Record

TABLE_VERSION = 4
COLUMNS = {  # field of a length table -> its name in the file
    "record": "record",
    "branch": "branch",
    "begin": "begin",
    "tokens": "tokens",
    "tokens_unshared": "alone",
    "supervised": "supervised",
    "crops": "crops",
    "text": "text",
}


@dataclass(frozen=True)
class LengthTable:
    """The length table of one split of one data set.

    Attributes:
        record, branch: for each member (branch of a sample) the index of its record in the data set, and the index of its
            conversation in the record.
        begin: index of each sample's first member; one entry more than samples.
        tokens: length of each sample in tokens, a shared prefix counted once.
        tokens_unshared: summed length of its branches without prefix sharing.
        supervised: supervised tokens of each sample.
        crops: crops of each sample.
        text: for each member the index of its conversation in `texts`.
        skipped: number of conversations that cannot be trained on, by reason.
        texts: all tokenised conversations; None where they were not kept.
    """

    record: Int[np.ndarray, " members"]
    branch: Int[np.ndarray, " members"]
    begin: Int[np.ndarray, " samples_and_end"]
    tokens: Int[np.ndarray, " samples"]
    tokens_unshared: Int[np.ndarray, " samples"]
    supervised: Int[np.ndarray, " samples"]
    crops: Int[np.ndarray, " samples"]
    text: Int[np.ndarray, " members"]
    skipped: dict[str, int] = field(default_factory=dict)
    texts: TokenTable | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def subset(self, chosen: Int[np.ndarray, " some"]) -> "LengthTable":
        """Returns the table of some samples, in the given order."""
        spans = [np.arange(self.begin[sample], self.begin[sample + 1]) for sample in chosen]
        members = np.concatenate(spans) if spans else np.zeros(0, dtype=np.int64)
        return LengthTable(
            record=self.record[members],
            branch=self.branch[members],
            begin=starts(map(len, spans)),
            tokens=self.tokens[chosen],
            tokens_unshared=self.tokens_unshared[chosen],
            supervised=self.supervised[chosen],
            crops=self.crops[chosen],
            skipped=self.skipped,
            texts=self.texts,
            text=self.text[members],
        )

    def limited(self, limit: int | None) -> "LengthTable":
        """Returns the table of at most `limit` samples, the same ones each time, in order; all of them for None."""
        if limit is None or limit >= len(self):
            return self
        return self.subset(np.sort(keyed_generator("limit", 0).permutation(len(self))[:limit]))

    def members(self, sample: int) -> list[tuple[int, int]]:
        """Returns `(record, branch)` of each branch of a sample."""
        span = self._members(sample)
        return list(zip(self.record[span].tolist(), self.branch[span].tolist(), strict=True))

    def encoded(self, sample: int) -> list[TextEncoding] | None:
        """Returns the tokenised conversation of each branch of a sample; None where they were not kept."""
        texts = self.texts
        return None if texts is None else [texts[number] for number in self.text[self._members(sample)].tolist()]

    def _members(self, sample: int) -> slice:
        return slice(int(self.begin[sample]), int(self.begin[sample + 1]))


@dataclass(frozen=True)
class SampleTotals:
    """Totals of the samples of a stage over all its data sets, as `data check` and training report them.

    Attributes:
        samples: number of samples.
        tokens: tokens of all samples, a shared prefix counted once.
        tokens_unshared: tokens without prefix sharing.
        supervised: supervised tokens.
        skipped: number of conversations that cannot be trained on, by reason.
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
            tokens_unshared=sum(int(table.tokens_unshared.sum()) for table in tables),
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
    """How branches are grouped into samples.

    Attributes:
        share_prefix: branches about the same images (captions of a record, neighbouring records) form one sample.
        row_tokens: maximum length of such a sample in tokens; longer groups are split.
        max_skipped: largest share of branches that may be skipped.
    """

    share_prefix: bool = True
    row_tokens: int = 2048
    max_skipped: float = 0.01


def table_key(dataset: Dataset, split: str, conversation_encoder: ConversationEncoder, rules: LengthTableRules) -> str:
    """Returns the cache key of a length table: a hash of everything that it depends on."""
    tokenizer = conversation_encoder.tokenizer
    parts = {
        "version": TABLE_VERSION,
        "dataset": dataset.fingerprint,
        "split": split,
        "tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "template": conversation_encoder.template.source,
        "prompt": conversation_encoder.rules.prompt,
        "supervise": conversation_encoder.rules.supervise,
        "max_tokens": conversation_encoder.rules.max_tokens,
        "too_long": conversation_encoder.rules.too_long,
        "grid": list(conversation_encoder.rules.grid),
        "tiling": conversation_encoder.rules.tiling.key() if conversation_encoder.rules.tiling else None,
        "captions": conversation_encoder.rules.captions,
        "drop_images": conversation_encoder.rules.drop_images,
        "share_prefix": rules.share_prefix,
        "row_tokens": rules.row_tokens,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def load_length_table(
    dataset: Dataset,
    split: str,
    conversation_encoder: ConversationEncoder,
    rules: LengthTableRules,
    cache: Path | None,
    writes: bool = True,
) -> LengthTable:
    """Reads the length table of a split from the cache, or makes and caches it.

    Args:
        dataset, split: the data.
        conversation_encoder: encodes conversations.
        rules: how branches are grouped.
        cache: folder of cached tables; None caches nothing.
        writes: False reads the cache and writes nothing.

    Raises:
        SkipLimitError: more than `rules.max_skipped` of the branches cannot be trained on, or none can.
    """
    if cache is None:
        table = _make_in_memory(dataset, split, conversation_encoder, rules)
    else:
        key = table_key(dataset, split, conversation_encoder, rules)
        files = cache / f"lengths-{key}.npz", cache / f"tokens-{key}.bin"
        if writes:
            table = _read_or_write(*files, dataset, split, conversation_encoder, rules)
        else:
            table = read_table(*files) or _make_in_memory(dataset, split, conversation_encoder, rules)
    check_trainable(table, rules.max_skipped, split)
    return table


def _read_or_write(
    lengths: Path, tokens: Path, dataset: Dataset, split: str, conversation_encoder: ConversationEncoder, rules: LengthTableRules
) -> LengthTable:
    """Reads the table from its two files, or makes and writes it; keeps it in memory where the folder cannot be written."""
    table = read_table(lengths, tokens)
    if table is not None:
        return table
    try:
        lengths.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(tokens, "wb") as file:
            table, begin = _make_with_texts(dataset, split, conversation_encoder, rules, file)
        _write_lengths(lengths, table, begin)
    except (OSError, StorageError) as error:
        logger.info("the length table cannot be cached and is kept in memory: %s", error)
        return _make_in_memory(dataset, split, conversation_encoder, rules)
    return replace(table, texts=TokenTable(tokens, begin))


def _make_in_memory(
    dataset: Dataset, split: str, conversation_encoder: ConversationEncoder, rules: LengthTableRules
) -> LengthTable:
    file = BytesIO()
    table, begin = _make_with_texts(dataset, split, conversation_encoder, rules, file)
    return replace(table, texts=TokenTable(file.getvalue(), begin))


def _make_with_texts(
    dataset: Dataset, split: str, conversation_encoder: ConversationEncoder, rules: LengthTableRules, file: IO[bytes]
) -> tuple[LengthTable, Int[np.ndarray, " conversations_and_end"]]:
    """Makes the table and writes the tokens; returns the table and where each conversation begins in the file."""
    writer = TokenWriter(file)
    table = make_length_table(dataset, dataset.split_indices(split), conversation_encoder, rules, texts=writer)
    return table, writer.begin


def check_trainable(table: LengthTable, max_skipped: float, split: str) -> None:
    """Checks the share of conversations that cannot be trained on.

    Raises:
        SkipLimitError: it exceeds `max_skipped`, or no conversation is left.
    """
    lost, kept, reasons = sum(table.skipped.values()), len(table.record), reasons_text(table.skipped)
    if not kept:
        raise SkipLimitError(
            f"nothing of split {split!r} can be trained on ({reasons or 'it is empty'}).", "See `sightline data check`."
        )
    what = f"conversations of split {split!r} cannot be trained on ({reasons})"
    remedy = "See `sightline data check`, or allow more with data.max_skipped."
    check_skip_limit(lost, lost + kept, max_skipped, what, remedy, "data.max_skipped")
    if lost:
        logger.info("%s: %d of %d conversations left out (%s)", split, lost, lost + kept, reasons)


class LengthObserver(Protocol):
    """Is called with every encoded conversation, or with the error of one that cannot be trained on."""

    def row(self, record: Record, branch: int, row: EncodedConversation, layouts: Sequence[Layout]) -> None: ...

    def skip(self, record: Record, branch: int, error: RecordError) -> None: ...


def make_length_table(
    dataset: Dataset,
    indices: Iterable[int],
    conversation_encoder: ConversationEncoder,
    rules: LengthTableRules,
    observer: LengthObserver | None = None,
    texts: TokenWriter | None = None,
) -> LengthTable:
    """Tokenises records and groups their conversations into samples.

    Args:
        dataset: the data set of the records.
        indices: indices of the records, in order.
        conversation_encoder: encodes conversations.
        rules: how branches are grouped.
        observer: is called with each conversation.
        texts: receives each tokenised conversation that can be trained on, in the order of the members.
    """
    reader = _Reader(dataset, conversation_encoder, observer, texts)
    samples: list[tuple[list[tuple[int, int]], int, int, int, int]] = []
    indices = list(indices)
    with progress("tokenising", len(indices)) as bar:
        for group in _groups(reader, indices, rules.share_prefix, bar.step):
            samples.extend(_split_group(group, rules))
    sizes = [len(members) for members, *_ in samples]
    members = [member for sample in samples for member in sample[0]]
    columns = np.array([sample[1:] for sample in samples], dtype=np.int64).reshape(len(samples), 4)
    return LengthTable(
        record=np.array([record for record, _ in members], dtype=np.int64),
        branch=np.array([branch for _, branch in members], dtype=np.int64),
        begin=starts(sizes),
        tokens=columns[:, 0],
        tokens_unshared=columns[:, 1],
        supervised=columns[:, 2],
        crops=columns[:, 3],
        text=np.arange(len(members)),
        skipped=dict(reader.skipped),
    )


@dataclass
class _Group:
    """Consecutive conversations about the same images."""

    members: list[tuple[int, int]]
    conversations: list[EncodedConversation]
    crops: int


@dataclass
class _Reader:
    """Encodes the conversations of records and counts by reason those that cannot be trained on."""

    dataset: Dataset
    conversation_encoder: ConversationEncoder
    observer: LengthObserver | None
    texts: TokenWriter | None
    skipped: Counter[str] = field(default_factory=Counter)

    def conversations(self, record: Record) -> Iterator[tuple[int, EncodedConversation, int]]:
        """Yields index, encoded conversation and number of crops of each conversation of a record that can be trained on."""
        for branch, messages in enumerate(self.conversation_encoder.conversations(record)):
            try:
                layouts = self.conversation_encoder.layouts(record)
                encoding = self.conversation_encoder.encode(messages, layouts, verify=True)
                encoded = self.conversation_encoder.with_layouts(encoding, layouts)
            except RecordError as error:
                self.skipped[error.reason] += 1
                if self.observer is not None:
                    self.observer.skip(record, branch, error)
                continue
            if self.observer is not None:
                self.observer.row(record, branch, encoded, layouts)
            if self.texts is not None:
                self.texts.write(encoding)
            yield branch, encoded, sum(layout.num_crops for layout in layouts)


def _groups(reader: _Reader, indices: Sequence[int], share_prefix: bool, step: Callable[[], None]) -> Iterator[_Group]:
    """Yields groups of consecutive conversations about the same images."""
    group: _Group | None = None
    images: tuple[str, ...] = ()
    for index in indices:
        record = reader.dataset.record(index)
        for branch, encoded, crops in reader.conversations(record):
            joins = share_prefix and group is not None and crops > 0 and images == record.image_keys
            if group is not None and joins:
                group.members.append((index, branch))
                group.conversations.append(encoded)
            else:
                if group is not None:
                    yield group
                group, images = _Group([(index, branch)], [encoded], crops), record.image_keys
        step()
    if group is not None:
        yield group


def _split_group(group: _Group, rules: LengthTableRules) -> Iterator[tuple[list[tuple[int, int]], int, int, int, int]]:
    """Yields the samples of a group, each with as many branches as fit into `row_tokens`.

    Yields:
        Members, tokens, tokens without prefix sharing, supervised tokens, and crops.
    """
    at = 0
    while at < len(group.conversations):
        take = 1
        while at + take < len(group.conversations):
            conversations = group.conversations[at : at + take + 1]
            if shared_prefix(conversations) == 0 or _shared_length(conversations) > rules.row_tokens:
                break
            take += 1
        conversations = group.conversations[at : at + take]
        unshared = sum(len(encoded.ids) for encoded in conversations)
        supervised = sum(encoded.num_supervised for encoded in conversations)
        yield group.members[at : at + take], _shared_length(conversations), unshared, supervised, group.crops
        at += take


def _shared_length(conversations: Sequence[EncodedConversation]) -> int:
    prefix = shared_prefix(conversations) if len(conversations) > 1 else 0
    return prefix + sum(len(encoded.ids) - prefix for encoded in conversations)


def read_table(lengths: Path, tokens: Path) -> LengthTable | None:
    """Reads a cached table; returns None where there is none or it is damaged."""
    if not lengths.exists():
        return None
    try:
        with lengths.open("rb") as file, np.load(file, allow_pickle=False) as data:
            arrays = {field: data[name] for field, name in COLUMNS.items()}
            return LengthTable(**arrays, skipped=json.loads(str(data["skipped"])), texts=TokenTable(tokens, data["begin_text"]))
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, DataError) as error:
        logger.info("the cached length table %s is damaged (%s) and is made again", lengths, error)
        return None


def _write_lengths(path: Path, table: LengthTable, begin_text: Int[np.ndarray, " conversations_and_end"]) -> None:
    columns = {name: getattr(table, field) for field, name in COLUMNS.items()}
    with atomic_file(path, "wb") as file:
        np.savez(file, **columns, begin_text=begin_text, skipped=np.array(json.dumps(table.skipped)))
