"""The verdict from stored items, against differences computed by hand and by numpy."""

from pathlib import Path

import numpy as np
import pytest

from sightline.evaluation.looking import image_difference, paired_scores, stored_items, verdict_of_items
from sightline.evaluation.tasks import ScoreInfo
from sightline.runtime import storage

EXACT, LOSS = ScoreInfo("exact", "exact"), ScoreInfo("loss", "loss", higher_is_better=False)


def items(values: list[float], first: int = 0, images: list[str] | None = None) -> dict[str, object]:
    records = [f"r{first + number}" for number in range(len(values))]
    return {"records": records, "image": images or records, "items": {"exact": values, "loss": values}}


def test_only_shared_items_count_and_in_pairs() -> None:
    seen, control = items([1.0, 0.5, 0.25, 1.0]), items([0.75, 0.0, 9.0], first=2)
    pair = paired_scores(seen, control, "exact")
    assert pair is not None
    assert (pair[0].value, pair[1].value, pair[2]) == (0.625, 0.375, 2)
    found = image_difference(seen, control, EXACT)
    assert found is not None
    assert found.value == pytest.approx(0.25)  # (0.25 - 0.75 + 1.0 - 0.0) / 2
    assert (found.low, found.high) == (-0.5, 1.0)  # both draws of one item
    reverse = image_difference(seen, control, LOSS)
    assert reverse is not None
    assert reverse.value == pytest.approx(-0.25)


def test_records_of_one_image_are_drawn_together() -> None:
    rng = np.random.default_rng(0)
    per_image = rng.normal(0.1, 1, 30)
    values = np.repeat(per_image, 10).tolist()
    images = [f"i{number // 10}" for number in range(300)]
    found = image_difference(items(values, images=images), items([0.0] * 300, images=images), EXACT)
    assert found is not None
    assert found.n == 30
    expected = 1.96 * per_image.std() / np.sqrt(30)
    assert (found.high - found.low) / 2 == pytest.approx(expected, rel=0.15)


def test_verdicts_of_answerers_whose_looking_is_known() -> None:
    rng = np.random.default_rng(0)
    right = (rng.random(400) < 0.7).astype(float).tolist()
    blind = (rng.random(400) < 0.2).astype(float).tolist()
    assert verdict_of_items(items(right), items(blind), EXACT, "shuffled").verdict == "looks"
    assert verdict_of_items(items(right), items(right), EXACT, "shuffled").verdict == "does not look"
    assert verdict_of_items(items(right[:10]), items(blind[:10]), EXACT, "shuffled").verdict == "not enough items to say"
    assert str(verdict_of_items(items(blind), items(right), EXACT, "shuffled")).startswith("worse with the image than without")
    assert verdict_of_items(items(blind), items(right), LOSS, "shuffled").verdict == "looks"


@pytest.mark.parametrize("control", [None, items([1.0], first=99), {**items([1.0]), "items": {}}])
def test_without_a_control_to_compare_nothing_is_claimed(control: dict[str, object] | None) -> None:
    found = verdict_of_items(items([1.0, 0.0]), control, EXACT, "shuffled", "sightline eval RUN")
    assert (found.verdict, found.command) == ("not checked", "sightline eval RUN")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"records": ["r0"]},
        {"image": ["r0"]},
        {"items": {"exact": [1.0]}},
        {"items": {"exact": [1.0, "a"]}},
        {"items": [1.0, 0.0]},
        {"items": {"exact": 1.0}},
        {"records": None},
    ],
)
def test_items_whose_lists_do_not_belong_together_are_none(tmp_path: Path, changes: dict[str, object]) -> None:
    whole = items([1.0, 0.0])
    storage.write_json(tmp_path / "items.json", {**whole, **changes})
    assert stored_items(tmp_path / "items.json") == (None if changes else whole)
    storage.write_json(tmp_path / "items.json", ["no", "object"])
    assert stored_items(tmp_path / "items.json") is None


def test_items_of_older_versions_are_read(tmp_path: Path) -> None:
    whole = items([1.0, 0.0])
    storage.write_json(tmp_path / "items.json", {"records": whole["records"], "picture": whole["image"], "items": whole["items"]})
    assert (stored_items(tmp_path / "items.json") or {})["image"] == whole["image"]
