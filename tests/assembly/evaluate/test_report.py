"""The page of a run holds its scores against those of the controls on the same records."""

from dataclasses import replace
from pathlib import Path

import pytest

from sightline.assembly.config.resolving import resolve_config
from sightline.assembly.evaluate.report import SEEN, on_common_records, report_run
from sightline.assembly.train.run import train
from sightline.data.dataset import Dataset
from sightline.errors import SkipLimitError
from sightline.evaluation.predict import Predicted
from sightline.evaluation.spec import EvalSpec
from sightline.evaluation.tasks import TASKS, Query
from tests.assembly.evaluate.helpers import COUNT, data, two_pictures
from tests.assembly.helpers import run_config
from tests.data.check.planted import stored


def test_all_conditions_are_scored_on_the_records_that_each_of_them_answered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Left out: a record whose images cannot be exchanged, and for a broken image one record seeing and another shuffled."""
    path = data(tmp_path / "set", more=[two_pictures("pair")])
    config = run_config(path=str(path), train={"epochs": None, "steps": 1, "evaluate_samples": 0})
    run = tmp_path / "run"
    train(resolve_config(config, None, ["runtime.device=cpu", "data.split=val"]), run)
    stored(path, 5).write_bytes(b"broken")
    page = tmp_path / "page.html"
    found = report_run(
        EvalSpec(data=str(path), max_new_tokens=4, resamples=20),
        str(run),
        ["shuffled", "blind"],
        page,
        device="cpu",
    )
    answered = {name: {p.id for p in done.predicted.predictions} for name, done in found.items()}
    assert answered[SEEN] == answered["shuffled"] == answered["blind"]
    assert len(answered[SEEN]) == COUNT - 2
    assert "r5" not in answered[SEEN]
    assert "pair" not in answered[SEEN]
    told = {name: done.to_json() for name, done in found.items()}
    assert all(one["input"] == one["ok"] + sum(one["skipped"].values()) == COUNT + 1 for one in told.values())
    assert told[SEEN]["skipped"] == {"image_format": 1, "not_compared": 2}
    assert told["shuffled"]["skipped"] == {"image_format": 1, "not_exchangeable": 1, "not_compared": 1}
    assert told["blind"]["skipped"] == {"not_compared": 3}
    assert "blind: 3 records have no answer to compare with" in caplog.text
    for done in found.values():
        direct = TASKS["caption"](20).score([Query(r.id, r, ()) for r in Dataset(path).records("val")], done.predicted.predictions)
        assert done.scores == direct
        assert all(score.n == COUNT - 2 for score in done.scores.values())
    assert "image_format 1, not_compared 2" in page.read_text("utf-8")

    verdict = found[SEEN].verdict
    assert (verdict.verdict, verdict.control) == ("not enough items to say", "shuffled")  # of nine records
    assert verdict.difference is not None
    means = [sum(found[name].scores["cider_d"].items) / (COUNT - 2) for name in (SEEN, "shuffled")]
    assert verdict.difference.value == pytest.approx(means[0] - means[1])
    assert str(verdict) in page.read_text("utf-8")

    nobody = {name: replace(done, predicted=Predicted([], {}), scores={}) for name, done in found.items()}
    with pytest.raises(SkipLimitError, match="no record was answered under all of: with the image, shuffled, blind"):
        on_common_records(nobody)
    plain = {SEEN: found[SEEN], "blind": found["blind"]}
    assert on_common_records(plain) == plain

    # Any other task, by likelihood: the page shows ranks and chosen texts.
    spec = EvalSpec(task="retrieval", likelihood="plain", data=str(path), images=6, captions=1, resamples=20)
    found = report_run(spec, str(run), ["blind"], page, device="cpu")
    assert found[SEEN].scores["rsum"].value > 0
    shown = page.read_text("utf-8")
    assert "best caption at rank" in shown
    assert "sum of six recalls" in shown
