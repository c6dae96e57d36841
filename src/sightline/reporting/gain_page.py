"""The page of visual gain: texts with every token coloured by how much the image raises it, own images beside foreign ones."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sightline.data.images.reader import ImageLocation
from sightline.reporting import html
from sightline.reporting.html import Html, Token
from sightline.reporting.plots import histogram

if TYPE_CHECKING:  # `data check` draws `low_texts` without torch
    from sightline.data.check.report import GainFigures
    from sightline.evaluation.probes.gain import GainExample, GainFindings

IMAGE_WIDTH = 176
WIDTHS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0)  # of a bar of the histograms


def gain_page(title: str, findings: "GainFindings") -> str:
    """Returns the HTML page."""
    own, foreign = ([gain for text in texts for gain in text.known] for texts in (findings.own, findings.foreign))
    hot = scale_of(own)
    lead = html.join(
        [
            html.paragraph(
                "Gain is the logit of a token with the image minus its logit without. Warm tokens are those that the image "
                "raises; cold ones it lowers. Rest the pointer on a token for its gain."
            ),
            _legend(hot),
            html.tiles(findings.tiles()),
        ]
    )
    edges = _edges(hot)
    sections = [
        html.Section("Texts", html.join(_panel(panel, hot) for panel in findings.shown)),
        html.Section(
            "All tokens",
            html.columns(
                _histogram(own, edges, "their own image", findings.marks()),
                _histogram(foreign, edges, "a foreign image", {}),
                narrowest=26,
            ),
        ),
        html.Section("Words", _words(findings)),
    ]
    return html.page(title, sections, lead)


def low_texts(gain: "GainFigures", thumbnails: Mapping[ImageLocation, bytes], most: int) -> Html:
    """Returns the texts that a model finds least supported by their images, for the page of `data check`.

    Args:
        gain: the part of the report.
        thumbnails: small copies by folder, record and number of the image.
        most: texts to show.
    """
    shown = gain.lowest[:most]
    known = [value for line in shown for _, value in line.tokens if value is not None]
    hot = scale_of(known)
    middle, tenth = (round(gain.percentiles[name], 2) + 0.0 for name in ("p50", "p10"))
    lead = html.paragraph(
        f"The mean visual gain of the tokens of each text, as {gain.model} sees them: how much the image raises their logits. "
        f"Median {middle:.2f}, lowest tenth below {tenth:.2f}; below 0 are {gain.below_zero:,} of "
        f"{gain.texts:,} texts. The lowest stand first."
    )
    cards = []
    for line in shown:
        data = thumbnails.get(ImageLocation(line.folder, line.record, line.image))
        figure = None if data is None else html.image(data, line.id)
        said = _text(*_columns(line.tokens), line.gain, line.id, hot)
        body = html.element("div", html.figure(figure), html.element("div", said), attributes={"class": "beside"})
        cards.append(html.element("article", body, attributes={"class": "card"}))
    return html.join([lead, _legend(hot), *cards])


def _columns(tokens: Sequence[tuple[str, float | None]]) -> tuple[list[str], list[float]]:
    return [piece for piece, _ in tokens], [float("nan") if gain is None else gain for _, gain in tokens]


def scale_of(gains: Sequence[float]) -> float:
    """Returns the gain at which a token is fully coloured: the 95th percentile of the sizes, so that one page uses its colours."""
    sizes = sorted(abs(gain) for gain in gains)
    return max(sizes[int(0.95 * (len(sizes) - 1))], 0.1) if sizes else 1.0


def _legend(hot: float) -> Html:
    steps = [-1.0, -0.5, 0.0, 0.5, 1.0]
    return html.tokens(Token(f" {step * hot:+.1f} " if step else " 0 ", heat=step) for step in steps)


def _edges(hot: float) -> list[float]:
    """Returns round edges from below 0 to somewhat above the full colour."""
    width = next((width for width in WIDTHS if hot / width <= 12), hot / 12)
    below, above = math.ceil(hot / width), math.ceil(1.5 * hot / width)
    return [place * width for place in range(-below, above + 1)]


def _histogram(gains: Sequence[float], edges: Sequence[float], which: str, marks: Mapping[str, float]) -> Html:
    counts = [0] * (len(edges) - 1)
    width = edges[1] - edges[0]
    for gain in gains:
        counts[min(max(int((gain - edges[0]) // width), 0), len(counts) - 1)] += 1
    drawn = histogram(edges, counts, "gain", "tokens", {name: value for name, value in marks.items() if value <= edges[-1]})
    return html.figure(drawn, f"Texts with {which}; the outermost bars hold what lies beyond.")


def _words(findings: "GainFindings") -> Html:
    most, least = findings.words()
    if not most:
        return html.paragraph("Too few texts: no word occurs often enough.")
    heads = [html.Column("word"), html.Column("mean gain", "right"), html.Column("times", "right")]

    def table(rows: Sequence[tuple[str, float, int]], caption: str) -> Html:
        return html.table(heads, [[word, f"{gain:.2f}", str(count)] for word, gain, count in rows], caption)

    return html.columns(table(most, "most visual"), table(least, "least visual"))


def _panel(panel: "GainExample", hot: float) -> Html:
    shown = None if panel.image is None else html.figure(html.image(panel.image, panel.record_id, IMAGE_WIDTH))
    lines = [_text(text.pieces, text.gains, text.mean, "own text", hot) for text in panel.own]
    lines += [_text(text.pieces, text.gains, text.mean, "other text", hot) for text in panel.foreign]
    body = html.element("div", shown, html.element("div", *lines), attributes={"class": "beside"})
    return html.element("article", html.element("h3", panel.record_id), body, attributes={"class": "card"})


def _text(pieces: Sequence[str], gains: Sequence[float], mean: float, which: str, hot: float) -> Html:
    row = [_token(piece, gain, hot) for piece, gain in zip(pieces, gains, strict=True)]
    label = html.element("span", which, html.element("br"), f"mean {mean:.2f}", attributes={"class": "faint"})
    return html.element("div", label, html.tokens(row), attributes={"class": "line"})


def _token(piece: str, gain: float, hot: float) -> Token:
    known = gain == gain
    title = f"gain {gain:.2f}" if known else "nothing but the image before it"
    return Token(piece, title=title, heat=gain / hot if known else None)
