"""`prepare`: every record is accounted for, the result does not depend on workers or interruptions, and OUT is whole or absent."""

import errno
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sightline.data.dataset import open_dataset
from sightline.data.images.opener import ImageLimits
from sightline.data.images.reader import read_image
from sightline.data.prepare import image_store as landing
from sightline.data.prepare import run as prepare
from sightline.data.prepare.run import PrepareOptions
from sightline.data.prepare.splitting import SplitRule
from sightline.data.readers import Skip, SourceOptions
from sightline.data.records import record_to_json
from sightline.data.skip_limit import SkipLimit
from sightline.errors import DataError, SkipLimitError, StorageError, UsageError
from tests.data import crashing
from tests.data.broken_images import bombs, damaged_files
from tests.data.pictures import lines, picture, prepared, put, tree


def records_source(folder: Path, count: int, kinds: tuple[str, ...] = ("PNG",)) -> Path:
    """A records file with one image each."""
    rows = []
    for index in range(count):
        kind = kinds[index % len(kinds)]
        put(folder / f"images/{index}.{kind.lower()}", picture(index, kind))
        rows.append({"id": f"r{index}", "images": [f"images/{index}.{kind.lower()}"], "captions": [f"caption {index}"]})
    put(folder / "records.jsonl", rows)
    return folder


def add_rows(folder: Path, rows: list[dict[str, Any]]) -> None:
    with (folder / "records.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


# What is written ------------------------------------------------------------------------------------------------------------


def test_a_folder_holds_the_records_the_unchanged_images_and_their_hashes(tmp_path: Path) -> None:
    source = records_source(tmp_path / "in", 5, ("PNG", "JPEG", "WEBP", "GIF", "BMP"))
    summary = prepared("records", source, tmp_path / "out")
    assert (summary["input"], summary["ok"], summary["images"], summary["skipped"]) == (5, 5, 5, {})
    assert summary["splits"] == {"train": 5}
    suffixes = []
    for index, line in enumerate(lines(tmp_path / "out/records.jsonl")):
        data = next((source / "images").glob(f"{index}.*")).read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        name = line["images"][0]
        assert (tmp_path / "out" / name).read_bytes() == data
        assert name.startswith(f"images/{digest[:2]}/{digest[:16]}.")
        assert line["image_info"] == [[digest, 9, 7]]
        suffixes.append(name.rpartition(".")[2])
    assert suffixes == ["png", "jpg", "webp", "gif", "bmp"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "dataset.json",
        "images",
        "index.npy",
        "records.jsonl",
        "skipped.jsonl",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_the_true_format_gives_the_suffix_and_the_shown_size_the_size(tmp_path: Path) -> None:
    turned = Image.new("RGB", (20, 10), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "in").mkdir()
    turned.save(tmp_path / "in/x.png", "JPEG", exif=exif)
    put(tmp_path / "in/records.jsonl", [{"id": "a", "images": ["x.png"], "captions": ["c"]}])
    prepared("records", tmp_path / "in", tmp_path / "out")
    record = open_dataset(tmp_path / "out").record(0)
    assert record.images[0].endswith(".jpg")
    assert (record.image_info[0].width, record.image_info[0].height) == (10, 20)


def test_the_same_content_is_stored_once_and_linked_to_the_source(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        put(tmp_path / "in" / name, picture(1))
    rows = [{"id": name, "images": [f"{name}.png"], "captions": ["c"]} for name in ("a", "b")]
    put(tmp_path / "in/records.jsonl", [*rows, {"id": "c", "images": ["a.png"], "captions": ["d"]}])
    summary = prepared("records", tmp_path / "in", tmp_path / "out")
    assert (summary["ok"], summary["images"], summary["image_places"]) == (3, 1, 3)
    stored = tmp_path / "out" / open_dataset(tmp_path / "out").record(0).images[0]
    assert stored.samefile(tmp_path / "in/a.png")


def test_two_images_whose_names_would_collide_are_both_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landing, "NAME_DIGITS", 1)
    source = records_source(tmp_path / "in", 40)
    prepared("records", source, tmp_path / "out")
    dataset = open_dataset(tmp_path / "out")
    assert [dataset.image_bytes(record) for record in dataset.records()] == [picture(index) for index in range(40)]


def test_text_in_any_script_and_meta_survive(tmp_path: Path) -> None:
    texts = ["Ein Hund läuft.", "一只狗在跑", "كلب يركض", "कुत्ता दौड़ रहा है", "🐕‍🦺 ‏\u202eabc", "a\u2028b\u0085c\x0bd"]
    row = {"id": "ü/1", "captions": texts, "meta": {"k": [1.5, None, {"ö": "é"}]}, "negatives": ["x"], "split": "val"}
    put(tmp_path / "in/records.jsonl", [row])
    prepared("records", tmp_path / "in", tmp_path / "out")
    record = open_dataset(tmp_path / "out").record(0)
    assert record_to_json(record) == row


def test_generated_scenes_are_stored_as_images(tmp_path: Path) -> None:
    options = {"source": SourceOptions(count=12, seed=3, questions=True)}
    summary = prepared("scenes", Path("-"), tmp_path / "out", **options)
    assert summary["images"] == 12
    assert summary["ok"] > 12
    again = prepared("scenes", Path("-"), tmp_path / "again", **options)
    assert tree(tmp_path / "out") == tree(tmp_path / "again")
    assert summary == again


def test_pairs_held_out_of_scenes_are_a_split_of_their_own(tmp_path: Path) -> None:
    summary = prepared("scenes", Path("-"), tmp_path / "out", source=SourceOptions(count=60, level=2, novel=True))
    assert summary["splits"]["novel"] > 0


# What is skipped ------------------------------------------------------------------------------------------------------------


def messy(folder: Path) -> Counter[str]:
    """Good records with every kind of bad one between them; returns what must be skipped."""
    records_source(folder, 6)
    put(folder / "secret.txt", "outside")
    put(folder / "images/torn.png", picture(7)[:-20])
    put(folder / "images/page.jpg", b"<html>404</html>")
    put(folder / "images/empty.jpg", b"")
    put(folder / "images/bomb.png", next(iter(bombs()))[1])
    good = {"images": ["images/0.png"], "captions": ["fine"]}
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Q"}]}
    rows: list[tuple[dict[str, Any], str]] = [
        ({**good, "id": "torn", "images": ["images/torn.png"]}, "image_broken"),
        ({**good, "id": "page", "images": ["images/page.jpg"]}, "image_format"),
        ({**good, "id": "empty", "images": ["images/empty.jpg"]}, "image_empty"),
        ({**good, "id": "none", "images": ["images/none.jpg"]}, "image_missing"),
        ({**good, "id": "climb", "images": ["../in/secret.txt"]}, "path_outside_root"),
        ({**good, "id": "abs", "images": [str(folder / "secret.txt")]}, "path_outside_root"),
        ({**good, "id": "half", "images": ["images/0.png", "images/torn.png"]}, "image_broken"),
        ({**good, "id": "r0"}, "duplicate_id"),
        ({**good, "id": "blank", "captions": ["", " \n"]}, "empty_caption"),
        ({**good, "id": "mute", "captions": []}, "no_text"),
        ({**good, "id": "both", "messages": [{"role": "user", "content": "x"}]}, "two_texts"),
        ({**good, "id": "split", "split": "../x"}, "bad_split"),
        ({**good, "id": "surrogate", "captions": ["\ud800"]}, "bad_text"),
        ({"id": "ask", "images": good["images"], "messages": [user]}, "no_answer"),
        ({"id": "dumb", "images": good["images"], "messages": [user, {"role": "assistant", "content": " "}]}, "empty_answer"),
        ({"id": "less", "messages": [user, {"role": "assistant", "content": "A"}]}, "places_without_image"),
        ({"id": "more", "images": good["images"] * 2, "messages": [user, user, user]}, "places_without_image"),
        ({**good, "id": "odd", "colour": "red"}, "unknown_field"),
        ({**good, "id": ""}, "bad_id"),
    ]
    add_rows(folder, [row for row, _ in rows])
    with (folder / "records.jsonl").open("a") as file:
        file.write('no json\n{"id": "last", "captions": ["whole"]}\n{"id": "cut", "capt')
    return Counter([*(reason for _, reason in rows), "bad_json", "bad_json"])


def test_every_bad_record_is_skipped_with_its_reason_and_the_good_ones_are_untouched(tmp_path: Path) -> None:
    expected = messy(tmp_path / "in")
    summary = prepared("records", tmp_path / "in", tmp_path / "out", workers=2)
    assert summary["skipped"] == dict(sorted(expected.items()))
    assert summary["ok"] == 7
    assert summary["input"] == summary["ok"] + sum(summary["skipped"].values())
    skipped = lines(tmp_path / "out/skipped.jsonl")
    assert len(skipped) == sum(expected.values())
    by_id = {line["id"]: line for line in skipped}
    assert by_id["torn"]["reason"] == "image_broken"
    assert by_id["torn"]["where"] == "records.jsonl:7"
    assert "secret" not in (tmp_path / "out/records.jsonl").read_text()
    records_source(tmp_path / "clean", 6)
    add_rows(tmp_path / "clean", [{"id": "last", "captions": ["whole"]}])
    prepared("records", tmp_path / "clean", tmp_path / "reference")
    assert (tmp_path / "out/records.jsonl").read_bytes() == (tmp_path / "reference/records.jsonl").read_bytes()
    assert (tmp_path / "out/index.npy").read_bytes() == (tmp_path / "reference/index.npy").read_bytes()


def test_damaged_images_of_all_formats_are_each_skipped_or_kept_as_the_opener_says(tmp_path: Path) -> None:
    rows = []
    cases = list(damaged_files())
    for index, case in enumerate(cases):
        put(tmp_path / f"in/{index}.bin", case.data)
        rows.append({"id": f"{index} {case}"[:50], "images": [f"{index}.bin"], "captions": ["c"]})
    rows.append({"id": "good", "captions": ["c"]})
    put(tmp_path / "in/records.jsonl", rows)
    summary = prepared("records", tmp_path / "in", tmp_path / "out")
    assert summary["input"] == len(rows) == summary["ok"] + sum(summary["skipped"].values())
    assert summary["ok"] == len(lines(tmp_path / "out/records.jsonl"))
    open_dataset(tmp_path / "out").verify()


def test_an_empty_caption_among_others_is_dropped_and_noted(tmp_path: Path) -> None:
    put(tmp_path / "in/records.jsonl", [{"id": "a", "captions": ["one", " ", "", "two"]}])
    summary = prepared("records", tmp_path / "in", tmp_path / "out")
    assert summary["notes"] == {"empty_caption": 2}
    assert open_dataset(tmp_path / "out").record(0).captions == ("one", "two")


def test_an_image_that_is_not_the_one_the_record_was_written_with_is_found(tmp_path: Path) -> None:
    """Damage that leaves a valid file: only the hash can tell."""
    prepared("records", records_source(tmp_path / "in", 3), tmp_path / "first")
    victim = tmp_path / "first" / open_dataset(tmp_path / "first").record(1).images[0]
    victim.unlink()
    victim.write_bytes(picture(99))
    summary = prepared("records", tmp_path / "first", tmp_path / "second")
    assert summary["skipped"] == {"hash_mismatch": 1}
    assert summary["ok"] == 2


def test_text_only_needs_no_images(tmp_path: Path) -> None:
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Q"}]}
    rows = [
        {"id": "a", "images": ["none.jpg"], "captions": ["c"], "boxes": [{"label": "x", "xyxy": [0, 0, 1, 1]}]},
        {"id": "b", "images": ["none.jpg"], "messages": [user, {"role": "assistant", "content": "A"}]},
    ]
    put(tmp_path / "in/records.jsonl", rows)
    summary = prepared("records", tmp_path / "in", tmp_path / "out", source=SourceOptions(text_only=True))
    assert (summary["ok"], summary["images"]) == (2, 0)
    assert [record.images for record in open_dataset(tmp_path / "out").records()] == [(), ()]


def test_images_that_crash_hang_or_eat_memory_cost_themselves_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "check_images", crashing.check_images)
    names = ["0.png", "crash.png", "1.png", "hang.png", "fat.png", "2.png", "crash-2.png", "3.png"]
    for index, name in enumerate(names):
        put(tmp_path / "in" / name, picture(index))
    put(tmp_path / "in/records.jsonl", [{"id": name, "images": [name], "captions": ["c"]} for name in names])
    summary = prepared("records", tmp_path / "in", tmp_path / "out", workers=2, image_seconds=2.0)
    assert summary["skipped"] == {"worker_crashed": 2, "worker_memory": 1, "worker_timeout": 1}
    assert [record.id for record in open_dataset(tmp_path / "out").records()] == ["0.png", "1.png", "2.png", "3.png"]


def test_a_file_that_changes_under_our_hands_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = records_source(tmp_path / "in", 2)

    check_image = landing.check_image

    def check(task: Path | bytes, limits: ImageLimits) -> landing.ImageFacts:
        found = check_image(task, limits)
        if isinstance(task, Path) and task.name == "1.png":
            task.write_bytes(picture(5, "BMP"))
        return found

    monkeypatch.setattr(landing, "check_image", check)
    assert prepared("records", source, tmp_path / "out")["skipped"] == {"image_changed": 1}


def test_where_no_links_can_be_made_images_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    source = records_source(tmp_path / "in", 3)
    prepared("records", source, tmp_path / "out")
    stored = tmp_path / "out" / open_dataset(tmp_path / "out").record(0).images[0]
    assert stored.read_bytes() == picture(0)
    assert not stored.samefile(source / "images/0.png")


def test_a_link_that_a_kill_left_behind_is_not_written_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The half-landed image of a killed try is a hard link to an image of the user's."""
    source = records_source(tmp_path / "in", 3)
    work = tmp_path / "out.preparing"
    work.mkdir()
    os.link(source / "images/2.png", work / "landing")
    prepared("records", source, tmp_path / "out")
    assert [(source / f"images/{index}.png").read_bytes() for index in range(3)] == [picture(index) for index in range(3)]
    os.link(source / "images/2.png", tmp_path / "taken")
    with pytest.raises(FileExistsError):
        landing._link_or_copy(source / "images/0.png", tmp_path / "taken")
    assert (source / "images/2.png").read_bytes() == picture(2)


# The budget -----------------------------------------------------------------------------------------------------------------


def skip(reason: str = "image_broken") -> Skip:
    return Skip("x.json:1", "id", reason, "detail")


def fed(share: float, outcomes: list[Skip | None]) -> int:
    """How many records pass before the budget stops."""
    budget = SkipLimit(share, lambda: Path("work"))
    for count, outcome in enumerate(outcomes):
        try:
            budget.add(outcome)
        except SkipLimitError:
            return count + 1
    budget.finish()
    return -1


def test_a_share_above_the_budget_stops_the_work(tmp_path: Path) -> None:
    source = records_source(tmp_path / "in", 4)
    add_rows(source, [{"id": f"x{index}", "captions": ["fine"]} for index in range(293)])
    add_rows(source, [{"id": f"y{index}", "captions": [""]} for index in range(7)])
    with pytest.raises(SkipLimitError) as caught:
        prepared("records", source, tmp_path / "out", max_skipped=0.02)
    assert "7 of 304 records" in str(caught.value)
    assert "empty_caption 7" in str(caught.value)
    assert str(caught.value).count("records.jsonl:") == 7
    assert caught.value.exit_code == 3
    assert not (tmp_path / "out").exists()
    assert prepared("records", source, tmp_path / "out", max_skipped=0.03)["skipped"] == {"empty_caption": 7}


@pytest.mark.parametrize(
    ("share", "outcomes", "stops"),
    [
        (0.01, [None] * 99 + [skip()], -1),
        (0.01, [skip()] * 3 + [None] * 400, -1),  # 3 of 403 is within, though 3 of 200 is not
        (0.01, [None, skip()] * 50, -1),  # fewer than 200: small sets are not judged
        (0.01, [None, skip()] * 200, 200),
        (0.5, [None] * 300 + [skip()] * 150, 400),  # 100 in a row
        (1.0, [None] * 300 + [skip()] * 150, -1),
        (0.0, [None, skip()], 2),
    ],
)
def test_the_budget_stops_where_it_says(share: float, outcomes: list[Skip | None], stops: int) -> None:
    assert fed(share, outcomes) == stops


def test_the_share_of_the_whole_decides_at_the_end() -> None:
    with pytest.raises(SkipLimitError, match=r"5 of 401.*share of 0\.01.*broken 5"):
        fed(0.01, [None] * 396 + [skip()] * 5)
    assert fed(0.01, [None] * 396 + [skip()] * 4) == -1


def test_nothing_usable_and_nothing_at_all_are_errors(tmp_path: Path) -> None:
    put(tmp_path / "a/records.jsonl", [{"id": "a", "captions": [""]}])
    with pytest.raises(SkipLimitError, match="1 of 1 records"):
        prepared("records", tmp_path / "a", tmp_path / "out")
    put(tmp_path / "b/records.jsonl", "\n\n")
    with pytest.raises(DataError, match="no records"):
        prepared("records", tmp_path / "b", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_repeated_ids_come_with_the_remedy() -> None:
    budget = SkipLimit(0.01, lambda: None)
    for _ in range(9):
        budget.add(skip("duplicate_id"))
    with pytest.raises(SkipLimitError, match="--map id= numbers the rows"):
        budget.finish()


# The same bytes -------------------------------------------------------------------------------------------------------------


def long_source(folder: Path) -> Path:
    """More records than are in flight at a time, with shared, broken and missing images, and stretches of text."""
    rows = []
    for index in range(300):
        number = index * 7 % 90
        if number % 9 and not (folder / f"{number}.png").exists():
            put(folder / f"{number}.png", picture(number) if number % 10 else b"broken")
        names = [] if 100 <= index < 190 else [f"{number}.png", f"{(number + 1) % 90}.png"][: 1 + index % 2]
        rows.append({"id": str(index), "images": names, "captions": [f"caption {index}"]})
    put(folder / "records.jsonl", rows)
    return folder


def test_long_sources_come_out_in_order_whatever_the_number_of_workers(tmp_path: Path) -> None:
    source = long_source(tmp_path / "in")
    summary = prepared("records", source, tmp_path / "one", workers=0)
    prepared("records", source, tmp_path / "two", workers=2)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert summary["input"] == 300
    kept = [int(line["id"]) for line in lines(tmp_path / "one/records.jsonl")]
    left = [int(line["id"]) for line in lines(tmp_path / "one/skipped.jsonl")]
    assert kept == sorted(kept)
    assert left == sorted(left)
    assert sorted(kept + left) == list(range(300))


@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers_writes_the_same_bytes(tmp_path: Path, workers: int) -> None:
    messy(tmp_path / "in")
    prepared("records", tmp_path / "in", tmp_path / "one", workers=0)
    prepared("records", tmp_path / "in", tmp_path / "two", workers=workers)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_a_prepared_folder_prepares_to_itself(tmp_path: Path) -> None:
    first = prepared("records", records_source(tmp_path / "in", 8), tmp_path / "one", split=SplitRule({"val": 0.3}))
    second = prepared("records", tmp_path / "one", tmp_path / "two")
    assert first["fingerprint"] == second["fingerprint"]
    assert (tmp_path / "one/records.jsonl").read_bytes() == (tmp_path / "two/records.jsonl").read_bytes()


COMMAND = """
import sys
from pathlib import Path
from sightline.data.prepare.run import PrepareOptions, prepare
prepare(Path(sys.argv[1]), "records", PrepareOptions(out=Path(sys.argv[2]), workers=int(sys.argv[3]), max_skipped=1.0))
"""


def run_in_child(source: Path, out: Path, faults: str, workers: int = 0) -> subprocess.CompletedProcess:
    environment = {**os.environ, "SIGHTLINE_FAULTS": faults}
    command = [sys.executable, "-c", COMMAND, str(source), str(out), str(workers)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    "faults",
    [
        "prepare.checked=kill@2",
        "prepare.before_records=kill",
        "file.before_sync=kill@2",
        "file.before_rename=kill@4",
        "publish.before_rename=kill",
    ],
)
def test_killed_anywhere_it_leaves_no_folder_and_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faults: str
) -> None:
    messy(tmp_path / "in")
    prepared("records", tmp_path / "in", tmp_path / "reference")
    child = run_in_child(tmp_path / "in", tmp_path / "out", faults)
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="Run the same command again"):
        open_dataset(tmp_path / "out")
    decoded = []
    check_image = landing.check_image
    monkeypatch.setattr(landing, "check_image", lambda source, limits: decoded.append(source) or check_image(source, limits))
    prepared("records", tmp_path / "in", tmp_path / "out")
    assert tree(tmp_path / "out") == tree(tmp_path / "reference")
    good = {tmp_path / f"in/images/{index}.png" for index in range(6)}
    again = good & set(decoded)
    assert not again, "images that were stored are not decoded a second time"


def test_a_signal_keeps_the_work_and_says_how_to_go_on(tmp_path: Path) -> None:
    source = records_source(tmp_path / "in", 30)
    child = run_in_child(source, tmp_path / "out", "prepare.checked=term@3", workers=2)
    assert "Stopped" in child.stderr
    assert "Run the same command again" in child.stderr
    assert len(list((tmp_path / "out.preparing/dataset/images").glob("*/*"))) == 24  # three batches of eight
    prepared("records", source, tmp_path / "reference")
    prepared("records", source, tmp_path / "out")
    assert tree(tmp_path / "out") == tree(tmp_path / "reference")


def test_what_a_stopped_prepare_left_over_is_not_part_of_another(tmp_path: Path) -> None:
    records_source(tmp_path / "in", 6)
    run_in_child(tmp_path / "in", tmp_path / "out", "prepare.before_records=kill")
    rows = lines(tmp_path / "in/records.jsonl")
    put(tmp_path / "in/records.jsonl", [rows[4], rows[1]])
    summary = prepared("records", tmp_path / "in", tmp_path / "out")
    assert (summary["ok"], summary["images"]) == (2, 2)
    assert len(list((tmp_path / "out/images").glob("*/*"))) == 2
    open_dataset(tmp_path / "out").verify()


def test_a_stored_image_that_the_power_cut_tore_is_stored_again(tmp_path: Path) -> None:
    source = records_source(tmp_path / "in", 6)
    run_in_child(source, tmp_path / "out", "prepare.before_records=kill")
    for file in (tmp_path / "out.preparing/dataset/images").glob("*/*"):
        file.unlink()
        file.write_bytes(b"")
    prepared("records", source, tmp_path / "out")
    open_dataset(tmp_path / "out").verify()


def test_a_changed_image_is_checked_again_after_a_stop(tmp_path: Path) -> None:
    source = records_source(tmp_path / "in", 6)
    run_in_child(source, tmp_path / "out", "prepare.before_records=kill")
    put(source / "images/0.png", picture(77, size=(11, 13)))
    prepared("records", source, tmp_path / "out")
    dataset = open_dataset(tmp_path / "out")
    assert dataset.image_bytes(dataset.record(0)) == picture(77, size=(11, 13))
    assert dataset.verify() == 6


def test_a_signal_in_any_later_phase_ends_the_work_as_well(tmp_path: Path) -> None:
    source = records_source(tmp_path / "in", 6)
    child = run_in_child(source, tmp_path / "out", "prepare.before_records=term")
    assert "Stopped" in child.stderr
    assert not (tmp_path / "out").exists()
    prepared("records", source, tmp_path / "out")
    open_dataset(tmp_path / "out").verify()


@pytest.mark.parametrize("point", ["file.before_sync=enospc@2", "publish.before_rename=eio", "file.before_rename=enospc@4"])
def test_a_disk_that_refuses_is_a_storage_error_and_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    from sightline.runtime import fault_injection

    source = records_source(tmp_path / "in", 3)
    monkeypatch.setenv("SIGHTLINE_FAULTS", point)
    fault_injection._passages.clear()
    with pytest.raises(StorageError) as caught:
        prepared("records", source, tmp_path / "out")
    assert caught.value.exit_code == 5
    assert not (tmp_path / "out").exists()
    monkeypatch.delenv("SIGHTLINE_FAULTS")
    assert prepared("records", source, tmp_path / "out")["ok"] == 3


# Refusals -------------------------------------------------------------------------------------------------------------------


def test_nothing_is_overwritten_but_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    source = records_source(tmp_path / "in", 1)
    put(tmp_path / "out/mine.txt", "precious")
    with pytest.raises(UsageError, match="nothing is overwritten"):
        prepared("records", source, tmp_path / "out")
    assert tree(tmp_path / "out") == {"mine.txt": b"precious"}
    (tmp_path / "empty").mkdir()
    assert prepared("records", source, tmp_path / "empty")["ok"] == 1


def test_two_at_once_do_not_share_a_folder(tmp_path: Path) -> None:
    source = records_source(tmp_path / "in", 1)
    start = Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[19]
    holder = {"pid": os.getppid(), "host": os.uname().nodename, "start": start}
    put(tmp_path / "out.preparing/lock.json", holder)
    with pytest.raises(StorageError, match="in use by process"):
        prepared("records", source, tmp_path / "out")


@pytest.mark.parametrize(
    ("format_name", "path", "options", "says"),
    [
        ("nothing", "in", {}, "There is no format"),
        ("scenes", "in", {}, "give - as its source"),
        ("records", "-", {}, "not -"),
        ("records", "in", {"sample": 0}, "--sample"),
        ("records", "in", {"max_skipped": 2.0}, "--max-skipped"),
        ("records", "in", {"source": SourceOptions(mapping={"image": "x"})}, "has no field 'image'"),
        ("coco", "in", {"source": SourceOptions(mapping={"imagee": "x"})}, "It has boxes, captions"),
    ],
)
def test_options_that_cannot_work_are_refused_before_any_work(
    tmp_path: Path, format_name: str, path: str, options: dict[str, Any], says: str
) -> None:
    records_source(tmp_path / "in", 1)
    with pytest.raises(UsageError, match=says):
        prepared(format_name, Path(path) if path == "-" else tmp_path / path, tmp_path / "out", **options)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["in"]


def test_ids_that_repeat_can_be_numbered_and_fixed_names_cannot_be_mapped(tmp_path: Path) -> None:
    put(tmp_path / "in/records.jsonl", [{"id": "same", "captions": ["a"]}, {"id": "same", "captions": ["b"]}])
    prepared("records", tmp_path / "in", tmp_path / "out", source=SourceOptions(mapping={"id": ""}))
    assert [record.id for record in open_dataset(tmp_path / "out").records()] == ["row-0", "row-1"]
    put(tmp_path / "coco/captions_val2017.json", {"images": [], "annotations": []})
    put(tmp_path / "flickr/Flickr8k.token.txt", "1.jpg#0\ta\n")
    for name in ("coco", "flickr"):
        with pytest.raises(UsageError, match="are fixed"):
            prepared(
                "flickr8k" if name == "flickr" else name,
                tmp_path / name,
                tmp_path / "x",
                source=SourceOptions(mapping={"captions": "text"}),
            )


def test_a_source_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        prepared("records", tmp_path / "none", tmp_path / "out")


# Sample and split -----------------------------------------------------------------------------------------------------------


def test_a_sample_is_random_in_order_and_the_same_every_time(tmp_path: Path) -> None:
    source = records_source(tmp_path / "in", 3)
    add_rows(source, [{"id": f"t{index}", "captions": ["x"]} for index in range(200)])
    kept = []
    for name, seed in [("a", 0), ("b", 0), ("c", 1)]:
        summary = prepared("records", source, tmp_path / name, sample=20, source=SourceOptions(seed=seed))
        assert summary["input"] == 20
        kept.append([line["id"] for line in lines(tmp_path / name / "records.jsonl")])
    order = [line["id"] for line in lines(source / "records.jsonl")]
    assert kept[0] == kept[1] == sorted(kept[0], key=order.index)
    assert kept[0] != kept[2]
    assert prepared("records", source, tmp_path / "all", sample=5000)["input"] == 203


def test_splits_by_image_keep_a_image_in_one_split(tmp_path: Path) -> None:
    """Under two names, in records of two images, through chains of records."""
    rows = []
    for index in range(40):
        put(tmp_path / f"in/{index}.png", picture(index))
        put(tmp_path / f"in/{index}-copy.png", picture(index))
        rows += [
            {"id": f"{index}a", "images": [f"{index}.png"], "captions": ["x"]},
            {"id": f"{index}b", "images": [f"{index}-copy.png"], "captions": ["y"]},
        ]
        if index % 4:
            rows.append({"id": f"{index}c", "images": [f"{index - 1}-copy.png", f"{index}.png"], "captions": ["z"]})
    put(tmp_path / "in/records.jsonl", rows)
    summary = prepared("records", tmp_path / "in", tmp_path / "out", split=SplitRule({"val": 0.4, "test": 0.2}, "image"))
    splits: dict[str, set[str]] = {}
    for record in open_dataset(tmp_path / "out").records():
        for info in record.image_info:
            splits.setdefault(info.sha256, set()).add(record.split)
    assert all(len(names) == 1 for names in splits.values())
    assert set(summary["splits"]) == {"train", "val", "test"}


def test_records_that_have_a_split_keep_it_and_a_name_cannot_be_drawn_twice(tmp_path: Path) -> None:
    rows = [{"id": str(index), "captions": ["x"], "split": "train" if index % 2 else "val"} for index in range(100)]
    put(tmp_path / "in/records.jsonl", rows)
    summary = prepared("records", tmp_path / "in", tmp_path / "out", split=SplitRule({"test": 0.5}))
    assert summary["splits"]["val"] == 50
    assert summary["splits"]["train"] + summary["splits"]["test"] == 50
    with pytest.raises(UsageError, match="in split 'val' already"):
        prepared("records", tmp_path / "in", tmp_path / "again", split=SplitRule({"val": 0.5}))


def test_defaults_are_those_of_the_documentation() -> None:
    options = PrepareOptions(out=Path("x"))
    assert (options.max_skipped, options.split.by, options.sample) == (0.01, "id", None)


# Memory ---------------------------------------------------------------------------------------------------------------------

MEASURE = """
import sys
from pathlib import Path
from sightline.data.dataset import open_dataset
from sightline.data.prepare.run import PrepareOptions, prepare
out = Path(sys.argv[2])
prepare(Path(sys.argv[1]), "llava", PrepareOptions(out=out, workers=0, shards=2_000_000))
assert sum(1 for _ in open_dataset(out).records()) == int(sys.argv[3])
print(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))
"""


def test_memory_does_not_grow_with_the_source(tmp_path: Path) -> None:
    """A single json array of 23 MB, made into shards and read again, against one of 1 MB; in KiB."""
    peaks = []
    for count in (200, 4500):
        turns = [{"from": "human", "value": "Q" * 2500}, {"from": "gpt", "value": "A" * 2500}]
        put(tmp_path / f"{count}/chat.json", [{"id": str(index), "conversations": turns} for index in range(count)])
        command = [sys.executable, "-c", MEASURE, str(tmp_path / str(count)), str(tmp_path / f"out-{count}"), str(count)]
        child = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        peaks.append(int(child.stdout))
    assert peaks[1] - peaks[0] < 10_000, peaks


def test_photos_of_48_megapixels_are_taken_and_a_larger_limit_is_a_property_of_the_folder(tmp_path: Path) -> None:
    def photo(width: int, height: int) -> bytes:
        buffer = io.BytesIO()
        Image.new("L", (width, height)).save(buffer, "JPEG")  # as large as a photo, and quick to encode
        return buffer.getvalue() + bytes(40_000)  # after the end of the image: below the limit of pixels per byte

    put(
        tmp_path / "in/records.jsonl", [{"id": name, "images": [f"{name}.jpg"], "captions": [name]} for name in ("phone", "camera")]
    )
    put(tmp_path / "in/phone.jpg", photo(8064, 6048))
    put(tmp_path / "in/camera.jpg", photo(9504, 6336))
    usual = prepared("records", tmp_path / "in", tmp_path / "usual")
    assert (usual["ok"], usual["skipped"]) == (1, {"image_too_many_pixels": 1})
    assert "max_pixels" not in usual
    large = prepared("records", tmp_path / "in", tmp_path / "large", limits=ImageLimits(max_pixels=61_000_000))
    assert (large["ok"], large["max_pixels"]) == (2, 61_000_000)
    dataset = open_dataset(tmp_path / "large")
    sizes = {record.id: read_image(dataset, record).size for record in dataset.records()}
    assert sizes == {"phone": (8064, 6048), "camera": (9504, 6336)}
