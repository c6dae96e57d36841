"""What is said of gains: percentiles, how well they tell own from foreign images, and the words that need the image."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.evaluation.probes.gain import GainExample, GainFindings, TextGain, higher_with_own, percentiles, separation, summary
from sightline.reporting.gain_page import gain_page

FINITE = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=12)


def text(*gains: float, name: str = "r", pieces: tuple[str, ...] | None = None, number: int = 0) -> TextGain:
    return TextGain(name, number, pieces or tuple(f" w{place}" for place in range(len(gains))), gains)


@given(FINITE, FINITE)
def test_separation_is_the_share_of_pairs_in_the_right_order(own: list[float], foreign: list[float]) -> None:
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in own for b in foreign]
    made = separation([text(value) for value in own], [text(value) for value in foreign])
    assert made == pytest.approx(sum(pairs) / len(pairs))


def test_pairs_are_of_the_same_text() -> None:
    own = [text(1.0, name="a"), text(2.0, name="b"), text(3.0, name="b", number=1), text(9.0, name="lost")]
    foreign = [text(0.0, name="a"), text(2.0, name="b"), text(4.0, name="b", number=1)]
    assert higher_with_own(own, foreign) == pytest.approx((1 + 0.5 + 0) / 3)
    assert higher_with_own(own, []) == separation(own, []) == 0.5


def test_tokens_without_gain_count_nowhere() -> None:
    texts = [text(math.nan, 2.0, 4.0), text(6.0)]
    told = summary(texts)
    assert (told["tokens"], told["mean"], told["share_above_1"]) == (3, 4.0, 1.0)
    assert told["share_above_5"] == pytest.approx(1 / 3)
    assert told["percentiles"]["p50"] == 4.0
    assert texts[0].mean == 3.0
    assert text(math.nan).mean == 0.0
    assert percentiles([0.0, 1.0, 2.0, 3.0, 10.0], (25, 90)) == {"p25": 1.0, "p90": pytest.approx(7.2)}
    assert summary([])["percentiles"]["p90"] == 0.0


def test_tokens_are_joined_to_words_and_marks_left_out() -> None:
    made = text(1.0, 3.0, 5.0, 7.0, -1.0, math.nan, pieces=("A", " bi", "cycle", " bicycle", ".", " red"))
    assert made.words() == [("a", 1.0), ("bicycle", 4.0), ("bicycle", 7.0)]


def test_words_at_both_ends_are_those_that_occur_often_enough() -> None:
    pieces = (" red", " the", " dog", " rare")
    own = tuple(text(4.0 + n, 0.0, 2.0, 9.0, name=str(n), pieces=pieces if n < 2 else (*pieces[:3], " x")) for n in range(3))
    most, least = GainFindings(own, (), (), {}).words()
    assert most == [("red", 5.0, 3)]
    assert least == [("the", 0.0, 3)]


def test_json_has_no_nan_and_the_page_no_markup_of_the_data() -> None:
    strange = text(math.nan, 1.0, -2.0, name="<b>", pieces=("<script>", " </div>", " \u202e"))
    shown = GainExample("<b>", None, (strange,), (strange,))
    found = GainFindings((strange,), (strange,), (shown,), {"image_format": 2})
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert told["images"][0]["own"][0]["tokens"] == [["<script>", None], [" </div>", 1.0], [" \u202e", -2.0]]
    assert told["skipped"] == {"image_format": 2}
    page = gain_page("a <title>", found)
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "\u202e" not in page
    assert np.isfinite(float(found.figures()["median"]))
    assert "0.500" in found.figures()["tells own from foreign"]


def test_a_page_without_any_text_can_be_drawn() -> None:
    assert "Too few texts" in gain_page("nothing", GainFindings((), (), (), {}))
