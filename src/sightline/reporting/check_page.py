"""The page of `data check`: its report in sentences, tables, charts and pictures."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sightline.reporting import html
from sightline.reporting.gain_page import low_texts
from sightline.reporting.html import Column, Html, Section
from sightline.reporting.plots import Axis, Bars, bar_chart, histogram

SHOWN_FAULTS, SHOWN_PAIRS = 24, 8
LISTED_FAULTS = 100
MAX_TEXT = 200

Spot = tuple[int, int, int]
Report = Mapping[str, Any]
Pictures = Mapping[Spot, bytes]


@dataclass(frozen=True)
class ExampleRecord:
    """A record to look at: its texts and its first picture."""

    texts: tuple[str, ...]
    picture: bytes


def shown_spots(report: Report) -> Iterator[Spot]:
    """The pictures that the page shows, as folder, record and number of the picture."""
    for name in ("bad", "odd_pictures"):
        for fault in report[name][:SHOWN_FAULTS]:
            if fault["image"] is not None:
                yield fault["folder"], fault["record"], fault["image"]
    for line in report["gain"]["lowest"][:SHOWN_FAULTS] if "gain" in report else ():
        yield line["folder"], line["record"], line["image"]
    for kind in ("pictures", "records"):
        for where in ("between", "within"):
            for item in report["duplicates"][kind][where]:
                for pair in _worth_showing(item, kind):
                    yield _spot(pair["a"])
                    yield _spot(pair["b"])


def _worth_showing(item: Mapping[str, Any], kind: str) -> list[Mapping[str, Any]]:
    """Pairs to show: that several records of a split speak of one picture is common, so only pictures alike count there."""
    pairs = [pair for pair in item["pairs"] if kind != "pictures" or "place" not in item or pair["kind"] == "near"]
    return pairs[:SHOWN_PAIRS]


def check_page(report: Report, pictures: Pictures, examples: Sequence[ExampleRecord], version: str) -> str:
    """The page.

    Args:
        report: what `data check --json` prints.
        pictures: small copies of those at `shown_spots`, as far as they can be shown.
        examples: records to look at.
        version: of this package.
    """
    names = ", ".join(folder["path"] for folder in report["folders"])
    sections = [
        Section("In plain words", html.join(_remarks(report))),
        *([Section("Some records", _examples(examples))] if examples else []),
        *([Section("Records that cannot be used", _bad(report, pictures))] if report["bad"] else []),
        *([Section("Odd pictures", _odd(report, pictures))] if report["odd_pictures"] else []),
        *(
            [Section("Texts that their pictures support least", low_texts(report["gain"], pictures, SHOWN_FAULTS))]
            if "gain" in report
            else []
        ),
        Section("What stands twice", _duplicates(report, pictures)),
        Section("Pictures and texts", _figures(report)),
        *([Section("Answers", _labels(report["records"]["labels"]))] if "labels" in report["records"] else []),
        *([Section("In training", _training(report["training"]))] if "training" in report else []),
        Section("Folders", _folders(report), is_open=False),
    ]
    return html.page(f"Data check: {names}", sections, lead=_tiles(report), footer=f"Made by sightline {version}, data check.")


def _tiles(report: Report) -> Html:
    values: dict[str, html.Node] = {
        "records": report["input"],
        "can be used": report["ok"],
        "cannot": sum(report["skipped"].values()),
    }
    values |= {"pictures": report["pictures"]["files"]}
    kinds = report["records"]["records_with"]
    for kind, name in (("captions", "captions"), ("conversations", "conversations")):
        if kind in kinds:
            spread = report["records"].get("captions_per_record") if kind == "captions" else None
            values[name] = spread["sum"] if spread else kinds[kind]
    values |= {f"in {split}": count for split, count in report["splits"].items()}
    return html.tiles(values)


def _remarks(report: Report) -> Iterator[Html]:
    for text in report["warnings"]:
        yield html.note(text, "bad" if "cannot be used" in text or "also stand in" in text else "note")
    if not report["warnings"]:
        yield html.note("Nothing to warn of.", "good")
    if report["hashes"] != "checked":
        yield html.paragraph("Files were not compared with their stored hashes; --check-hash does it.")


def _examples(examples: Sequence[ExampleRecord]) -> Html:
    return html.gallery(html.figure(_picture(example.picture, ""), _lines(example.texts)) for example in examples)


def _lines(texts: Sequence[str]) -> Html:
    return html.join(html.element("div", html.revealed(_short(text)), attributes={"dir": "auto"}) for text in texts)


def _short(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "\u2026"


def _picture(data: bytes, alt: str) -> Html:
    return html.image(data, alt, width=None)


# Faults ---------------------------------------------------------------------------------------------------------------------


def _bad(report: Report, pictures: Pictures) -> Html:
    counts = _count_table("reason", "records", report["skipped"])
    return html.join([counts, _gallery(report["bad"], pictures), _list(report["bad"], report["bad_left_out"])])


def _odd(report: Report, pictures: Pictures) -> Html:
    counts = _count_table("what", "pictures", report["odd"])
    return html.join([counts, _gallery(report["odd_pictures"], pictures), _list(report["odd_pictures"], report["odd_left_out"])])


def _count_table(what: str, number: str, counts: Mapping[str, int]) -> Html:
    return html.table(
        [what, Column(number, "right")], [(name, counts[name]) for name in sorted(counts, key=lambda name: -counts[name])]
    )


def _gallery(faults: Sequence[Mapping[str, Any]], pictures: Pictures) -> Html:
    figures = []
    for fault in faults[:SHOWN_FAULTS]:
        if fault["image"] is not None:
            data = pictures.get((fault["folder"], fault["record"], fault["image"]))
            shown = (
                _picture(data, fault["id"])
                if data is not None
                else html.element("div", "cannot be shown", attributes={"class": "faint"})
            )
            figures.append(html.figure(shown, f"{fault['id']}: {fault['reason']}"))
    return html.gallery(figures)


def _list(faults: Sequence[Mapping[str, Any]], left_out: int) -> Html:
    rows = [
        (fault["id"] or f"record {fault['record']}", fault["split"], fault["reason"], fault["detail"])
        for fault in faults[:LISTED_FAULTS]
    ]
    more = left_out + max(0, len(faults) - LISTED_FAULTS)
    note = html.paragraph(f"{more:,} more are not listed here; --list FILE writes them all.") if more else None
    return html.join([html.table(["id", "split", "reason", "detail"], rows), note])


# Duplicates -----------------------------------------------------------------------------------------------------------------


def _duplicates(report: Report, pictures: Pictures) -> Html:
    found = report["duplicates"]
    parts: list[html.Node] = []
    near = found["near"]
    if near is None:
        parts.append(html.paragraph("Only equal files were looked for."))
    else:
        rule = f"their hashes differ in at most {near['bits']} of 64 bits and their thumbnails correlate by {near['likeness']}"
        parts.append(html.paragraph(f"Pictures are alike when {rule} or more."))
    parts.append(_between(found))
    parts.append(_within(found))
    for kind in ("pictures", "records"):
        for where in ("between", "within"):
            for item in found[kind][where]:
                if _worth_showing(item, kind):
                    parts += _pairs(item, kind, pictures)
    return html.join(parts)


def _between(found: Mapping[str, Any]) -> Html | None:
    rows = []
    for place, texts, records in zip(*(found[kind]["between"] for kind in ("pictures", "texts", "records")), strict=True):
        numbers = (
            place["exact"],
            place["near_b"],
            _percent(place["share_b"]),
            texts["records_b"],
            _percent(texts["share_b"]),
            records["records_b"],
        )
        rows.append((f"{place['b']} in {place['a']}", *numbers))
    heads = [
        "",
        *(
            Column(name, "right")
            for name in ("same picture", "alike", "of its pictures", "same text", "of its records", "same both")
        ),
    ]
    return html.table(heads, rows, "Between splits and folders") if rows else None


def _within(found: Mapping[str, Any]) -> Html | None:
    rows = []
    for place, texts, records in zip(*(found[kind]["within"] for kind in ("pictures", "texts", "records")), strict=True):
        numbers = (
            place["pictures"],
            place["repeated"],
            place["near"],
            texts["repeated"],
            texts["in_records"],
            records["in_records"] - records["repeated"],
        )
        rows.append((place["place"], *numbers))
    names = (
        "pictures",
        "in several records",
        "like another",
        "texts in several records",
        "those records",
        "records that repeat one",
    )
    return html.table(["", *(Column(name, "right") for name in names)], rows, "Within a split") if rows else None


def _pairs(item: Mapping[str, Any], kind: str, pictures: Pictures) -> list[html.Node]:
    where = f"within {item['place']}" if "place" in item else f"{item['a']} and {item['b']}"
    what = "Pictures" if kind == "pictures" else "Records with the same pictures and texts"
    figures = []
    for pair in _worth_showing(item, kind):
        sides = [pictures.get(_spot(pair[side])) for side in ("a", "b")]
        shown = [_picture(data, pair[side]["id"]) for side, data in zip(("a", "b"), sides, strict=True) if data is not None]
        how = "same file" if pair["kind"] == "exact" else f"{pair['bits']} bits apart, likeness {pair['likeness']:.3f}"
        caption = html.join([f"{pair['a']['id']} and {pair['b']['id']}", html.element("br"), how if kind == "pictures" else None])
        figures.append(html.figure(html.element("div", *shown, attributes={"class": "pair"}), caption))
    return [html.element("h3", f"{what}: {where}"), html.element("div", *figures, attributes={"class": "gallery wide"})]


def _spot(end: Mapping[str, Any]) -> Spot:
    return end["folder"], end["record"], end["image"]


# Numbers --------------------------------------------------------------------------------------------------------------------

_SPREADS = (
    ("pictures", "width", "width of the pictures in pixels"),
    ("pictures", "height", "height of the pictures in pixels"),
    ("pictures", "aspect", "width over height"),
    ("records", "images_per_record", "pictures a record"),
    ("records", "captions_per_record", "captions a record"),
    ("records", "caption_words", "words a caption"),
    ("records", "turns_per_conversation", "turns a conversation"),
    ("records", "question_words", "words of a question"),
    ("records", "answer_words", "words of an answer"),
)


def _figures(report: Report) -> Html:
    found = [(report[part].get(name), title) for part, name, title in _SPREADS]
    known = [(spread, title) for spread, title in found if spread is not None]
    return html.join(
        [
            _spread_table(known),
            html.columns(*(_histogram(spread, title) for spread, title in known if spread["min"] < spread["max"])),
        ]
    )


def _spread_table(spreads: Sequence[tuple[Mapping[str, Any], str]]) -> Html:
    heads = ["", *(Column(name, "right") for name in ("number", "least", "mean", "median", "95 %", "most"))]
    rows = [(title, s["n"], s["min"], s["mean"], s["median"], s["p95"], s["max"]) for s, title in spreads]
    return html.table(heads, rows)


def _histogram(spread: Mapping[str, Any], title: str, marks: Mapping[str, float] | None = None) -> Html:
    drawn = spread["histogram"]
    return html.figure(histogram(drawn["edges"], drawn["counts"], title, marks=marks, title=title))


def _labels(labels: Mapping[str, Any]) -> Html:
    parts: list[html.Node] = []
    for split, own in labels.items():
        told = f"{split}: {own['distinct']:,} different answers to {own['records']:,} questions"
        guess = f"{own['majority']!r} is right for {_percent(own['majority_share'])} of them."
        answers, counts = list(own["most_frequent"]), list(own["most_frequent"].values())
        chart = bar_chart(answers[:12], [Bars(split, counts[:12])], Axis("records"), f"Most frequent answers of {split}")
        parts.append(html.element("div", html.paragraph(f"{told}; {guess}"), html.figure(chart)))
    return html.columns(*parts, narrowest=30)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


# Training -------------------------------------------------------------------------------------------------------------------


def _training(training: Mapping[str, Any]) -> Html:
    model = training["model"]
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
    parts: list[html.Node] = [html.facts(facts), _rows_table(training["rows"])]
    for name, rows in training["rows"].items():
        parts += [html.element("h3", f"Rows of {name}"), _row_charts(rows)]
        if rows["left_out"]:
            listed = [(item["id"], item["conversation"], item["reason"], item["detail"]) for item in rows["left_out"]]
            parts.append(html.table(["id", Column("conversation", "right"), "reason", "detail"], listed, "Left out"))
    if training["stages"]:
        parts += [html.element("h3", "An epoch"), _stages_table(training["stages"])]
    return html.join(parts)


def _rows_table(rows: Mapping[str, Any]) -> Html:
    names = (
        "conversations",
        "left out",
        "mean tokens",
        "most",
        "limit",
        "supervised",
        "visual tokens a picture",
        "saved by sharing",
    )
    lines = []
    for name, own in rows.items():
        tokens, visual = own["tokens"], own["visual_tokens_per_image"]
        lines.append(
            (
                name,
                own["conversations"],
                sum(own["skipped"].values()),
                tokens and tokens["mean"],
                own["longest"]["tokens"],
                own["max_tokens"],
                _percent(own["supervised_share"]),
                visual and visual["mean"],
                _percent(own["saved_by_sharing"]),
            )
        )
    return html.table(["", *(Column(name, "right") for name in names)], lines)


def _row_charts(rows: Mapping[str, Any]) -> Html:
    charts = []
    for name, title in (
        ("tokens", "tokens a conversation"),
        ("supervised", "supervised tokens"),
        ("sample_tokens", "tokens a sample"),
    ):
        spread = rows[name]
        if spread is not None and spread["min"] < spread["max"]:
            limit = {"max_tokens": rows["max_tokens"]} if name == "tokens" and rows["too_long"] else {}
            charts.append(_histogram(spread, title, {"median": spread["median"], **limit}))
    return html.columns(*charts)


def _stages_table(stages: Sequence[Mapping[str, Any]]) -> Html:
    names = ("samples", "rows", "of tokens", "fill", "steps an epoch", "steps", "epochs", "padded instead")
    lines = []
    for stage in stages:
        epoch = stage["epoch"]
        if epoch is None:
            lines.append((stage["name"], *["" for _ in names[:-1]], stage["why"]))
            continue
        length = stage["row_tokens"] if stage["pack"] else "padded"
        told = (
            epoch["samples"],
            epoch["rows"],
            length,
            _percent(epoch["fill"]),
            epoch["steps_per_epoch"],
            stage["steps"],
            stage["epochs"],
        )
        lines.append((stage["name"], *told, f"{epoch['padded_over_packed']:.2f} times the places"))
    return html.table(["stage", *(Column(name, "right") for name in names)], lines)


def _folders(report: Report) -> Html:
    checked = [
        html.facts(
            {
                "folder": folder["path"],
                "records": folder["input"],
                "splits": ", ".join(f"{name} {count:,}" for name, count in folder["splits"].items()),
                "licence": folder["licence"] or "not stated",
                "fingerprint": folder["fingerprint"],
                "prepared from": f"{folder['prepared'].get('input', 0):,} records, {folder['prepared'].get('ok', 0):,} kept",
            }
        )
        for folder in report["folders"]
    ]
    others = [html.facts({"compared with": other["path"], "records": other["records"]}) for other in report["against"]]
    return html.join([*checked, *others])
