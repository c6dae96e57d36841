"""A comparison of models: what was measured, the sentences that a report begins with, and the same as JSON, Markdown and CSV.

JSON and CSV hold scores on the scale of their scorer. People read them times `ScoreInfo.times`, as papers print them.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sightline.evaluation.tasks import ScoreInfo
from sightline.metrics.statistics import ITEMS_BOOTSTRAP, Difference, Interval, interval_json
from sightline.metrics.verdict import DOES_NOT_LOOK, LOOKS, MIN_ITEMS, NOT_CHECKED, WORSE, Verdict
from sightline.reporting.html import Column, Html, Tone
from sightline.reporting.plots import LineSeries

LEVEL = 0.05  # of the corrected p-value, below which a model is called better
MANY = 8  # with more sentences of a kind, those that say the same are joined
FEW_CONDITIONS = 3  # up to so many stand beside the scores; more have a table of their own
FEW_ROWS = 3  # up to so many models, every pair has its sentence; with more, the pairs of the best model


@dataclass(frozen=True)
class Row:
    """A model (or an arm of a sweep) in a table.

    Attributes:
        name: of the model.
        score: with the images as they are.
        others: under each control and other change, by name.
        looks: whether it looks at the image; None for a baseline that is no model.
        per_seed: score of each training seed, where there are several.
        facts: what else its JSON says.
    """

    name: str
    score: Interval
    others: Mapping[str, Interval] = field(default_factory=dict)
    looks: Verdict | None = None
    per_seed: Mapping[int, float] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RowPair:
    """Two rows on the same records.

    Attributes:
        first, second: their names.
        difference: first minus second.
        p: corrected for the number of pairs of the table (Holm).
        higher_on, lower_on, same_on: numbers of records on which the first scores higher, lower, and the same.
    """

    first: str
    second: str
    difference: Difference
    p: float
    higher_on: int
    lower_on: int
    same_on: int


@dataclass(frozen=True)
class ItemCard:
    """A record on which the models differ.

    Attributes:
        record: its id.
        image: a small PNG or JPEG; None where it cannot be shown.
        references: right answers.
        answers, scores: by model.
    """

    record: str
    image: bytes | None
    references: Sequence[str]
    answers: Mapping[str, str]
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Table:
    """One score of one evaluation over all models.

    Attributes:
        evaluation: its key.
        title: for people: the task and the data.
        info: the score.
        images: number of different images of the records.
        records: ids that all models have a score for.
        rows: best first or in the order of the user.
        pairs: compared with each other.
        values: score of each record by row, mean over seeds.
        items: records on which the models differ most.
        charts: by name of a file.
        is_against_one: whether each pair has the row in it that all others are compared with.
        floor: rows that are baselines, no models.
        facts: what else its JSON says.
    """

    evaluation: str
    title: str
    info: ScoreInfo
    images: int
    records: tuple[str, ...]
    rows: tuple[Row, ...]
    pairs: tuple[RowPair, ...]
    values: Mapping[str, Sequence[float]]
    items: tuple[ItemCard, ...] = ()
    charts: Mapping[str, Html] = field(default_factory=dict)
    is_against_one: bool = False
    floor: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The score with the scale that people see."""
        return f"{self.info.label} \u00d7 {self.info.times:g}" if self.info.times != 1 else self.info.label

    @property
    def conditions(self) -> list[str]:
        """Controls of the table, in order of first appearance."""
        return list(dict.fromkeys(key for row in self.rows for key in row.others))

    def quality(self, value: float) -> float:
        """Returns a score where more is better."""
        return value if self.info.higher_is_better else -value

    def best(self) -> Row:
        """Returns the row with the best score."""
        return max(self.rows, key=lambda row: self.quality(row.score.value))

    def pairs_won(self, name: str) -> tuple[int, int]:
        """Pairs that a row is clearly better in, and all of its pairs."""
        own = [pair for pair in self.pairs if name in (pair.first, pair.second)]
        return sum(_better(self, pair) == name for pair in own if self.is_clear(pair)), len(own)

    def is_clear(self, pair: RowPair) -> bool:
        """Tells whether one of two rows is better: beyond chance after correction, on enough images."""
        return pair.p < LEVEL and self.images >= MIN_ITEMS

    def to_json(self) -> dict[str, Any]:
        return {
            "evaluation": self.evaluation,
            "title": self.title,
            "metric": self.info.name,
            "shown_times": self.info.times,
            "records": len(self.records),
            "images": self.images,
            "rows": [self._row_json(row) for row in self.rows],
            "pairs": [_pair_json(pair) for pair in self.pairs],
            "baselines": list(self.floor),
            **self.facts,
        }

    def _row_json(self, row: Row) -> dict[str, Any]:
        won, of = self.pairs_won(row.name)
        return {
            "name": row.name,
            **interval_json(row.score),
            "per_seed": {str(seed): value for seed, value in row.per_seed.items()},
            "wins": {"won": won, "of": of},
            "looks": None if row.looks is None else row.looks.to_json(),
            "others": {kind: interval_json(value) for kind, value in row.others.items()},
            **row.facts,
        }


@dataclass(frozen=True)
class Grid:
    """A table of texts: costs, settings, losses.

    Attributes:
        key: in the JSON.
        note: what it shows.
        content: the same for the JSON, where that has it.
    """

    key: str
    title: str
    heads: Sequence[Column]
    rows: Sequence[Sequence[str]]
    note: str = ""
    content: Any = None


@dataclass(frozen=True)
class Comparison:
    """All that a report shows.

    Attributes:
        tables: what was measured.
        curves: of training: title with unit, and the lines.
        grids: further tables.
        notes: what could not be done, and other things to know.
        facts: what else the JSON says; the texts among them stand at the end of the page.
    """

    title: str
    tables: tuple[Table, ...]
    curves: Mapping[str, Sequence[LineSeries]] = field(default_factory=dict)
    grids: tuple[Grid, ...] = ()
    notes: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def table_names(self) -> list[str]:
        """Returns what distinguishes each table from the others: nothing, its title, or its title and its score."""
        titles = [table.title for table in self.tables]
        if len(titles) == 1:
            return [""]
        is_unique = len(set(titles)) == len(titles)
        return [table.title if is_unique else f"{table.title}, {table.info.label}" for table in self.tables]

    def to_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "verdicts": [sentence.text for sentence in sentences(self)],
            "tables": [table.to_json() for table in self.tables],
            **{grid.key: grid.content for grid in self.grids if grid.content is not None},
            "notes": list(self.notes),
            **self.facts,
        }


# Sentences ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sentence:
    """A sentence of the beginning, and whether it is good or bad news."""

    text: str
    tone: Tone


def sentences(comparison: Comparison) -> list[Sentence]:
    """Returns what the comparison says, in the order in which a reader needs it.

    First what makes a ranking worthless (models below a baseline, models that do not look), then who is better, then who looks.
    """
    found: list[tuple[int, Sentence]] = []
    for table, name in zip(comparison.tables, comparison.table_names(), strict=True):
        name = f"{name}: " if name else ""
        own = [*_below_baselines(table), *_looking(table), *_ranking(table)]
        found += [(place, Sentence(name + sentence.text, sentence.tone)) for place, sentence in own]
    return [sentence for _, sentence in sorted(found, key=lambda entry: entry[0])]


def _below_baselines(table: Table) -> Iterator[tuple[int, Sentence]]:
    floor = [row for row in table.rows if row.name in table.floor]
    if not floor:
        return
    bar = max(floor, key=lambda row: table.quality(row.score.value))
    below = [
        row.name
        for row in table.rows
        if row.name not in table.floor and table.quality(row.score.value) < table.quality(bar.score.value)
    ]
    if below:
        text = f"{_listed(below)} {'score' if len(below) > 1 else 'scores'} below the baseline {bar.name}: a ranking of models "
        yield 0, Sentence(f"{text}that do not reach it says little.", "bad")


def _looking(table: Table) -> Iterator[tuple[int, Sentence]]:
    rows = [(row, row.looks) for row in table.rows if row.looks is not None and row.name not in table.floor]
    looking = [row.name for row, verdict in rows if verdict.verdict == LOOKS]
    unchecked = [(row.name, verdict.command) for row, verdict in rows if verdict.difference is None]
    if unchecked:
        names = [name for name, _ in unchecked]
        how = f" Check it with: {unchecked[0][1]}" if unchecked[0][1] else ""
        yield 3, Sentence(f"Whether {_listed(names)} {'look' if len(names) > 1 else 'looks'} is {NOT_CHECKED}.{how}", "note")
    if len(looking) > MANY:
        yield 3, Sentence(f"{_listed(looking)} look.", "good")
    for row, verdict in rows:
        if verdict.difference is None:
            continue
        numbers = f"{_change(table, verdict.difference, sign=True)} with the image instead of {verdict.control}"
        match verdict.verdict:
            case "looks" if len(looking) > MANY:
                continue
            case "looks":
                yield 3, Sentence(f"{row.name} {LOOKS}: {numbers}.", "good")
            case "does not look":
                yield 0, Sentence(f"{row.name} {DOES_NOT_LOOK}: {numbers}.", "bad")
            case _ if verdict.note == WORSE:
                yield 1, Sentence(f"{row.name} is {WORSE}: {numbers}.", "bad")
            case _:
                why = f"; {verdict.note}" if verdict.note else ""
                yield 1, Sentence(f"{row.name}: {verdict.text} whether it looks ({numbers}{why}).", "note")


def _ranking(table: Table) -> Iterator[tuple[int, Sentence]]:
    pairs, best = table.pairs, table.best().name
    if not table.is_against_one and len(table.rows) > FEW_ROWS:
        pairs = tuple(pair for pair in pairs if best in (pair.first, pair.second))
    clear = pairs if len(pairs) <= MANY else tuple(pair for pair in pairs if table.is_clear(pair))
    for pair in clear:
        yield 2, ranking_sentence(table, pair)
    if len(clear) < len(pairs):
        yield 2, Sentence(f"{len(pairs) - len(clear)} of {len(pairs)} pairs cannot be distinguished after correction.", "note")


def ranking_sentence(table: Table, pair: RowPair) -> Sentence:
    """Says which of two rows is better, by how much and how sure that is."""
    better = _better(table, pair)
    worse = pair.second if better == pair.first else pair.first
    difference = pair.difference if (better == pair.first) == table.info.higher_is_better else _negated(pair.difference)
    if table.is_clear(pair):
        corrected = " after correction" if len(table.pairs) > 1 else ""
        return Sentence(f"{better} is better than {worse} by {_change(table, difference)}{corrected}.", "good")
    if table.images < MIN_ITEMS:
        few = f"{table.images} images; a verdict needs at least {MIN_ITEMS}"
        return Sentence(
            f"{better} and {worse}: not enough images to say which is better ({_change(table, difference, True)}; {few}).", "note"
        )
    if pair.difference.p < LEVEL:
        text = f"{better} may be better than {worse} ({_change(table, difference)}), but not after correction for "
        return Sentence(f"{text}{len(table.pairs)} pairs (p = {pair.p:.2g}).", "note")
    return Sentence(f"{better} and {worse} cannot be distinguished ({_change(table, difference, sign=True)}).", "note")


def _better(table: Table, pair: RowPair) -> str:
    return pair.first if table.quality(pair.difference.value) >= 0 else pair.second


def _negated(difference: Difference) -> Difference:
    return Difference(-difference.value, -difference.high, -difference.low, difference.p)


def _change(table: Table, difference: Difference, sign: bool = False) -> str:
    unit = " points" if table.info.times == 100 else ""
    value, interval = shown_interval(table.info, difference, sign).split(" ", 1)
    return f"{value}{unit} {interval}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


# Numbers and tables for people ----------------------------------------------------------------------------------------------


def shown(info: ScoreInfo, value: float, sign: bool = False) -> str:
    """Returns a score as it is printed, shares times 100."""
    return f"{value * info.times:{'+' if sign else ''}.{1 if info.times >= 100 else 3}f}"


def shown_interval(info: ScoreInfo, interval: Interval | Difference, sign: bool = False) -> str:
    """Returns a score with its interval."""
    return f"{shown(info, interval.value, sign)} [{shown(info, interval.low, sign)}, {shown(info, interval.high, sign)}]"


def shown_p(p: float) -> str:
    """Returns a p-value as it is printed."""
    return "< 0.001" if p < 0.0005 else f"{p:.3f}"


def score_grid(table: Table) -> tuple[list[Column], list[list[str]]]:
    """Returns the table of scores: a row for each model."""
    has_seeds = any(row.score.seeds > 1 for row in table.rows)
    heads = [Column("model"), Column(f"{table.label} [95 %]", "right")]
    heads += [Column("wins / pairs", "right")] if table.pairs else []
    heads += [Column("seeds", "right"), Column("lowest to highest seed", "right")] if has_seeds else []
    beside = table.conditions if len(table.conditions) <= FEW_CONDITIONS else []
    heads += [Column("does it look?"), *(Column(kind, "right") for kind in beside)]
    rows = []
    for row in table.rows:
        cells = [row.name, shown_interval(table.info, row.score)]
        cells += ["{} / {}".format(*table.pairs_won(row.name))] if table.pairs else []
        if has_seeds:
            seeds = [shown(table.info, value) for value in sorted(row.per_seed.values())]
            cells += [str(row.score.seeds), f"{seeds[0]} to {seeds[-1]}" if seeds else ""]
        cells += ["baseline" if row.looks is None else row.looks.text]
        rows.append([*cells, *(shown_interval(table.info, row.others[kind]) if kind in row.others else "" for kind in beside)])
    return heads, rows


def ladder_grid(table: Table) -> tuple[list[Column], list[list[str]]] | None:
    """Returns the table of a long ladder, conditions by models; None where the table of scores has it all."""
    if len(table.conditions) <= FEW_CONDITIONS:
        return None
    heads = [Column("shown"), *(Column(row.name, "right") for row in table.rows)]
    rows = [["the image", *(shown_interval(table.info, row.score) for row in table.rows)]]
    for kind in table.conditions:
        rows.append([kind, *(shown_interval(table.info, row.others[kind]) if kind in row.others else "" for row in table.rows)])
    return heads, rows


def pair_grid(table: Table) -> tuple[list[Column], list[list[str]]]:
    """Returns the table of differences: a row for each pair."""
    heads = [Column("first"), Column("second"), Column("first minus second [95 %]", "right"), Column("p", "right")]
    heads += [Column("p corrected", "right"), Column("higher on", "right"), Column("lower on", "right"), Column("same on", "right")]
    rows = [
        [
            pair.first,
            pair.second,
            shown_interval(table.info, pair.difference, sign=True),
            shown_p(pair.difference.p),
            shown_p(pair.p),
            *map(str, (pair.higher_on, pair.lower_on, pair.same_on)),
        ]
        for pair in table.pairs
    ]
    return heads, rows


def table_note(table: Table) -> str:
    """Returns the note below a table: what its numbers are."""
    methods = {row.score.method for row in table.rows}
    parts = [f"{len(table.records):,} records of {table.images:,} images."]
    if ITEMS_BOOTSTRAP in methods:
        parts.append("Intervals of a single training seed cover other images, not other seeds: training again may change more.")
    if len(methods) > 1 or ITEMS_BOOTSTRAP not in methods:
        parts.append("Intervals of several seeds cover other images and other seeds.")
    if table.pairs:
        count = len(table.pairs)
        parts.append(f"Differences are on the same records; p is corrected for {count} {'pair' if count == 1 else 'pairs'} (Holm).")
    return " ".join(parts)


# Files ----------------------------------------------------------------------------------------------------------------------


def markdown(comparison: Comparison) -> str:
    """Returns the report as Markdown; charts are linked by the names of their files."""
    lines = [f"# {comparison.title}", "", *(f"- {sentence.text}" for sentence in sentences(comparison))]
    lines += ["", *(f"- {note}" for note in comparison.notes)] if comparison.notes else []
    for table in comparison.tables:
        lines += ["", f"## {table.title}: {table.label}", "", table_note(table), "", *_lines(*score_grid(table))]
        ladder = ladder_grid(table)
        lines += ["", *_lines(*ladder)] if ladder is not None else []
        lines += ["", *_lines(*pair_grid(table))] if table.pairs else []
        lines += [line for name in table.charts for line in ("", f"![]({name})")]
    for grid in comparison.grids:
        lines += ["", f"## {grid.title}", "", *([grid.note, ""] if grid.note else []), *_lines(grid.heads, grid.rows)]
    return "\n".join(lines) + "\n"


def _lines(heads: Sequence[Column], rows: Iterable[Sequence[str]]) -> list[str]:
    rules = ["---:" if head.align == "right" else "---" for head in heads]
    body = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return [f"| {' | '.join(head.title for head in heads)} |", f"|{'|'.join(rules)}|", *(f"| {' | '.join(row)} |" for row in body)]


def scores_csv(comparison: Comparison) -> str:
    """Returns every score with its interval, a line each."""
    rows: list[Sequence[Any]] = []
    for table in comparison.tables:
        for row in table.rows:
            for condition, score in {"": row.score, **row.others}.items():
                values = [score.value, score.low, score.high, score.n, score.seeds, score.method]
                rows.append([table.evaluation, table.info.name, row.name, condition, *values])
    return _csv(["evaluation", "metric", "model", "condition", "value", "low", "high", "n", "seeds", "method"], rows)


def items_csv(comparison: Comparison) -> str:
    """Returns the score of every record by model, mean over seeds."""
    rows = [
        [table.evaluation, table.info.name, name, record, value]
        for table in comparison.tables
        for name, values in table.values.items()
        for record, value in zip(table.records, values, strict=True)
    ]
    return _csv(["evaluation", "metric", "model", "record", "score"], rows)


def _csv(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows(rows)
    return buffer.getvalue()


def _pair_json(pair: RowPair) -> dict[str, Any]:
    records = {"higher": pair.higher_on, "lower": pair.lower_on, "same": pair.same_on}
    return {
        "first": pair.first,
        "second": pair.second,
        **interval_json(pair.difference),
        "p_corrected": pair.p,
        "items": records,
    }
