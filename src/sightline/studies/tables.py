"""Tables of a comparison, of the scores of single records: what `compare` and `sweep` report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from sightline.evaluation.controls import WITHOUT_IMAGE
from sightline.evaluation.tasks import ScoreInfo
from sightline.metrics.significance import holm
from sightline.metrics.statistics import Interval
from sightline.metrics.verdict import Verdict, verdict_of
from sightline.reporting.comparison import Comparison, Row, RowPair, Table, items_csv, markdown, scores_csv
from sightline.reporting.comparison_page import comparison_page
from sightline.reporting.html import Html
from sightline.reporting.plots import Bars, bar_chart, standalone
from sightline.reporting.scales import Axis
from sightline.runtime import storage
from sightline.studies.comparison import Items, Scored, common_records, difference, scored

PAGE, MARKDOWN, JSON, SCORES, ITEMS = "report.html", "report.md", "report.json", "scores.csv", "items.csv"
BAR = 110  # pixels of a category


@dataclass(frozen=True)
class Arm:
    """A model, or the runs of several seeds with one configuration, and what an evaluation found of it.

    Attributes:
        name: for people.
        found: scores by what was changed (nothing, a control, noise), then by seed.
        command: what to run to check whether it looks.
        is_baseline: whether it is no model.
        is_fixed: a given model, whose only entry stands for no training seed.
        facts: what else its JSON says.
    """

    name: str
    found: Mapping[str, Mapping[int, Items]]
    command: str = ""
    is_baseline: bool = False
    is_fixed: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """The scores of all arms on the records that all have.

    Attributes:
        records: ids.
        cluster_N: number of each record's image.
        arms: by name; those that have the score.
        scores: by name, then by what was changed.
    """

    records: tuple[str, ...]
    cluster_N: Int[np.ndarray, " N"]
    arms: Mapping[str, Arm]
    scores: Mapping[str, Mapping[str, Scored]]


def measure(arms: Sequence[Arm], metric: str) -> Measured | None:
    """Returns the scores of one metric; None where no arm has it on a record that all have."""
    everything = [items for arm in arms for seeds in arm.found.values() for items in seeds.values()]
    if not everything:
        return None
    records, cluster_N = common_records(everything)
    kept, scores = {}, {}
    for arm in arms:
        values = {kind: scored(seeds, metric, records, cluster_N) for kind, seeds in arm.found.items()}
        own = {kind: replace(value, is_fixed=arm.is_fixed) for kind, value in values.items() if value is not None}
        if "" in own:
            kept[arm.name], scores[arm.name] = arm, own
    return Measured(records, cluster_N, kept, scores) if scores else None


def table_of(
    evaluation: str, title: str, info: ScoreInfo, measured: Measured, pairs: Sequence[tuple[str, str]], is_against_one: bool = False
) -> Table:
    """Returns the table of a score.

    Args:
        evaluation, title: key and heading.
        info: the score.
        measured: its values.
        pairs: which rows are compared, first minus second.
        is_against_one: whether one row is in each pair.
    """
    rows = tuple(_row(arm, measured.scores[name], info) for name, arm in measured.arms.items())
    plain = {name: kinds[""] for name, kinds in measured.scores.items()}
    return Table(
        evaluation=evaluation,
        title=title,
        info=info,
        images=int(measured.cluster_N.max()) + 1,
        records=measured.records,
        rows=rows,
        pairs=_pairs(plain, [pair for pair in pairs if set(pair) <= plain.keys()]),
        values={name: found.values_SN.mean(axis=0).tolist() for name, found in plain.items()},
        is_against_one=is_against_one,
        floor=tuple(name for name, arm in measured.arms.items() if arm.is_baseline),
    )


def all_pairs(names: Sequence[str], against: str = "") -> list[tuple[str, str]]:
    """Returns every pair, or each row with the one that all are compared with."""
    return [(name, against) for name in names if name != against] if against else list(combinations(names, 2))


def _row(arm: Arm, kinds: Mapping[str, Scored], info: ScoreInfo) -> Row:
    plain = kinds[""]
    looks = None if arm.is_baseline else _verdict(kinds, info, arm.command)
    others = {kind: value.interval() for kind, value in kinds.items() if kind}
    return Row(arm.name, plain.interval(), others, looks, plain.per_seed if len(plain.seeds) > 1 else {}, arm.facts)


def _verdict(kinds: Mapping[str, Scored], info: ScoreInfo, command: str) -> Verdict:
    """Returns whether an arm looks, from its first control that a verdict can rest on."""
    plain = kinds[""]
    images = int(plain.cluster_N.max()) + 1
    for control in WITHOUT_IMAGE:
        if control in kinds:
            one, other = (plain, kinds[control]) if info.higher_is_better else (kinds[control], plain)
            found = difference(one, other)
            if found is None:
                return verdict_of(None, 0.0, command=command)
            items = difference(one.averaged(), other.averaged()) if found.seeds > 1 else None
            over_items = items if items is None else replace(items, n=images)
            return verdict_of(replace(found, n=images), plain.interval().value, control, command, over_items)
    return verdict_of(None, 0.0, command=command)


def _pairs(plain: Mapping[str, Scored], wanted: Sequence[tuple[str, str]]) -> tuple[RowPair, ...]:
    found = []
    for first, second in wanted:
        one, other = plain[first], plain[second]
        minus = difference(one, other)
        if minus is not None:
            change_N = one.values_SN.mean(axis=0) - other.values_SN.mean(axis=0)
            counts = [int(np.sum(np.sign(change_N) == sign)) for sign in (1, -1, 0)]
            found.append(RowPair(first, second, minus, minus.p, *counts))
    corrected = holm([pair.p for pair in found]) if found else []
    return tuple(replace(pair, p=p) for pair, p in zip(found, corrected, strict=True))


# Files ----------------------------------------------------------------------------------------------------------------------


def write_comparison(comparison: Comparison, out: Path) -> Path:
    """Writes a comparison in all its forms and returns the page."""
    out.mkdir(parents=True, exist_ok=True)
    storage.write_json(out / JSON, comparison.to_json())
    storage.write_text(out / MARKDOWN, markdown(comparison))
    storage.write_text(out / SCORES, scores_csv(comparison))
    storage.write_text(out / ITEMS, items_csv(comparison))
    for table in comparison.tables:
        for name, chart in table.charts.items():
            storage.write_text(out / name, standalone(chart))
    storage.write_text(out / PAGE, comparison_page(comparison))
    return out / PAGE


# Charts ---------------------------------------------------------------------------------------------------------------------


def ladder_chart(table: Table, rows: Sequence[Row], conditions: Sequence[str], title: str = "") -> Html:
    """Bars of the scores with the image and under each condition; of models and conditions, the fewer are the colours."""
    kinds = ["", *conditions]
    cells = {(row.name, kind): row.others.get(kind) if kind else row.score for row in rows for kind in kinds}
    names, shown = [row.name for row in rows], {kind: kind or ("with the image" if conditions else "") for kind in kinds}
    if len(names) < len(kinds):
        series = [_bars(table.info, name, [cells[name, kind] for kind in kinds]) for name in names]
        categories = [shown[kind] for kind in kinds]
    else:
        series = [_bars(table.info, shown[kind], [cells[name, kind] for name in names]) for kind in kinds]
        categories = names
    return bar_chart(categories, series, Axis(table.label), title, max(640, 60 + BAR * len(categories)))


def _bars(info: ScoreInfo, name: str, found: Sequence[Interval | None]) -> Bars:
    nothing = Interval(float("nan"), float("nan"), float("nan"))
    intervals = [nothing if value is None else value for value in found]
    values, low, high = ([getattr(item, end) * info.times for item in intervals] for end in ("value", "low", "high"))
    return Bars(name, values, low, high)
