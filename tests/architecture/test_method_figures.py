"""Each method page opens with its figure, which is that of its description; texts fit, nothing overlaps, colours can be read."""

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from tools.method_figures import FIGURES, FOLDER, STYLE, Box, Figure, draw, faults

FILLS = ("panel", "box", "trained", "frozen", "loss")
PAGES = sorted(FOLDER.parent.glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_method_page_opens_with_its_figure(page: Path) -> None:
    title, figure = page.read_text("utf-8").split("\n\n")[:2]
    assert title.startswith("# ")
    assert figure == f"![{FIGURES[page.stem].title}](figures/{page.stem}.svg)"
    assert (FOLDER / f"{page.stem}.svg").read_text("utf-8") == draw(FIGURES[page.stem]), "run python -m tools.method_figures"
    ElementTree.fromstring(draw(FIGURES[page.stem]))


@pytest.mark.parametrize("name", FIGURES)
def test_texts_fit_and_nothing_overlaps(name: str) -> None:
    assert faults(FIGURES[name]) == []


def test_faults_are_found() -> None:
    box = Box("a", 0, 0, "a title that is far too wide for it")
    apart, between = replace(box, name="b", column=2, title="b"), replace(box, name="c", column=1, title="c")
    assert faults(Figure("", (box,), ())) == [f"{box.title!r} is wider than its box"]
    assert faults(Figure("", (between, replace(between, name="d")), ())) == ["c and d overlap"]
    assert faults(Figure("", (replace(box, title="a"), apart, between), (("a", "b", ""),))) == ["a -> b crosses c"]


def luminance(colour: str) -> float:
    """Relative luminance by WCAG 2."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_has_enough_contrast_in_both_themes() -> None:
    for style in STYLE.split("@media"):
        text = re.search(r"text {[^}]*fill: (#[0-9a-f]{6})", style)
        assert text is not None
        fills = [
            re.search(rf"\.{kind} {{[^}}]*fill: (#[0-9a-f]{{6}})", style) for kind in ("panel", "box", "trained", "frozen", "loss")
        ]
        for fill in fills:
            assert fill is not None
            low, high = sorted((luminance(text[1]), luminance(fill[1])))
            assert (high + 0.05) / (low + 0.05) > 7  # WCAG AAA
