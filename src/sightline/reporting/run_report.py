"""The report of one run: its curves, its scores beside those of the controls, images where it is right and where it is wrong."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sightline.evaluation.tasks import ScoreInfo
from sightline.metrics.statistics import Difference
from sightline.metrics.verdict import DOES_NOT_LOOK, LOOKS, Verdict
from sightline.reporting import html
from sightline.reporting.html import Html
from sightline.reporting.plots import Bars, LineSeries, bar_chart, line_chart
from sightline.reporting.scales import Axis
from sightline.runtime.storage import write_text

IMAGE_WIDTH = 160


@dataclass(frozen=True)
class Curve:
    """A value over optimiser steps."""

    name: str
    steps: Sequence[int]
    values: Sequence[float]


@dataclass(frozen=True)
class Panel:
    """One image with its references and the model's answer.

    Attributes:
        image: the file's bytes (PNG, JPEG or GIF).
        truths: right answers.
        said: the model's answer.
        others: answers under controls, by name.
        right: whether the answer counts as exactly right.
        value: the item's headline score.
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
        infos: how the task's scores are called and shown; the first is the headline.
        rates, norms: learning rates and the norm of the gradient over steps.
        borders: name and first step of each stage, where there are several.
        verdict: whether the model looks at the image; the page begins with it.
        differences: for each control by how much each score is better with the image, paired by item.
        right, wrong: images where the answer is right, and where it is not.
        facts: of the run, for the end of the page.
        expert_curves: load of the experts of a mixture-of-experts decoder.
    """

    title: str
    curves: Sequence[Curve]
    scores: Mapping[str, Mapping[str, Mapping[str, Any]]]
    right: Sequence[Panel]
    wrong: Sequence[Panel]
    infos: Sequence[ScoreInfo]
    facts: Mapping[str, str] = field(default_factory=dict)
    rates: Sequence[Curve] = ()
    norms: Sequence[Curve] = ()
    borders: Mapping[str, float] = field(default_factory=dict)
    verdict: Verdict | None = None
    differences: Mapping[str, Mapping[str, Difference]] = field(default_factory=dict)
    expert_curves: Sequence[Curve] = ()


def write_run_report(path: Path, report: RunReport) -> None:
    """Writes the page; it needs nothing but itself."""
    write_text(path, run_report_page(report))


def run_report_page(report: RunReport) -> str:
    """Returns the HTML page."""
    sections = [html.Section("Scores", html.join([_headline(report), _score_table(report), _score_chart(report)]))]
    if any(curve.steps for curve in report.curves):
        sections.append(html.Section("Loss", html.figure(_curves(report, report.curves, Axis("loss per token", is_log=True)))))
        course = [(report.rates, Axis("learning rate")), (report.norms, Axis("gradient norm", is_log=True))]
        drawn = [html.figure(_curves(report, curves, axis)) for curves, axis in course if any(curve.steps for curve in curves)]
        if drawn:
            sections.append(html.Section("Learning rate and gradient norm", html.columns(*drawn)))
    if any(curve.steps for curve in report.expert_curves):
        caption = "Entropy of 1 is equal use of all experts. probe --what experts shows each layer, by image and text tokens."
        sections.append(html.Section("Experts", html.figure(_curves(report, report.expert_curves, Axis("share")), caption)))
    is_exact = any(panel.right for panel in report.right)
    sections.append(
        html.Section("Where the answer is right" if is_exact else "Where it comes closest", _panels(report, report.right))
    )
    sections.append(html.Section("Where it is wrong" if is_exact else "Where it is furthest off", _panels(report, report.wrong)))
    sections.append(html.Section("Facts", html.facts(report.facts)))
    return html.page(report.title, sections, None if report.verdict is None else verdict_note(report.verdict))


def verdict_note(verdict: Verdict, sentence: str = "") -> Html:
    """Returns the sentence that a page about a model begins with; by default the verdict in words."""
    tones: dict[str, html.Tone] = {LOOKS: "good", DOES_NOT_LOOK: "bad"}
    return html.note(sentence or f"Does it look at the image? {verdict}", tones.get(verdict.verdict, "note"))


def _headline(report: RunReport) -> Html:
    shown = _shown(report, [info for info in report.infos if info is report.infos[0] or info.is_share])
    tiles = {
        f"{info.label}, {condition}": f"{scores[info.name]['value']:{'.1%' if info.is_share else '.3f'}}"
        for info in shown
        for condition, scores in report.scores.items()
    }
    return html.tiles(tiles)


def _shown(report: RunReport, infos: Iterable[ScoreInfo]) -> list[ScoreInfo]:
    """Returns those that every condition has and that are not 0 throughout."""
    found = report.scores.values()
    return [
        info
        for info in infos
        if all(info.name in scores for scores in found) and any(scores[info.name]["value"] for scores in found)
    ]


def _score_table(report: RunReport) -> Html:
    heads = [html.Column("score"), *(html.Column(condition, "right") for condition in report.scores)]
    heads += [html.Column(f"image minus {control}", "right") for control in report.differences]
    names = list(next(iter(report.scores.values())))
    labels = {info.name: info.label for info in report.infos}
    rows = [
        [
            labels.get(name, name),
            *(_interval(scores.get(name)) for scores in report.scores.values()),
            *(_difference(found.get(name)) for found in report.differences.values()),
        ]
        for name in names
    ]
    return html.table(heads, rows, caption="Value and 95 % bootstrap interval over the images; differences are paired by record.")


def _difference(found: Difference | None) -> str:
    return "" if found is None else f"{found.value:+.3f} ({found.low:+.3f} to {found.high:+.3f})"


def _interval(score: Mapping[str, Any] | None) -> str:
    return "" if score is None else f"{score['value']:.3f} ({score['low']:.3f} to {score['high']:.3f})"


def _score_chart(report: RunReport) -> Html:
    infos = [info for info in report.infos if not info.is_detail]
    shares = _shown(report, [info for info in infos if info.top == 1])
    others = _shown(report, [info for info in infos if info.top != 1])
    charts = [_bars_of(report, shown) for shown in ([info] for info in others)] + ([_bars_of(report, shares)] if shares else [])
    return html.columns(*charts, narrowest=24)


def _bars_of(report: RunReport, shown: Sequence[ScoreInfo]) -> Html:
    series = [
        Bars(
            condition,
            [scores[info.name]["value"] for info in shown],
            [scores[info.name]["low"] for info in shown],
            [scores[info.name]["high"] for info in shown],
        )
        for condition, scores in report.scores.items()
    ]
    return html.figure(bar_chart([info.label for info in shown], series, Axis("score", low=0.0)), "Whiskers are 95 % intervals.")


def _curves(report: RunReport, curves: Sequence[Curve], axis: Axis) -> Html:
    lines = [LineSeries(curve.name, curve.steps, curve.values, is_marked=len(curve.steps) < 30) for curve in curves if curve.steps]
    return line_chart(lines, Axis("optimiser step"), axis, marks=report.borders)


def _panels(report: RunReport, panels: Sequence[Panel]) -> Html:
    if not panels:
        return html.paragraph("Nowhere.")
    return html.gallery(_panel(panel, report.infos[0].label) for panel in panels)


def _panel(panel: Panel, label: str) -> Html:
    said = html.element("strong", panel.said or "(nothing)")
    lines: list[html.Node] = [html.element("div", said)]
    lines += [html.element("div", f"true: {truth}") for truth in panel.truths]
    lines += [html.element("div", html.element("small", f"{name}: {text or '(nothing)'}")) for name, text in panel.others.items()]
    lines.append(html.element("div", html.element("small", f"{panel.record_id}, {label} {panel.value:.2f}")))
    return html.figure(html.image(panel.image, next(iter(panel.truths), panel.record_id), IMAGE_WIDTH), html.join(lines))
