"""`data prepare`: converts any source format to a checked dataset folder.

A reader yields records and the locations of their images. Every image is decoded completely in a child process and stored under
its sha256; records that cannot be used are skipped with a reason, so that `input = ok + sum(skipped)`. The folder is built in
`OUT.preparing` and renamed to OUT at the end, so OUT is complete or absent. Resumable: running the same command again continues,
and images that were stored are not decoded again.
"""

import contextlib
import difflib
import hashlib
import heapq
import re
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

from sightline.data.dataset import DATASET, DOWNLOADS, IMAGE_INDEX, INDEX, RECORDS, SCHEMA, SKIPPED, UNFINISHED
from sightline.data.download import DownloadOptions
from sightline.data.images.opener import DEFAULT_LIMITS, ImageLimits
from sightline.data.prepare.grouping import group_by_image
from sightline.data.prepare.image_store import ImageFacts, ImageState, ImageStore, RecentImages, check_images, image_key
from sightline.data.prepare.name_only import name_only_record
from sightline.data.prepare.shards import remove_unsharded, write_shards
from sightline.data.prepare.splitting import SplitRule
from sightline.data.prepare.texts import clean_text, is_null_word
from sightline.data.prepare.writer import WrittenRecords, file_entry, write_records
from sightline.data.readers import FORMATS, ImageInRoot, Item, Skip, SourceOptions, Tally
from sightline.data.readers.base import Format, uniform
from sightline.data.readers.boxes import kept_boxes, pixel_fractions, refers_to_shown, turned_box
from sightline.data.records import check_record, record_to_json
from sightline.data.skip_limit import SkipLimit
from sightline.errors import DataError, RecordError, Stopped, StorageError, UsageError
from sightline.runtime import fault_injection
from sightline.runtime.hub import nearest_hint
from sightline.runtime.logs import Bar, progress
from sightline.runtime.optional import require
from sightline.runtime.signals import watch_signals
from sightline.runtime.storage import Lock, atomic_file, dump_line, publish_dir, sweep, write_json
from sightline.runtime.workers import GuardedPool, TaskFailure
from sightline.types import Box, Components, ImageInfo, Message, Part, Record, Relation

BATCH = 8  # images per task of a child
BATCH_BYTES = 8_000_000  # bytes of images per task, for images that are sent as bytes
MAX_WAITING = 64  # records after which a task is sent even if it is empty, so that finished records are written
_SPLIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")  # it becomes part of a folder's name
CHECKED = "checked.jsonl"
FETCHED = "fetched"  # folder of downloaded files, until they are images of the dataset


@dataclass(frozen=True, slots=True)
class PrepareOptions:
    """Options of `data prepare`.

    Attributes:
        out: the dataset folder to write; must not exist.
        source: how to read.
        split: which records are held out.
        sample: number of records to draw at random; None takes all.
        workers: child processes that decode.
        max_skipped: share of records that may be skipped; 0 stops at the first one.
        shards: bytes of a tar shard; None writes image files.
        group: `image` joins records of captions that have the same image, `none` does not; None does what the format asks for.
        licence: of the data; empty takes what is known of the format.
        image_seconds, image_memory: limits of a child on one image.
        limits: of an image file; more pixels than by default are a property of the folder, which whoever reads it respects.
        download: limits of downloads, for a source whose images are URLs.
    """

    out: Path
    source: SourceOptions = field(default_factory=SourceOptions)
    split: SplitRule = field(default_factory=SplitRule)
    sample: int | None = None
    workers: int = 1
    max_skipped: float = 0.01
    shards: int | None = None
    group: Literal["image", "none"] | None = None
    licence: str = ""
    image_seconds: float = 60.0
    image_memory: int = 2 << 30
    limits: ImageLimits = DEFAULT_LIMITS
    download: DownloadOptions = field(default_factory=DownloadOptions)


def prepare(path: Path, format_name: str, options: PrepareOptions) -> dict[str, Any]:
    """Makes a dataset folder; returns the content of its `dataset.json`.

    Args:
        path: the source; `-` for a generator.
        format_name: name of the source format.
        options: what to do.

    Raises:
        UsageError: options contradict each other, or `out` exists.
        DataError: the source as a whole is damaged or empty.
        SkipLimitError: more records were skipped than allowed.
        StorageError: a file cannot be written.
        Stopped: a signal arrived; finished work is kept.
    """
    chosen = _chosen_format(path, format_name, options)
    out = options.out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists already; nothing is overwritten.", "Choose another --out, or remove it.")
    work = out.with_name(out.name + UNFINISHED)
    try:
        with Lock(work / "lock.json"), watch_signals() as stopped:
            try:
                summary = _PrepareRun(path, format_name, chosen, options, work, stopped).run()
            except BaseException:
                if not _has_work(work):
                    shutil.rmtree(work, ignore_errors=True)  # there is nothing to go on from
                raise
            shutil.rmtree(work, ignore_errors=True)
            return summary
    except OSError as error:
        raise StorageError(
            f"{error.filename or work}: {error.strerror or error}.", "Free space or choose another folder."
        ) from error


def _has_work(work: Path) -> bool:
    """Returns whether an unfinished folder holds images that another call need not make again."""
    return any(work.glob("dataset/images/*/*")) or any(work.glob(f"{FETCHED}/*/*"))


def _chosen_format(path: Path, name: str, options: PrepareOptions) -> Format:
    if name not in FORMATS:
        near = difflib.get_close_matches(name, FORMATS, 1)
        meant = f"Did you mean {near[0]!r}? " if near else ""
        raise UsageError(f"There is no format {name!r}.", f"{meant}Formats are {', '.join(FORMATS)}.")
    chosen = FORMATS[name]
    if (str(path) == "-") != (chosen.takes == "-"):
        want = "makes its own data: give - as its source" if chosen.takes == "-" else "needs a file or folder, not -"
        raise UsageError(f"Format {name!r} {want}.")
    if chosen.is_remote:
        require("httpx", "data", f"Format {name}")
        if options.source.without_images:
            raise UsageError("--without-images keeps names of files, and a URL is none.", "Use --text-only, or fetch the images.")
    if chosen.takes == "path" and not path.exists():
        raise DataError(f"{path} does not exist.", nearest_hint(path) or "Give the file or folder to read.")
    chosen.check_mapping(options.source.mapping, name)
    if options.source.without_images and (options.source.text_only or options.shards is not None):
        other = "--text-only" if options.source.text_only else "--shards"
        raise UsageError(f"--without-images and {other} do not go together.", "Give one of them.")
    if not 0 <= options.max_skipped <= 1 or (options.sample is not None and options.sample < 1) or options.workers < 0:
        raise UsageError("--max-skipped is a share from 0 to 1, --sample at least 1, --workers at least 0.")
    return chosen


# The stream -----------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _PendingRecord:
    """A record whose images are being checked."""

    item: Item
    states: list[ImageState]
    sources: list[Path | bytes]


class _PrepareRun:
    """One run of `prepare`: reads the source as the pool consumes it, and writes outcomes in the order of the source."""

    def __init__(
        self, path: Path, name: str, chosen: Format, options: PrepareOptions, work: Path, stopped: Callable[[], str]
    ) -> None:
        self.path, self.name, self.format, self.options, self.stopped = path, name, chosen, options, stopped
        self.work, self.folder = work, work / "dataset"
        self.tally = Tally()
        self.merged = 0  # records that became part of another of the same image
        self.skip_limit = SkipLimit(options.max_skipped, lambda: work if _has_work(work) else None)
        self._queue: deque[_PendingRecord | Skip] = deque()
        self._sent: deque[list[tuple[ImageState, Path | bytes]]] = deque()
        self._states = RecentImages()
        self._ids: set[int] = set()

    def run(self) -> dict[str, Any]:
        self.folder.mkdir(exist_ok=True)
        for folder in (self.work, self.folder):
            sweep(folder)
        with ImageStore(self.folder, self.work) as store:
            with atomic_file(self.work / CHECKED, "wb") as checked, atomic_file(self.folder / SKIPPED, "wb") as skipped:
                self._check_all(store, checked, skipped)
            self.skip_limit.finish()
            self._close_tally()
            if self._is_grouped:
                self.merged = group_by_image(self.work / CHECKED, self.tally, self._poll)
            fault_injection.hit("prepare.before_records")
            num_records = self.skip_limit.ok - self.merged
            written = write_records(self.folder, self.work / CHECKED, num_records, self.options.split, self._poll)
            num_images = store.keep_only(written.image_numbers)
            shards = None
            if self.options.shards is not None:
                shards = write_shards(self.folder, self.work, self.options.shards, self.options.workers, self._poll)
            summary = self._summary(written, num_images, shards)
        if shards is not None:
            remove_unsharded(self.folder)
        write_json(self.folder / DATASET, summary)
        publish_dir(self.folder, self.options.out)
        return summary

    def _summary(self, written: WrittenRecords, num_images: int, shards: list[dict[str, Any]] | None) -> dict[str, Any]:
        files = (RECORDS, INDEX, SKIPPED) if shards is None else (INDEX, IMAGE_INDEX, SKIPPED)
        files += (DOWNLOADS,) if self._is_fetched else ()
        return {
            "schema": SCHEMA,
            "format": self.name,
            "source": _source_name(self.path, self.name, self.format),
            "licence": self.options.licence or self.format.licence,
            "options": _options_to_json(self.options) | ({"group": "image"} if self._is_grouped else {}),
            "input": self.skip_limit.input - self.merged,
            "ok": self.skip_limit.ok - self.merged,
            "skipped": dict(sorted(self.skip_limit.skipped.items())),
            "splits": written.splits,
            "images": num_images,
            "image_places": written.image_places,
            "ignored": dict(sorted(self.tally.ignored.items())),
            "ignored_names": dict(sorted(self.tally.ignored_names.items())),
            "notes": dict(sorted(self.tally.notes.items())),
            "files": {name: file_entry(self.folder / name) for name in files},
            **({} if shards is None else {"shards": shards}),
            **({"without_images": True} if self.options.source.without_images else {}),
            **(
                {}
                if self.options.limits.max_pixels == DEFAULT_LIMITS.max_pixels
                else {"max_pixels": self.options.limits.max_pixels}
            ),
            "fingerprint": written.fingerprint,
        }

    def _check_all(self, store: ImageStore, checked: IO[bytes], skipped: IO[bytes]) -> None:
        options = self.options
        with (
            self._entries() as entries,
            GuardedPool(
                partial(check_images, limits=options.limits), options.workers, options.image_seconds, options.image_memory
            ) as pool,
            progress("preparing", None) as bar,
        ):
            for outcome in pool.map(self._tasks(store, entries)):
                fault_injection.hit("prepare.checked")
                batch = self._sent.popleft()
                if isinstance(outcome, TaskFailure):  # one of the images made the child fail: run them one by one
                    alone = (pool.run((source,)) for _, source in batch)
                    outcome = tuple(found if isinstance(found, TaskFailure) else found[0] for found in alone)
                for (state, _), found in zip(batch, outcome, strict=True):
                    state.failure, state.checked = (found, None) if isinstance(found, TaskFailure) else (None, found)
                self._finish_ready(store, checked, skipped, bar)
                self._poll()
            self._finish_ready(store, checked, skipped, bar)
        assert not self._queue

    def _poll(self) -> None:
        if signal := self.stopped():
            kept = f"; the work so far is in {self.work}" if _has_work(self.work) else ""
            raise Stopped(f"{signal} arrived{kept}.", "Run the same command again to continue.")

    @property
    def _is_grouped(self) -> bool:
        """Whether records of the same image become one."""
        chosen = self.options.group or ("image" if self.format.groups_by_image else "none")
        return chosen == "image" and not self.options.source.text_only

    def _close_tally(self) -> None:
        """Counts the files of the source that no record used."""
        source = self.options.source
        if self.format.takes != "-":
            self.tally.close(self.path, source.images, self.work, with_images=not (source.text_only or source.without_images))

    @property
    def _is_fetched(self) -> bool:
        """Whether images come from the network."""
        return self.format.is_remote and not self.options.source.text_only

    @contextlib.contextmanager
    def _entries(self) -> Iterator[Iterator[Item | Skip]]:
        """Yields the entries of the source, with downloaded images where they are URLs."""
        if not self._is_fetched:
            yield self._sampled()
            return
        from sightline.data.download.stream import Downloads

        with (
            atomic_file(self.folder / DOWNLOADS, "wb") as log,
            Downloads(self.work / FETCHED, self.options.download, self._poll, log) as downloads,
        ):
            yield downloads.fetch_images(self._sampled())

    def _sampled(self) -> Iterator[Item | Skip]:
        """Yields the entries of the source, or a random sample of them that depends on the seed."""
        source = self.options.source
        if self.options.sample is None:
            for entry in self.format.read(self.path, source, self.tally):
                yield self._register(entry)
            return
        places = enumerate(self._with_first_place(Tally()))
        draws = ((-uniform(source.seed, "sample", place), place) for place, (first, _) in places if place == first)
        drawn = {place for _, place in heapq.nlargest(self.options.sample, draws)}
        for first, entry in self._with_first_place(self.tally):
            self._register(entry)
            if first in drawn:
                yield entry

    def _register(self, entry: Item | Skip) -> Item | Skip:
        if isinstance(entry, Item):
            self.tally.use_images(entry.images)
        return entry

    def _with_first_place(self, tally: Tally) -> Iterator[tuple[int, Item | Skip]]:
        """Entries of the source with their number, or that of the first one whose captions are of the same image names."""
        firsts: dict[int, int] = {}
        for place, entry in enumerate(self.format.read(self.path, self.options.source, tally)):
            if self._is_grouped and isinstance(entry, Item) and entry.images and entry.record.captions:
                yield firsts.setdefault(_image_names(entry), place), entry
            else:
                yield place, entry

    def _tasks(self, store: ImageStore, entries: Iterator[Item | Skip]) -> Iterator[tuple[Path | bytes, ...]]:
        """Yields tasks of a few images to check; records without unchecked images wait in the queue."""
        batch: list[tuple[ImageState, Path | bytes]] = []
        idle = 0
        for entry in entries:
            waiting = entry if isinstance(entry, Skip) else self._start(entry)
            self._queue.append(waiting)
            idle += 1
            for state, source in zip(waiting.states, waiting.sources, strict=True) if isinstance(waiting, _PendingRecord) else ():
                if not state.is_known and not state.is_sent and not store.recall(state):
                    state.is_sent = True
                    batch.append((state, source))
            size = sum(len(source) for _, source in batch if isinstance(source, bytes))
            if len(batch) >= BATCH or size >= BATCH_BYTES or idle >= MAX_WAITING:
                yield self._send(batch)
                batch, idle = [], 0
        if batch:
            yield self._send(batch)

    def _send(self, batch: list[tuple[ImageState, Path | bytes]]) -> tuple[Path | bytes, ...]:
        self._sent.append(batch)
        return tuple(source for _, source in batch)

    def _start(self, item: Item) -> _PendingRecord | Skip:
        """Normalises and checks a record before its images are checked."""
        try:
            item = _normalised(item, self.options.source.text_only, self.tally)
            known = hash(item.record.id)
            if known in self._ids:
                raise RecordError("duplicate_id", f"id {item.record.id!r} occurs twice")
            self._ids.add(known)
            if self.options.source.without_images:
                return _PendingRecord(replace(item, record=name_only_record(item, self.tally), images=()), [], [])
            sources = [ref.root.fetch(ref.name) if isinstance(ref, ImageInRoot) else ref for ref in item.images]
            states = [self._states.get(image_key(source)) for source in sources]
            return _PendingRecord(item, states, sources)
        except RecordError as error:
            return Skip(item.where, item.record.id, error.reason, error.message)

    def _finish_ready(self, store: ImageStore, checked: IO[bytes], skipped: IO[bytes], bar: Bar) -> None:
        while self._queue:
            head = self._queue[0]
            if isinstance(head, _PendingRecord) and not all(state.is_known for state in head.states):
                return
            self._queue.popleft()
            outcome = head if isinstance(head, Skip) else self._finish(head, store)
            if isinstance(outcome, Skip):
                skipped.write(dump_line(_skip_line(outcome)))
            else:
                checked.write(dump_line(record_to_json(outcome)))
            self.skip_limit.add(outcome if isinstance(outcome, Skip) else None)
            bar.step(1, f"{self.skip_limit.ok} ok, {sum(self.skip_limit.skipped.values())} skipped")

    def _finish(self, waiting: _PendingRecord, store: ImageStore) -> Record | Skip:
        """Stores the images of a record; returns the record, or a Skip where one of its images is bad."""
        item = waiting.item
        if self.options.source.without_images:
            return item.record
        try:
            for state in waiting.states:
                if state.failure is not None:
                    raise RecordError(state.failure.reason, state.failure.detail)
            found = [state.checked for state in waiting.states if state.checked is not None]
            for claimed, checked in zip(item.hashes, found, strict=False):
                if claimed != checked.sha256:
                    raise RecordError("hash_mismatch", "an image is not the one that the record was written with")
            if any(
                claimed not in (_shown_size(checked), _stored_size(checked))
                for claimed, checked in zip(item.sizes, found, strict=False)
            ):
                self.tally.notes["size_differs"] += 1
            stored = [store.store(state, source) for state, source in zip(waiting.states, waiting.sources, strict=True)]
        except RecordError as error:
            return Skip(item.where, item.record.id, error.reason, error.message)
        names: list[str] = [name for name, _ in stored]
        infos: list[ImageInfo] = [info for _, info in stored]
        boxes = self._boxes(item, found[0]) if found else item.record.boxes
        return replace(item.record, images=tuple(names), image_info=tuple(infos), boxes=boxes)

    def _boxes(self, item: Item, facts: ImageFacts) -> tuple[Box, ...]:
        """Returns the boxes of an item as fractions of its first image as shown."""
        size = _stored_size(facts)
        boxes = item.record.boxes
        boxes += kept_boxes([(label, pixel_fractions(box, size), False) for label, box in item.pixel_boxes], self.tally)[0]
        stated = item.sizes[0] if item.sizes else None
        if facts.orientation == 1 or not boxes or item.has_shown_boxes:
            return boxes
        if refers_to_shown(stated, _shown_size(facts), facts.orientation):
            return boxes
        self.tally.notes["boxes_turned"] += len(boxes)
        turned = (turned_box(box.xyxy, facts.orientation) for box in boxes)
        return tuple(replace(box, xyxy=xyxy) for box, xyxy in zip(boxes, turned, strict=True))


def _image_names(item: Item) -> int:
    """Returns a hash that is equal for items with images of the same names or bytes."""
    return hash(tuple(ref.name if isinstance(ref, ImageInRoot) else hashlib.sha256(ref).digest() for ref in item.images))


def _shown_size(facts: ImageFacts) -> tuple[int, int]:
    return facts.width, facts.height


def _stored_size(facts: ImageFacts) -> tuple[int, int]:
    return (facts.height, facts.width) if facts.orientation >= 5 else (facts.width, facts.height)


def _source_name(path: Path, format_name: str, chosen: Format) -> str:
    """Returns the name of the source without its folder, so that the same source gives the same bytes anywhere."""
    if chosen.takes == "-":
        return format_name
    return path.resolve().name if path.exists() else str(path)


def _skip_line(skip: Skip) -> dict[str, Any]:
    line = {"id": skip.id, "where": skip.where, "reason": skip.reason, "detail": skip.detail}
    return {name: value.encode("utf-8", "replace").decode() if isinstance(value, str) else value for name, value in line.items()}


def _options_to_json(options: PrepareOptions) -> dict[str, Any]:
    """Returns the options that determine the content of the folder."""
    source, rule = options.source, options.split
    out: dict[str, Any] = {"seed": source.seed, "map": dict(source.mapping), "text_only": source.text_only}
    if rule.shares:
        out |= {"split": dict(rule.shares), "by": rule.by}
    if source.without_images:
        out["without_images"] = True
    out |= {name: value for name, value in (("subset", source.subset), ("revision", source.revision)) if value}
    if options.sample is not None:
        out["sample"] = options.sample
    if options.download.allowed:
        out["allow_networks"] = [str(network) for network in options.download.allowed]
    return out


# Records --------------------------------------------------------------------------------------------------------------------


def _normalised(item: Item, text_only: bool, tally: Tally) -> Item:
    """Returns the item with a record that may be kept if its images are good.

    Raises:
        RecordError: see `docs/data.md` for the reasons.
    """
    record = item.record
    if text_only:
        item = replace(item, images=(), sizes=(), hashes=(), pixel_boxes=())
        messages = tuple(_without_images(message) for message in record.messages)
        record = replace(record, boxes=(), messages=messages, components=tuple(map(_without_boxes, record.components)))
    record = _cleaned(record, tally)
    captions = tuple(caption for caption in record.captions if caption.strip() and not is_null_word(caption))
    for reason, lost in (
        ("empty_caption", sum(not caption.strip() for caption in record.captions)),
        ("null_caption", sum(is_null_word(caption) for caption in record.captions)),
    ):
        if lost and not captions:
            raise RecordError(reason, "every caption is empty, or a word such as 'nan' that programs write for a missing one")
        if lost:
            tally.notes[reason] += lost
    _check_messages(record)
    if not _SPLIT.match(record.split):
        raise RecordError("bad_split", f"split {record.split!r} must be made of letters, digits, '_', '-' and '.'")
    kept = {*captions, *record.negatives}
    components = tuple({item.text: item for item in record.components if item.text in kept}.values())
    images = tuple(map(str, range(len(item.images))))
    record = replace(record, captions=captions, components=components, images=images, image_info=())
    check_record(record)
    try:
        dump_line(record_to_json(record))
    except (UnicodeEncodeError, TypeError, ValueError) as error:
        raise RecordError("bad_text", f"cannot be written as JSON: {error}") from error
    return replace(item, record=record)


def _cleaned(record: Record, tally: Tally) -> Record:
    """Returns the record with the rule of `texts.clean_text` applied to all of its texts."""

    def clean(text: str) -> str:
        cleaned = clean_text(text)
        if cleaned != text:
            tally.notes["text_cleaned"] += 1
        return cleaned

    def part(item: Part) -> Part:
        return item if item.text is None else Part(clean(item.text))

    return replace(
        record,
        captions=tuple(map(clean, record.captions)),
        answers=tuple(map(clean, record.answers)),
        negatives=tuple(map(clean, record.negatives)),
        boxes=tuple(replace(box, label=clean(box.label)) for box in record.boxes),
        components=tuple(_cleaned_components(components) for components in record.components),
        messages=tuple(Message(message.role, tuple(map(part, message.content))) for message in record.messages),
    )


def _cleaned_components(components: Components) -> Components:
    """Returns components with cleaned texts, which are counted in the caption that they stand in."""
    return Components(
        clean_text(components.text),
        tuple(replace(item, text=clean_text(item.text)) for item in components.entities),
        tuple(
            Relation(clean_text(item.subject), clean_text(item.relation), clean_text(item.object), item.boxes)
            for item in components.relations
        ),
    )


def _without_boxes(components: Components) -> Components:
    return Components(
        components.text,
        tuple(replace(item, box=None) for item in components.entities),
        tuple(replace(item, boxes=None) for item in components.relations),
    )


def _without_images(message: Message) -> Message:
    return Message(message.role, tuple(part for part in message.content if not part.is_image))


def _check_messages(record: Record) -> None:
    answers = [message for message in record.messages if message.role == "assistant"]
    if record.messages and not answers and not record.answers:
        raise RecordError("no_answer", "the conversation has no turn of the assistant")
    if any(not message.text.strip() for message in answers):
        raise RecordError("empty_answer", "a turn of the assistant is empty")
