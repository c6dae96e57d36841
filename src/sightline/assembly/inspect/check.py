"""`data check`: checks dataset folders, measures what a configuration would train on, and writes the page.

Without a configuration no torch is needed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline import __version__
from sightline.data.check import CheckOptions, Fault, check
from sightline.data.check.report import DataReport, LowText
from sightline.data.check.rows import Left
from sightline.data.check.thumbnails import make_thumbnails
from sightline.data.dataset import Dataset
from sightline.data.images.reader import ImageLocation
from sightline.data.skip_limit import check_skip_limit
from sightline.errors import DataError, RecordError, SkipLimitError
from sightline.reporting.check_page import ExampleRecord, check_page, shown_locations
from sightline.runtime.keyed import keyed_generator
from sightline.runtime.logs import logger
from sightline.runtime.storage import atomic_file, write_text

if TYPE_CHECKING:
    from sightline.assembly.inspect.gain import GainRequest
    from sightline.assembly.model.blueprint import Blueprint

EXAMPLES = 12


@dataclass(frozen=True)
class CheckRequest:
    """What to check, and the files to write.

    Attributes:
        folders: dataset folders.
        options: how to check.
        against: folders that should share no image or text with them.
        describe: makes the blueprint of a model for these folders; None checks the data only.
        html: HTML page to write.
        listing: JSONL file of all faults to write.
        gain: a model that finds texts that their images do not support; None skips this.
    """

    folders: tuple[Path, ...]
    options: CheckOptions
    against: tuple[Path, ...] = ()
    describe: "Callable[[tuple[Path, ...]], Blueprint] | None" = None
    html: Path | None = None
    listing: Path | None = None
    gain: "GainRequest | None" = None


def check_data(request: CheckRequest) -> DataReport:
    """Checks the folders and writes the requested files; returns the report.

    Raises:
        DataError: a folder cannot be opened.
        ConfigError: parts of the configuration contradict each other.
    """
    blueprint = request.describe(request.folders) if request.describe is not None else None
    with _listing(request.listing) as write:
        checked = check(request.folders, request.options, request.against, lambda fault: write(_fault_line(fault, request)))
        report = DataReport(checked)
        if blueprint is not None:
            from sightline.assembly.inspect.rows import training_report

            training = training_report(checked, blueprint, lambda place, left: write(_skip_line(place, left)))
            report = replace(report, training=training)
        if request.gain is not None:
            from sightline.assembly.inspect.gain import gain_report

            report = replace(report, gain=gain_report(checked, request.gain, lambda line: write(_text_line(line, request))))
    if request.html is not None:
        _write_page(request.html, report, request.options)
    return report


def judge(report: DataReport, max_skipped: float) -> None:
    """Raises an error where the data is damaged or too much of it cannot be used.

    Raises:
        SkipLimitError: more than `max_skipped` of the records, or more conversations than the configuration allows, are bad.
        DataError: a file differs from what was written.
    """
    checked = report.checked
    if checked.damaged_files:
        raise DataError(f"the data is damaged: {'; '.join(checked.damaged_files[:10])}.", "Prepare it again.")
    remedy = "Prepare the data again, or allow more with --max-skipped."
    check_skip_limit(checked.num_bad, checked.input, max_skipped, "records cannot be used", remedy)
    for stage in report.training.stages if report.training is not None else ():
        if stage.refused:
            raise SkipLimitError(f"stage {stage.name}: {stage.refused}")


@contextmanager
def _listing(path: Path | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Writes JSON lines to a file that appears at the end; without a path the lines are dropped."""
    if path is None:
        yield lambda line: None
        return
    import json

    with atomic_file(path) as file:
        yield lambda line: print(json.dumps(line, ensure_ascii=False).encode("utf-8", "replace").decode(), file=file)


def _fault_line(fault: Fault, request: CheckRequest) -> dict[str, Any]:
    return {"path": str(request.folders[fault.location.folder]), **fault.to_json()}


def _text_line(line: LowText, request: CheckRequest) -> dict[str, Any]:
    return {"path": str(request.folders[line.folder]), **{key: value for key, value in asdict(line).items() if key != "tokens"}}


def _skip_line(place: str, left: Left) -> dict[str, Any]:
    return {"place": place, **asdict(left)}


# The page -------------------------------------------------------------------------------------------------------------------


def _write_page(path: Path, report: DataReport, options: CheckOptions) -> None:
    datasets = report.checked.datasets
    examples = _examples(datasets[: report.checked.num_checked])
    locations = [*(location for location, _ in examples), *shown_locations(report)]
    logger.info("making thumbnails of %d images", len(set(locations)))
    thumbnails = make_thumbnails(datasets, locations, options.workers, options.image_seconds)
    shown = [ExampleRecord(texts, thumbnails[location]) for location, texts in examples if location in thumbnails]
    write_text(path, check_page(report, thumbnails, shown, __version__))


def _examples(datasets: Sequence[Dataset]) -> list[tuple[ImageLocation, tuple[str, ...]]]:
    """Returns some records with images, drawn with a fixed seed, and their texts."""
    out = []
    for folder, dataset in enumerate(datasets):
        count = max(1, EXAMPLES // len(datasets))
        for index in keyed_generator("examples", dataset.fingerprint).permutation(len(dataset))[: 4 * count].tolist():
            try:
                record = dataset.record(index)
            except (DataError, RecordError):
                continue
            if record.images and count:
                count -= 1
                texts = record.captions or tuple(f"{message.role}: {message.text}" for message in record.messages)
                out.append((ImageLocation(folder, index, 0), texts[:5]))
    return out
