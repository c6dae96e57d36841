"""The report of one run: its curves, its scores beside those of the controls, pictures where it is right and where it is wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sightline.reporting import html
from sightline.reporting.html import Html
from sightline.reporting.plots import Bars, LineSeries, bar_chart, line_chart
from sightline.reporting.scales import Axis
from sightline.runtime.storage import write_text

NAMES = {
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "cider_d": "CIDEr-D",
    "exact": "exact captions",
    "rouge_l": "ROUGE-L",
}
PICTURE_WIDTH = 160


@dataclass(frozen=True)
class Curve:
    """A value over optimiser steps."""

    name: str
    steps: Sequence[int]
    values: Sequence[float]


@dataclass(frozen=True)
class Panel:
    """One picture with what is true of it and what was said.

    Attributes:
        image: the file's bytes (PNG, JPEG or GIF).
        truths: reference captions.
        said: the model's text.
        others: texts under controls, by name.
        right: whether the text counts as exactly right.
        value: the item's CIDEr-D.
    """

    record_id: str
    image: bytes
    truths: Sequence[str]
    said: str
    others: Mapping[str, str]
    right: bool
    value: float


@dataclass(frozen=True)
class RunReport:
    """Everything that the page shows.

    Attributes:
        scores: for each condition (seen, blind, ...) the scores by name, as in `eval --json`.
        right, wrong: pictures where the caption is right, and where it is not.
        facts: of the run, for the end of the page.
    """

    title: str
    curves: Sequence[Curve]
    scores: Mapping[str, Mapping[str, Mapping[str, Any]]]
    right: Sequence[Panel]
    wrong: Sequence[Panel]
    facts: Mapping[str, str] = field(default_factory=dict)


def write_run_report(path: Path, report: RunReport) -> None:
    """Writes the page; it needs nothing but itself."""
    write_text(path, run_report_page(report))


def run_report_page(report: RunReport) -> str:
    """The page as text."""
    sections = [html.Section("Scores", html.join([_headline(report), _score_table(report), _score_chart(report)]))]
    if any(curve.steps for curve in report.curves):
        sections.append(html.Section("Loss", html.figure(_curves(report))))
    is_exact = any(panel.right for panel in report.right)
    sections.append(html.Section("Where the caption is right" if is_exact else "Where it comes closest", _panels(report.right)))
    sections.append(html.Section("Where it is wrong" if is_exact else "Where it is furthest off", _panels(report.wrong)))
    sections.append(html.Section("Facts", html.facts(report.facts)))
    return html.page(report.title, sections)


def _headline(report: RunReport) -> Html:
    shown = _shown(report, ("exact", "cider_d"))
    tiles = {
        f"{NAMES[name]}, {condition}": f"{scores[name]['value']:.1%}" if name == "exact" else f"{scores[name]['value']:.3f}"
        for name in shown
        for condition, scores in report.scores.items()
    }
    return html.tiles(tiles)


def _shown(report: RunReport, names: Sequence[str]) -> list[str]:
    """Those that every condition has and that are not 0 throughout."""
    found = report.scores.values()
    return [name for name in names if all(name in scores for scores in found) and any(scores[name]["value"] for scores in found)]


def _score_table(report: RunReport) -> Html:
    heads = [html.Column("score"), *(html.Column(condition, "right") for condition in report.scores)]
    names = list(next(iter(report.scores.values())))
    rows = [[NAMES.get(name, name), *(_interval(scores.get(name)) for scores in report.scores.values())] for name in names]
    return html.table(heads, rows, caption="Value and 95 % bootstrap interval over the pictures.")


def _interval(score: Mapping[str, Any] | None) -> str:
    return "" if score is None else f"{score['value']:.3f} ({score['low']:.3f} to {score['high']:.3f})"


def _score_chart(report: RunReport) -> Html:
    names = _shown(report, ("bleu_4", "rouge_l", "exact"))
    if not names:
        return html.join([])
    series = [
        Bars(
            condition,
            [scores[name]["value"] for name in names],
            [scores[name]["low"] for name in names],
            [scores[name]["high"] for name in names],
        )
        for condition, scores in report.scores.items()
    ]
    return html.figure(bar_chart([NAMES[name] for name in names], series, Axis("score", low=0.0)), "Whiskers are 95 % intervals.")


def _curves(report: RunReport) -> Html:
    lines = [
        LineSeries(curve.name, curve.steps, curve.values, is_marked=len(curve.steps) < 30) for curve in report.curves if curve.steps
    ]
    return line_chart(lines, Axis("optimiser step"), Axis("loss per token", is_log=True))


def _panels(panels: Sequence[Panel]) -> Html:
    if not panels:
        return html.paragraph("Nowhere.")
    return html.gallery(_panel(panel) for panel in panels)


def _panel(panel: Panel) -> Html:
    said = html.element("strong", panel.said or "(nothing)")
    lines: list[html.Node] = [html.element("div", said)]
    lines += [html.element("div", f"true: {truth}") for truth in panel.truths]
    lines += [html.element("div", html.element("small", f"{name}: {text or '(nothing)'}")) for name, text in panel.others.items()]
    lines.append(html.element("div", html.element("small", f"{panel.record_id}, CIDEr-D {panel.value:.2f}")))
    return html.figure(html.image(panel.image, panel.truths[0], PICTURE_WIDTH), html.join(lines))
