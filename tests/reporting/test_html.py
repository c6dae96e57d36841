"""Pages are well-formed, need nothing from outside, and nothing in the data becomes markup."""

import base64
import io
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sightline.reporting import html as h
from tests.data.broken_images import encode, photo
from tests.reporting.helpers import EVIL, read


def pixels(markup: str) -> np.ndarray:
    """The image inside an <img>, as a browser would decode it."""
    source = read(markup).elements[0][1]["src"]
    assert source is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition("base64,")[2]))).convert("RGB"))


@pytest.mark.parametrize(
    "block",
    [
        h.escape(EVIL),
        h.paragraph(EVIL),
        h.note(EVIL),
        h.code(EVIL),
        h.columns(EVIL),
        h.table([EVIL, h.Column(EVIL, "right")], [[EVIL, 1]], caption=EVIL),
        h.facts({EVIL: EVIL}),
        h.tiles({EVIL: EVIL}),
        h.figure(EVIL, EVIL),
        h.gallery([EVIL]),
        h.image(encode(photo(8, 8), "PNG"), EVIL),
        h.tokens([h.Token(EVIL, "supervised", EVIL)]),
        h.legend({EVIL: "plain"}),
        h.element("span", attributes={"title": EVIL}),
        h.Html(h.page(EVIL, [h.Section(EVIL, EVIL), h.Section("b", "", is_open=False), h.Section("c", None)], EVIL, EVIL)),
    ],
)
def test_text_never_becomes_markup(block: h.Html) -> None:
    reader = read(block)
    assert "script" not in [name for name, _ in reader.elements]
    assert not any(name.startswith("on") for _, attributes in reader.elements for name in attributes)
    assert all(attributes.get("src") != "x" for _, attributes in reader.elements)
    shown = reader.text + "".join(value or "" for _, attributes in reader.elements for value in attributes.values())
    assert EVIL in shown


@given(st.text(max_size=40))
def test_any_text_is_shown_as_it_is(text: str) -> None:
    assert read(h.paragraph(text)).text.replace("\u2400", "\0") == text.replace("\u2400", "\0")


def test_markup_joined_with_text_is_text_again() -> None:
    assert h.escape(h.Html("<b>x</b>")) == "<b>x</b>"
    assert h.escape(h.Html("<b>") + "<i>") == "&lt;b&gt;&lt;i&gt;"
    assert h.join(["<", h.Html("<br>"), 3, None], " & ") == "&lt; &amp; <br> &amp; 3 &amp; "


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1234567, "1,234,567"),
        (0.25, "0.25"),
        (1 / 3, "0.3333"),
        (123456.7, "123,457"),
        (True, "yes"),
        (None, ""),
        (float("nan"), "nan"),
    ],
)
def test_numbers_are_written_for_people(value: int | float | None, shown: str) -> None:
    assert h.escape(value) == shown


def test_text_that_utf8_cannot_hold_is_shown_as_escapes() -> None:
    page = h.page("\ud800 title", [h.Section("s", "a\udfffb\0c")])
    assert "\\ud800 title" in page
    assert "a\\udfffb\u2400c" in page
    page.encode("utf-8")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb", "a\u21b5\nb"),
        ("a\tb\x07", "a\u2409b\u2407"),
        ("\x7f\x85", "\u27e8U+007F\u27e9\u27e8U+0085\u27e9"),
        ("a\u202eb\u2066c", "a\u27e8U+202E\u27e9b\u27e8U+2066\u27e9c"),
        ("x\u200by\ufeff", "x\u27e8U+200B\u27e9y\u27e8U+FEFF\u27e9"),
        ("\U000e0041", "\u27e8U+E0041\u27e9"),
        ("سلام", "سلام"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("👩\u200d👧", "👩\u200d👧"),
        ("一只狗 e\u0301", "一只狗 e\u0301"),
    ],
)
def test_invisible_characters_are_revealed_and_visible_ones_kept(text: str, shown: str) -> None:
    assert h.revealed(text) == shown


def test_a_page_loads_nothing_and_runs_nothing() -> None:
    body = h.join([h.image(photo(200, 150), "photo"), h.table(["a"], [["https://example.com/x.png"]])])
    page = h.page("Title", [h.Section("One", body), h.Section("Two", 2), h.Section("Two", 3)], lead="lead", footer="end")
    reader = read(page.removeprefix("<!doctype html>"))
    assert page.startswith('<!doctype html>\n<html lang="en"><head><meta charset="utf-8">')
    names = {name for name, _ in reader.elements}
    assert not names & {"script", "link", "iframe", "object", "embed", "base", "form"}
    policies = [attributes["content"] for name, attributes in reader.elements if attributes.get("http-equiv")]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    for _, attributes in reader.elements:
        for key in ("src", "href"):
            assert (attributes.get(key) or "#").startswith(("data:image/", "#"))
    assert "url(" not in h.style_sheet()
    assert "@import" not in h.style_sheet()


def test_contents_lead_to_sections_of_different_names() -> None:
    reader = read(h.page("T", [h.Section("A b!", 1), h.Section("a B", 2), h.Section("你好", 3)]).removeprefix("<!doctype html>"))
    links = [attributes["href"] for name, attributes in reader.elements if name == "a"]
    ids = [attributes["id"] for name, attributes in reader.elements if name == "section"]
    assert links == [f"#{name}" for name in ids]
    assert ids == ["a-b", "a-b-1", "part"]


def test_a_table_sets_numbers_to_the_right_and_refuses_ragged_rows() -> None:
    made = h.table(["name", h.Column("count", "right")], [["x", 1000]])
    assert re.search(r'<td class="number">1,000</td>', made)
    with pytest.raises(ValueError, match="a row of 1 cells in a table of 2 columns"):
        h.table(["a", "b"], [["x"]])


def test_images_keep_their_pixels_if_small_and_become_jpeg_if_large() -> None:
    small = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    assert (pixels(h.image(small, "a")) == small).all()
    assert (pixels(h.image(Image.fromarray(small), "a")) == small).all()
    large = Image.merge("RGB", [Image.linear_gradient("L").rotate(90 * turn) for turn in range(3)])
    made = h.image(large, "b", width=150)
    assert "image/jpeg" in made
    assert 'width="150"' in made
    assert np.abs(pixels(made).astype(int) - np.asarray(large).astype(int)).mean() < 2
    file = encode(large, "PNG")
    assert (pixels(h.image(file, "c")) == np.asarray(large)).all()


def test_a_small_image_that_is_enlarged_stays_sharp() -> None:
    small = np.zeros((8, 8, 3), np.uint8)
    assert 'class="sharp"' in h.image(small, "", width=64)
    assert "class=" not in h.image(small, "", width=4)


@pytest.mark.parametrize(
    "wrong",
    [b"<svg onload=alert(1)>", b"", np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 4), np.uint8)],
)
def test_what_is_no_image_is_refused(wrong: bytes | np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"PNG, JPEG or GIF|uint8"):
        h.image(wrong, "")


def test_tokens_show_their_text_kind_and_id_and_join_to_the_whole_text() -> None:
    row = [
        h.Token("السل", "plain", "id 7"),
        h.Token("ام", "supervised", "id 8"),
        h.Token("", "supervised"),
        h.Token(" x", heat=0.5),
    ]
    reader = read(h.tokens(row))
    assert reader.text == "السلام\u00b7 x"
    assert reader.elements[0][1]["dir"] == "auto"
    spans = [attributes for name, attributes in reader.elements if name == "span"]
    assert [span["class"] for span in spans] == [
        "token plain even",
        "token supervised odd",
        "token supervised even",
        "token plain odd",
    ]
    assert [span.get("title") for span in spans] == ["id 7", "id 8", None, None]
    assert "var(--warm) 50%" in (spans[3]["style"] or "")
    cold = read(h.tokens([h.Token("x", heat=-3.0)])).elements[1][1]["style"]
    assert "var(--cold) 100%" in (cold or "")
