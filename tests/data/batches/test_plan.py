"""The epoch plan against the rows that the loader made before it existed (commit 684dc59), and against its own rules."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.data.batches.order import mixture_order
from sightline.data.batches.plan import BatchRules, EpochPlan
from sightline.data.samples.length_table import LengthTable

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "epoch_rows.json").read_text())


def table(first: int, size: int) -> LengthTable:
    """Samples `first` and following of one endless list: 5 to 215 tokens and 0 to 2 crops each, of one conversation."""
    number = np.arange(first, first + size, dtype=np.int64)
    tokens, each = 5 + number * 7919 % 211, np.arange(size)
    return LengthTable(each, np.zeros_like(each), np.arange(size + 1), tokens, tokens, tokens, number * 31 % 3, each)


def plan_of(settings: dict[str, Any]) -> EpochPlan:
    settings = dict(settings)
    sizes, draws, windowed = (settings.pop(name) for name in ("sizes", "draws", "windowed"))
    firsts = np.cumsum([0, *sizes[:-1]]).tolist()
    return EpochPlan.of_tables(list(map(table, firsts, sizes)), draws, windowed, BatchRules(**settings))


def sha256(rows: Any) -> str:
    return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: sha256(golden["settings"])[:8])
def test_rows_of_epochs_steps_and_ranks_are_those_of_the_golden_file(golden: dict[str, Any]) -> None:
    plan = plan_of(golden["settings"])
    found = {str(epoch): {"rows": len(plan.rows(epoch)), "sha256": sha256(plan.rows(epoch))} for epoch in (0, 1, 5)}
    assert found == golden["epochs"]
    assert plan.steps(0) == golden["steps"]
    world = plan.rules.rows_per_step // plan.rules.accumulate
    first_and_last = (0, plan.steps(0) - 1)
    shares = [[plan.step(0, step, rank, ranks) for rank in range(ranks)] for ranks in (1, world) for step in first_and_last]
    assert sha256(shares) == golden["shares_sha256"]


def test_steps_run_across_epochs_and_parts_of_an_epoch_count() -> None:
    rules = BatchRules(pack=False, row_tokens=300, row_images=4, rows_per_step=4, accumulate=2, sort_by_length=False, seed=1)
    plan = EpochPlan.of_tables([table(0, 10)], [10], [False], rules)
    assert plan.steps(0) == 3
    steps = list(plan.next_steps(0, 2, 3))
    assert steps == [plan.step(0, 2), plan.step(1, 0), plan.step(1, 1)]
    assert steps[0][1] == ((), ())  # two rows are left for the last step: its second micro-batch is empty
    order = [sample for step in list(plan.next_steps(0, 0, 3)) for micro in step for row in micro for sample in row]
    assert order == mixture_order([10], [10], 1, 0, [False]).tolist()
    assert [plan.steps_of(epochs) for epochs in (0.5, 1.0, 2.0, 2.4)] == [2, 3, 6, 7]
