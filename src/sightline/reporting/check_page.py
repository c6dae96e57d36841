"""The page of `data check`: its report in sentences, tables, charts and images."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sightline.data.check.duplicates import ALIKE, Duplicates, Pair
from sightline.data.check.figures import Spread
from sightline.data.check.report import DataReport, TrainingFigures
from sightline.data.check.rows import RowSummary
from sightline.data.check.run import Fault, Listed
from sightline.data.images.reader import ImageLocation
from sightline.reporting import check_tables, html
from sightline.reporting.check_tables import CheckTable, percent
from sightline.reporting.gain_page import low_texts
from sightline.reporting.html import Column, Html, Section
from sightline.reporting.plots import Axis, Bars, bar_chart, histogram

SHOWN_FAULTS, SHOWN_PAIRS = 24, 8
LISTED_FAULTS = 100
MAX_TEXT = 200

Thumbnails = Mapping[ImageLocation, bytes]


@dataclass(frozen=True)
class ExampleRecord:
    """A record to look at: its texts and its first image."""

    texts: tuple[str, ...]
    image: bytes


def shown_locations(report: DataReport) -> Iterator[ImageLocation]:
    """Yields the images that the page shows."""
    for listed in (report.checked.bad, report.checked.odd):
        for fault in listed.first[:SHOWN_FAULTS]:
            if fault.has_image:
                yield fault.location
    for line in report.gain.lowest[:SHOWN_FAULTS] if report.gain is not None else ():
        yield ImageLocation(line.folder, line.record, line.image)
    for _, _, pairs in _shown_pairs(report.checked.duplicates):
        for pair in pairs:
            yield pair.a
            yield pair.b


def _shown_pairs(duplicates: Duplicates) -> Iterator[tuple[str, str, list[Pair]]]:
    """Yields kind, place and pairs; within a split, records of one image are usual and only similar images count."""
    for kind in ("images", "records"):
        for overlap in duplicates.between[kind]:
            if overlap.pairs:
                yield kind, f"{overlap.a} and {overlap.b}", overlap.pairs[:SHOWN_PAIRS]
        for repeats in duplicates.within[kind]:
            pairs = [pair for pair in repeats.pairs if kind != "images" or not pair.is_exact]
            if pairs:
                yield kind, f"within {repeats.place}", pairs[:SHOWN_PAIRS]


def check_page(report: DataReport, thumbnails: Thumbnails, examples: Sequence[ExampleRecord], version: str) -> str:
    """Returns the HTML page.

    Args:
        report: everything that was found.
        thumbnails: small copies of those at `shown_locations`, as far as they can be shown.
        examples: records to look at.
        version: of this package.
    """
    checked, training, gain = report.checked, report.training, report.gain
    names = ", ".join(folder.path for folder in checked.folders)
    bad = html.join([_count_table("reason", "records", checked.bad), _faults(checked.bad, thumbnails)])
    odd = html.join([_count_table("what", "images", checked.odd), _faults(checked.odd, thumbnails)])
    low = [] if gain is None else [Section("Texts that their images support least", low_texts(gain, thumbnails, SHOWN_FAULTS))]
    sections = [
        Section("In plain words", html.join(_remarks(report))),
        *([Section("Some records", _examples(examples))] if examples else []),
        *([Section("Records that cannot be used", bad)] if checked.bad.first else []),
        *([Section("Odd images", odd)] if checked.odd.first else []),
        *low,
        Section("What stands twice", _duplicates(report, thumbnails)),
        Section("Images and texts", _figures(report)),
        *([Section("Answers", _labels(report))] if checked.records.labels else []),
        *([Section("In training", _training(training))] if training is not None else []),
        Section("Folders", _folders(report), is_open=False),
    ]
    return html.page(f"Data check: {names}", sections, lead=_tiles(report), footer=f"Made by sightline {version}, data check.")


def _tiles(report: DataReport) -> Html:
    checked = report.checked
    values: dict[str, html.Node] = {
        "records": checked.input,
        "can be used": checked.input - checked.num_bad,
        "cannot": checked.num_bad,
        "images": checked.images.files,
    }
    for kind in ("captions", "conversations"):
        if kind in checked.records.records_with:
            spread = checked.records.spreads.get("captions_per_record") if kind == "captions" else None
            values[kind] = spread.sum if spread else checked.records.records_with[kind]
    values |= {f"in {split}": count for split, count in checked.splits.items()}
    return html.tiles(values)


def _remarks(report: DataReport) -> Iterator[Html]:
    for text in report.warnings:
        yield html.note(text, "bad" if "cannot be used" in text or "also stand in" in text else "note")
    if not report.warnings:
        yield html.note("Nothing to warn of.", "good")
    if not report.checked.options.check_hash:
        yield html.paragraph("Files were not compared with their stored hashes; --check-hash does it.")


def _examples(examples: Sequence[ExampleRecord]) -> Html:
    return html.gallery(html.figure(_image(example.image, ""), _lines(example.texts)) for example in examples)


def _lines(texts: Sequence[str]) -> Html:
    return html.join(html.element("div", html.revealed(_short(text)), attributes={"dir": "auto"}) for text in texts)


def _short(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "\u2026"


def _image(data: bytes, alt: str) -> Html:
    return html.image(data, alt, width=None)


# Faults ---------------------------------------------------------------------------------------------------------------------


def _count_table(what: str, number: str, listed: Listed) -> Html:
    return html.table([what, Column(number, "right")], listed.counts.most_common())


def _faults(listed: Listed, thumbnails: Thumbnails) -> Html:
    return html.join([html.gallery(_shown_faults(listed.first[:SHOWN_FAULTS], thumbnails)), _list(listed)])


def _shown_faults(faults: Sequence[Fault], thumbnails: Thumbnails) -> Iterator[Html]:
    for fault in faults:
        if fault.has_image:
            data = thumbnails.get(fault.location)
            lost = html.element("div", "cannot be shown", attributes={"class": "faint"})
            yield html.figure(lost if data is None else _image(data, fault.id), f"{fault.id}: {fault.reason}")


def _list(listed: Listed) -> Html:
    shown = listed.first[:LISTED_FAULTS]
    rows = [(fault.id or f"record {fault.location.record}", fault.split, fault.reason, fault.detail) for fault in shown]
    more = listed.counts.total() - len(shown)
    note = html.paragraph(f"{more:,} more are not listed here; --list FILE writes them all.") if more else None
    return html.join([html.table(["id", "split", "reason", "detail"], rows), note])


def _drawn(table: CheckTable) -> Html | None:
    heads = [table.heads[0], *(Column(head, "right") for head in table.heads[1:])]
    return html.table(heads, table.rows, table.title) if table.rows else None


# Duplicates -----------------------------------------------------------------------------------------------------------------


def _duplicates(report: DataReport, thumbnails: Thumbnails) -> Html:
    found = report.checked.duplicates
    if found.near_bits is None:
        rule = "Only equal files were looked for."
    else:
        near = f"their hashes differ in at most {found.near_bits} of 64 bits and their thumbnails correlate by {ALIKE}"
        rule = f"Images are alike when {near} or more."
    parts: list[html.Node] = [html.paragraph(rule), _drawn(check_tables.overlaps(report)), _drawn(check_tables.repeats(report))]
    for kind, where, pairs in _shown_pairs(found):
        what = "Images" if kind == "images" else "Records with the same images and texts"
        figures = [_pair(pair, kind, report, thumbnails) for pair in pairs]
        parts += [html.element("h3", f"{what}: {where}"), html.element("div", *figures, attributes={"class": "gallery wide"})]
    return html.join(parts)


def _pair(pair: Pair, kind: str, report: DataReport, thumbnails: Thumbnails) -> Html:
    ids = [report.checked.name(location) for location in (pair.a, pair.b)]
    shown = [
        _image(thumbnails[location], name) for location, name in zip((pair.a, pair.b), ids, strict=True) if location in thumbnails
    ]
    how = "same file" if pair.is_exact else f"{pair.bits} bits apart, likeness {pair.similarity:.3f}"
    caption = html.join([" and ".join(ids), html.element("br"), how if kind == "images" else None])
    return html.figure(html.element("div", *shown, attributes={"class": "pair"}), caption)


# Numbers --------------------------------------------------------------------------------------------------------------------

_TITLES = {
    "images_per_record": "images a record",
    "captions_per_record": "captions a record",
    "caption_words": "words a caption",
    "turns_per_conversation": "turns a conversation",
    "question_words": "words of a question",
    "answer_words": "words of an answer",
}


def _figures(report: DataReport) -> Html:
    images, records = report.checked.images, report.checked.records
    found = {
        "width of the images in pixels": images.width,
        "height of the images in pixels": images.height,
        "width over height": images.aspect,
        **{title: records.spreads.get(name) for name, title in _TITLES.items()},
    }
    charts = [_histogram(one, title) for title, one in found.items() if one is not None and one.min < one.max]
    return html.join([_drawn(check_tables.spreads(report)), html.columns(*charts)])


def _histogram(spread: Spread, title: str, marks: Mapping[str, float] | None = None) -> Html:
    return html.figure(histogram(spread.histogram.edges, spread.histogram.counts, title, marks=marks, title=title))


def _labels(report: DataReport) -> Html:
    parts: list[html.Node] = []
    for split, own in report.checked.records.labels.items():
        summary = f"{split}: {own.distinct:,} different answers to {own.records:,} questions"
        guess = f"{own.majority!r} is right for {percent(own.majority_share)} of them."
        answers, counts = list(own.most_frequent), list(own.most_frequent.values())
        chart = bar_chart(answers[:12], [Bars(split, counts[:12])], Axis("records"), f"Most frequent answers of {split}")
        parts.append(html.element("div", html.paragraph(f"{summary}; {guess}"), html.figure(chart)))
    return html.columns(*parts, narrowest=30)


# Training -------------------------------------------------------------------------------------------------------------------


def _training(training: TrainingFigures) -> Html:
    model = training.model
    facts = {
        "recipe": model["recipe"],
        "vocabulary": model["vocabulary"],
        "template": model["template"],
        "supervised": model["supervise"],
    }
    if model["grid"] is not None:
        rows, columns = model["grid"]
        height, width = model["image_size"]
        facts["a crop"] = f"{width} x {height} pixels, {rows} x {columns} = {model['tokens_per_crop']} visual tokens"
    conversations, epochs = check_tables.training_tables(training)
    parts: list[html.Node] = [html.facts(facts), _drawn(conversations)]
    for name, rows in training.rows.items():
        parts += [html.element("h3", f"Rows of {name}"), _row_charts(rows)]
        if rows.left_out:
            listed = [(item.id, item.conversation, item.reason, item.detail) for item in rows.left_out]
            parts.append(html.table(["id", Column("conversation", "right"), "reason", "detail"], listed, "Left out"))
    if epochs.rows:
        parts += [html.element("h3", "An epoch"), _drawn(epochs)]
    return html.join(parts)


def _row_charts(rows: RowSummary) -> Html:
    charts = []
    spreads = {"tokens a conversation": rows.tokens, "supervised tokens": rows.supervised, "tokens a sample": rows.sample_tokens}
    for title, spread in spreads.items():
        if spread is not None and spread.min < spread.max:
            limit = {"max_tokens": float(rows.max_tokens)} if spread is rows.tokens and rows.too_long else {}
            charts.append(_histogram(spread, title, {"median": spread.median, **limit}))
    return html.columns(*charts)


def _folders(report: DataReport) -> Html:
    checked = [
        html.facts(
            {
                "folder": folder.path,
                "records": folder.input,
                "splits": ", ".join(f"{name} {count:,}" for name, count in folder.splits.items()),
                "licence": folder.licence or "not stated",
                "fingerprint": folder.fingerprint,
                "prepared from": f"{folder.prepared.get('input', 0):,} records, {folder.prepared.get('ok', 0):,} kept",
            }
        )
        for folder in report.checked.folders
    ]
    others = [html.facts({"compared with": other.path, "records": other.records}) for other in report.checked.against]
    return html.join([*checked, *others])
