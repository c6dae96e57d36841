"""The report of a sweep: tables of arms against a baseline with their controls beside them, as Markdown, JSON and SVG.

    DIR/report.md     report.json     photos-cider_d.svg ...

It is made of the `items.json` of the runs that are there, whether the sweep is finished or not; no model is loaded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sightline.errors import SightlineError, StorageError
from sightline.evaluation.controls import WITHOUT_IMAGE
from sightline.evaluation.predict import ITEMS
from sightline.evaluation.tasks import task_by_name
from sightline.metrics.statistics import Difference, Interval
from sightline.metrics.verdict import Verdict, verdict_of
from sightline.reporting.html import Html
from sightline.reporting.plots import Bars, LineSeries, bar_chart, line_chart, standalone
from sightline.reporting.scales import Axis
from sightline.runtime import storage
from sightline.runtime.logs import logger
from sightline.studies.comparison import Items, Scored, common_records, difference, interval_json, lost, scored
from sightline.studies.spec import EvaluationConfig, Sweep, Value, cell_name
from sightline.studies.sweep import EVALUATIONS, STATE, folder_of

REPORT, JSON = "report.md", "report.json"
Place = tuple[str, str]  # arm, cell
BAR = 110  # pixels of a category


@dataclass(frozen=True)
class ArmRow:
    """An arm in a cell.

    Attributes:
        plain: its scores; None where only others were asked.
        others: by what differed: `blind`, `noise1`, `words400`.
        minus: difference from the baseline.
        looks: whether it looks at the image, from `plain` and a control among `others`.
    """

    arm: str
    cell: Mapping[str, Value]
    plain: Scored
    others: Mapping[str, Scored]
    minus: Difference | None
    looks: Verdict

    @property
    def name(self) -> str:
        return f"{self.arm} {cell_name(self.cell)}".strip()


@dataclass(frozen=True)
class Table:
    """One metric of one evaluation over all arms and cells."""

    evaluation: str
    metric: str
    records: int
    images: int
    rows: tuple[ArmRow, ...]
    losses: tuple[dict[str, Any], ...]

    @property
    def columns(self) -> list[str]:
        """What else was asked, in order of first appearance."""
        return list(dict.fromkeys(key for row in self.rows for key in row.others))

    def to_json(self) -> dict[str, Any]:
        return {
            "evaluation": self.evaluation,
            "metric": self.metric,
            "records": self.records,
            "images": self.images,
            "rows": [_row_json(row) for row in self.rows],
            "losses": list(self.losses),
        }


def write_report(sweep: Sweep, out: Path) -> dict[str, Any]:
    """Writes the report of what is there and returns what the command says of it."""
    states = {run.name: _state(folder_of(out, run)) for run in sweep.runs}
    failed = {name: state["error"] for name, state in states.items() if state.get("state") == "failed"}
    tables = [table for evaluation in sweep.config.evaluations for table in tables_of(sweep, evaluation, out)]
    charts = {f"{table.evaluation}-{table.metric}{kind}.svg": chart for table in tables for kind, chart in charts_of(table)}
    out.mkdir(parents=True, exist_ok=True)
    for name, chart in charts.items():
        storage.write_text(out / name, standalone(chart))
    done = [name for name, state in states.items() if state.get("state") == "done"]
    facts: dict[str, Any] = {"title": sweep.config.title, "planned": len(sweep.runs), "done": len(done), "failed": failed}
    facts["connectors"] = connectors_of(sweep)
    facts["missing"] = [name for name in states if name not in done and name not in failed]
    storage.write_json(out / JSON, facts | {"tables": [table.to_json() for table in tables]})
    storage.write_text(out / REPORT, "\n".join(_markdown(sweep, tables, list(charts), facts)) + "\n")
    return {"report": str(out / REPORT), "done": len(done), "planned": len(sweep.runs), "failed": len(failed)}


def connectors_of(sweep: Sweep) -> dict[str, dict[str, Any]]:
    """Returns parameters and visual tokens of each arm's connector, where the arms differ in it."""
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


# Tables ---------------------------------------------------------------------------------------------------------------------------


def tables_of(sweep: Sweep, evaluation: EvaluationConfig, out: Path) -> list[Table]:
    """Returns a table for each metric that the sweep compares and the runs have."""
    found: dict[Place, dict[str, dict[int, Items]]] = {}
    cells: dict[Place, Mapping[str, Value]] = {}
    for run in sweep.runs:
        for asked in run.asked:
            items = _items(folder_of(out, run) / EVALUATIONS / asked.key / ITEMS) if asked.config.name == evaluation.name else None
            if items is not None:
                place = run.arm, cell_name(run.cell)
                cells[place] = run.cell
                kind = asked.key.partition("+")[2]
                found.setdefault(place, {}).setdefault(kind, {})[run.seed] = items
    everything = [items for kinds in found.values() for seeds in kinds.values() for items in seeds.values()]
    if not everything:
        return []
    records, cluster_N = common_records(everything)
    out_tables = []
    for metric in sweep.config.compare.metrics or (task_by_name(evaluation.task).headline.name,):
        rows: dict[Place, dict[str, Scored]] = {}
        for place, kinds in found.items():
            values = {kind: scored(seeds, metric, records, cluster_N) for kind, seeds in kinds.items()}
            kept = {kind: value for kind, value in values.items() if value is not None}
            if "" in kept:
                rows[place] = kept
        if rows:
            base, images = sweep.config.compare.baseline, int(cluster_N.max()) + 1
            infos = {info.name: info for info in task_by_name(evaluation.task).scores}
            is_better_lower = metric in infos and not infos[metric].higher_is_better
            made = tuple(
                ArmRow(
                    place[0],
                    cells[place],
                    kinds[""],
                    {kind: value for kind, value in kinds.items() if kind},
                    _minus(kinds, rows.get((base or "", place[1])) if place[0] != base else None),
                    _looks(kinds, images, is_better_lower),
                )
                for place, kinds in rows.items()
            )
            losses = tuple(_losses(sweep, {place: kinds[""] for place, kinds in rows.items()}, cells))
            out_tables.append(Table(evaluation.name, metric, len(records), images, made, losses))
    return out_tables


def _minus(kinds: Mapping[str, Scored], base: Mapping[str, Scored] | None) -> Difference | None:
    return None if base is None else difference(kinds[""], base[""])


def _looks(kinds: Mapping[str, Scored], images: int, is_better_lower: bool) -> Verdict:
    """Whether an arm looks, from the control that a verdict prefers of those that were asked."""
    control = next((name for name in WITHOUT_IMAGE if name in kinds), None)
    first, second = ("", control) if not is_better_lower else (control, "")
    found = None if control is None else difference(kinds[first or ""], kinds[second or ""])
    if found is None:
        return verdict_of(None, 0.0, command="sightline sweep, with `controls: [shuffled]` in its evaluation")
    return verdict_of(replace(found, n=images), kinds[""].interval().value, control)


def _losses(sweep: Sweep, plain: Mapping[Place, Scored], cells: Mapping[Place, Mapping[str, Value]]) -> list[dict[str, Any]]:
    """Returns what each arm loses from the reference cell, beside what the baseline loses."""
    reference, baseline = sweep.config.compare.reference, sweep.config.compare.baseline
    out = []
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
            out.append({"arm": arm, "cell": dict(cell), "cell_name": name, **found.to_json()})
    return out


def _items(path: Path) -> Items | None:
    try:
        stored = storage.read_json(path)
        return Items(tuple(stored["records"]), tuple(stored["image"] if "image" in stored else stored["picture"]), stored["items"])
    except (StorageError, KeyError, TypeError):
        return None


def _state(folder: Path) -> dict[str, Any]:
    try:
        return dict(storage.read_json(folder / STATE))
    except (StorageError, TypeError, ValueError):
        return {}


def _row_json(row: ArmRow) -> dict[str, Any]:
    return {
        "arm": row.arm,
        "cell": dict(row.cell),
        "seeds": list(row.plain.seeds),
        **{name: value for name, value in interval_json(row.plain.interval()).items() if name != "seeds"},
        "per_seed": {str(seed): value for seed, value in row.plain.per_seed.items()},
        "minus_baseline": None if row.minus is None else interval_json(row.minus),
        "looks": row.looks.to_json(),
        "others": {kind: interval_json(value.interval()) for kind, value in row.others.items()},
    }


# Charts ---------------------------------------------------------------------------------------------------------------------------


def charts_of(table: Table) -> list[tuple[str, Html]]:
    """Bars of all arms beside their controls; lines over each varied number and over the size of feature noise."""
    out = []
    plain = _alike_rows(table)
    controls = [kind for kind in table.columns if kind in WITHOUT_IMAGE]
    series = [_bars("with the image" if controls else "", [row.plain for row in plain])]
    series += [_bars(kind, [row.others.get(kind) for row in plain]) for kind in controls]
    width = max(640, 60 + BAR * len(plain))
    title = f"{table.evaluation} {cell_name(plain[0].cell)}".strip()
    out.append(("", bar_chart([row.arm for row in plain], series, Axis(table.metric), title, width)))
    for key in dict.fromkeys(key for row in table.rows for key in row.cell):
        lines = _lines_over(table, key)
        if lines:
            out.append((f"-{key.rpartition('.')[2]}", line_chart(lines, Axis(key), Axis(table.metric), table.evaluation)))
    noise = [line for row in plain if (line := _noise_line(row)) is not None]
    if noise:
        out.append(("-feature_noise", line_chart(noise, Axis("noise on the features"), Axis(table.metric), table.evaluation)))
    return out


def _alike_rows(table: Table) -> list[ArmRow]:
    """Returns the rows of one cell: that without varied settings, else the one with most arms."""
    cells: dict[str, list[ArmRow]] = {}
    for row in table.rows:
        cells.setdefault(cell_name(row.cell), []).append(row)
    return cells.get("") or max(cells.values(), key=len)


def _bars(name: str, found: Sequence[Scored | None]) -> Bars:
    nothing = Interval(float("nan"), float("nan"), float("nan"))
    intervals = [nothing if value is None else value.interval() for value in found]
    return Bars(name, [item.value for item in intervals], [item.low for item in intervals], [item.high for item in intervals])


def _lines_over(table: Table, key: str) -> list[LineSeries]:
    points: dict[str, list[tuple[float, Interval]]] = {}
    for row in table.rows:
        value = row.cell.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            name = f"{row.arm} {cell_name({other: own for other, own in row.cell.items() if other != key})}".strip()
            points.setdefault(name, []).append((float(value), row.plain.interval()))
    return [_line(name, found) for name, found in points.items() if len(found) > 1]


def _noise_line(row: ArmRow) -> LineSeries | None:
    points = [(float(kind.removeprefix("noise")), value) for kind, value in row.others.items() if kind.startswith("noise")]
    if not points:
        return None
    return _line(row.name, [(sigma, value.interval()) for sigma, value in [(0.0, row.plain), *points]])


def _line(name: str, points: Sequence[tuple[float, Interval]]) -> LineSeries:
    there = sorted(points, key=lambda point: point[0])
    values = [value for _, value in there]
    bands = [value.low for value in values], [value.high for value in values]
    return LineSeries(name, [x for x, _ in there], [value.value for value in values], *bands, is_marked=True)


# Words ----------------------------------------------------------------------------------------------------------------------------


def _markdown(sweep: Sweep, tables: Sequence[Table], charts: Sequence[str], facts: Mapping[str, Any]) -> list[str]:
    lines = [f"# {sweep.config.title or sweep.path.stem}", "", f"{facts['done']} of {facts['planned']} runs are done."]
    if facts["failed"]:
        lines += ["", "Failed:", ""] + [f"- `{name}`: {error}" for name, error in facts["failed"].items()]
    for table in tables:
        lines += ["", f"## {table.evaluation}: {table.metric}", ""]
        lines += [
            f"{table.records} records of {table.images} images. Mean over seeds with a 95 % interval, which covers other images "
            "and other seeds; with one seed, other images only. Lowest and highest seed; difference from the baseline on the same "
            "records."
        ]
        lines += ["", *_table(table, sweep.config.compare.baseline, facts["connectors"])]
        if table.losses:
            lines += ["", *_loss_table(table, sweep)]
        lines += [line for name in charts if name.startswith(f"{table.evaluation}-{table.metric}") for line in ("", f"![]({name})")]
    return lines


def _table(table: Table, baseline: str | None, connectors: Mapping[str, Mapping[str, Any]]) -> list[str]:
    minus = [f"minus {baseline} [95 %]", "p"] if baseline is not None else []
    sizes = ["parameters", "tokens"] if connectors else []
    has_control = any(kind in WITHOUT_IMAGE for kind in table.columns)
    looks = ["looks at the image?"] if has_control else []
    heads = ["arm", *sizes, *looks, "seeds", f"{table.metric} [95 %]", "seeds from .. to", *minus, *table.columns]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for row in table.rows:
        per_seed = row.plain.per_seed.values()
        size = connectors.get(row.arm)
        size_cells = ["", ""] if size is None else [f"{size['parameters']:,}", str(size["tokens_per_crop"])]
        cells = [row.name, *(size_cells if connectors else []), *([str(row.looks)] if has_control else [])]
        cells += [str(len(row.plain.seeds)), _interval_text(row.plain.interval())]
        cells.append(f"{min(per_seed):.3f} .. {max(per_seed):.3f}")
        if baseline is not None:
            cells += [_interval_text(row.minus, sign=True), f"{row.minus.p:.3f}"] if row.minus is not None else ["", ""]
        cells += [_interval_text(row.others[kind].interval()) if kind in row.others else "" for kind in table.columns]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _loss_table(table: Table, sweep: Sweep) -> list[str]:
    reference = cell_name(sweep.config.compare.reference)
    lines = [
        f"Lost against {reference}. Ratio: to what {sweep.config.compare.baseline} loses, where that is clearly above 0.",
        "",
        "| arm | lost [95 %] | ratio [95 %] | less lost than the baseline [95 %] | p |",
        "|---|---|---|---|---|",
    ]
    for loss in table.losses:
        less = loss["less_than_baseline"]
        cells = [f"{loss['arm']} {loss['cell_name']}", _of_json(loss["lost"]), _of_json(loss["ratio"]), _of_json(less)]
        lines.append(f"| {' | '.join(cells)} | {'' if less is None else format(less['p'], '.3f')} |")
    return lines


def _of_json(value: Mapping[str, float] | None) -> str:
    return "" if value is None else _interval_text(Interval(value["value"], value["low"], value["high"]))


def _interval_text(interval: Interval | Difference | None, sign: bool = False) -> str:
    if interval is None:
        return ""
    form = "+.3f" if sign else ".3f"
    return f"{interval.value:{form}} [{interval.low:{form}}, {interval.high:{form}}]"
