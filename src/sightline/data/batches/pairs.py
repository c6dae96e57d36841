"""Pairs of an image and a caption: which there are, which an epoch draws, and the arrays of a batch."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int

from sightline.data.batches.components import ComponentRules, phrase_table
from sightline.data.batches.order import mixture_order
from sightline.data.batches.plan import BatchRules, EpochPlan, Rows
from sightline.data.dataset import Dataset
from sightline.data.images.pixels import VisualInputLoader, VisualInputs
from sightline.data.samples.tokenizing import tokenise
from sightline.data.skip_limit import check_skip_limit, reasons_text
from sightline.errors import RecordError, SkipLimitError
from sightline.runtime.keyed import keyed_generator
from sightline.types import ComponentInputs, PairBatch, Record, Texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Captions = Literal["all", "first", "one"]


# Texts ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextTokens:
    """Tokenises texts for a text encoder; too long ones are cut, as CLIP does.

    Attributes:
        tokenizer: of the text encoder.
        limit: largest number of tokens.
        is_fixed: pad every text to `limit`.
        pad_id: token id of padding.
    """

    tokenizer: "PreTrainedTokenizerBase"
    limit: int
    is_fixed: bool
    pad_id: int

    def __call__(self, texts: Sequence[str]) -> tuple[Int[np.ndarray, "C T"], Int[np.ndarray, "C T"]]:
        """Returns token ids and a mask, padded on the right."""
        rows = [self._ids(text) for text in texts]
        width = self.limit if self.is_fixed else max(map(len, rows), default=1)
        ids = np.full((len(rows), width), self.pad_id, dtype=np.int64)
        mask = np.zeros((len(rows), width), dtype=np.int64)
        for row, values in enumerate(rows):
            ids[row, : len(values)] = values
            mask[row, : len(values)] = 1
        return ids, mask

    def _ids(self, text: str) -> list[int]:
        """Returns the ids of a text; one that ends without a special token gets the end token, so that no text is empty."""
        ids = tokenise(self.tokenizer, text, truncation=True, max_length=self.limit)["input_ids"]
        end = self.tokenizer.eos_token_id
        if end is not None and (not ids or ids[-1] not in self.tokenizer.all_special_ids):
            ids = [*ids[: self.limit - 1], int(end)]
        return ids


@dataclass(frozen=True)
class TextStates:
    """Stored outputs of a frozen text encoder.

    Attributes:
        row_of: row of each text.
        states_RU: one row per text.
    """

    row_of: Mapping[str, int]
    states_RU: Float[np.ndarray, "R U"]

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "C U"]:
        """Returns the outputs of some texts."""
        return self.states_RU[[self.row_of[text] for text in texts]].astype(np.float32)


def identity(*keys: str) -> int:
    """Returns a 63-bit number of a text or an image: equal for equal ones on every rank."""
    return int.from_bytes(hashlib.sha256("\0".join(keys).encode()).digest()[:8], "big") >> 1


# Tables -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairTable:
    """The pairs of a split.

    Attributes:
        record_P: index of the record of each pair in its dataset.
        caption_P: which of its captions.
        first_U: index of the first pair of each unit that an epoch draws, and the number of pairs: a unit is an image with all its
            captions, of which one is drawn, or a single pair.
        skipped: records that make no pair, by reason.
    """

    record_P: Int[np.ndarray, " P"]
    caption_P: Int[np.ndarray, " P"]
    first_U: Int[np.ndarray, " units_and_end"]
    skipped: Mapping[str, int] = field(default_factory=dict)

    @property
    def units(self) -> int:
        return len(self.first_U) - 1

    def limited(self, limit: int | None) -> "PairTable":
        """Returns the table of at most `limit` units, the same ones each time, in order; all of them for None."""
        if limit is None or limit >= self.units:
            return self
        return self._of_units(np.sort(keyed_generator("limit", 0).permutation(self.units)[:limit]))

    def split(self, limit: int) -> "tuple[PairTable, PairTable]":
        """Returns the table of at most `limit` records, at most a tenth of all, and that of the rest."""
        unit_record = self.record_P[self.first_U[:-1]]
        records = np.unique(unit_record)
        held = keyed_generator("held out", 0).permutation(records)[: min(limit, len(records) // 10)]
        is_held = np.isin(unit_record, held)
        return self._of_units(np.flatnonzero(is_held)), self._of_units(np.flatnonzero(~is_held))

    def _of_units(self, kept: Int[np.ndarray, " some"]) -> "PairTable":
        if not len(kept):
            return replace(self, record_P=self.record_P[:0], caption_P=self.caption_P[:0], first_U=_firsts(kept))
        pairs = np.concatenate([np.arange(self.first_U[unit], self.first_U[unit + 1]) for unit in kept])
        sizes = (self.first_U[1:] - self.first_U[:-1])[kept]
        return replace(self, record_P=self.record_P[pairs], caption_P=self.caption_P[pairs], first_U=_firsts(sizes))


def pair_table(dataset: Dataset, split: str, captions: Captions, max_skipped: float) -> PairTable:
    """Finds the pairs of a split; records without exactly one image, or without captions, are left out.

    Args:
        dataset, split: the records.
        captions: `all` captions of a record as pairs of their own, its `first` one, or `one` of them drawn anew in each epoch.
        max_skipped: largest share of records that may be left out.

    Raises:
        DataError: the split does not exist.
        SkipLimitError: too many records are left out.
    """
    skipped: Counter[str] = Counter()
    records: list[int] = []
    counts: list[int] = []
    for index in dataset.split_indices(split).tolist():
        record = dataset.record(index)
        reason = why_no_pair(record)
        if reason:
            skipped[reason] += 1
            continue
        records.append(index)
        counts.append(1 if captions == "first" else len(record.captions))
    lost, what = sum(skipped.values()), f"records of {dataset.path}, split {split!r}, make no pair"
    remedy = "A pair needs one image and a caption; raise data.max_skipped if leaving the others out is intended."
    if not records:
        raise SkipLimitError(f"all {lost} {what} ({reasons_text(skipped) or 'no records'}).", remedy)
    check_skip_limit(lost, lost + len(records), max_skipped, f"{what} ({reasons_text(skipped)})", remedy, "data.max_skipped")
    record_P = np.repeat(np.array(records, dtype=np.int64), counts)
    caption_P = np.concatenate([np.arange(count, dtype=np.int64) for count in counts])
    sizes = np.array(counts if captions == "one" else np.ones(len(record_P)), dtype=np.int64)
    return PairTable(record_P, caption_P, _firsts(sizes), dict(skipped))


def why_no_pair(record: Record) -> str:
    """Returns the reason why a record makes no pair; empty where it makes one."""
    if len(record.images) != 1:
        return "no_image" if not record.images else "several_images"
    return "" if record.captions else "no_caption"


def _firsts(sizes: Int[np.ndarray, " U"]) -> Int[np.ndarray, " units_and_end"]:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


# Corpus -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairSource:
    """One data set of a mixture.

    Attributes:
        name: for the log.
        dataset: the records.
        table: its pairs.
        units_per_epoch: units drawn per epoch.
        windowed: shuffle within windows over shards.
    """

    name: str
    dataset: Dataset
    table: PairTable
    units_per_epoch: int
    windowed: bool = False


@dataclass(frozen=True)
class PairArrays:
    """A batch of pairs as numpy arrays; `to_batch` converts it to tensors.

    Attributes:
        arrays: by name of the field, without the suffix of its shape.
        record_ids: of each pair.
        skipped: `(pair index, reason)` of pairs that could not be loaded.
    """

    arrays: Mapping[str, Any]
    record_ids: tuple[tuple[str, ...], ...]
    skipped: tuple[tuple[str, str], ...] = ()

    def values(self) -> list[Any]:
        """Returns all arrays, or their locations in shared memory, in the order that `with_values` takes."""
        return list(self.arrays.values())

    def with_values(self, values: Iterable[Any]) -> "PairArrays":
        """Returns a copy with other values in place of the arrays."""
        return replace(self, arrays=dict(zip(self.arrays, values, strict=True)))

    def to_batch(self) -> PairBatch:
        """Converts the arrays to a batch on the CPU."""
        tensors = {name: torch.from_numpy(value) for name, value in self.arrays.items()}
        return PairBatch(
            pixels_NHWC=tensors.get("pixels"),
            features_NPE=tensors.get("features"),
            texts=Texts(tensors.get("ids"), tensors.get("mask"), tensors.get("states")),
            image_N=tensors["image"],
            owner_C=tensors["owner"],
            text_C=tensors["text"],
            record_ids=self.record_ids,
            components=None if "boxes" not in tensors else _component_inputs(tensors),
        )


def _component_inputs(tensors: Mapping[str, Any]) -> ComponentInputs:
    phrases = Texts(*(tensors.get(f"phrase_{name}") for name in ("ids", "mask", "states")))
    return ComponentInputs(tensors["boxes"], phrases, tensors["phrase"])


@dataclass(frozen=True)
class PairCorpus:
    """All pairs of a stage, numbered over the data sets one after the other.

    Attributes:
        sources: the data sets.
        visual_inputs: loads pixels or features.
        tokens: tokenises texts.
        states: stored outputs of a frozen text encoder, instead of tokens.
        hard_negatives: hard-negative captions per pair.
        components: which boxes and phrases a batch has; None where none are compared.
    """

    sources: tuple[PairSource, ...]
    visual_inputs: VisualInputLoader
    tokens: TextTokens
    states: TextStates | None = None
    hard_negatives: int = 0
    components: ComponentRules | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(source.name for source in self.sources)

    @cached_property
    def first_pair(self) -> Int[np.ndarray, " sources_and_end"]:
        """Index of the first pair of each source, and the number of pairs."""
        return _firsts(np.array([len(source.table.record_P) for source in self.sources]))

    @cached_property
    def first_U(self) -> Int[np.ndarray, " units_and_end"]:
        """Index of the first pair of each unit over all sources, and the number of pairs."""
        sizes = [np.diff(source.table.first_U) for source in self.sources]
        return _firsts(np.concatenate(sizes))

    def plan(self, rules: BatchRules) -> EpochPlan:
        """Returns the epoch plan: which pairs each step sees. An incomplete last step is left out, unless it is the only one."""
        pairs = int(self.first_pair[-1])
        order = partial(self._order, seed=rules.seed, rows_per_step=rules.rows_per_step)
        rules = replace(rules, pack=False, sort_by_length=False)
        return EpochPlan(np.ones(pairs, dtype=np.int64), np.zeros(pairs, dtype=np.int64), order, rules)

    def _order(self, epoch: int, seed: int, rows_per_step: int) -> Int[np.ndarray, " draws"]:
        sizes = [source.table.units for source in self.sources]
        draws = [source.units_per_epoch for source in self.sources]
        units = mixture_order(sizes, draws, seed, epoch, [source.windowed for source in self.sources])
        counts = np.diff(self.first_U)[units]
        pairs = self.first_U[units] + keyed_generator("caption", seed, epoch).integers(0, counts)
        return pairs[: len(pairs) - len(pairs) % rows_per_step] if len(pairs) >= rows_per_step else pairs

    def texts(self) -> list[str]:
        """Returns every caption, hard negative and phrase that a batch may hold, each once, in order."""
        found: dict[str, None] = {}
        for pair in range(int(self.first_pair[-1])):
            record, caption = self._pair(pair)
            texts = (record.captions[caption], *self._negatives(record, caption))
            found.update(dict.fromkeys(texts))
            if self.components is not None:
                phrases = (self.components.phrases_of(record, text) for text in texts)
                found.update(dict.fromkeys(phrase for row in phrases for phrase in row if phrase))
        return list(found)

    def arrays(self, rows: Rows) -> PairArrays:
        """Builds the arrays of a micro-batch; pairs whose image cannot be loaded are left out."""
        pairs: list[tuple[Record, int]] = []
        inputs: list[VisualInputs] = []
        skipped = []
        for index in (index for row in rows for index in row):
            number = int(np.searchsorted(self.first_pair, index, side="right")) - 1
            record, caption = self._pair(index)
            try:
                inputs.append(self.visual_inputs.load(self.sources[number].dataset, record))
            except RecordError as error:
                skipped.append((str(index), error.reason))
                continue
            pairs.append((record, caption))
        captions = [record.captions[caption] for record, caption in pairs]
        negatives = [text for record, caption in pairs for text in self._negatives(record, caption)]
        described = [record for record, _ in pairs]
        described += [record for record, caption in pairs for _ in self._negatives(record, caption)]
        images = np.array([identity(*record.image_keys) for record, _ in pairs], dtype=np.int64)
        joined = VisualInputs.joined(inputs)
        found = {
            "pixels": joined.pixels,
            "features": joined.features,
            **self._texts(captions + negatives),
            "image": images,
            "owner": np.concatenate([images, np.full(len(negatives), -1, dtype=np.int64)]),
            "text": np.array([identity(text) for text in captions + negatives], dtype=np.int64),
            **self._components(described, captions + negatives, len(pairs)),
        }
        arrays = {name: _writable(value) for name, value in found.items() if value is not None}
        return PairArrays(arrays, tuple((record.id,) for record, _ in pairs), tuple(skipped))

    def _texts(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        if self.states is not None:
            return {"states": self.states(texts)}
        ids, mask = self.tokens(texts)
        return {"ids": ids, "mask": mask}

    def _components(self, records: Sequence[Record], texts: Sequence[str], images: int) -> dict[str, np.ndarray]:
        """Returns the boxes of the first `images` records, and the phrases of the texts of all of them."""
        if self.components is None:
            return {}
        boxes = [self.components.boxes_of(record) for record in records[:images]]
        phrases, index = phrase_table(
            [self.components.phrases_of(record, text) for record, text in zip(records, texts, strict=True)]
        )
        encoded = self._texts(phrases or texts[:1])
        return {
            "boxes": np.stack(boxes) if boxes else np.zeros((0, self.components.count, 4), dtype=np.float32),
            "phrase": index,
            **{f"phrase_{name}": value for name, value in encoded.items()},
        }

    def _pair(self, index: int) -> tuple[Record, int]:
        number = int(np.searchsorted(self.first_pair, index, side="right")) - 1
        source, place = self.sources[number], index - int(self.first_pair[number])
        return source.dataset.record(int(source.table.record_P[place])), int(source.table.caption_P[place])

    def _negatives(self, record: Record, caption: int) -> tuple[str, ...]:
        """Returns the hard negatives of a pair; each caption of a record begins at another one."""
        count = min(self.hard_negatives, len(record.negatives))
        return tuple(record.negatives[(caption + number) % len(record.negatives)] for number in range(count))


def _writable(value: np.ndarray) -> np.ndarray:
    return value if value.flags.writeable else value.copy()  # rows of a store are views of a read-only file
