"""Charts as SVG, without a drawing library: lines with intervals, bars, histograms.

A chart is `Html` for `sightline.reporting.html`; it takes its colours from the page and so suits light and dark screens.
`standalone` makes a file of its own of it, for docs. Long curves are thinned so that no peak is lost.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from sightline.reporting.html import Html, element, style_sheet
from sightline.reporting.scales import PLAIN, Scale, between, decimate, make_scale, short
from sightline.reporting.scales import Axis as Axis

WIDTH, HEIGHT = 640, 300
COLOURS = 8  # --c0 to --c7 in page.css
DASHES = ("", "6 3", "2 2", "8 3 2 3")  # lines of one colour are distinguished by these
_TEXT_WIDTH = 6.3  # of a character at 11 px, on average


@dataclass(frozen=True)
class LineSeries:
    """A curve. Values that are not finite interrupt it.

    Attributes:
        name: for the legend.
        x, y: its points, in the order of x.
        low, high: the band around it; both or none.
        colour: number of its colour; by default its place in the chart.
        is_marked: dots at its points.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    colour: int | None = None
    is_marked: bool = False


@dataclass(frozen=True)
class Bars:
    """One series of a bar chart: a value for each category, with intervals if they are known."""

    name: str
    values: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


# Charts ---------------------------------------------------------------------------------------------------------------------


def line_chart(
    lines: Sequence[LineSeries],
    x: Axis = PLAIN,
    y: Axis = PLAIN,
    title: str = "",
    width: int = WIDTH,
    height: int = HEIGHT,
    marks: Mapping[str, float] | None = None,
) -> Html:
    """Curves over a common axis.

    Args:
        lines: the curves.
        x, y: the axes.
        title: for those who cannot see the chart.
        width, height: in pixels, before the chart is fitted to the page.
        marks: named values of x, drawn as lines across.

    Raises:
        ValueError: a line has not as many x as y, or a band of another length.
    """
    for line in lines:
        if len(line.x) != len(line.y) or any(band and len(band) != len(line.y) for band in (line.low, line.high)):
            raise ValueError(f"line {line.name!r}: {len(line.x)} x, {len(line.y)} y, band of {len(line.low)} and {len(line.high)}")
    seen = [_visible(line, x, y) for line in lines]
    xs = [value for line in seen for value in line.x]
    ys = [value for line in seen for value in (*line.y, *line.low, *line.high) if math.isfinite(value)]
    names = [line.name for line in lines]
    room = 14 if marks else 0
    frame = _Frame(width, height, make_scale(xs, x), make_scale(ys, y), x.label, y.label, names, headroom=room)
    if not ys:
        return frame.drawn([_text(frame.left + frame.inner_width / 2, frame.middle, "no values", "middle")], title)
    drawn = [part for place, line in enumerate(seen) for part in _curve(frame, line, _colour(line, place), place)]
    crossing = [part for name, at in (marks or {}).items() for part in _mark(frame, name, frame.x(at), frame.top - 4)]
    legend = frame.legend([_colour(line, place) for place, line in enumerate(seen)])
    return frame.drawn([*frame.axes(), *crossing, *drawn, *legend], title)


def bar_chart(
    categories: Sequence[str], series: Sequence[Bars], y: Axis = PLAIN, title: str = "", width: int = WIDTH, height: int = HEIGHT
) -> Html:
    """Bars side by side for each category, with whiskers where intervals are given; a linear axis begins at 0.

    Raises:
        ValueError: a series has not one value for each category.
    """
    for bars in series:
        if any(values and len(values) != len(categories) for values in (bars.values, bars.low, bars.high)) or not bars.values:
            raise ValueError(f"series {bars.name!r}: {len(bars.values)} values for {len(categories)} categories")
    ys = [value for bars in series for value in (*bars.values, *bars.low, *bars.high) if math.isfinite(value)]
    scale = make_scale([0.0, *ys] if not y.is_log else ys, y)
    names = [bars.name for bars in series] if len(series) > 1 else []
    frame = _Frame(width, height, Scale(0, max(len(categories), 1), False, ()), scale, "", y.label, names)
    slot = frame.inner_width / max(len(categories), 1)
    size = min(slot * 0.8 / max(len(series), 1), 60.0)
    parts: list[Html] = []
    for place, category in enumerate(categories):
        centre = frame.left + slot * (place + 0.5)
        parts.append(_text(centre, frame.bottom + 16, _shortened(category, slot), "middle", full=category))
        for index, bars in enumerate(series):
            left = centre + (index - len(series) / 2) * size
            parts += _bar(frame, bars, place, left, size, index % COLOURS, category)
    return frame.drawn([*frame.axes(), *parts, *frame.legend([index % COLOURS for index in range(len(series))])], title)


def histogram(
    edges: Sequence[float],
    counts: Sequence[int],
    x: str = "",
    y: str = "",
    marks: Mapping[str, float] | None = None,
    title: str = "",
    width: int = 420,
    height: int = 220,
) -> Html:
    """Counts between edges; every bar is of the same width, whatever its edges, so that bins may grow.

    Args:
        edges: one more than counts, rising.
        counts: how many lie between two edges.
        x, y: labels of the axes.
        marks: named places, drawn as lines across.

    Raises:
        ValueError: edges and counts do not fit.
    """
    if len(edges) != len(counts) + 1 or any(a >= b for a, b in pairwise(edges)):
        raise ValueError(f"{len(counts)} counts need {len(counts) + 1} rising edges, got {len(edges)}")
    places, amounts = Scale(0, max(len(counts), 1), False, ()), make_scale([0.0, *map(float, counts)], PLAIN)
    amounts = replace(amounts, ticks=[mark for mark in amounts.ticks if float(mark).is_integer()])
    frame = _Frame(width, height, places, amounts, x, y, headroom=14 * len(marks or {}))
    step = frame.inner_width / max(len(counts), 1)
    parts: list[Html] = []
    for place, count in enumerate(counts):
        top = frame.y(count)
        shape = {
            "x": _n(frame.left + place * step),
            "y": _n(top),
            "width": _n(max(step - 1, 0.5)),
            "height": _n(frame.bottom - top),
        }
        tip = element("title", f"{short(edges[place])} to {short(edges[place + 1])}: {count:,}")
        parts.append(element("rect", tip, attributes={**shape, "class": "f0"}))
    every = max(1, math.ceil((len(counts) + 1) * 34 / max(frame.inner_width, 1)))
    for place in range(0, len(edges), every):
        parts.append(_text(frame.left + place * step, frame.bottom + 16, short(edges[place]), "middle"))
    for row, (name, value) in enumerate((marks or {}).items()):
        parts += _mark(frame, name, frame.left + step * between(edges, value), 14 + 14 * row)
    return frame.drawn([*frame.axes(), *parts], title)


def _mark(frame: "_Frame", name: str, at: float, baseline: float) -> list[Html]:
    """Returns a named line across a chart, with the name on the side that has room."""
    is_right = at > frame.left + frame.inner_width * 0.6
    label = _text(at - 4 if is_right else at + 4, baseline, name, "end" if is_right else "start")
    return [_path(f"M{_n(at)} {_n(baseline - 8)}V{_n(frame.bottom)}", "s1", dash="4 3"), label]


def standalone(chart: Html) -> str:
    """Returns a chart as an SVG file that needs no page."""
    style = element("style", Html(_palette()))
    return '<?xml version="1.0" encoding="utf-8"?>\n' + chart.replace(">", f' xmlns="http://www.w3.org/2000/svg">{style}', 1) + "\n"


# Drawing --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Frame:
    """The rectangle that data is drawn in, with what stands around it."""

    width: int
    height: int
    x_scale: Scale
    y_scale: Scale
    x_label: str
    y_label: str
    names: Sequence[str] = ()
    headroom: int = 0

    @property
    def left(self) -> float:
        longest = max((len(short(mark)) for mark in self.y_scale.ticks), default=1)
        return 12 + longest * _TEXT_WIDTH + (16 if self.y_label else 0)

    @property
    def top(self) -> float:
        return 12 + 18 * len(self._legend_rows()) + self.headroom

    @property
    def bottom(self) -> float:
        return self.height - (40 if self.x_label else 24)

    @property
    def inner_width(self) -> float:
        return self.width - self.left - 14

    @property
    def middle(self) -> float:
        return (self.top + self.bottom) / 2

    def x(self, value: float) -> float:
        return self.left + self.x_scale(value) * self.inner_width

    def y(self, value: float) -> float:
        return self.bottom - self.y_scale(value) * (self.bottom - self.top)

    def axes(self) -> list[Html]:
        parts = []
        for mark in self.y_scale.ticks:
            at = _n(self.y(mark))
            parts.append(_path(f"M{_n(self.left)} {at}H{_n(self.left + self.inner_width)}", "rule"))
            parts.append(_text(self.left - 6, float(at) + 4, short(mark), "end"))
        for mark in self.x_scale.ticks:
            parts.append(_path(f"M{_n(self.x(mark))} {_n(self.bottom)}v4", "axis"))
            parts.append(_text(self.x(mark), self.bottom + 16, short(mark), "middle"))
        parts.append(_path(f"M{_n(self.left)} {_n(self.bottom)}H{_n(self.left + self.inner_width)}", "axis"))
        if self.x_label:
            parts.append(_text(self.left + self.inner_width / 2, self.height - 6, self.x_label, "middle"))
        if self.y_label:
            parts.append(_text(12, self.middle, self.y_label, "middle", turn=True))
        return parts

    def legend(self, colours: Sequence[int]) -> list[Html]:
        parts = []
        for row, names in enumerate(self._legend_rows()):
            at = self.left
            for place in names:
                parts.append(
                    element(
                        "rect",
                        attributes={"x": _n(at), "y": 5 + 18 * row, "width": 12, "height": 8, "class": f"f{colours[place]}"},
                    )
                )
                parts.append(_text(at + 16, 13 + 18 * row, self.names[place], "start"))
                at += 30 + len(self.names[place]) * _TEXT_WIDTH
        return parts

    def _legend_rows(self) -> list[list[int]]:
        rows: list[list[int]] = []
        room = 0.0
        for place, name in enumerate(self.names):
            need = 30 + len(name) * _TEXT_WIDTH
            if not rows or need > room:
                rows.append([])
                room = self.width - 60.0
            rows[-1].append(place)
            room -= need
        return rows if any(self.names) else []

    def drawn(self, parts: Sequence[Html], title: str) -> Html:
        box = {"viewBox": f"0 0 {self.width} {self.height}", "class": "chart", "role": "img", "aria-label": title or "chart"}
        box |= {"style": f"max-width: {1.2 * self.width:.0f}px"}  # letters should not grow with the page
        return element("svg", element("title", title) if title else None, *parts, attributes=box)


def _visible(line: LineSeries, x: Axis, y: Axis) -> LineSeries:
    """Returns the line with the points that can be drawn, thinned to the width of a chart."""
    holds = [place for place, value in enumerate(line.x) if math.isfinite(value) and (value > 0 or not x.is_log)]

    def drawable(values: Sequence[float]) -> list[float]:
        return [values[place] if not y.is_log or values[place] > 0 else math.nan for place in holds] if values else []

    xs, ys, low, high = [line.x[place] for place in holds], drawable(line.y), drawable(line.low), drawable(line.high)
    keep = decimate(xs, ys, WIDTH)

    def thin(values: Sequence[float]) -> list[float]:
        return [values[place] for place in keep] if values else []

    return LineSeries(line.name, thin(xs), thin(ys), thin(low), thin(high), line.colour, line.is_marked)


def _curve(frame: _Frame, line: LineSeries, colour: int, place: int) -> list[Html]:
    parts = []
    for run in _runs(line, lambda i: bool(line.low) and math.isfinite(line.low[i]) and math.isfinite(line.high[i])):
        there = [f"{_n(frame.x(line.x[i]))} {_n(frame.y(line.high[i]))}" for i in run]
        back = [f"{_n(frame.x(line.x[i]))} {_n(frame.y(line.low[i]))}" for i in reversed(run)]
        parts.append(_path("M" + "L".join([*there, *back]) + "Z", f"band f{colour}"))
    dash = DASHES[place // COLOURS % len(DASHES)]
    for run in _runs(line, lambda i: math.isfinite(line.y[i])):
        points = [f"{_n(frame.x(line.x[i]))} {_n(frame.y(line.y[i]))}" for i in run]
        if len(points) > 1:
            parts.append(_path("M" + "L".join(points), f"s{colour}", dash=dash, title=line.name))
        if line.is_marked or len(points) == 1:
            for i in run:
                at = {"cx": _n(frame.x(line.x[i])), "cy": _n(frame.y(line.y[i])), "r": 3, "class": f"f{colour}"}
                title = element("title", f"{line.name} {short(line.x[i])}: {short(line.y[i])}")
                parts.append(element("circle", title, attributes=at))
    return parts


def _runs(line: LineSeries, holds: Callable[[int], bool]) -> list[list[int]]:
    """Returns neighbouring points that hold, in one piece each."""
    runs: list[list[int]] = []
    for i in range(len(line.x)):
        if not holds(i):
            continue
        if runs and runs[-1][-1] == i - 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    return runs


def _bar(frame: _Frame, bars: Bars, place: int, left: float, size: float, colour: int, category: str) -> list[Html]:
    value = bars.values[place]
    if not math.isfinite(value):
        return [_text(left + size / 2, frame.bottom - 4, "n/a", "middle")]
    zero = frame.y(0.0) if not frame.y_scale.is_log and frame.y_scale.low <= 0 <= frame.y_scale.high else frame.bottom
    top = frame.y(value)
    interval = f" ({short(bars.low[place])} to {short(bars.high[place])})" if bars.low and bars.high else ""
    title = element("title", f"{bars.name} {category}: {short(value)}{interval}".strip())
    shape = {"x": _n(left + 1), "y": _n(min(top, zero)), "width": _n(max(size - 2, 1)), "height": _n(abs(zero - top))}
    parts = [element("rect", title, attributes={**shape, "class": f"f{colour}"})]
    if interval:
        middle, low, high = _n(left + size / 2), _n(frame.y(bars.low[place])), _n(frame.y(bars.high[place]))
        parts.append(_path(f"M{middle} {low}V{high}m-4 0h8M{_n(left + size / 2 - 4)} {low}h8", "whisker"))
    return parts


def _colour(line: LineSeries, place: int) -> int:
    return (place if line.colour is None else line.colour) % COLOURS


def _path(data: str, kind: str, dash: str = "", title: str = "") -> Html:
    return element(
        "path", element("title", title) if title else None, attributes={"d": data, "class": kind, "stroke-dasharray": dash}
    )


def _text(x: float, y: float, text: str, anchor: str, turn: bool = False, full: str = "") -> Html:
    turned = f"rotate(-90 {_n(x)} {_n(y)})" if turn else ""
    title = element("title", full) if full and full != text else None
    return element("text", title, text, attributes={"x": _n(x), "y": _n(y), "text-anchor": anchor, "transform": turned})


def _shortened(text: str, room: float) -> str:
    fits = max(2, int(room / _TEXT_WIDTH))
    return text if len(text) <= fits else text[: fits - 1] + "\u2026"


def _n(value: float) -> str:
    """Returns a coordinate with a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0")


def _palette() -> str:
    """Returns the colours of `page.css` and the classes of a chart."""
    style = style_sheet()
    return style[: style.index("* {")] + style[style.index(".chart") : style.index("@media print")]
