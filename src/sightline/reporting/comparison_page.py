"""The page of a comparison: verdicts first, then scores, controls, differences, items, curves, costs and settings."""

import json

from sightline.reporting import html
from sightline.reporting.comparison import (
    Comparison,
    Grid,
    ItemCard,
    Table,
    ladder_grid,
    pair_grid,
    score_grid,
    sentences,
    shown,
    table_note,
)
from sightline.reporting.html import Html, Node
from sightline.reporting.plots import line_chart
from sightline.reporting.scales import Axis

IMAGE_WIDTH = 200


def comparison_page(comparison: Comparison) -> str:
    """Returns the page as text; it needs nothing but itself."""
    lead = html.join(
        [html.note(sentence.text, sentence.tone) for sentence in sentences(comparison)]
        + [html.note(note) for note in comparison.notes]
    )
    named = zip(comparison.tables, comparison.table_names(), strict=True)
    sections = [section for table, name in named for section in _sections(table, name)]
    if comparison.curves:
        charts = [
            html.figure(line_chart(lines, Axis("optimiser step"), Axis(title, is_log="loss" in title)), title)
            for title, lines in comparison.curves.items()
        ]
        sections.append(html.Section("Training", html.columns(*charts, narrowest=26)))
    sections += [html.Section(grid.title, _grid(grid)) for grid in comparison.grids]
    facts = {name.replace("_", " "): value for name, value in comparison.facts.items() if isinstance(value, str | int | float)}
    if facts:
        sections.append(html.Section("Facts", html.facts(facts)))
    return html.page(comparison.title, sections, lead, has_script=True)


def _sections(table: Table, name: str) -> list[html.Section]:
    def titled(title: str) -> str:
        return f"{title}: {name}" if name else title

    scores = [html.paragraph(f"{table.title}. {table_note(table)}"), html.table(*score_grid(table), is_sortable=True)]
    ladder = ladder_grid(table)
    scores += [html.table(*ladder, is_sortable=True)] if ladder is not None else []
    scores += [html.figure(chart) for chart in table.charts.values()]
    sections = [html.Section(titled(f"Scores, {table.label}"), html.join(scores))]
    if table.pairs:
        sections.append(html.Section(titled("Differences"), html.table(*pair_grid(table), is_sortable=True)))
    if table.items:
        sections.append(html.Section(titled("Where the models differ"), _items(table)))
    return sections


def _grid(grid: Grid) -> Html:
    return html.join([html.paragraph(grid.note) if grid.note else None, html.table(grid.heads, grid.rows, is_sortable=True)])


def _items(table: Table) -> Html:
    names = [row.name for row in table.rows if any(row.name in item.scores for item in table.items)]
    cards = (_card(table, item, names) for item in table.items)
    attributes = {"class": "gallery wide", "data-models": json.dumps(names)}
    return html.join([html.paragraph(_ITEMS), html.element("div", *cards, attributes=attributes)])


_ITEMS = "The records on which scores lie furthest apart, a few for each pair: they show how models differ, not how often."


def _card(table: Table, item: ItemCard, names: list[str]) -> Html:
    best = max(item.scores.values(), key=table.quality)
    lines: list[Node] = [html.element("div", f"right: {text}") for text in item.references]
    for name in names:
        if name in item.scores:
            answer = item.answers.get(name) or "(nothing)"
            score = html.element("span", f" {shown(table.info, item.scores[name])}", attributes={"class": "faint"})
            said = html.element("strong", answer) if item.scores[name] == best else answer
            lines.append(html.element("div", html.element("span", f"{name}: ", attributes={"class": "faint"}), said, score))
    lines.append(html.element("div", html.element("small", item.record)))
    image = html.image(item.image, item.references[0] if item.references else item.record, IMAGE_WIDTH) if item.image else None
    quality = json.dumps([table.quality(item.scores[name]) if name in item.scores else None for name in names])
    caption = html.element("figcaption", *lines, attributes={"dir": "auto"})
    return html.element("figure", image, caption, attributes={"data-quality": quality})
