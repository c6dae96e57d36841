"""The page of noise: how far noise on the features moves the outputs of the connector."""

from sightline.evaluation.probes.noise import NoiseFindings
from sightline.reporting import html
from sightline.reporting.plots import LineSeries, line_chart
from sightline.reporting.scales import Axis


def noise_page(title: str, findings: NoiseFindings) -> str:
    """Returns the HTML page."""
    sigmas = [row.sigma for row in findings.rows]
    line = LineSeries("clean to noisy", sigmas, [row.relative for row in findings.rows], is_marked=True)
    chart = line_chart(
        [line], Axis("sigma, in standard deviations of the features"), Axis("distance, in distances between patches")
    )
    return html.page(title, [html.Section("Figures", html.facts(findings.figures())), html.Section("Noise", chart)])
