"""Building blocks of HTML reports: one file that needs nothing else, safe whatever stands in the data.

Every block returns `Html`; any other text is escaped where it enters, so that a caption cannot become markup. Pages hold their
styles and images and forbid the browser to load anything (Content-Security-Policy). Only pages with tables to sort carry a script,
`page.js`, which they allow by its hash. Colours are variables of `page.css`, for light and dark screens.
"""

import base64
import hashlib
import html
import io
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

_VOID = frozenset({"br", "col", "hr", "img", "meta"})
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_MAGIC = ((b"\x89PNG\r\n\x1a\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"GIF8", "image/gif"))
_DIRECTIONS = frozenset({"FSI", "LRE", "LRI", "LRO", "PDF", "PDI", "RLE", "RLI", "RLO"})
_UNSEEN = frozenset("\xad\u061c\u200b\u200e\u200f\u2028\u2029\u2060\ufeff")  # not the joiners U+200C and U+200D: scripts need them

Align = Literal["left", "right"]
TokenKind = Literal["plain", "supervised", "special", "visual"]
Tone = Literal["good", "bad", "note"]


class Html(str):
    """Markup that is safe as it stands. Joined with a plain text it becomes plain text again, and is escaped in full."""

    __slots__ = ()


Node = Html | str | int | float | None
"""What a block may hold: markup, text, a number, or nothing."""


# Text and elements ----------------------------------------------------------------------------------------------------------


def escape(value: Node) -> Html:
    """Returns a node as markup: text is escaped, numbers get thousands separators, None is empty."""
    if isinstance(value, Html):
        return value
    return Html(html.escape(_sendable(_written(value)), quote=True))


def _written(value: str | int | float | None) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if 10_000 <= abs(value) < 1e15 else f"{value:.4g}"
    return value


def _sendable(text: str) -> str:
    """Returns text that UTF-8 and HTML can hold: halves of surrogate pairs and NUL become visible escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\u2400")


def revealed(text: str) -> str:
    """Returns text whose invisible characters can be seen: controls as symbols, direction overrides and the like as `<U+202E>`.

    Line breaks show as a sign before the break, so that a token that holds one is not empty.
    """
    return "".join(_revealed(character) for character in _sendable(text))


def _revealed(character: str) -> str:
    if character == "\n":
        return "\u21b5\n"
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    is_control = unicodedata.category(character) == "Cc" or 0xE0000 <= code <= 0xE007F  # C1, and letters that no one sees
    if is_control or character in _UNSEEN or unicodedata.bidirectional(character) in _DIRECTIONS:
        return f"\u27e8U+{code:04X}\u27e9"
    return character


def join(nodes: Iterable[Node], between: str = "") -> Html:
    """Nodes one after the other."""
    return Html(escape(between).join(escape(node) for node in nodes))


def element(name: str, *children: Node, attributes: Mapping[str, str | int | float] | None = None) -> Html:
    """Returns an element with its children.

    Args:
        name: of the element.
        children: markup, or text that will be escaped.
        attributes: values are escaped; those that are empty are left out, but for `alt`, which then says "for show only".
    """
    kept = {key: value for key, value in (attributes or {}).items() if value != "" or key == "alt"}
    given = "".join(f' {key}="{html.escape(_sendable(str(value)))}"' for key, value in kept.items())
    return Html(f"<{name}{given}>" if name in _VOID else f"<{name}{given}>{join(children)}</{name}>")


def paragraph(*children: Node) -> Html:
    """Returns a paragraph; its direction follows its first strong letter."""
    return element("p", *children, attributes={"dir": "auto"})


def note(text: Node, tone: Tone = "note") -> Html:
    """Returns a line that stands out: something good, something bad, or something to know."""
    return element("p", text, attributes={"class": f"note {tone}"})


def code(text: str) -> Html:
    """Returns a command or another text to be taken word for word."""
    return element("pre", element("code", text))


def columns(*children: Node, narrowest: int = 19) -> Html:
    """Blocks side by side, as many as fit.

    Args:
        children: the blocks.
        narrowest: width below which a block goes to the next line, in letters (em).
    """
    style = f"grid-template-columns: repeat(auto-fit, minmax(min(100%, {narrowest}rem), 1fr))"
    return element("div", *children, attributes={"class": "columns", "style": style})


# Tables and figures ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A column of a table: its title, and to which side its cells are set (numbers to the right)."""

    title: str
    align: Align = "left"


def table(heads: Sequence[Column | str], rows: Iterable[Sequence[Node]], caption: str = "", is_sortable: bool = False) -> Html:
    """Returns a table.

    Args:
        heads: columns; a text is a column that is set to the left.
        rows: as many cells each as there are columns.
        caption: above it.
        is_sortable: whether the script of a page (`page(..., has_script=True)`) lets readers sort and filter it.

    Raises:
        ValueError: a row has another number of cells.
    """
    known = [Column(head) if isinstance(head, str) else head for head in heads]
    body = []
    for row in rows:
        if len(row) != len(known):
            raise ValueError(f"a row of {len(row)} cells in a table of {len(known)} columns")
        cells = (
            element("td", cell, attributes={"class": "number"} if column.align == "right" else {"dir": "auto"})
            for cell, column in zip(row, known, strict=True)
        )
        body.append(element("tr", *cells))
    titles = (element("th", column.title, attributes={"class": "number" if column.align == "right" else ""}) for column in known)
    made = element(
        "table",
        element("caption", caption) if caption else None,
        element("thead", element("tr", *titles)),
        element("tbody", *body),
        attributes={"class": "sortable" if is_sortable else ""},
    )
    return element("div", made, attributes={"class": "scroll"})


def facts(values: Mapping[str, Node]) -> Html:
    """Names with values, two columns."""
    rows = (join([element("dt", name), element("dd", value, attributes={"dir": "auto"})]) for name, value in values.items())
    return element("dl", *rows)


def tiles(values: Mapping[str, Node]) -> Html:
    """Returns a few figures in large print, each with its name below."""
    made = (element("div", element("strong", value), element("span", name)) for name, value in values.items())
    return element("div", *made, attributes={"class": "tiles"})


def figure(content: Node, caption: Node = None) -> Html:
    """Returns an image or chart with a caption."""
    return element("figure", content, element("figcaption", caption, attributes={"dir": "auto"}) if caption is not None else None)


def gallery(figures: Iterable[Node]) -> Html:
    """Figures in rows."""
    return element("div", *figures, attributes={"class": "gallery"})


# Images -------------------------------------------------------------------------------------------------------------------


def image(source: "bytes | Image.Image | UInt8[np.ndarray, 'h w 3']", alt: str, width: int | None = None) -> Html:
    """Returns an image inside the page.

    Args:
        source: a PNG, JPEG or GIF file, a PIL image, or pixels. Images of up to 128 x 128 pixels become PNG, others JPEG.
        alt: what it shows, for those who cannot see it.
        width: on the page in pixels; a small image that is not given as a file keeps its pixels sharp when it is enlarged.

    Raises:
        ValueError: the bytes are of another format, or the array is no image.
    """
    data = source if isinstance(source, bytes) else _encoded(source)
    kind = next((kind for magic, kind in _MAGIC if data.startswith(magic)), None)
    if kind is None:
        raise ValueError("an image of a page is a PNG, JPEG or GIF file")
    address = f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
    natural = width if isinstance(source, bytes) else source.shape[1] if isinstance(source, np.ndarray) else source.width
    kind = "sharp" if width is not None and natural is not None and width > natural else ""
    return element("img", attributes={"src": address, "alt": alt, "width": "" if width is None else width, "class": kind})


def _encoded(source: "Image.Image | np.ndarray") -> bytes:
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3:
            raise ValueError(f"pixels are uint8 [height, width, 3], got {source.dtype} {list(source.shape)}")
        source = Image.fromarray(source)
    buffer = io.BytesIO()
    if source.width * source.height <= 128 * 128 or source.mode not in ("L", "RGB"):
        source.save(buffer, "PNG")
    else:
        source.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


# Tokens ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Token:
    """A token, or a run of equal ones, as it is shown.

    Attributes:
        text: what it stands for; may be empty (the middle of a character).
        kind: `supervised` tokens are predicted, `visual` ones hold the place of image tokens, `special` ones are markup.
        title: shown when the pointer rests on it: its id, say.
        heat: from -1 to 1, colours the token instead of its kind (a weight, a gain).
        is_markup: written from left to right whatever stands around it (`</s>` among Arabic words).
        count: how many tokens it stands for: a block of visual slots says so, pieces of one character are underlined.
    """

    text: str
    kind: TokenKind = "plain"
    title: str = ""
    heat: float | None = None
    count: int = 1
    is_markup: bool = False


def tokens(row: Iterable[Token]) -> Html:
    """Returns a text token by token.

    Spans are plain inline text, so that right-to-left scripts and joined letters show as they should; neighbours differ in shade.
    """
    return element("div", *(_token(token, place) for place, token in enumerate(row)), attributes={"class": "tokens", "dir": "auto"})


def _token(token: Token, place: int) -> Html:
    style = ""
    if token.heat is not None:
        heat = min(1.0, max(-1.0, token.heat))
        style = f"background: color-mix(in srgb, var(--{'warm' if heat >= 0 else 'cold'}) {abs(heat):.0%}, transparent)"
    is_block = token.kind == "visual" and token.count > 1
    text = (revealed(token.text) or "\u00b7") + (f" \u00d7 {token.count:,}" if is_block else "")
    kind = f"token {token.kind} {'odd' if place % 2 else 'even'}{' pieces' if token.count > 1 and not is_block else ''}"
    direction = "ltr" if token.is_markup or token.kind in ("special", "visual") else ""
    return element("span", text, attributes={"class": kind, "title": token.title, "style": style, "dir": direction})


def legend(entries: Mapping[str, TokenKind]) -> Html:
    """Returns the legend of the colours of tokens."""
    shown = (element("span", name, attributes={"class": f"token {kind} even"}) for name, kind in entries.items())
    return element("p", join(shown, " "), attributes={"class": "legend"})


# Pages ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        title: its heading, also in the list of contents.
        body: what it holds.
        is_open: False folds it away behind its heading.
    """

    title: str
    body: Node
    is_open: bool = True


def page(title: str, sections: Sequence[Section], lead: Node = None, footer: Node = None, has_script: bool = False) -> str:
    """Returns a whole HTML file.

    Args:
        title: of the page.
        sections: its parts; three or more get a list of contents.
        lead: what stands before them.
        footer: what stands after them: how the page was made.
        has_script: whether the page carries `page.js`; without scripts it shows the same.
    """
    names = _anchors([section.title for section in sections])
    contents = None
    if len(sections) > 2:
        links = (element("a", s.title, attributes={"href": f"#{name}"}) for s, name in zip(sections, names, strict=True))
        contents = element("nav", join(links, " "))
    head = element(
        "head",
        element("meta", attributes={"charset": "utf-8"}),
        element(
            "meta",
            attributes={
                "http-equiv": "Content-Security-Policy",
                "content": _POLICY + (_allowed(page_script()) if has_script else ""),
            },
        ),
        element("meta", attributes={"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        element("meta", attributes={"name": "color-scheme", "content": "light dark"}),
        element("title", title),
        element("style", Html(style_sheet())),
    )
    body = element(
        "body",
        element("header", element("h1", title, attributes={"dir": "auto"}), lead, contents),
        element("main", *(_section(section, name) for section, name in zip(sections, names, strict=True))),
        element("footer", footer) if footer is not None else None,
        element("script", Html(page_script())) if has_script else None,
    )
    return "<!doctype html>\n" + element("html", head, body, attributes={"lang": "en"}) + "\n"


def _section(section: Section, name: str) -> Html:
    heading = element("h2", section.title, attributes={"dir": "auto"})
    if section.is_open:
        return element("section", heading, section.body, attributes={"id": name})
    return element("section", element("details", element("summary", heading), section.body), attributes={"id": name})


def _anchors(titles: Sequence[str]) -> list[str]:
    """Returns a name for each heading: its words, and a number where two would be alike."""
    names: list[str] = []
    for place, title in enumerate(titles):
        name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "part"
        names.append(name if name not in names else f"{name}-{place}")
    return names


def _allowed(script: str) -> str:
    """Returns the part of the policy that lets one script run."""
    return f"; script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode('ascii')}'"


@cache
def page_script() -> str:
    """Returns the script that sorts and filters, `page.js`."""
    return resources.files("sightline.reporting").joinpath("page.js").read_text("utf-8")


@cache
def style_sheet() -> str:
    """Returns the style of all pages, `page.css`."""
    return resources.files("sightline.reporting").joinpath("page.css").read_text("utf-8")
