"""A small run of the fuzzer over the quick readers: nothing but errors of Sightline may come out."""

import pytest
from benchmarks.fuzz.readers import READERS
from benchmarks.fuzz.run import fuzz

SLOW = {"hf", "hf_saved", "model_folder", "records"}
QUICK = sorted(name for name in READERS if name not in SLOW and not name.startswith("prepare_"))


@pytest.mark.parametrize("name", QUICK)
def test_changed_files_end_in_errors_of_ours(name: str) -> None:
    outcome = fuzz(name, first=0, inputs=20)
    assert outcome.inputs == 20
    assert not outcome.escapes, [escape.trace for escape in outcome.escapes.values()]
