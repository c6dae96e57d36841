"""A comparison says first what matters, in words that its numbers bear out, and its files hold the same numbers."""

import base64
import csv
import hashlib
import io
import json
import re
from collections.abc import Mapping
from dataclasses import replace

import pytest

from sightline.evaluation.tasks import ScoreInfo
from sightline.metrics.statistics import Difference, Interval
from sightline.metrics.verdict import WORSE, Verdict, verdict_of
from sightline.reporting.comparison import (
    Comparison,
    Grid,
    ItemCard,
    Row,
    RowPair,
    Table,
    items_csv,
    markdown,
    scores_csv,
    sentences,
    shown_interval,
)
from sightline.reporting.comparison_page import comparison_page
from sightline.reporting.html import Column
from sightline.reporting.plots import LineSeries
from tests.data.pictures import picture
from tests.reporting.helpers import EVIL, read

CIDER = ScoreInfo("cider_d", "CIDEr-D", top=10.0)
ERROR = ScoreInfo("error", "error", higher_is_better=False, times=1.0)


def looks(value: float, low: float, high: float, score: float = 0.5, n: int = 40) -> Verdict:
    return verdict_of(Difference(value, low, high, 0.01, n), score, "shuffled", "sightline eval a")


def row(name: str, value: float, verdict: Verdict | None = None, **others: float) -> Row:
    made = {kind: Interval(score, score - 0.1, score + 0.1, 40) for kind, score in others.items()}
    return Row(name, Interval(value, value - 0.1, value + 0.1, 40), made, verdict)


def pair(first: str, second: str, value: float, low: float, high: float, p: float, corrected: float) -> RowPair:
    return RowPair(first, second, Difference(value, low, high, p, 40), corrected, 25, 10, 5)


def table(
    rows: tuple[Row, ...], pairs: tuple[RowPair, ...] = (), info: ScoreInfo = CIDER, images: int = 40, **more: object
) -> Table:
    records = tuple(f"r{n}" for n in range(2))
    values: Mapping[str, list[float]] = {row.name: [row.score.value - 0.1, row.score.value + 0.1] for row in rows}
    return Table("caption-set-val", "caption on set, val", info, images, records, rows, pairs, values, **more)  # type: ignore[arg-type]


def said(*tables: Table) -> list[str]:
    return [sentence.text for sentence in sentences(Comparison("c", tables))]


A, B, C = row("A", 0.531), row("B", 0.5), row("C", 0.47)


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (pair("A", "B", 0.031, 0.012, 0.05, 0.001, 0.003), "A is better than B by 3.1 points [1.2, 5.0] after correction."),
        (pair("B", "A", -0.031, -0.05, -0.012, 0.001, 0.003), "A is better than B by 3.1 points [1.2, 5.0] after correction."),
        (
            pair("A", "B", 0.031, 0.001, 0.06, 0.03, 0.06),
            "A may be better than B (3.1 points [0.1, 6.0]), but not after correction for 2 pairs (p = 0.06).",
        ),
        (pair("A", "B", 0.004, -0.01, 0.019, 0.6, 1.0), "A and B cannot be distinguished (+0.4 points [-1.0, +1.9])."),
        (pair("B", "A", -0.004, -0.019, 0.01, 0.6, 1.0), "A and B cannot be distinguished (+0.4 points [-1.0, +1.9])."),
    ],
)
def test_the_better_of_two_is_named_with_its_interval_and_how_sure_that_is(found: RowPair, text: str) -> None:
    other = pair("A", "C", 0.061, -0.01, 0.13, 0.1, 0.2)
    assert text in said(table((A, B, C), (found, other)))
    if "after correction." in text:  # of a single pair there is nothing to correct
        assert text.replace(" after correction", "") in said(table((A, B), (found,)))


def test_of_an_error_the_lower_is_better_and_its_own_scale_is_shown() -> None:
    rows = row("A", 0.2, looks(0.1, 0.05, 0.2)), row("B", 0.5, looks(0.1, 0.05, 0.2))
    one = table(rows, (pair("A", "B", -0.3, -0.4, -0.2, 0.001, 0.001),), ERROR)
    assert "A is better than B by 0.300 [0.200, 0.400]." in said(one)
    assert (one.best().name, one.pairs_won("A"), one.pairs_won("B"), one.label) == ("A", (1, 1), (0, 1), "error")


def test_a_handful_of_images_decides_nothing() -> None:
    few = table((A, B), (pair("A", "B", 0.031, 0.012, 0.05, 0.001, 0.001),), images=5)
    wanted = "A and B: not enough images to say which is better (+3.1 points [+1.2, +5.0]; 5 images; a verdict needs at least 20)."
    assert wanted in said(few)
    assert few.pairs_won("A") == (0, 1)


def test_what_makes_a_ranking_worthless_is_said_before_the_ranking() -> None:
    rows = (
        row("good", 0.6, looks(0.3, 0.2, 0.4)),
        row("deaf", 0.5, looks(0.0, -0.01, 0.02)),
        row("odd", 0.3, looks(-0.2, -0.3, -0.1)),
        row("new", 0.2, verdict_of(None, 0.0, command="sightline eval new")),
        row("copy", 0.55, None),
    )
    pairs = (
        pair("good", "deaf", 0.1, 0.05, 0.15, 0.001, 0.004),
        pair("deaf", "odd", 0.2, 0.1, 0.3, 0.001, 0.004),
        pair("good", "copy", 0.05, 0.01, 0.1, 0.001, 0.004),
    )
    assert said(table(rows, pairs, floor=("copy",))) == [
        "deaf, odd and new score below the baseline copy: a ranking of models that do not reach it says little.",
        "deaf does not look: +0.0 points [-1.0, +2.0] with the image instead of shuffled.",
        f"odd is {WORSE}: -20.0 points [-30.0, -10.0] with the image instead of shuffled.",
        "good is better than deaf by 10.0 points [5.0, 15.0] after correction.",  # five rows: the pairs of the best one
        "good is better than copy by 5.0 points [1.0, 10.0] after correction.",
        "Whether new looks is not checked. Check it with: sightline eval new",
        "good looks: +30.0 points [+20.0, +40.0] with the image instead of shuffled.",
    ]
    against = said(table(rows, pairs, is_against_one=True))
    assert "deaf is better than odd by 20.0 points [10.0, 30.0] after correction." in against
    unsure = row("few", 0.5, looks(0.1, 0.05, 0.2, n=3))
    wanted = (
        "few: not enough items to say whether it looks (+10.0 points [+5.0, +20.0] with the image instead of shuffled; 3 items; "
    )
    assert said(table((unsure,))) == [wanted + "a verdict needs at least 20)."]


def test_of_many_rows_what_is_alike_is_said_once() -> None:
    names = [f"m{n}" for n in range(10)]
    rows = (
        *(row(name, 0.5, looks(0.3, 0.2, 0.4)) for name in names),
        row("x", 0.4, verdict_of(None, 0.0)),
        row("y", 0.4, verdict_of(None, 0.0)),
    )
    unclear = [pair(name, "m0", 0.0, -0.1, 0.1, 0.9, 1.0) for name in names[2:]]
    clear = pair("m1", "m0", 0.031, 0.012, 0.05, 0.001, 0.01)
    assert said(table(rows, (clear, *unclear), is_against_one=True)) == [
        "m1 is better than m0 by 3.1 points [1.2, 5.0] after correction.",
        "8 of 9 pairs cannot be distinguished after correction.",
        "Whether x and y look is not checked.",
        "m0, m1, m2, m3, m4, m5, m6, m7, m8 and m9 look.",
    ]


def test_of_several_tables_each_sentence_names_its_own() -> None:
    one = table((A, B), (pair("A", "B", 0.031, 0.012, 0.05, 0.001, 0.001),))
    text = "A is better than B by 3.1 points [1.2, 5.0]."
    assert said(one, replace(one, title="vqa on set, val")) == [f"caption on set, val: {text}", f"vqa on set, val: {text}"]
    other = replace(one, info=ScoreInfo("rouge_l", "ROUGE-L"))  # another score of the same evaluation
    assert said(one, other) == [f"caption on set, val, CIDEr-D: {text}", f"caption on set, val, ROUGE-L: {text}"]


@pytest.fixture
def comparison() -> Comparison:
    rows = (row("A", 0.531, looks(0.3, 0.2, 0.4), shuffled=0.2), row("B", 0.5, looks(0.0, -0.01, 0.02), shuffled=0.5, blind=0.4))
    items = (ItemCard("r1", picture(0), (EVIL, "a dog"), {"A": "a dog", "B": EVIL}, {"A": 1.5, "B": 0.25}),)
    made = table(rows, (pair("A", "B", 0.031, 0.012, 0.05, 0.001, 0.003),), items=items)
    return Comparison(
        EVIL,
        (made,),
        curves={"training loss": [LineSeries("A", [1, 2], [2.0, 1.0])], "gradient norm": [LineSeries("A", [1, 2], [2.0, 1.0])]},
        grids=(Grid("cost", "Cost", [Column("model"), Column("parameters", "right")], [["A|1", "1,000"]], "A note.", {"A": 1000}),),
        notes=("C was not asked.",),
        facts={"evaluations": 3},
    )


def test_files_hold_the_scores_of_their_scorer_and_people_read_them_times_100(comparison: Comparison) -> None:
    told = json.loads(json.dumps(comparison.to_json(), allow_nan=False))
    (found,) = told["tables"]
    assert (found["metric"], found["shown_times"], found["records"], found["images"]) == ("cider_d", 100.0, 2, 40)
    assert [(one["name"], one["value"], one["wins"]["won"], one["looks"]["verdict"]) for one in found["rows"]] == [
        ("A", 0.531, 1, "looks"),
        ("B", 0.5, 0, "does not look"),
    ]
    assert found["rows"][1]["others"]["blind"]["value"] == 0.4
    assert found["pairs"][0]["p_corrected"] == 0.003
    assert found["pairs"][0]["items"] == {"higher": 25, "lower": 10, "same": 5}
    assert told["verdicts"] == [sentence.text for sentence in sentences(comparison)]
    assert (told["cost"], told["evaluations"], told["notes"]) == ({"A": 1000}, 3, ["C was not asked."])

    lines = list(csv.DictReader(io.StringIO(scores_csv(comparison))))
    assert [(line["model"], line["condition"], float(line["value"])) for line in lines] == [
        ("A", "", 0.531),
        ("A", "shuffled", 0.2),
        ("B", "", 0.5),
        ("B", "shuffled", 0.5),
        ("B", "blind", 0.4),
    ]
    items = list(csv.DictReader(io.StringIO(items_csv(comparison))))
    assert [(item["model"], item["record"], round(float(item["score"]), 9)) for item in items] == [
        ("A", "r0", 0.431),
        ("A", "r1", 0.631),
        ("B", "r0", 0.4),
        ("B", "r1", 0.6),
    ]
    assert {(item["evaluation"], item["metric"]) for item in items} == {("caption-set-val", "cider_d")}

    text = markdown(comparison)
    assert (
        "| model | CIDEr-D × 100 [95 %] | wins / pairs | does it look? | shuffled | blind |\n|---|---:|---:|---|---:|---:|" in text
    )
    assert "| A | 53.1 [43.1, 63.1] | 1 / 1 | looks | 20.0 [10.0, 30.0] |  |" in text
    assert "| A | B | +3.1 [+1.2, +5.0] | 0.001 | 0.003 | 25 | 10 | 5 |" in text
    assert "| A\\|1 | 1,000 |" in text
    assert shown_interval(CIDER, Interval(0.5312, 0.4, 0.66)) == "53.1 [40.0, 66.0]"


def test_a_long_ladder_has_a_table_of_its_own() -> None:
    blurs = {f"blur:{sigma}": 0.5 - sigma / 100 for sigma in (2, 4, 8, 16)}
    long = Comparison("c", (table((row("A", 0.5, None, **blurs), row("B", 0.4))),))
    text = markdown(long)
    assert "| model | CIDEr-D × 100 [95 %] | does it look? |\n" in text
    assert "| shown | A | B |\n|---|---:|---:|\n| the image | 50.0 [40.0, 60.0] | 40.0 [30.0, 50.0] |\n" in text
    assert "\n| blur:8 | 42.0 [32.0, 52.0] |  |\n" in text
    assert "42.0 [32.0, 52.0]" in read(comparison_page(long)).text


def test_the_page_needs_nothing_else_and_allows_its_one_script_alone(comparison: Comparison) -> None:
    page = comparison_page(comparison)
    reader = read(page)
    names = [name for name, _ in reader.elements]
    assert names.count("script") == 1
    assert not set(names) & {"link", "iframe", "object", "embed", "base", "form"}
    for _, attributes in reader.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "srcset", "action", "data", "poster", "background"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/"))
    assert "url(" not in page and "@import" not in page  # noqa: PT018 (of one style sheet)
    (policy,) = (found["content"] or "" for name, found in reader.elements if found.get("http-equiv") == "Content-Security-Policy")
    (script,) = re.findall(r"<script>(.*)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert not re.search(r"\b(fetch|XMLHttpRequest|import|eval|WebSocket|innerHTML)\b", script)
    assert EVIL in reader.text  # as text: the reader has found no element in it


def test_verdicts_stand_first_on_the_page_and_tables_can_be_sorted(comparison: Comparison) -> None:
    reader = read(comparison_page(comparison))
    places = [reader.text.index(text) for text in (*(sentence.text for sentence in sentences(comparison)), "C was not asked.")]
    assert places == sorted(places)
    assert places[-1] < reader.text.index("53.1 [43.1, 63.1]")
    tables = [found for name, found in reader.elements if name == "table"]
    assert [found.get("class") for found in tables] == ["sortable"] * 3
    (gallery,) = (found for name, found in reader.elements if "data-models" in found)
    assert json.loads(gallery["data-models"] or "") == ["A", "B"]
    assert [json.loads(found["data-quality"] or "") for _, found in reader.elements if "data-quality" in found] == [[1.5, 0.25]]


def test_the_page_works_with_the_keyboard_alone() -> None:
    """What a browser needs for that; docs/compare.md says what was pressed in a real one."""
    shown = Comparison("c", (table((row("a", 0.5), row("b", 0.4)), (pair("a", "b", 0.1, 0.0, 0.2, 0.04, 0.04),)),))
    page = comparison_page(shown)
    elements = read(page).elements
    assert all("tabindex" not in attributes for _, attributes in elements)  # the order of the page is that of the tab key
    assert all(attributes.get("href") for name, attributes in elements if name == "a")
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    made = re.findall(r'make\("(\w+)"', script)
    assert {"button", "input", "select"} <= {*made} <= {"button", "input", "select", "option", "div", "span"}
    heard = re.findall(r'(\w+)\.addEventListener\("(\w+)"', script)
    assert heard == [("button", "click"), ("field", "input"), ("control", "input")]  # Enter and Space click a button
    assert 'for (const control of [better, worse, field]) control.addEventListener("input"' in script
    assert 'setAttribute("aria-sort", falls ? "descending" : "ascending")' in script
    assert 'removeAttribute("aria-sort")' in script
    labelled = re.findall(r'(\w+)\.setAttribute\("aria-label"', script)
    assert labelled == ["field", "select", "field"]  # each control that has no text of its own
    assert 'setAttribute("role", "status")' in script  # the number of cards that are left is read out
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert re.search(r":focus-visible \{ outline: \d+px solid", style)
    assert not re.search(r"outline: *(none|0)", style)
