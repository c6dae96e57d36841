"""The page of a run: a score beside its controls, and headings that claim no more than the captions do."""

import pytest

from sightline.evaluation.tasks.caption import Caption
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
    assert "Where the caption is right" in page
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
