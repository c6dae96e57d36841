"""The tables of `data check`, for the page and for the terminal."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from sightline.data.check.report import DataReport, GainFigures, TrainingFigures


class CheckTable(NamedTuple):
    """A table: texts in the first column, numbers in the others."""

    title: str
    heads: list[str]
    rows: list[tuple[Any, ...]]


def spreads(report: DataReport) -> CheckTable:
    """Returns the table of sizes of images and lengths of texts."""
    images = report.checked.images
    found = {"width": images.width, "height": images.height, "aspect": images.aspect, **report.checked.records.spreads}
    rows = [
        (name.replace("_", " "), one.n, one.min, one.mean, one.median, one.p95, one.max)
        for name, one in found.items()
        if one is not None
    ]
    return CheckTable("Images and texts", ["", "number", "least", "mean", "median", "95 %", "most"], rows)


def labels(report: DataReport) -> CheckTable:
    """Returns the most frequent answer of each split."""
    rows = [
        (split, own.records, own.distinct, own.majority, percent(own.majority_share))
        for split, own in report.checked.records.labels.items()
    ]
    return CheckTable("Answers", ["split", "questions", "different", "most frequent", "its share"], rows)


def overlaps(report: DataReport) -> CheckTable:
    """Returns the table of things that splits and folders have in common."""
    between = report.checked.duplicates.between
    rows = [
        (f"{p.b} in {p.a}", p.exact, p.near_b, percent(p.share_b), t.total_b, percent(t.share_b), r.total_b)
        for p, t, r in zip(between["images"], between["texts"], between["records"], strict=True)
    ]
    heads = ["", "same file", "alike", "of images", "same text", "of records", "same both"]
    return CheckTable("Between splits and folders", heads, rows)


def repeats(report: DataReport) -> CheckTable:
    """Returns the table of things that a split holds several times."""
    within = report.checked.duplicates.within
    rows = [
        (p.place, p.distinct, p.repeated, p.near, t.repeated, t.in_records, r.in_records - r.repeated)
        for p, t, r in zip(within["images"], within["texts"], within["records"], strict=True)
    ]
    title = "Within a split: images, those in several records, those like another; texts in several records, those records"
    return CheckTable(title, ["", "images", "again", "alike", "texts again", "in records", "records again"], rows)


def lowest(gain: GainFigures, most: int) -> CheckTable:
    """Returns the texts that their images support least."""
    rows = [(line.id, line.gain, " ".join(line.detail.split())[:70]) for line in gain.lowest[:most]]
    title = f"Texts that their images support least, of {gain.texts:,}: mean gain; median {gain.percentiles['p50']:.2f}"
    return CheckTable(title, ["", "gain", "text"], rows)


def training_tables(training: TrainingFigures) -> Iterator[CheckTable]:
    """Conversations of each split, and an epoch of each stage."""
    rows = [
        (
            name,
            own.conversations,
            sum(own.skipped.values()),
            own.tokens and own.tokens.mean,
            own.longest.tokens,
            own.max_tokens,
            percent(own.supervised_share),
            own.visual_tokens_per_image and own.visual_tokens_per_image.mean,
            percent(own.saved_by_sharing),
        )
        for name, own in training.rows.items()
    ]
    title = "Conversations: number, left out, lengths in tokens, share supervised, visual tokens an image, saved by sharing"
    yield CheckTable(title, ["", "n", "out", "mean", "most", "limit", "learned", "visual", "shared"], rows)
    stages = [
        (
            stage.name,
            epoch.samples,
            epoch.rows,
            stage.row_tokens if stage.pack else None,
            percent(epoch.fill),
            epoch.steps_per_epoch,
            stage.steps,
            stage.epochs,
            epoch.padded_over_packed,
        )
        for stage in training.stages
        if (epoch := stage.epoch) is not None
    ]
    heads = ["stage", "samples", "rows", "of tokens", "full", "steps", "of the stage", "epochs", "padded"]
    title = "An epoch: its steps and those of the stage; padded batches would take so many times the places"
    yield CheckTable(title, heads, stages)


def percent(share: float) -> str:
    """Formats a share of 1 as percent."""
    return f"{100 * share:.1f} %"
