"""The study's table of words: kinds and weights of a caption that is worked out by hand."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from sightline.evaluation.probes.gain import TextGain

NAN = float("nan")
TEXT = TextGain(
    "r", 0, ("A", " red", " ki", "te", " over", " two", " dogs", ".", "</s>"), (NAN, 3.0, 1.0, 2.0, 0.0, 9.0, 1.0, -1.0, -2.0)
)


@pytest.fixture(scope="module")
def words() -> Any:
    spec = importlib.util.spec_from_file_location("cal_words", Path(__file__).parents[2] / "studies" / "cal_words.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_token_is_of_the_kind_of_its_word(words: Any) -> None:
    other, end = "other words", "marks and the end of the text"
    assert words.kinds_of(TEXT) == ["function words", "colours", other, other, "places", "counts", other, end, end]


def test_weights_are_clamped_then_averaged_over_neighbours(words: Any) -> None:
    assert words.weights_of(TEXT, 0.0, 2.0, 1).tolist() == [1, 2, 1, 2, 0, 2, 1, 0, 0]
    assert words.weights_of(TEXT, 0.0, 2.0, 3).tolist() == pytest.approx([3 / 2, 4 / 3, 5 / 3, 1, 4 / 3, 1, 1, 1 / 3, 0])


def test_shares_are_of_all_tokens_and_of_all_weight(words: Any) -> None:
    found = words.table([TEXT], 0.0, 2.0, 1, resamples=5)
    assert found["colours"]["share_of_tokens"] == pytest.approx(1 / 9)
    assert found["colours"]["share_of_weight"] == pytest.approx(2 / 9)
    assert found["colours"]["ratio"] == pytest.approx(2)
    assert found["other words"]["mean_gain"] == pytest.approx(4 / 3)
