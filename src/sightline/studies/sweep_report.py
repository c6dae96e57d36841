"""The report of a sweep: tables of arms against a baseline with their controls beside them, as a page, Markdown, JSON, CSV and SVG.

    DIR/report.html   report.md   report.json   scores.csv   items.csv   photos-cider_d.svg ...

It is made of the `items.json` of the runs that are there, whether the sweep is finished or not; no model is loaded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sightline.errors import SightlineError, StorageError
from sightline.evaluation.controls import WITHOUT_IMAGE
from sightline.evaluation.predict import ITEMS
from sightline.evaluation.spec import EvalSpec
from sightline.evaluation.tasks import ScoreInfo, task_by_name
from sightline.metrics.statistics import Interval, interval_json
from sightline.reporting.comparison import Comparison, Grid, Row, RowPair, Table, shown_interval, shown_p
from sightline.reporting.html import Column, Html
from sightline.reporting.plots import LineSeries, line_chart
from sightline.reporting.scales import Axis
from sightline.runtime import storage
from sightline.runtime.logs import logger
from sightline.studies.compared_items import with_items
from sightline.studies.comparison import Items, ShareLost, lost, read_items
from sightline.studies.spec import EvaluationConfig, Sweep, Value, cell_name
from sightline.studies.sweep import EVALUATIONS, STATE, folder_of
from sightline.studies.tables import Arm, Measured, all_pairs, ladder_chart, measure, table_of, write_comparison

Place = tuple[str, str]  # arm, cell
_HOW_TO_CHECK = "sightline sweep, with `controls: [shuffled]` in its evaluation"


def write_report(sweep: Sweep, out: Path) -> dict[str, Any]:
    """Writes the report of what is there and returns what the command says of it."""
    states = {run.name: _state(folder_of(out, run)) for run in sweep.runs}
    failed = {name: state["error"] for name, state in states.items() if state.get("state") == "failed"}
    done = [name for name, state in states.items() if state.get("state") == "done"]
    tables, grids = [], []
    for evaluation in sweep.config.evaluations:
        for table, grid in tables_of(sweep, evaluation, out):
            tables.append(table)
            grids += [grid] if grid is not None else []
    connectors = connectors_of(sweep)
    comparison = Comparison(
        title=sweep.config.title or sweep.path.stem,
        tables=tuple(tables),
        grids=(*([_connector_grid(connectors)] if connectors else []), *grids),
        notes=(f"{len(done)} of {len(sweep.runs)} runs are done.", *(f"{name} failed: {error}" for name, error in failed.items())),
        facts={
            "planned": len(sweep.runs),
            "done": len(done),
            "failed": failed,
            "connectors": connectors,
            "missing": [name for name in states if name not in done and name not in failed],
        },
    )
    page = write_comparison(comparison, out)
    return {"report": str(page), "done": len(done), "planned": len(sweep.runs), "failed": len(failed)}


def connectors_of(sweep: Sweep) -> dict[str, dict[str, Any]]:
    """Parameters and visual tokens of each arm's connector, where the arms differ in it and encoder and decoder are at hand."""
    configs = {run.arm: run.config for run in reversed(sweep.runs)}
    if len({config.model.connector.model_dump_json() for config in configs.values()}) == 1:
        return {}
    from sightline.assembly.model.summary import image_cost

    out = {}
    for arm, config in configs.items():
        try:
            cost = image_cost(config)
        except SightlineError as error:
            logger.info("the size of %s is not known here: %s", arm, error)
            continue
        if cost is not None:
            out[arm] = cost.connector.to_json()
    return out


def _connector_grid(connectors: Mapping[str, Mapping[str, Any]]) -> Grid:
    rows = [[arm, cost["kind"], f"{cost['parameters']:,}", str(cost["tokens_per_crop"])] for arm, cost in connectors.items()]
    heads = [Column("arm"), Column("connector"), Column("parameters", "right"), Column("visual tokens of a crop", "right")]
    return Grid("connectors", "Connectors", heads, rows)


# Tables ---------------------------------------------------------------------------------------------------------------------


def tables_of(sweep: Sweep, evaluation: EvaluationConfig, out: Path) -> list[tuple[Table, Grid | None]]:
    """Returns a table for each metric that the sweep compares and the runs have, and what the arms lose from the reference cell."""
    found: dict[Place, dict[str, dict[int, Items]]] = {}
    cells: dict[Place, Mapping[str, Value]] = {}
    answers: dict[Place, tuple[EvalSpec, Path]] = {}  # of the first seed, with the images as they are
    for run in sweep.runs:
        for asked in run.asked:
            items = (
                read_items(folder_of(out, run) / EVALUATIONS / asked.key / ITEMS) if asked.config.name == evaluation.name else None
            )
            if items is not None:
                place = run.arm, cell_name(run.cell)
                cells[place] = run.cell
                kind = asked.key.partition("+")[2]
                if not kind:
                    answers.setdefault(place, (run.spec_of(asked), folder_of(out, run) / EVALUATIONS / asked.key))
                found.setdefault(place, {}).setdefault(kind, {})[run.seed] = items
    arms = {place: Arm(" ".join(place).strip(), kinds, _HOW_TO_CHECK) for place, kinds in found.items()}
    task = task_by_name(evaluation.task)
    infos = {info.name: info for info in task.scores}
    tables = []
    for metric in sweep.config.compare.metrics or (task.headline.name,):
        measured = measure(list(arms.values()), metric)
        if measured is not None:
            info = infos.get(metric, ScoreInfo(metric, metric, times=1.0))
            places = {arms[place].name: place for place in arms}
            table, grid = _table(sweep, evaluation.name, info, measured, places, cells)
            shown = {row.name: answers[places[row.name]] for row in _alike_rows(table)}
            spec = next(iter(shown.values()))[0]
            table = with_items(table, spec, task, {name: folder for name, (_, folder) in shown.items()})
            tables.append((table, grid))
    return tables


def _table(
    sweep: Sweep,
    name: str,
    info: ScoreInfo,
    measured: Measured,
    places: Mapping[str, Place],
    cells: Mapping[Place, Mapping[str, Value]],
) -> tuple[Table, Grid | None]:
    by_cell: dict[str, list[str]] = {}
    for row in measured.scores:
        by_cell.setdefault(places[row][1], []).append(row)
    names = {places[row]: row for row in measured.scores}
    pairs = []
    for cell, rows in by_cell.items():
        base = names.get((sweep.config.compare.baseline or "", cell), "")
        if base or sweep.config.compare.baseline is None:
            pairs += all_pairs(rows, base)
    table = table_of(name, name, info, measured, pairs)
    minus = {pair.first: pair for pair in table.pairs if sweep.config.compare.baseline is not None}
    rows = tuple(replace(row, facts=_facts(row, measured, places[row.name], cells, minus.get(row.name))) for row in table.rows)
    losses = _losses(sweep, measured, names, cells)
    facts = {"losses": [_loss_json(place, cells, loss) for place, loss in losses.items()]}
    table = replace(table, rows=rows, facts=facts, is_against_one=sweep.config.compare.baseline is not None)
    return replace(table, charts=charts_of(table)), _loss_grid(sweep, table, losses) if losses else None


def _facts(
    row: Row, measured: Measured, place: Place, cells: Mapping[Place, Mapping[str, Value]], minus: RowPair | None
) -> dict[str, Any]:
    plain = measured.scores[row.name][""]
    return {
        "arm": place[0],
        "cell": dict(cells[place]),
        "seeds": list(plain.seeds),
        "per_seed": {str(seed): value for seed, value in plain.per_seed.items()},
        "minus_baseline": None if minus is None else interval_json(minus.difference),
    }


def _losses(
    sweep: Sweep, measured: Measured, names: Mapping[Place, str], cells: Mapping[Place, Mapping[str, Value]]
) -> dict[Place, ShareLost]:
    """What each arm loses from the reference cell, beside what the baseline loses."""
    reference, baseline = sweep.config.compare.reference, sweep.config.compare.baseline
    plain = {place: measured.scores[name][""] for place, name in names.items()}
    out = {}
    for (arm, name), cell_scores in plain.items() if reference else ():
        cell = cells[arm, name]
        at = cell_name({**cell, **reference})
        if at == name or not reference.keys() <= cell.keys() or (arm, at) not in plain:
            continue
        base = None
        if arm != baseline and baseline is not None:
            if (baseline, name) not in plain or (baseline, at) not in plain:
                continue
            base = plain[baseline, at], plain[baseline, name]
        found = lost(plain[arm, at], cell_scores, base)
        if found is not None:
            out[arm, name] = found
    return out


def _loss_json(place: Place, cells: Mapping[Place, Mapping[str, Value]], loss: ShareLost) -> dict[str, Any]:
    return {"arm": place[0], "cell": dict(cells[place]), "cell_name": place[1], **loss.to_json()}


def _loss_grid(sweep: Sweep, table: Table, losses: Mapping[Place, ShareLost]) -> Grid:
    baseline, info = sweep.config.compare.baseline, table.info
    ratio = replace(info, times=1.0)
    rows = []
    for (arm, cell), loss in losses.items():
        cells = [f"{arm} {cell}", shown_interval(info, loss.lost), "" if loss.ratio is None else shown_interval(ratio, loss.ratio)]
        rows.append([*cells, *(["", ""] if loss.less is None else [shown_interval(info, loss.less), shown_p(loss.less.p)])])
    heads = [
        Column("arm"),
        *(Column(head, "right") for head in ("lost [95 %]", "ratio [95 %]", "less than the baseline [95 %]", "p")),
    ]
    note = f"{table.label}. Ratio: to what {baseline} loses, where that is clearly above 0."
    return Grid("losses", f"{table.title}: lost against {cell_name(sweep.config.compare.reference)}", heads, rows, note)


def _state(folder: Path) -> dict[str, Any]:
    try:
        return dict(storage.read_json(folder / STATE))
    except (StorageError, TypeError, ValueError):
        return {}


# Charts ---------------------------------------------------------------------------------------------------------------------


def charts_of(table: Table) -> dict[str, Html]:
    """Bars of all arms beside their controls; lines over each varied number and over the size of feature noise."""
    stem = f"{table.evaluation}-{table.info.name}"
    alike = _alike_rows(table)
    controls = [kind for kind in table.conditions if kind in WITHOUT_IMAGE]
    named = [replace(row, name=row.facts["arm"]) for row in alike]
    out = {f"{stem}.svg": ladder_chart(table, named, controls, f"{table.title} {cell_name(alike[0].facts['cell'])}".strip())}
    for key in dict.fromkeys(key for row in table.rows for key in row.facts["cell"]):
        lines = _lines_over(table, key)
        if lines:
            out[f"{stem}-{key.rpartition('.')[2]}.svg"] = line_chart(lines, Axis(key), Axis(table.label), table.title)
    noise = [line for row in alike if (line := _noise_line(table, row)) is not None]
    if noise:
        chart = line_chart(noise, Axis("noise on the features"), Axis(table.label), table.title)
        out[f"{stem}-feature_noise.svg"] = chart
    return out


def _alike_rows(table: Table) -> list[Row]:
    """The rows of one cell: that without varied settings, else the one with most arms."""
    cells: dict[str, list[Row]] = {}
    for row in table.rows:
        cells.setdefault(cell_name(row.facts["cell"]), []).append(row)
    return cells.get("") or max(cells.values(), key=len)


def _lines_over(table: Table, key: str) -> list[LineSeries]:
    points: dict[str, list[tuple[float, Interval]]] = {}
    for row in table.rows:
        cell = row.facts["cell"]
        value = cell.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            name = f"{row.facts['arm']} {cell_name({other: own for other, own in cell.items() if other != key})}".strip()
            points.setdefault(name, []).append((float(value), row.score))
    return [_line(table, name, found) for name, found in points.items() if len(found) > 1]


def _noise_line(table: Table, row: Row) -> LineSeries | None:
    points = [(float(kind.removeprefix("noise")), value) for kind, value in row.others.items() if kind.startswith("noise")]
    return _line(table, row.name, [(0.0, row.score), *points]) if points else None


def _line(table: Table, name: str, points: Sequence[tuple[float, Interval]]) -> LineSeries:
    there = sorted(points, key=lambda point: point[0])
    value, low, high = ([getattr(item, end) * table.info.times for _, item in there] for end in ("value", "low", "high"))
    return LineSeries(name, [x for x, _ in there], value, low, high, is_marked=True)
