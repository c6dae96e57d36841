"""The page of a run: a score beside its controls, and headings that claim no more than the captions do."""

from dataclasses import replace

import pytest

from sightline.evaluation.tasks.caption import Caption
from sightline.metrics.statistics import Difference
from sightline.metrics.verdict import verdict_of
from sightline.reporting.run_report import Curve, Panel, RunReport, run_report_page
from tests.data.pictures import picture


def panel(said: str, right: bool, value: float) -> Panel:
    return Panel("r1", picture(0), ("a <b> dog",), said, {"blind": "a man"}, right, value)


def score(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.01, "high": value + 0.01, "n": 3}


def report(exact: float, right: bool) -> RunReport:
    return RunReport(
        title="run",
        curves=(Curve("training loss", [1, 2], [2.0, 1.0]),),
        scores={
            "with the image": {"cider_d": score(0.5), "exact": score(exact)},
            "blind": {"cider_d": score(0.1), "exact": score(0.0)},
        },
        infos=Caption.scores,
        right=[panel("a dog", right, 2.0)],
        wrong=[panel("a cat", False, 0.1)],
    )


def test_scores_stand_beside_their_control_with_intervals() -> None:
    page = run_report_page(report(exact=0.8, right=True))
    assert page.count("0.500 (0.490 to 0.510)") == 1
    assert page.count("0.100 (0.090 to 0.110)") == 1
    assert "80.0%" in page
    assert "Where the answer is right" in page
    assert "blind: a man" in page
    assert "a &lt;b&gt; dog" in page
    assert "<b> dog" not in page


@pytest.mark.parametrize("word", ["right", "wrong"])
def test_nothing_is_called_right_or_wrong_when_no_caption_is_exact(word: str) -> None:
    page = run_report_page(report(exact=0.0, right=False))
    assert f"the caption is {word}" not in page
    assert f"it is {word}" not in page
    assert "Where it comes closest" in page
    assert "exact captions, with the image" not in page


def test_the_verdict_goes_first_and_paired_differences_stand_beside_the_scores() -> None:
    difference = Difference(0.4, 0.3, 0.5, 0.001, n=100)
    plain = report(exact=0.8, right=True)
    page = run_report_page(
        replace(plain, verdict=verdict_of(difference, 0.5, "blind"), differences={"blind": {"cider_d": difference}})
    )
    verdict = page.index("Does it look at the image? looks: +0.400 [+0.300, +0.500] with the image minus blind")
    assert verdict < page.index("<main")
    assert "image minus blind" in page[page.index("<table") :]
    assert page.count("+0.400 (+0.300 to +0.500)") == 1
    assert "Does it look" not in run_report_page(plain)


def test_cider_d_has_a_chart_of_its_own_and_stages_have_borders() -> None:
    plain = report(exact=0.8, right=True)
    assert plain.infos[0].top == 10
    page = run_report_page(replace(plain, borders={"align": 1, "tune": 2}, rates=(Curve("connector", [1, 2], [0.1, 0.2]),)))
    assert [page.count(f">{name}</text>") for name in ("CIDEr-D", "exact captions")] == [1, 1]
    assert page.count(">tune</text>") == 2  # in the chart of the loss and in that of the learning rate
    assert "Learning rate and gradient norm" in page
    assert "Learning rate" not in run_report_page(plain)
