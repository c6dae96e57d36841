"""Writes the warnings of `data check`: sentences about what to repair before training on the data."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from sightline.data.samples.templates import NO_CLOSING_TOKEN

if TYPE_CHECKING:
    from sightline.data.check.report import DataReport

LEAKED_TEXTS = 0.01  # share of an evaluation split whose texts stand in another split
GUESSED = 0.3  # share of the most frequent answer
SAME_IMAGE = 0.01  # share of the records with captions whose image stands in another one
FEW_SUPERVISED = 0.05
POOR_FILL = 0.9
FEW_ROWS = 8  # so few are never full


def warnings_of(report: "DataReport") -> list[str]:
    """Returns the sentences of a report, the gravest first."""
    found = (
        _records(report),
        _captions(report),
        _duplicates(report),
        _labels(report),
        _odd(report),
        _training(report),
        _gain(report),
    )
    return list(dict.fromkeys(chain(*found)))


def _records(report: "DataReport") -> Iterator[str]:
    checked = report.checked
    bad = checked.num_bad
    if bad:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in _by_count(checked.bad.counts))
        yield f"{bad:,} of {checked.input:,} records cannot be used ({_percent(bad, checked.input)}): {reasons}."
    for fault in checked.damaged_files:
        yield f"A file of the folder was changed after it was written: {fault}."
    for folder in checked.folders:
        lost = sum(folder.prepared.get("skipped", {}).values())
        if lost:
            share = _percent(lost, folder.prepared["input"])
            subject = _several(lost, "record was", "records were")
            yield f"When {folder.path} was prepared, {subject} left out ({share}); see its skipped.jsonl."
    for other in checked.against:
        if other.unusable:
            subject = _several(other.unusable, "image", "images")
            yield f"{subject} of {other.path} cannot be opened; it was not compared by its looks."


def _duplicates(report: "DataReport") -> Iterator[str]:
    found = report.checked.duplicates
    for item in found.between["images"]:
        exact, near, whole = item.exact, item.near_b, item.total_b
        if exact:
            more = f"; {_percent(near, whole)} more look like one there ({near:,})" if near else ""
            subject = f"{_percent(exact, whole)} of the images of {item.b} also stand in {item.a}"
            yield f"{subject} ({exact:,}, the same file{'' if exact == 1 else 's'}){more}."
        elif near:
            yield f"{_percent(near, whole)} of the images of {item.b} look like one of {item.a} ({near:,}, other files)."
    for item in found.within["records"]:
        extra = item.in_records - item.repeated
        if extra:
            subject = _several(extra, f"record of {item.place} repeats", f"records of {item.place} repeat")
            yield f"{subject} another one: the same images and the same captions or question."
    for item in found.within["images"]:
        if item.near:
            share = _percent(item.near, item.distinct)
            yield f"{item.near:,} images of {item.place} ({share}) look like another one there (other files)."
    for item in found.between["texts"]:
        if item.share_b >= LEAKED_TEXTS:
            subject = f"{100 * item.share_b:.0f} % of the records of {item.b} ({item.total_b:,})"
            yield f"{subject} have the captions or the question of a record of {item.a}, word for word."
    if not found.is_whole:
        yield "There are so many images alike that the search for them was stopped; the numbers of near duplicates are too small."


def _captions(report: "DataReport") -> Iterator[str]:
    for split, found in report.checked.records.images_of_captions.items():
        if found.in_records > SAME_IMAGE * found.records:
            subject = _several(found.repeated, "image", "images")
            yield (
                f"{subject} of {split} stand{'s' if found.repeated == 1 else ''} in {found.in_records:,} records of captions "
                f"(up to {found.most:,} each): each caption is scored without the others as references, and figures do not "
                "compare with published ones. Prepare the set again with --group image."
            )


def _labels(report: "DataReport") -> Iterator[str]:
    for split, most in report.checked.records.majority.items():
        if most.share >= GUESSED and most.in_records > 1:
            subject = f"The answer {most.answer!r} is right for {100 * most.share:.0f} % of the questions of {split}"
            yield f"{subject}: so much is reached without a look at the images."


def _odd(report: "DataReport") -> Iterator[str]:
    words = {"image_flat": "of one colour", "image_strip": "very long and narrow", "image_tiny": "very small"}
    for reason, count in _by_count(report.checked.odd.counts):
        subject = _several(count, "image is", "images are")
        yield f"{subject} {words[reason]} ({_percent(count, report.checked.images.files)})."


def _training(report: "DataReport") -> Iterator[str]:
    training = report.training
    if training is None:
        return
    for name, rows in training.rows.items():
        lost = sum(rows.skipped.values())
        if lost:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in _by_count(rows.skipped))
            yield f"{_percent(lost, rows.conversations)} of the conversations of {name} are left out in training: {reasons}."
        if rows.too_long is not None:
            longest, limit = rows.longest.tokens, rows.max_tokens
            yield f"The longest conversation of {name} has {longest:,} tokens; the limit is {limit:,} (data.max_tokens)."
        if rows.kept and rows.supervised_share < FEW_SUPERVISED:
            share = f"{100 * rows.supervised_share:.1f} %"
            yield f"Only {share} of the tokens of {name} are supervised; the rest is read and not learned."
    for stage in training.stages:
        epoch = stage.epoch
        if epoch is None:
            yield f"Stage {stage.name} has nothing to train on: {stage.why}."
        elif stage.pack and epoch.fill < POOR_FILL and epoch.rows > FEW_ROWS:
            subject = f"The rows of stage {stage.name} are only {100 * epoch.fill:.0f} % full"
            images = epoch.rows_full_of_images
            why = f" {images:,} of {epoch.rows:,} hold as many images as a row may (data.row_images)." if images else ""
            yield f"{subject}; longer rows (data.row_tokens) fill better.{why}"
        if stage.refused:
            yield f"Training would stop: {stage.refused}"
        if not stage.ends_answers:
            yield f"Stage {stage.name}: {NO_CLOSING_TOKEN}"


def _gain(report: "DataReport") -> Iterator[str]:
    gain = report.gain
    if gain is not None and gain.below_zero:
        subject = f"{_percent(gain.below_zero, gain.texts)} of the texts ({gain.below_zero:,}) are made less likely"
        yield f"{subject} by their own images, as {gain.model} sees them: look at the lowest of them."


def _by_count(counts: Mapping[str, int]) -> Sequence[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _several(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _percent(part: int, whole: int) -> str:
    """Returns a share with as many digits as tell it from 0 and from 100 %."""
    share = 100 * part / whole if whole else 0.0
    if 0 < share < 0.1:
        return "less than 0.1 %"
    if 99.5 <= share < 100:
        return "more than 99 %"
    return f"{share:.0f} %" if share >= 10 or share.is_integer() else f"{share:.1f} %"
