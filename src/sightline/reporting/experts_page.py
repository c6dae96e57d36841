"""The page of experts: the load of each expert in each layer, for tokens of images and of text."""

from sightline.evaluation.probes.experts import KINDS, ExpertFindings
from sightline.reporting import html
from sightline.reporting.plots import Bars, bar_chart
from sightline.reporting.scales import Axis


def experts_page(title: str, findings: ExpertFindings) -> str:
    """Returns the HTML page."""
    lead = html.paragraph(
        "Each token of this decoder passes through a few experts per layer. The bars show which share of the choices each expert "
        "gets; equal use would give all the same height."
    )
    sections = [html.Section("Figures", html.facts(findings.figures()))]
    for layer in findings.layers:
        names = [str(number) for number in range(len(layer.load["all"]))]
        bars = [Bars(f"{kind} tokens", layer.load[kind]) for kind in KINDS]
        chart = bar_chart(names, bars, Axis("share of choices"), title=f"load of the experts of layer {layer.layer}")
        entropies = ", ".join(f"{kind} {layer.entropy(kind):.3f}" for kind in ("all", *KINDS))
        caption = f"Entropy: {entropies}. Distance between image and text: {layer.distance:.3f}."
        sections.append(html.Section(f"Layer {layer.layer}", html.figure(chart, caption)))
    return html.page(title, sections, lead)
