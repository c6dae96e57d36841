"""The page of words per patch: images with the word that each visual token is most made of drawn over its place."""

from collections.abc import Sequence

from sightline.evaluation.probes.words import Mixture, WordCrop, WordFindings, WordImage
from sightline.reporting import html
from sightline.reporting.html import Html
from sightline.reporting.plots import Bars, bar_chart

WIDTH = 560  # of a crop on the page, in pixels
LETTERS = 9  # of a word that is drawn; the pointer shows it whole


def words_page(title: str, findings: WordFindings) -> str:
    """Returns the HTML page."""
    lead = html.paragraph(
        "Each visual token of this model is a mixture of the decoder's word embeddings. The largest word of each is drawn at its "
        "place; the darker its ground, the larger its share. Rest the pointer on it for the others."
    )
    sections = [
        html.Section("Figures", html.facts(findings.figures())),
        html.Section("Most used words", _chart(findings.most_used)),
        html.Section("Images", html.join(_image(image) for image in findings.images)),
    ]
    return html.page(title, sections, lead)


def _chart(most_used: Sequence[tuple[str, float]]) -> Html:
    shown = most_used[:20]
    if not shown:
        return html.paragraph("No visual tokens.")
    names = [html.revealed(word.strip() or word) for word, _ in shown]
    chart = bar_chart(
        names, [Bars("share", [share for _, share in shown])], title="mean probability of a word over all visual tokens"
    )
    return html.figure(chart, "Mean probability over all visual tokens.")


def _image(image: WordImage) -> Html:
    heading = html.element("h3", image.record_id, attributes={"dir": "auto"})
    crops = html.element("div", *(_crop(crop, image.record_id) for crop in image.crops), attributes={"class": "gallery"})
    return html.element("div", heading, crops, attributes={"class": "card"})


def _crop(crop: WordCrop, name: str) -> Html:
    rows, columns = crop.grid
    if rows == 1 and columns > 1:  # queries, or strips of a raster scan: they have no place of their own
        said = html.paragraph(", ".join(_shortest(mixture) for mixture in crop.mixtures))
        shown = None if crop.pixels is None else html.image(crop.pixels, name, WIDTH // 2)
        return html.element("div", shown, said)
    cells = [_cell(mixture, entropy) for mixture, entropy in zip(crop.mixtures, crop.entropies, strict=True)]
    lay = f"display: grid; grid-template: repeat({rows}, 1fr) / repeat({columns}, 1fr)"
    over = html.element("div", *cells, attributes={"style": f"position: absolute; inset: 0; {lay}"})
    under = html.image(crop.pixels, name, WIDTH) if crop.pixels is not None else None
    size = "" if crop.pixels is not None else f"; width: {WIDTH}px; aspect-ratio: {columns} / {rows}; background: var(--faint)"
    frame = f"position: relative; display: inline-block; max-width: 100%; line-height: 0{size}"
    return html.element("div", under, over, attributes={"style": frame})


def _cell(mixture: Mixture, entropy: float) -> Html:
    share = mixture[0][1] if mixture else 0.0
    title = ", ".join(f"{html.revealed(word)} {part:.1%}" for word, part in mixture) + f"; entropy {entropy:.2f} nats"
    style = (
        "overflow: hidden; display: flex; align-items: center; justify-content: center; white-space: nowrap; line-height: 1.1; "
        "font-size: .62rem; color: #fff; text-shadow: 0 0 3px #000, 0 0 2px #000; outline: 1px solid #ffffff26; "
        f"background: rgb(0 0 0 / {0.08 + 0.5 * min(share, 1.0):.2f})"
    )
    return html.element("span", _shortest(mixture), attributes={"style": style, "title": title})


def _shortest(mixture: Mixture) -> str:
    if not mixture:
        return ""
    word = html.revealed(mixture[0][0].strip() or mixture[0][0])
    return word if len(word) <= LETTERS else word[: LETTERS - 1] + "\u2026"
