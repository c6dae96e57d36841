"""`data preview`: shows random records as training samples, token by token, built by the code that trains."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from sightline import __version__
from sightline.assembly.config.resolving import stage_plan
from sightline.assembly.config.schema import DataConfig
from sightline.assembly.config.sources import prompt_for
from sightline.assembly.model.blueprint import Blueprint
from sightline.data.dataset import Dataset, open_dataset
from sightline.data.images.pixels import PixelLoader
from sightline.data.images.tilings import Layout
from sightline.data.samples.encoding import ConversationEncoder, EncodedConversation, shared_prefix
from sightline.data.samples.length_table import LengthTableRules, make_length_table
from sightline.errors import RecordError, UsageError
from sightline.reporting.html import Node, Token, TokenKind
from sightline.reporting.preview_page import Continuation, PreviewedSample, preview_page
from sightline.runtime.keyed import keyed_generator
from sightline.runtime.storage import write_text
from sightline.types import IMAGE, Record

NEIGHBOURS = 256  # records about one image that are looked for on either side


@dataclass(frozen=True)
class PreviewRequest:
    """What to show.

    Attributes:
        folder: the dataset folder.
        out: the page to write.
        split: of the records.
        count: how many.
        seed: for choosing the samples.
        stage: name of the stage whose data section holds; the first by default.
        ids: records to show instead of a draw.
    """

    folder: Path
    out: Path
    split: str
    count: int
    seed: int
    stage: str | None = None
    ids: tuple[str, ...] = ()


def preview(request: PreviewRequest, blueprint: Blueprint) -> dict[str, Any]:
    """Writes the page; returns its counts.

    Raises:
        DataError: there is no such folder or split.
        UsageError: there is no such stage or record, or the split is empty.
    """
    if blueprint.dual is not None:
        raise UsageError("a dual encoder trains on pairs of an image and a caption; it has no rows of tokens to show.")
    dataset = open_dataset(request.folder)
    data = _data_section(blueprint, request.stage)
    prompt = prompt_for(data, request.folder)
    conversation_encoder = blueprint.stage_builder(data, prompt)
    viewer = _Viewer(dataset, conversation_encoder, LengthTableRules(data.share_prefix, data.width), blueprint)
    chosen = _chosen(dataset, request)
    samples = viewer.samples(chosen, request.split)
    facts: dict[str, Node] = {
        "data": f"{request.folder}, split {request.split}, {len(chosen)} records, seed {request.seed}",
        "recipe": blueprint.processing.recipe,
        "template": f"{data.template}; supervised: {data.supervise}",
        "prompt of caption records": prompt or "none",
        "visual tokens a crop": blueprint.tokens_per_crop or "none",
        "longest row": data.max_tokens,
    }
    write_text(request.out, preview_page(f"Data preview: {request.folder.resolve().name}", facts, samples, __version__))
    return {
        "out": str(request.out),
        "split": request.split,
        "samples": len(samples),
        "tokens": sum(sample.num_tokens for sample in samples),
        "supervised": sum(branch.num_supervised for sample in samples for branch in sample.branches),
        "left_out": sum(len(sample.faults) for sample in samples),
    }


def _data_section(blueprint: Blueprint, stage: str | None) -> DataConfig:
    config = blueprint.config
    if config is None:
        if stage is not None:
            raise UsageError(f"The model has no stages, so there is no {stage!r}.")
        return blueprint.data_section()
    names = [entry.name for entry in config.stages]
    if stage is not None and stage not in names:
        raise UsageError(f"There is no stage {stage!r}.", f"Stages are {', '.join(names)}.")
    return stage_plan(config, 0 if stage is None else names.index(stage)).data


def _chosen(dataset: Dataset, request: PreviewRequest) -> list[int]:
    """Returns the indices of the records to show."""
    indices = dataset.split_indices(request.split)
    if request.ids:
        wanted = dict.fromkeys(request.ids, -1)
        for index in indices.tolist():
            record_id = dataset.record(index).id
            if record_id in wanted:
                wanted[record_id] = index
        missing = [name for name, index in wanted.items() if index < 0]
        if missing:
            raise UsageError(f"Split {request.split!r} of {dataset.path} has no record {missing[0]!r}.")
        return list(wanted.values())
    if not len(indices):
        raise UsageError(f"Split {request.split!r} of {dataset.path} is empty.")
    return indices[keyed_generator("preview", request.seed).permutation(len(indices))[: request.count]].tolist()


# One sample -----------------------------------------------------------------------------------------------------------------


@dataclass
class _ConversationCollector:
    """Collects encoded conversations, and the reasons for skipped ones by record."""

    rows: dict[tuple[str, int], EncodedConversation] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=dict)

    def row(self, record: Record, branch: int, row: EncodedConversation, layouts: Sequence[Layout]) -> None:
        self.rows[record.id, branch] = row

    def skip(self, record: Record, branch: int, error: RecordError) -> None:
        fault = f"conversation {branch + 1} is left out: {error.reason}: {error.message}"
        self.faults.setdefault(record.id, []).append(fault)


class _Viewer:
    """Builds the samples of a data set for the page."""

    def __init__(
        self, dataset: Dataset, conversation_encoder: ConversationEncoder, rules: LengthTableRules, blueprint: Blueprint
    ) -> None:
        self.dataset, self.conversation_encoder, self.rules = dataset, conversation_encoder, rules
        self.collected = _ConversationCollector()
        processing = blueprint.processing
        self.loader = None
        if processing.preparation is not None:
            self.loader = PixelLoader(processing.preparation, processing.tiling)

    def samples(self, chosen: Sequence[int], split: str) -> list[PreviewedSample]:
        """Returns the samples of records as training builds them, with the reasons for skipped conversations."""
        around = [self._neighbours(index, split) for index in chosen]
        table = make_length_table(
            self.dataset, list(dict.fromkeys(chain(*around))), self.conversation_encoder, self.rules, self.collected
        )
        members_of = {index: table.members(at) for at in reversed(range(len(table))) for index, _ in table.members(at)}
        samples: dict[tuple[object, ...], PreviewedSample] = {}  # two records of one sample are shown once
        for index in chosen:
            members = members_of.get(index, [])
            key = tuple(members) or (index,)
            if key not in samples:
                samples[key] = self._sample(index, members)
        return list(samples.values())

    def _sample(self, index: int, members: Sequence[tuple[int, int]]) -> PreviewedSample:
        record = self.dataset.record(index)
        crops, faults = self._crops(record)
        faults = [*self.collected.faults.get(record.id, ()), *faults]
        if not members:
            return PreviewedSample(record.id, crops, (), (), 0, faults)
        records = [self.dataset.record(at) for at, _ in members]
        rows = [self.collected.rows[own.id, branch] for own, (_, branch) in zip(records, members, strict=True)]
        prefix = shared_prefix(rows) if len(rows) > 1 else 0
        ids = list(dict.fromkeys(own.id for own in records))
        branches, first = [], ()
        for own, (_, branch), row in zip(records, members, rows, strict=True):
            tokens = self._tokens(own, branch, row)
            first = first or tokens[:prefix]
            title = own.id if len(ids) > 1 else f"{branch + 1}"
            branches.append(Continuation(title, _blocks(tokens[prefix:]), len(row.ids), row.num_supervised))
        total = prefix + sum(len(row.ids) - prefix for row in rows)
        return PreviewedSample(", ".join(ids), crops, _blocks(first), branches, total, faults)

    def _neighbours(self, index: int, split: str) -> list[int]:
        """Returns the indices of a record and of its neighbours in the split with the same images, which may form one sample."""
        indices = self.dataset.split_indices(split)
        place = int(np.searchsorted(indices, index))
        names = self.dataset.record(index).images
        if not names:
            return [index]
        first = last = place
        while first > 0 and place - first < NEIGHBOURS and self.dataset.record(int(indices[first - 1])).images == names:
            first -= 1
        while last + 1 < len(indices) and last - place < NEIGHBOURS and self.dataset.record(int(indices[last + 1])).images == names:
            last += 1
        return indices[first : last + 1].tolist()

    def _crops(self, record: Record) -> tuple[np.ndarray | None, list[str]]:
        if self.loader is None or not record.images:
            return None, []
        try:
            return self.loader.load(self.dataset, record).pixels, []
        except RecordError as error:
            return None, [f"its image cannot be shown: {error.reason}: {error.message}"]

    def _tokens(self, record: Record, branch: int, row: EncodedConversation) -> list[Token]:
        """Returns every token of an encoded conversation with its text, kind and id."""
        messages = self.conversation_encoder.conversations(record)[branch]
        pieces = self.conversation_encoder.pieces(messages, self.conversation_encoder.layouts(record))
        pieces += [""] * (len(row.ids) - len(pieces))  # padding
        supervised = np.zeros(len(row.ids), dtype=bool)
        for span in row.spans:
            supervised[span.start : span.end] = True
        names = self.conversation_encoder.tokenizer.convert_ids_to_tokens(row.ids.tolist())
        return [
            self._token(int(id_), str(name), piece, bool(is_label), place)
            for place, (id_, name, piece, is_label) in enumerate(zip(row.ids, names, pieces, supervised, strict=False))
        ]

    def _token(self, id_: int, name: str, piece: str, is_supervised: bool, place: int) -> Token:
        if id_ == self.conversation_encoder.image_id:
            return Token(IMAGE, "visual", f"id {id_}")
        is_special = id_ in self.conversation_encoder.special_ids
        kind: TokenKind = "supervised" if is_supervised else "special" if is_special else "plain"
        text = piece or (name if is_special else "")
        return Token(text, kind, f"{place}: id {id_} {name}", is_markup=is_special)


def _blocks(row: Sequence[Token]) -> list[Token]:
    """Joins neighbouring visual tokens to one block, and byte pieces of one character to one token.

    Boundaries between byte pieces would split a character.
    """
    out: list[Token] = []
    for token in row:
        last = out[-1] if out else None
        if last is not None and last.kind == token.kind == "visual":
            out[-1] = replace(last, count=last.count + 1)
        elif last is not None and last.kind == token.kind and not (last.text and token.text) and not last.is_markup:
            out[-1] = replace(last, text=last.text + token.text, title=f"{last.title}\n{token.title}", count=last.count + 1)
        else:
            out.append(token)
    return out
