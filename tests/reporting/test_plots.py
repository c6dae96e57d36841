"""Charts stand where their numbers say, lose no peak, and survive what real logs hold."""

import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.reporting.html import Html
from sightline.reporting.plots import Bars, LineSeries, bar_chart, histogram, line_chart, standalone
from sightline.reporting.scales import Axis, between, decimate, make_scale, short, ticks

SPACE = "{http://www.w3.org/2000/svg}"


def parts(chart: Html, name: str) -> list[ElementTree.Element]:
    return [element for element in ElementTree.fromstring(standalone(chart)).iter(SPACE + name)]


def texts(chart: Html) -> list[str]:
    return ["".join(element.itertext()) for element in parts(chart, "text")]


def points(path: ElementTree.Element) -> np.ndarray:
    return np.array([[float(v) for v in pair.split()] for pair in re.split("[ML]", path.attrib["d"].rstrip("Z"))[1:]])


def curves(chart: Html, colour: int = 0) -> list[np.ndarray]:
    return [points(path) for path in parts(chart, "path") if path.attrib["class"] == f"s{colour}"]


def test_a_line_passes_through_its_points() -> None:
    x, y = [0.0, 1.0, 2.0, 4.0], [0.0, 10.0, 5.0, 20.0]
    (curve,) = curves(line_chart([LineSeries("a", x, y)]))
    for axis, values in ((0, x), (1, y)):
        slope, offset = np.polyfit(values, curve[:, axis], 1)
        assert np.abs(np.array(values) * slope + offset - curve[:, axis]).max() < 0.11  # coordinates have one decimal
        assert (slope > 0) == (axis == 0)  # y grows upwards


def test_a_logarithmic_axis_spaces_powers_of_ten_evenly_and_leaves_out_what_has_no_logarithm() -> None:
    chart = line_chart([LineSeries("a", [1, 10, 100, 1000], [1, 0.1, 0.01, 0.0])], Axis(is_log=True), Axis(is_log=True))
    (curve,) = curves(chart)
    assert len(curve) == 3
    assert np.ptp(np.diff(curve[:, 0])) < 0.21
    assert np.ptp(np.diff(curve[:, 1])) < 0.21


def test_values_that_are_not_finite_interrupt_a_line() -> None:
    chart = line_chart([LineSeries("a", [0, 1, 2, 3, 4, 5], [1, 2, math.nan, 4, math.inf, 6])])
    assert [len(curve) for curve in curves(chart)] == [2]
    assert len(parts(chart, "circle")) == 2  # 4 and 6 stand alone


def test_a_band_lies_between_its_bounds() -> None:
    chart = line_chart([LineSeries("a", [0, 1, 2], [5, 5, 5], low=[4, 3, 4], high=[6, 7, 6])], y=Axis(low=0, high=10))
    (band,) = [points(path) for path in parts(chart, "path") if path.attrib["class"].startswith("band")]
    (line,) = curves(chart)
    assert len(band) == 6
    per_unit = (band[4, 1] - band[1, 1]) / 4  # at x = 1 from 7 down to 3
    assert band[1, 1] == pytest.approx(line[1, 1] - 2 * per_unit, abs=0.2)
    assert band[4, 1] == pytest.approx(line[1, 1] + 2 * per_unit, abs=0.2)


@pytest.mark.parametrize("lines", [[], [LineSeries("a", [], [])], [LineSeries("a", [1], [math.nan])]])
def test_without_values_the_chart_says_so(lines: list[LineSeries]) -> None:
    assert texts(line_chart(lines))[-1:] == ["no values"]


def test_a_single_or_constant_value_is_drawn() -> None:
    assert len(parts(line_chart([LineSeries("a", [3], [7])]), "circle")) == 1
    (curve,) = curves(line_chart([LineSeries("a", [1, 2], [5, 5])]))
    assert curve[0, 1] == curve[1, 1]


def test_long_curves_are_thinned_but_keep_every_extreme_and_both_ends() -> None:
    generator = np.random.default_rng(0)
    y = generator.normal(size=200_000)
    y[123_456], y[77], y[150_000] = 40.0, -50.0, math.nan
    kept = decimate(range(len(y)), y.tolist(), 640)
    assert len(kept) <= 5 * 640
    assert {0, 77, 123_456, 150_000, len(y) - 1} <= set(kept)
    assert kept == sorted(set(kept))
    chart = line_chart([LineSeries("loss", list(range(len(y))), y.tolist())])
    assert len(chart) < 100_000
    everything = np.concatenate(curves(chart))
    height = np.polyfit([40.0, -50.0], [everything[:, 1].min(), everything[:, 1].max()], 1)
    assert height[0] < 0


def test_short_curves_are_kept_whole() -> None:
    assert decimate(range(100), list(map(float, range(100))), 25) == list(range(100))


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_are_round_rising_and_inside(low: float, size: float) -> None:
    high = low + size
    if not high > low or size < 1e-9 * abs(low):
        return
    found = ticks(low, high)
    assert found == sorted(found)
    assert len(found) <= 12
    assert all(low - 1e-6 * size <= mark <= high + 1e-6 * size for mark in found)
    if len(found) > 1:
        step = found[1] - found[0]
        first_digit = f"{step:.6e}"[0]
        assert first_digit in "125" or f"{step:.1e}"[:3] in ("1.0", "2.0", "5.0")


def test_ticks_of_known_ranges() -> None:
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert ticks(0.13, 0.52) == [0.2, 0.3, 0.4, 0.5]
    assert ticks(-1e-7, 1e-7, 5) == [-1e-7, -5e-8, 0, 5e-8, 1e-7]
    assert ticks(3, 3) == [3]


def test_a_scale_reaches_from_tick_to_tick_and_keeps_given_ends() -> None:
    assert (make_scale([0.3, 9.2], Axis()).low, make_scale([0.3, 9.2], Axis()).high) == (0, 10)
    given_ends = make_scale([0.3, 9.2], Axis(low=0.5, high=3))
    assert (given_ends.low, given_ends.high) == (0.5, 3)
    assert given_ends(0.5) == 0
    assert given_ends(3) == 1
    log = make_scale([3, 5000], Axis(is_log=True))
    assert (log.low, log.high) == (1, 10_000)
    assert log(100) == pytest.approx(0.5)


def test_bars_are_as_high_as_their_values_and_whiskers_as_long_as_their_intervals() -> None:
    chart = bar_chart(["x", "y"], [Bars("one", [10, 5], [8, 4], [12, 7])], Axis(low=0, high=20))
    first, second = [rect for rect in parts(chart, "rect") if rect.attrib["class"] == "f0"]
    assert float(first.attrib["height"]) == pytest.approx(2 * float(second.attrib["height"]), abs=0.2)
    whiskers = [path.attrib["d"] for path in parts(chart, "path") if path.attrib["class"] == "whisker"]
    low, high = (float(value) for value in re.match(r"M[\d.]+ ([\d.]+)V([\d.]+)", whiskers[0]).groups())  # type: ignore[union-attr]
    per_unit = float(first.attrib["height"]) / 10
    assert low - high == pytest.approx(4 * per_unit, abs=0.2)
    assert texts(chart)[-2:] == ["x", "y"]


def test_negative_bars_hang_from_zero_and_unknown_ones_say_so() -> None:
    chart = bar_chart(["a", "b", "c"], [Bars("", [-2.0, 2.0, math.nan])], Axis(low=-4, high=4))
    down, up = [rect for rect in parts(chart, "rect") if rect.attrib["class"] == "f0"]
    assert float(up.attrib["y"]) + float(up.attrib["height"]) == pytest.approx(float(down.attrib["y"]), abs=0.2)
    assert "n/a" in texts(chart)


def test_several_series_stand_side_by_side_with_a_legend() -> None:
    chart = bar_chart(["a"], [Bars("seen", [1]), Bars("blind", [2])])
    lefts = [float(rect.attrib["x"]) for rect in parts(chart, "rect") if float(rect.attrib["height"]) > 8]
    assert lefts == sorted(lefts)
    assert len(set(lefts)) == 2
    assert {"seen", "blind"} <= set(texts(chart))


def test_marks_cross_a_line_chart_at_their_values_of_x() -> None:
    chart = line_chart([LineSeries("", [0.0, 10.0], [1.0, 2.0])], marks={"tune": 5.0})
    curve = next(path.attrib["d"] for path in parts(chart, "path") if path.attrib["class"] == "s0")
    left, right = (float(point.split()[0]) for point in curve[1:].replace("L", "M").split("M"))
    [mark] = [float(path.attrib["d"][1:].split()[0]) for path in parts(chart, "path") if path.attrib["class"] == "s1"]
    assert mark == pytest.approx((left + right) / 2, abs=0.11)
    assert "tune" in chart


def test_a_histogram_has_a_bar_for_each_bin_and_marks_between_edges() -> None:
    chart = histogram([0, 1, 10, 100], [5, 0, 10], "tokens", marks={"median": 10, "limit": 1000})
    heights = [float(rect.attrib["height"]) for rect in parts(chart, "rect")]
    assert heights[1] == 0
    assert heights[2] == pytest.approx(2 * heights[0], abs=0.2)
    titles = [element.findtext(SPACE + "title") for element in parts(chart, "rect")]
    assert titles == ["0 to 1: 5", "1 to 10: 0", "10 to 100: 10"]
    left = [float(rect.attrib["x"]) for rect in parts(chart, "rect")]
    marks = [float(path.attrib["d"][1:].split()[0]) for path in parts(chart, "path") if path.attrib["class"] == "s1"]
    assert marks[0] == pytest.approx(left[2])
    assert marks[1] > left[2]
    assert {"median", "limit", "tokens"} <= set(texts(chart))


def test_places_among_growing_bins() -> None:
    edges = [0, 1, 10, 100]
    assert [between(edges, value) for value in (-5, 0, 0.5, 1, 5.5, 55, 1000)] == [0, 0, 0.5, 1, 1.5, 2.5, 3]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (0.25, "0.25"), (1200, "1,200"), (30_000, "30k"), (2_500_000, "2.5M"), (7e9, "7G"), (2e-5, "2e-05"), (-0.5, "-0.5")],
)
def test_numbers_on_axes_are_short(value: float, shown: str) -> None:
    assert short(value) == shown


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="line 'a': 2 x, 1 y"):
        line_chart([LineSeries("a", [1, 2], [1])])
    with pytest.raises(ValueError, match="1 values for 2 categories"):
        bar_chart(["a", "b"], [Bars("s", [1])])
    with pytest.raises(ValueError, match="2 counts need 3 rising edges"):
        histogram([0, 1], [1, 2])
    with pytest.raises(ValueError, match="rising edges"):
        histogram([0, 2, 1], [1, 2])


def test_names_cannot_become_markup() -> None:
    evil = "</text><script>alert(1)</script>"
    charts = [
        line_chart([LineSeries(evil, [1, 2], [1, 2], is_marked=True)], Axis(evil), Axis(evil), title=evil),
        bar_chart([evil], [Bars(evil, [1], [0], [2]), Bars("b", [1])], title=evil),
        histogram([0, 1], [1], evil, evil, {evil: 0.5}, evil),
    ]
    for chart in charts:
        assert parts(chart, "script") == []
        assert any(evil[:10] in text for text in texts(chart))


def test_a_standalone_chart_is_xml_with_its_own_colours_for_light_and_dark() -> None:
    made = standalone(line_chart([LineSeries("a", [1, 2], [1, 2])], title="Loss"))
    root = ElementTree.fromstring(made)
    assert root.tag == SPACE + "svg"
    style = root.findtext(SPACE + "style") or ""
    assert "--c0" in style
    assert "prefers-color-scheme: dark" in style
    assert ".chart .s0" in style
    assert "url(" not in style
