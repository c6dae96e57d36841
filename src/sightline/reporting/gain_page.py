"""The page of visual gain: texts with every token coloured by how much the picture raises it, true pictures beside foreign ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sightline.reporting import html
from sightline.reporting.html import Html, Token
from sightline.reporting.plots import histogram

PICTURE_WIDTH = 200
HOT = 5.0  # gain at which a token is fully coloured; the paper's upper clamp


@dataclass(frozen=True)
class GainText:
    """One text with the gain of its tokens; `gains` holds NaN where nothing but the picture precedes a token."""

    pieces: Sequence[str]
    gains: Sequence[float]
    mean: float


@dataclass(frozen=True)
class GainPanel:
    """A picture with its own texts and with one that belongs to another picture."""

    record_id: str
    image: bytes | None
    own: Sequence[GainText]
    foreign: Sequence[GainText]


@dataclass(frozen=True)
class GainReport:
    """Everything that the page shows.

    Attributes:
        figures: percentiles, separation and the like, by name.
        own_gains, foreign_gains: gains of all tokens, for the histograms.
        panels: pictures with texts.
        words: mean gain and count of the most and least visual words.
    """

    title: str
    figures: Mapping[str, str]
    own_gains: Sequence[float]
    foreign_gains: Sequence[float]
    panels: Sequence[GainPanel]
    words: Sequence[tuple[str, float, int]]


def gain_page(report: GainReport) -> str:
    """The page as text."""
    lead = html.paragraph(
        "Gain is the logit of a token with the picture minus its logit without. Warm tokens are those that the picture raises; "
        "cold ones it lowers."
    )
    sections = [
        html.Section("Figures", html.tiles(report.figures)),
        html.Section("All tokens", html.columns(_histogram(report.own_gains, "own"), _histogram(report.foreign_gains, "foreign"))),
        html.Section("Words", _words(report.words)),
        html.Section("Texts", html.gallery(_panel(panel) for panel in report.panels)),
    ]
    return html.page(report.title, sections, lead)


def _histogram(gains: Sequence[float], which: str) -> Html:
    edges = [float(edge) / 2 for edge in range(-10, 25)]
    counts = [0] * (len(edges) - 1)
    for gain in gains:
        if gain == gain:
            place = int((min(max(gain, edges[0]), edges[-1] - 1e-9) - edges[0]) * 2)
            counts[place] += 1
    return html.figure(
        histogram(edges, counts, "gain", "tokens"), f"Texts with their {which} picture; the ends hold what lies beyond."
    )


def _words(words: Sequence[tuple[str, float, int]]) -> Html:
    half = len(words) // 2
    heads = [html.Column("word"), html.Column("mean gain", "right"), html.Column("times", "right")]

    def table(rows: Sequence[tuple[str, float, int]], caption: str) -> Html:
        return html.table(heads, [[word, f"{gain:.2f}", str(count)] for word, gain, count in rows], caption)

    return html.columns(table(words[:half], "most visual"), table(list(reversed(words[half:])), "least visual"))


def _panel(panel: GainPanel) -> Html:
    lines: list[html.Node] = [_text(text, "own") for text in panel.own]
    lines += [_text(text, "foreign") for text in panel.foreign]
    shown = html.image(panel.image, panel.record_id, PICTURE_WIDTH) if panel.image is not None else None
    return html.figure(shown, html.join([*lines, html.element("small", panel.record_id)]))


def _text(text: GainText, which: str) -> Html:
    row = [_token(piece, gain) for piece, gain in zip(text.pieces, text.gains, strict=True)]
    name = html.element("small", f"{which} picture, mean {text.mean:.2f}")
    return html.element("div", name, html.tokens(row))


def _token(piece: str, gain: float) -> Token:
    known = gain == gain
    return Token(
        piece, title=f"gain {gain:.2f}" if known else "nothing but the picture before it", heat=gain / HOT if known else None
    )
