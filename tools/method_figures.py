"""Draws the figure that opens each page of docs/methods, as SVG, from the descriptions below.

    python -m tools.method_figures [--check]

`--check` writes nothing and fails if a figure is not that of its description. Colours follow the reader's light or dark theme.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "methods" / "figures"
COLUMN, ROW = 190, 104  # distance between the middles of boxes
BOX, HEIGHT = 150, 62  # size of a box
MARGIN = 24
LETTER = {"title": 7.8, "line": 6.3, "label": 6.0}  # upper bounds of the mean width of a letter, in pixels
STYLE = """\
text { font-family: system-ui, "DejaVu Sans", Verdana, sans-serif; text-anchor: middle; fill: #1c2430 }
.title { font-size: 13px; font-weight: 600 } .line, .label { font-size: 11px } .label { fill: #4a5568 }
.panel { fill: #ffffff } .box { stroke-width: 1.5; fill: #f3f5f8; stroke: #8a94a3 }
.trained { fill: #fff0d9; stroke: #b7700f } .frozen { fill: #e4eefb; stroke: #3a6ea5; stroke-dasharray: 5 3 }
.loss { fill: #fbe4e6; stroke: #a8323e } .arrow { stroke: #4a5568; stroke-width: 1.5; fill: none } .tip { fill: #4a5568 }
@media (prefers-color-scheme: dark) {
  text { fill: #e8ecf2 } .label { fill: #b4bfcd } .panel { fill: #14181e } .box { fill: #232a34; stroke: #7f8b9b }
  .trained { fill: #3d2d14; stroke: #e0a04a } .frozen { fill: #16293f; stroke: #6fa3dc } .loss { fill: #3f1a1f; stroke: #e0727e }
  .arrow { stroke: #b4bfcd } .tip { fill: #b4bfcd }
}"""
LEGEND = {"trained": "trains", "frozen": "frozen", "box": "values", "loss": "loss"}


@dataclass(frozen=True)
class Box:
    """A box at a column and row (fractions allowed).

    Attributes:
        name: that arrows use.
        column, row: of its middle.
        title: first line.
        lines: further lines: shapes, formulas.
        kind: `trained`, `frozen`, `loss`, or `box` for values.
        width: in boxes.
    """

    name: str
    column: float
    row: float
    title: str
    lines: tuple[str, ...] = ()
    kind: str = "box"
    width: float = 1.0

    @property
    def middle(self) -> tuple[float, float]:
        """Its middle, in pixels."""
        return MARGIN + BOX / 2 + self.column * COLUMN, MARGIN + HEIGHT / 2 + self.row * ROW

    @property
    def sides(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom, in pixels."""
        x, y = self.middle
        half = self.width * BOX / 2
        return x - half, y - HEIGHT / 2, x + half, y + HEIGHT / 2


@dataclass(frozen=True)
class Figure:
    """A figure.

    Attributes:
        title: for readers who do not see it.
        boxes: what is drawn.
        arrows: names of two boxes; and a label.
    """

    title: str
    boxes: tuple[Box, ...]
    arrows: tuple[tuple[str, str, str], ...]


FIGURES = {
    "tinyvlm": Figure(
        "TinyVLM: image, frozen SigLIP, merge of four patches, trained SwiGLU, frozen SmolLM2, caption",
        (
            Box("image", 0, 0, "image", ("3 x 224 x 224",)),
            Box("encoder", 1, 0, "SigLIP base/16", ("196 x 768",), "frozen"),
            Box("merge", 2, 0, "merge 4 patches", ("49 x 3072",)),
            Box("connector", 3, 0, "SwiGLU connector", ("3072 -> 12288 -> 576",), "trained"),
            Box("decoder", 4, 0.5, "SmolLM2-135M", ("(49 + text) x 576",), "frozen"),
            Box("text", 3, 1, "text", ("template and tokens",)),
            Box("loss", 5, 0.5, "next-token loss", ("caption and its header",), "loss"),
        ),
        (
            ("image", "encoder", ""),
            ("encoder", "merge", ""),
            ("merge", "connector", ""),
            ("connector", "decoder", ""),
            ("text", "decoder", ""),
            ("decoder", "loss", ""),
        ),
    ),
    "alignvlm": Figure(
        "ALIGN: each visual token is a mixture of the decoder's word embeddings, with weights from a softmax over the vocabulary",
        (
            Box("image", 0, 0, "image", ("crops x 3 x H x W",)),
            Box("encoder", 1, 0, "vision encoder", ("P x E per crop",), "trained"),
            Box("first", 2, 0, "LN1( W1 f )", ("P x D",), "trained"),
            Box("second", 3, 0, "softmax LN2(W2 .)", ("p: P x V, sum 1",), "trained"),
            Box("mix", 4, 0, "v = p E", ("visual tokens, P x D",)),
            Box("words", 3, 1, "embeddings E", ("V x D, of the decoder",), "trained"),
            Box("text", 4, 1, "text embeddings", ("T x D",)),
            Box("decoder", 5, 0.5, "decoder", ("(P + T) x D",), "trained"),
            Box("loss", 6, 0.5, "next-token loss", ("answers",), "loss"),
        ),
        (
            ("image", "encoder", ""),
            ("encoder", "first", ""),
            ("first", "second", ""),
            ("second", "mix", ""),
            ("words", "mix", ""),
            ("words", "text", ""),
            ("mix", "decoder", ""),
            ("text", "decoder", ""),
            ("decoder", "loss", ""),
        ),
    ),
    "comalign": Figure(
        "ComAlign: boxes of an image and phrases of a caption pass frozen encoders and light networks; each level is compared",
        (
            Box("boxes", 0, 0, "image and boxes", ("1 + 10 + 10 crops",)),
            Box("phrases", 0, 1, "text and phrases", ("1 + 10 + 10 texts",)),
            Box("image", 1, 0, "CLIP image", ("21 x 512",), "frozen"),
            Box("text", 1, 1, "CLIP text", ("21 x 512",), "frozen"),
            Box("light", 2, 0, "light network", ("21 x 512",), "trained"),
            Box("light_text", 2, 1, "light network", ("21 x 512",), "trained"),
            Box("levels", 3, 0.5, "max, then mean", ("whole, entity,", "relation")),
            Box("loss", 4, 0.5, "InfoNCE", ("per level, both ways",), "loss"),
        ),
        (
            ("boxes", "image", ""),
            ("phrases", "text", ""),
            ("image", "light", ""),
            ("text", "light_text", ""),
            ("light", "levels", ""),
            ("light_text", "levels", ""),
            ("levels", "loss", ""),
        ),
    ),
    "cal": Figure(
        "CAL: the logit of each label token with and without the image gives its gain, and the gain its weight in the loss",
        (
            Box("image", 0, 0, "image", ("visual tokens",)),
            Box("text", 0, 1, "text", ("tokens t_1 .. t_S",)),
            Box("with", 1, 0, "model with image", ("z(t_s | image, t_<s)",), "trained"),
            Box("without", 1, 1, "the same without", ("z(t_s | t_<s)", "no gradient"), "trained"),
            Box("gain", 2, 1, "gain", ("difference, S values",)),
            Box("weight", 3, 1, "weight", ("clamp 1..5, mean of 3",)),
            Box("nll", 3, 0, "-log p(t_s)", ("S values",)),
            Box("loss", 4, 0.5, "CAL loss", ("sum w nll / sum w",), "loss"),
        ),
        (
            ("image", "with", ""),
            ("text", "with", ""),
            ("text", "without", ""),
            ("with", "nll", ""),
            ("with", "gain", ""),
            ("without", "gain", ""),
            ("gain", "weight", ""),
            ("weight", "loss", ""),
            ("nll", "loss", ""),
        ),
    ),
    "contrastive": Figure(
        "A dual encoder: images and captions become vectors of one space, and the matrix of their similarities gives the loss",
        (
            Box("images", 0, 0, "B images", ("B x 3 x H x W",)),
            Box("texts", 0, 1, "B captions", ("B x T tokens", "(+ hard negatives)")),
            Box("vision", 1, 0, "vision encoder", ("B x E",), "trained"),
            Box("text", 1, 1, "text encoder", ("B x F",), "trained"),
            Box("a", 2, 0, "projection", ("B x D, length 1",), "trained"),
            Box("b", 2, 1, "projection", ("B x D, length 1",), "trained"),
            Box("matrix", 3, 0.5, "similarities", ("B x B", "scale x cosine + bias")),
            Box("loss", 4, 0.5, "contrastive loss", ("softmax of rows, columns", "or sigmoid of each pair"), "loss", 1.1),
        ),
        (
            ("images", "vision", ""),
            ("texts", "text", ""),
            ("vision", "a", ""),
            ("text", "b", ""),
            ("a", "matrix", ""),
            ("b", "matrix", ""),
            ("matrix", "loss", ""),
        ),
    ),
    "seemore": Figure(
        "seemore and seeMoE: a ViT, a projector and a decoder of characters from scratch; seeMoE routes tokens to experts",
        (
            Box("image", 0, 0, "image", ("3 x H x W",)),
            Box("vit", 1, 0, "ViT", ("1 class token", "or N patches, x E"), "trained"),
            Box("projector", 2, 0, "projector", ("N x E -> N x D",), "trained"),
            Box("characters", 2, 1, "characters", ("T x D",), "trained"),
            Box("attention", 3, 0.5, "causal attention", ("(N + T) x D, H heads",), "trained"),
            Box("router", 4, 1, "router (seeMoE)", ("noisy top C of X experts",), "trained", 1.06),
            Box("experts", 4, 0, "feed-forward", ("one, or C of X experts",), "trained"),
            Box("loss", 5, 0.5, "loss", ("next character", "+ balance, z-loss"), "loss"),
        ),
        (
            ("image", "vit", ""),
            ("vit", "projector", ""),
            ("projector", "attention", ""),
            ("characters", "attention", ""),
            ("attention", "experts", ""),
            ("attention", "router", ""),
            ("router", "experts", "gates"),
            ("experts", "loss", ""),
            ("router", "loss", ""),
        ),
    ),
}


def draw(figure: Figure) -> str:
    """Returns the SVG of a figure."""
    boxes = {box.name: box for box in figure.boxes}
    kinds = [kind for kind in LEGEND if any(box.kind == kind for box in figure.boxes)]
    width = max(box.sides[2] for box in figure.boxes) + MARGIN
    bottom = max(box.sides[3] for box in figure.boxes)
    height = bottom + MARGIN + 34
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img">',
        f"<title>{escape(figure.title)}</title>",
        f"<style>{STYLE}</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path class="tip" d="M0 0 L8 4 L0 8 z"/></marker></defs>',
        f'<rect class="panel" width="{width:g}" height="{height:g}" rx="8"/>',
    ]
    for start, end, label in figure.arrows:
        out.append(_arrow(boxes[start], boxes[end], label))
    for box in figure.boxes:
        out.append(_box(box))
    x = MARGIN + 8
    for kind in kinds:
        out.append(f'<rect class="box {kind}" x="{x:g}" y="{bottom + MARGIN:g}" width="22" height="14" rx="3"/>')
        out.append(f'<text class="label" x="{x + 50:g}" y="{bottom + MARGIN + 11:g}">{LEGEND[kind]}</text>')
        x += 92
    return "\n".join([*out, "</svg>"]) + "\n"


def _box(box: Box) -> str:
    left, top, right, _ = box.sides
    x, y = box.middle
    texts = [("title", box.title), *(("line", line) for line in box.lines)]
    first = y + 4 - 8 * (len(texts) - 1)
    out = [f'<rect class="box {box.kind}" x="{left:g}" y="{top:g}" width="{right - left:g}" height="{HEIGHT}" rx="6"/>']
    out += [f'<text class="{kind}" x="{x:g}" y="{first + 16 * n:g}">{escape(text)}</text>' for n, (kind, text) in enumerate(texts)]
    return "\n".join(out)


def _arrow(start: Box, end: Box, label: str) -> str:
    (_, top, right, bottom), (x, y) = start.sides, start.middle
    (end_left, end_top, _, end_bottom), (end_x, end_y) = end.sides, end.middle
    if abs(end_x - x) < 1:
        begin, stop = ((x, bottom), (x, end_top)) if end_y > y else ((x, top), (x, end_bottom))
        path = f"M{begin[0]:g} {begin[1]:g} L{stop[0]:g} {stop[1]:g}"
        place = (x + 26, (begin[1] + stop[1]) / 2 + 4)
    else:
        middle = (right + end_left) / 2
        path = f"M{right:g} {y:g} C{middle:g} {y:g} {middle:g} {end_y:g} {end_left:g} {end_y:g}"
        place = (middle, (y + end_y) / 2 - 6)
    text = f'\n<text class="label" x="{place[0]:g}" y="{place[1]:g}">{escape(label)}</text>' if label else ""
    return f'<path class="arrow" marker-end="url(#tip)" d="{path}"/>{text}'


def faults(figure: Figure) -> list[str]:
    """Returns texts that are wider than their box, boxes that overlap, and arrows that cross a box."""
    found = []
    for place, box in enumerate(figure.boxes):
        room = box.width * BOX - 6
        for kind, text in (("title", box.title), *(("line", line) for line in box.lines)):
            if len(text) * LETTER[kind] > room:
                found.append(f"{text!r} is wider than its box")
        found += [f"{box.name} and {other.name} overlap" for other in figure.boxes[place + 1 :] if _overlap(box.sides, other.sides)]
    boxes = {box.name: box for box in figure.boxes}
    for start, end, _ in figure.arrows:
        others = [box for box in figure.boxes if box.name not in (start, end)]
        for point in _points(boxes[start], boxes[end]):
            found += [f"{start} -> {end} crosses {box.name}" for box in others if _inside(point, box.sides)]
    return list(dict.fromkeys(found))


def _points(start: Box, end: Box) -> list[tuple[float, float]]:
    """Returns points on the curve of an arrow."""
    right, y, left, end_y = start.sides[2], start.middle[1], end.sides[0], end.middle[1]
    if abs(start.middle[0] - end.middle[0]) < 1:
        return [(start.middle[0], y + (end_y - y) * t / 20) for t in range(1, 20)]
    middle = (right + left) / 2
    out = []
    for t in (step / 20 for step in range(1, 20)):
        a, b, c, d = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3
        out.append((a * right + (b + c) * middle + d * left, (a + b) * y + (c + d) * end_y))
    return out


def _inside(point: tuple[float, float], sides: Sequence[float]) -> bool:
    return sides[0] < point[0] < sides[2] and sides[1] < point[1] < sides[3]


def _overlap(one: Sequence[float], two: Sequence[float]) -> bool:
    return one[0] < two[2] and two[0] < one[2] and one[1] < two[3] and two[1] < one[3]


if __name__ == "__main__":
    for name, figure in FIGURES.items():
        file = FOLDER / f"{name}.svg"
        if "--check" not in sys.argv:
            FOLDER.mkdir(exist_ok=True)
            file.write_text(draw(figure), "utf-8")
        elif not file.is_file() or file.read_text("utf-8") != draw(figure):
            sys.exit(f"{file.name} is out of date; run python -m tools.method_figures.")
