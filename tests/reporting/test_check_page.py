"""The page of a check shows every finding, its images, and nothing that the data could make of it."""

from pathlib import Path
from typing import Any

from sightline.assembly.inspect.check import CheckRequest, check_data
from sightline.assembly.model.blueprint import config_blueprint
from sightline.data.check import CheckOptions
from sightline.data.check.report import DataReport
from sightline.reporting.check_page import ExampleRecord, check_page, shown_locations
from tests.assembly.helpers import run_config
from tests.data.check.planted import folder, jpeg, png, question, record, scene, stored
from tests.reporting.helpers import EVIL, Reader, read


def made(tmp_path: Path, rows: list[dict[str, Any]], pictures: dict[str, bytes], **options: Any) -> tuple[DataReport, Reader]:
    """The report on a folder, and its page as a browser reads it."""
    path = folder(tmp_path / "data", rows, pictures)
    for index, content in options.pop("broken", {}).items():
        stored(path, index).write_bytes(content)
    report = check_data(CheckRequest((path,), CheckOptions(workers=0), html=tmp_path / "page.html", **options))
    page = (tmp_path / "page.html").read_text("utf-8")
    return report, read(page.removeprefix("<!doctype html>"))


def sections(reader: Reader) -> list[str]:
    return [attributes["id"] or "" for name, attributes in reader.elements if name == "section"]


def pictures_of(reader: Reader) -> int:
    return [name for name, _ in reader.elements].count("img")


def test_a_page_of_good_data_is_short(tmp_path: Path) -> None:
    _, reader = made(tmp_path, [record(f"r{n}", f"{n}.png") for n in range(3)], {f"{n}.png": png(scene(n)) for n in range(3)})
    assert sections(reader) == ["in-plain-words", "some-records", "what-stands-twice", "images-and-texts", "folders"]
    assert "Nothing to warn of." in reader.text
    assert pictures_of(reader) == 3
    assert "caption of r0" in reader.text


def test_every_warning_fault_and_copy_is_on_the_page(tmp_path: Path) -> None:
    files = {f"{n}.png": png(scene(n)) for n in range(6)} | {"leak.jpg": jpeg(scene(0)), "small.png": png(scene(8).resize((5, 5)))}
    rows = [record(f"t{n}", f"{n}.png") for n in range(6)] + [
        record("leak", "leak.jpg", "val"),
        record("small", "small.png", "val"),
    ]
    rows += [question(f"q{n}", "1.png", f"which {n}?", ["red", "Red"]) for n in range(3)]
    report, reader = made(tmp_path, rows, files, broken={5: b"broken"})
    assert sections(reader) == [
        *("in-plain-words", "some-records", "records-that-cannot-be-used", "odd-images", "what-stands-twice"),
        *("images-and-texts", "answers", "folders"),
    ]
    for warning in report.warnings:
        assert warning in reader.text
    assert "t5: image_format" in reader.text
    assert "cannot be shown" in reader.text
    assert "small: image_tiny" in reader.text
    assert "t0 and leak" in reader.text
    assert "'red' is right for 100.0 % of them" in reader.text
    alts = [attributes["alt"] for name, attributes in reader.elements if name == "img"]
    assert [alt for alt in alts if alt] == ["small", "t0", "leak"]


def test_under_a_configuration_rows_and_epochs_are_shown(tmp_path: Path) -> None:
    rows = [record(f"r{n}", f"{n}.png", captions=["short", "word " * (90 if n == 0 else 3)]) for n in range(4)]
    pictures = {f"{n}.png": png(scene(n)) for n in range(4)}
    config = run_config(path=str(tmp_path / "data"), max_skipped=1.0)
    report, reader = made(tmp_path, rows, pictures, describe=lambda folders: config_blueprint(config))
    assert "in-training" in sections(reader)
    assert "too_long" in reader.text
    assert f"{report.to_json()['training']['stages'][0]['epoch']['steps_per_epoch']}" in reader.text
    assert "2 x 2 = 4 visual tokens" in reader.text
    titles = [attributes["aria-label"] for name, attributes in reader.elements if name == "svg"]
    assert {"tokens a conversation", "supervised tokens", "words a caption"} <= set(titles)


def test_nothing_in_the_data_becomes_markup(tmp_path: Path) -> None:
    rows = [record(f"<img src=x onerror=alert({n})>", f"{n}.png", captions=[EVIL], split="train") for n in range(3)]
    rows += [question(f"<b>q{n}", "0.png", EVIL, [EVIL]) for n in range(2)]
    config = run_config(path=str(tmp_path / "data"), max_skipped=1.0)
    pictures = {f"{n}.png": png(scene(0)) if n < 2 else png(scene(2)) for n in range(3)}
    report, reader = made(tmp_path, rows, pictures, broken={2: b"<script>"}, describe=lambda folders: config_blueprint(config))
    assert report.checked.bad.counts == {"image_format": 1}
    assert "script" not in [name for name, _ in reader.elements]
    assert not any(name.startswith("on") for _, attributes in reader.elements for name in attributes)
    assert EVIL in reader.text


def test_images_that_several_records_of_a_split_speak_of_are_not_shown_as_copies(tmp_path: Path) -> None:
    rows = [question(f"q{n}", "a.png", f"what {n}?", ["x"]) for n in range(4)]
    report, _ = made(tmp_path, rows, {"a.png": png(scene(0))})
    assert report.checked.duplicates.within["images"][0].repeated == 1
    assert list(shown_locations(report)) == []


def test_a_page_without_images_at_hand_still_says_what_it_would_show(tmp_path: Path) -> None:
    report, _ = made(tmp_path, [record("a", "a.png"), record("b", "a.png", "val")], {"a.png": png(scene(0))})
    spots = list(shown_locations(report))
    assert spots == [(0, 0, 0), (0, 1, 0)]
    page = check_page(report, {}, [ExampleRecord(("x" * 500,), png(scene(1)))], "1.2.3")
    assert "a and b" in page
    assert "x" * 201 not in page
    assert "sightline 1.2.3" in page
