"""The page of `looking`: the verdict, the ladder of controls, counterfactual texts, and items whose answer the image changes."""

from sightline.evaluation.probes.looking import CONTROL_WORDS, Flip, LadderStep, LookingFindings
from sightline.metrics.statistics import Difference, Interval
from sightline.reporting import html
from sightline.reporting.html import Html
from sightline.reporting.plots import Bars, bar_chart
from sightline.reporting.run_report import verdict_note
from sightline.reporting.scales import Axis

IMAGE_WIDTH = 220


def looking_page(title: str, findings: LookingFindings) -> str:
    """Returns the page as text."""
    lead = html.join([verdict_note(findings.verdict, findings.sentence()), html.tiles(_tiles(findings))])
    sections = [html.Section("Score under each control", html.join([_chart(findings), _ladder(findings)]))]
    if findings.preferences:
        sections.append(html.Section("True texts against texts with one word exchanged", _preferences(findings)))
    sections.append(html.Section("Answers that the image changes", _flips(findings)))
    return html.page(title, sections, lead)


def _tiles(findings: LookingFindings) -> dict[str, html.Node]:
    out: dict[str, html.Node] = {f"{findings.info.label} with the image": f"{findings.seen.value:.3f}"}
    if findings.never_changes is not None:
        out["answers that never change"] = f"{findings.never_changes.value:.0%}"
    if findings.preferences:
        out["true text preferred because of the image"] = f"{findings.preferences[0].difference.value:+.0%}"
    return out


def _label(control: str) -> str:
    if control.startswith("blur:"):
        return f"blur {control.removeprefix('blur:')}"
    return {"floor": "trained without its images"}.get(control, control)


def _chart(findings: LookingFindings) -> Html:
    scores = [("image", findings.seen), *((_label(step.control), step.score) for step in findings.ladder if step.score is not None)]
    bars = Bars("", [s.value for _, s in scores], [s.low for _, s in scores], [s.high for _, s in scores])
    chart = bar_chart([name for name, _ in scores], [bars], Axis(findings.info.label, low=0.0), width=max(640, 80 * len(scores)))
    return html.figure(chart, "Whiskers are 95 % intervals. A blur is in pixels of an image whose shorter side has 336.")


def _ladder(findings: LookingFindings) -> Html:
    heads = [html.Column("what the model sees"), *(html.Column(name, "right") for name in (findings.info.label, "items"))]
    heads += [html.Column("image minus this", "right"), html.Column("answers unchanged", "right")]
    seen = findings.seen
    rows: list[list[html.Node]] = [["the image", f"{seen.value:.3f} ({seen.low:.3f} to {seen.high:.3f})", str(seen.n), "", ""]]
    rows += [_step(step) for step in findings.ladder]
    return html.table(heads, rows, caption="Values with 95 % bootstrap intervals over images; differences are paired by item.")


def _step(step: LadderStep) -> list[html.Node]:
    words = CONTROL_WORDS.get(step.control, _label(step.control))
    name = f"{words} ({step.control})" if step.control in CONTROL_WORDS and step.control not in words else words
    if step.score is None:
        return [name, step.missing, "", "", ""]
    score = f"{step.score.value:.3f} ({step.score.low:.3f} to {step.score.high:.3f})"
    return [name, score, str(step.score.n), _signed(step.difference), _share(step.unchanged)]


def _signed(found: Difference | None, percent: bool = False) -> str:
    form = "+.1%" if percent else "+.3f"
    return "" if found is None else f"{found.value:{form}} ({found.low:{form}} to {found.high:{form}})"


def _share(found: Interval | None) -> str:
    return "" if found is None else f"{found.value:.1%} ({found.low:.1%} to {found.high:.1%})"


def _preferences(findings: LookingFindings) -> Html:
    heads = [html.Column("exchanged word"), html.Column("texts", "right")]
    heads += [html.Column(name, "right") for name in ("true text preferred with the image", "without", "because of the image")]
    rows = [
        [
            found.kind,
            str(found.texts),
            _share(found.with_image),
            _share(found.without_image),
            _signed(found.difference, percent=True),
        ]
        for found in findings.preferences
    ]
    return html.table(heads, rows, caption="Share of pairs in which the true text is more likely; a coin would reach 50 %.")


def _flips(findings: LookingFindings) -> Html:
    if not findings.flips:
        return html.paragraph("None.")
    return html.gallery(_flip(flip, findings.info.label) for flip in findings.flips)


def _flip(flip: Flip, label: str) -> Html:
    lines: list[html.Node] = [html.element("div", html.element("strong", flip.answers.get("image") or "(nothing)"))]
    lines += [html.element("div", f"true: {truth}") for truth in flip.truths]
    others = [(name, text) for name, text in flip.answers.items() if name != "image"]
    lines += [html.element("div", html.element("small", f"{_label(name)}: {text or '(nothing)'}")) for name, text in others]
    lines.append(html.element("div", html.element("small", f"{flip.id}, {label} {flip.gain:+.2f} with the image")))
    shown = None if flip.image is None else html.image(flip.image, flip.truths[0] if flip.truths else flip.id, IMAGE_WIDTH)
    return html.figure(shown, html.join(lines))
