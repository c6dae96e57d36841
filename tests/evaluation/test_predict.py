"""Predictions of a split: each record once, in batches of one shape, and the same after any interruption."""

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sightline.errors import Stopped, StorageError
from sightline.evaluation.predict import Predicted, predict
from sightline.evaluation.tasks import Query
from sightline.runtime.storage import read_json_lines
from sightline.types import Message, Part, Prediction, Record

RECORDS = [Query(f"r{number}", Record(f"r{number}"), (Message("user", (Part("?"),)),)) for number in range(11)]
SETTINGS = {"model": "m", "sizes": (1, 2)}


class Scripted:
    """Answers by query, cannot answer some, and can be interrupted."""

    def __init__(self, broken: Sequence[str] = (), fail_at: int | None = None, stop_at: int | None = None) -> None:
        self.broken, self.fail_at, self.stop_at = set(broken), fail_at, stop_at
        self.calls: list[tuple[list[str], int]] = []

    def width(self, records: Sequence[Query]) -> int:
        return max(int(record.id[1:]) for record in records) + 5

    def answer(self, records: Sequence[Query], width: int) -> list[Prediction]:
        if len(self.calls) == self.fail_at:
            raise OSError("the power went away")
        if len(self.calls) == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        self.calls.append(([record.id for record in records], width))
        return [self.said(query) for query in records]

    def said(self, query: Query) -> Prediction:
        if query.id in self.broken:
            return Prediction(query.id, skipped="image_format")
        return Prediction(query.id, f"say {query.id}", 3)


def run(folder: Path, answers: Scripted, size: int = 4, records: Sequence[Query] = RECORDS, **changes: Any) -> Predicted:
    return predict(answers, records, folder, SETTINGS | changes, size)


def said(predicted: Predicted) -> list[tuple[str, str]]:
    return [(prediction.id, prediction.text) for prediction in predicted.predictions]


@pytest.mark.parametrize("size", [1, 4, 11, 30])
def test_every_record_is_asked_once_in_batches_of_one_shape(tmp_path: Path, size: int) -> None:
    answers = Scripted()
    found = run(tmp_path, answers, size)
    assert said(found) == [(record.id, f"say {record.id}") for record in RECORDS]
    assert found.skipped == {}
    assert {(len(asked), width) for asked, width in answers.calls} == {(size, 15)}
    asked = [name for names, _ in answers.calls for name in names]
    assert asked[: len(RECORDS)] == [record.id for record in RECORDS]
    assert set(asked[len(RECORDS) :]) <= {"r10"}  # the last batch is filled up and what is said twice is dropped


def test_records_that_cannot_be_answered_are_counted_and_all_are_accounted_for(tmp_path: Path) -> None:
    found = run(tmp_path, Scripted(["r0", "r3", "r10"]))
    assert found.skipped == {"image_format": 3}
    assert len(RECORDS) == len(found.predictions) + sum(found.skipped.values())
    assert [name for name, _ in said(found)] == [record.id for record in RECORDS if record.id not in ("r0", "r3", "r10")]
    again = Scripted()
    assert run(tmp_path, again) == found
    assert again.calls == []  # what was skipped stays skipped


@pytest.mark.parametrize("torn", [0, 1, 9])
def test_what_a_kill_leaves_is_kept_and_a_torn_line_is_made_again(tmp_path: Path, torn: int) -> None:
    whole = run(tmp_path / "whole", Scripted(["r5"]))
    with pytest.raises(OSError, match="power"):
        run(tmp_path / "cut", Scripted(["r5"], fail_at=2))
    log = tmp_path / "cut/predictions.jsonl"
    content = log.read_bytes()
    assert content.count(b"\n") == 8
    log.write_bytes(content[: len(content) - torn])
    rest = Scripted(["r5"])
    assert run(tmp_path / "cut", rest) == whole
    first = rest.calls[0][0][0]
    assert first == ("r8" if torn == 0 else "r7")
    written = [json.loads(line)["id"] for line in log.read_text().splitlines()]
    assert written == [record.id for record in RECORDS]
    assert log.read_bytes() == (tmp_path / "whole/predictions.jsonl").read_bytes()


def test_a_signal_ends_it_after_the_batch_and_the_same_command_goes_on(tmp_path: Path) -> None:
    stopping = Scripted(stop_at=1)
    with pytest.raises(Stopped, match="SIGTERM after 8 predictions, which are kept") as caught:
        run(tmp_path, stopping)
    assert caught.value.exit_code == 75
    rest = Scripted()
    assert len(run(tmp_path, rest).predictions) == len(RECORDS)
    assert len(rest.calls) == 1


def test_whatever_bit_flips_in_the_predictions_every_text_is_as_it_was_said(tmp_path: Path) -> None:
    """What is damaged is made again; nothing that was not said reaches the scores."""
    whole = run(tmp_path, Scripted(["r5"]))
    log = tmp_path / "predictions.jsonl"
    written = log.read_bytes()
    for place in range(0, len(written), 7):
        data = bytearray(written)
        data[place] ^= 1 << place % 8
        log.write_bytes(data)
        again = Scripted(["r5"])
        assert run(tmp_path, again) == whole, place
        assert 1 <= sum(len(set(names)) for names, _ in again.calls) <= 4, place


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000])
def test_where_the_settings_are_damaged_all_is_made_again(tmp_path: Path, content: bytes) -> None:
    whole = run(tmp_path, Scripted())
    (tmp_path / "settings.json").write_bytes(content)
    again = Scripted()
    assert run(tmp_path, again) == whole
    assert len(again.calls) == 3


@pytest.mark.parametrize("change", [{"model": "n"}, {"sizes": (1, 3)}, {"more": None}])
def test_other_settings_begin_anew(tmp_path: Path, change: dict[str, Any]) -> None:
    run(tmp_path, Scripted(["r1"]))
    again = Scripted()
    assert run(tmp_path, again, **change).skipped == {}
    assert len(again.calls) == 3


def test_more_records_of_the_same_settings_are_added(tmp_path: Path) -> None:
    run(tmp_path, Scripted(), records=RECORDS[3:6])
    answers = Scripted()
    assert [name for name, _ in said(run(tmp_path, answers))] == [record.id for record in RECORDS]
    assert not {"r3", "r4", "r5"} & {name for names, _ in answers.calls for name in names}


def test_a_second_evaluation_into_the_same_folder_is_refused_and_each_prediction_stands_once(tmp_path: Path) -> None:
    class Meanwhile(Scripted):
        def answer(self, records: Sequence[Query], width: int) -> list[Prediction]:
            with pytest.raises(StorageError, match=f"{tmp_path.name} is in use"):
                run(tmp_path, Scripted(), model="another")
            return super().answer(records, width)

    found = run(tmp_path, Meanwhile())
    ids = [line["id"] for line in read_json_lines(tmp_path / "predictions.jsonl")]
    assert ids == [prediction.id for prediction in found.predictions] == [record.id for record in RECORDS]


@pytest.mark.parametrize(
    ("prediction", "line"),
    [
        (Prediction("r", "a dog", 3), {"id": "r", "text": "a dog", "tokens": 3}),
        (Prediction("r", scores=(-1.5, -0.25)), {"id": "r", "scores": [-1.5, -0.25]}),
        (Prediction("r", embedding=(0.5, 1.0)), {"id": "r", "embedding": [0.5, 1.0]}),
        (Prediction("r", skipped="too_long"), {"id": "r", "skipped": "too_long"}),
    ],
)
def test_a_prediction_is_one_line_and_the_line_is_the_prediction(prediction: Prediction, line: dict[str, Any]) -> None:
    assert prediction.to_json() == line
    assert Prediction.from_json(json.loads(json.dumps(line))) == prediction


@pytest.mark.parametrize(
    "line",
    [
        {"id": "r1"},
        {"id": ["r1"], "text": "x", "tokens": 1},
        {"id": "r1", "text": None, "tokens": 1},
        {"id": "r1", "text": "x", "tokens": "1"},
        {"id": "r1", "scores": 5},
        {"id": "r1", "scores": ["x"]},
        {"id": "r1", "embedding": {}},
        {"id": "r1", "skipped": 3},
    ],
)
def test_a_line_that_is_no_prediction_is_moved_aside_and_its_record_asked_again(
    tmp_path: Path, line: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Also one without a checksum, as earlier versions wrote them."""
    whole = run(tmp_path, Scripted())
    log = tmp_path / "predictions.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    lines[1] = json.dumps(line).encode() + b"\n"
    log.write_bytes(b"".join(lines))
    again = Scripted()
    assert said(run(tmp_path, again)) == said(whole)
    assert [names for names, _ in again.calls] == [["r1"] * 4]
    assert "1 damaged line (number 2), moved to predictions.jsonl.damaged" in caplog.text
