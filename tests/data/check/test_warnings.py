"""What the numbers say in words, and when nothing is said."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sightline.data.check import CheckOptions, check
from sightline.data.check.figures import spread
from sightline.data.check.report import DataReport, StageFigures, TrainingFigures
from sightline.data.check.rows import EpochFigures, LongestConversation, PaddedFigures, RowSummary
from sightline.data.check.warnings import _percent
from tests.data.check.planted import folder, jpeg, png, question, record, scene, stored


def told(*folders: Path, training: TrainingFigures | None = None, damaged_files: tuple[str, ...] = ()) -> list[str]:
    checked = check(list(folders), CheckOptions(workers=0))
    return DataReport(replace(checked, damaged_files=damaged_files), training).warnings


def test_whole_data_has_nothing_to_warn_of(tmp_path: Path) -> None:
    rows = [record(f"r{index}", f"{index}.png", "val" if index == 3 else "train") for index in range(4)]
    assert told(folder(tmp_path / "data", rows, {f"{index}.png": png(scene(index)) for index in range(4)})) == []


def test_each_finding_is_a_sentence(tmp_path: Path) -> None:
    pictures = {f"{index}.png": png(scene(index)) for index in range(6)} | {
        "leak.jpg": jpeg(scene(0)),
        "tiny.png": png(scene(9).resize((4, 4))),
    }
    rows = [record(f"t{index}", f"{index}.png") for index in range(5)]
    rows += [record("again", "4.png", captions=["caption of t4"]), record("broken", "5.png")]
    rows += [record("v0", "leak.jpg", "val", ["CAPTION of t1"]), record("v1", "1.png", "val"), record("v2", "tiny.png", "val")]
    path = folder(tmp_path / "data", rows, pictures)
    stored(path, 6).write_bytes(b"")
    found = told(path)
    assert found == [
        "1 of 10 records cannot be used (10 %): image_empty 1.",
        "33 % of the images of val also stand in train (1, the same file); 33 % more look like one there (1).",
        "1 record of train repeats another one: the same images and the same captions or question.",
        "33 % of the records of val (1) have the captions or the question of a record of train, word for word.",
        "1 image is very small (12 %).",
    ]


def test_images_alike_alone_are_not_called_the_same(tmp_path: Path) -> None:
    rows = [record("a", "a.png"), record("b", "b.jpg", "val")]
    found = told(folder(tmp_path / "data", rows, {"a.png": png(scene(0)), "b.jpg": jpeg(scene(0))}))
    assert found == ["100 % of the images of val look like one of train (1, other files)."]


def test_a_frequent_answer_is_told_and_a_rare_one_not(tmp_path: Path) -> None:
    rows = [question(f"q{index}", "a.png", f"what {index}?", ["yes" if index < 4 else f"answer {index}"]) for index in range(10)]
    path = folder(tmp_path / "data", rows, {"a.png": png(scene(0))})
    assert told(path) == [
        "The answer 'yes' is right for 40 % of the questions of train: so much is reached without a look at the images."
    ]


def turn(name: str, image: str, answer: str, split: str = "train", turns: int = 1) -> dict[str, Any]:
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Describe the image."}]}
    more = {"role": "user", "content": "Is that so?"}
    messages = [user, *([{"role": "assistant", "content": answer}, more] * (turns - 1)), {"role": "assistant", "content": answer}]
    return record(name, image, split, messages=messages)


LONG = "a long answer that tells what the image number {} shows in many words"


def test_a_question_that_splits_share_is_no_leak_and_a_conversation_is(tmp_path: Path) -> None:
    """LLaVA asks the same few questions of all images; short answers are shared as well."""
    pictures = {f"{index}.png": png(scene(index)) for index in range(6)}
    rows = [turn(f"t{index}", f"{index}.png", LONG.format(index)) for index in range(3)]
    rows += [turn("v3", "3.png", LONG.format(3), "val"), turn("t4", "4.png", "a dog"), turn("v5", "5.png", "A dog", "val")]
    assert told(folder(tmp_path / "apart", rows, pictures)) == []
    rows[3] = turn("v3", "3.png", LONG.format(2), "val")
    (found,) = told(folder(tmp_path / "same", rows, pictures))
    assert found == "50 % of the records of val (1) have the captions or the question of a record of train, word for word."


def test_a_majority_takes_more_than_one_record_and_counts_long_answers(tmp_path: Path) -> None:
    pictures = {f"{index}.png": png(scene(index)) for index in range(6)}
    alone = folder(tmp_path / "alone", [turn("a", "0.png", "yes", turns=4)], pictures)
    assert told(alone) == []
    rows = [turn(f"r{index}", f"{index}.png", "yes" if index < 2 else LONG.format(index)) for index in range(6)]
    (found,) = told(folder(tmp_path / "some", rows, pictures))
    assert found.startswith("The answer 'yes' is right for 33 % of the questions of train")
    rows = [turn(f"r{index}", f"{index}.png", "yes" if index < 1 else LONG.format(index)) for index in range(3)]
    assert told(folder(tmp_path / "few", rows, pictures)) == []


def test_an_image_in_many_records_of_captions_is_told_of(tmp_path: Path) -> None:
    pictures = {f"{index}.png": png(scene(index)) for index in range(3)}
    rows = [record(f"r{index}-{n}", f"{index}.png", captions=[f"{n} of {index}"]) for n in range(5) for index in range(3)]
    (found,) = told(folder(tmp_path / "rows", rows, pictures))
    assert found.startswith("3 images of train stand in 15 records of captions (up to 5 each)")
    assert "--group image" in found
    assert told(folder(tmp_path / "grouped", rows, pictures, group="image")) == []


ROWS = RowSummary(
    conversations=100,
    kept=100,
    skipped={},
    left_out=[],
    tokens=spread([50]),
    too_long=None,
    max_tokens=60,
    longest=LongestConversation(50, "x"),
    supervised=spread([20]),
    supervised_share=0.4,
    visual_tokens_per_image=None,
    crops_per_image=None,
    samples=100,
    sample_tokens=spread([50]),
    tokens_alone=5000,
    tokens_shared=5000,
    saved_by_sharing=0.0,
)
EPOCH = EpochFigures(100, 100, 24832, 50, 0, 25600, 0.97, 1, 50, PaddedFigures(1, 1, 1, 1), 1.0)
STAGE = StageFigures("align", [], True, 512, 8, None, 1.0, None, EPOCH)


def test_what_training_would_lose_is_told(tmp_path: Path) -> None:
    path = folder(tmp_path / "data", [record("a", "a.png")], {"a.png": png(scene(0))})
    assert told(path, training=TrainingFigures({}, {"train": ROWS}, [STAGE])) == []
    longest = LongestConversation(90, "x")
    rows = replace(ROWS, skipped={"too_long": 3}, too_long=spread([90]), longest=longest, supervised_share=0.02)
    epoch = replace(EPOCH, fill=0.5, rows_full_of_images=20)
    stage = replace(STAGE, epoch=epoch, refused="3 of 100 conversations cannot be trained on.")
    assert told(path, training=TrainingFigures({}, {"train": rows}, [stage])) == [
        "3 % of the conversations of train are left out in training: too_long 3.",
        "The longest conversation of train has 90 tokens; the limit is 60 (data.max_tokens).",
        "Only 2.0 % of the tokens of train are supervised; the rest is read and not learned.",
        "The rows of stage align are only 50 % full; longer rows (data.row_tokens) fill better. "
        "20 of 50 hold as many images as a row may (data.row_images).",
        "Training would stop: 3 of 100 conversations cannot be trained on.",
    ]
    nothing = replace(STAGE, epoch=None, why="data has no split 'train'")
    warnings = told(path, training=TrainingFigures({}, {"train": ROWS}, [nothing]))
    assert warnings == ["Stage align has nothing to train on: data has no split 'train'."]


def test_what_was_lost_before_and_what_changed_since_is_told(tmp_path: Path) -> None:
    rows = [record("a", "a.png"), record("b", "missing.png")]
    path = folder(tmp_path / "data", rows, {"a.png": png(scene(0))})
    assert told(path, damaged_files=("records.jsonl differs from what was written",)) == [
        "A file of the folder was changed after it was written: records.jsonl differs from what was written.",
        f"When {path} was prepared, 1 record was left out (50 %); see its skipped.jsonl.",
    ]


@pytest.mark.parametrize(
    ("part", "whole", "shown"),
    [
        (0, 5, "0 %"),
        (1, 3, "33 %"),
        (1, 30, "3.3 %"),
        (1, 100, "1 %"),
        (1, 5000, "less than 0.1 %"),
        (999, 1000, "more than 99 %"),
        (5, 5, "100 %"),
    ],
)
def test_shares_never_say_none_or_all_when_it_is_not_so(part: int, whole: int, shown: str) -> None:
    assert _percent(part, whole) == shown
