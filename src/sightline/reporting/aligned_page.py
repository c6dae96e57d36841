"""The page of `aligned`: the verdict, and how neighbours of images change from the encoder to the visual tokens."""

from sightline.evaluation.probes.aligned import ALIGNED, NOT_ALIGNED, AlignedFindings
from sightline.reporting import html
from sightline.reporting.plots import Bars, bar_chart
from sightline.reporting.scales import Axis


def aligned_page(title: str, findings: AlignedFindings) -> str:
    """Returns the page as text."""
    tones: dict[str, html.Tone] = {ALIGNED: "good", NOT_ALIGNED: "bad"}
    lead = html.note("; ".join(findings.sentences()) + ".", tones.get(findings.verdict, "note"))
    shares = {
        "own image": findings.own_image,
        "text neighbours before": findings.text_before,
        "text neighbours after": findings.text_after,
        "neighbours kept": findings.kept,
    }
    known = {name: share for name, share in shares.items() if share is not None}
    bars = Bars("", [s.value for s in known.values()], [s.low for s in known.values()], [s.high for s in known.values()])
    chart = html.figure(
        bar_chart(list(known), [bars], Axis("share", low=0.0, high=1.0)),
        f"Whiskers are 95 % intervals. By chance neighbours share {findings.chance:.1%}, and the own image wins in 50 %.",
    )
    return html.page(title, [html.Section("Shares", chart), html.Section("Figures", html.facts(findings.figures()))], lead)
