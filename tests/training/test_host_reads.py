"""A step waits for the device at most twice, however many micro-batches and parts it has."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from sightline.models.connectors import ConnectorConfig
from sightline.models.connectors.align import AlignConfig
from sightline.models.connectors.mlp import MLPConfig
from sightline.objectives import CALConfig, NextTokenConfig
from sightline.training import loop
from sightline.training.checkpoint import Progress
from sightline.types import Batch
from tests.builders import batch_of, sample, vlm
from tests.training.helpers import job
from tests.training.host_reads import HostReads

CONNECTORS: dict[str, ConnectorConfig] = {"mlp": MLPConfig(shuffle=2), "align": AlignConfig(shuffle=2)}
OBJECTIVES: dict[str, Any] = {"next_token": NextTokenConfig(), "cal": CALConfig(stored=False)}
STEPS = 2


def steps(micro_batches: int) -> list[list[Batch]]:
    """Packed rows with shared prefixes; the last of each step has one sample without an image."""
    found = []
    for step in range(STEPS):
        seeds = range(10 * step, 10 * step + micro_batches)
        rows = [[sample(seed, [2, 3]), sample(seed + 100, [4], num_images=seed % 2)] for seed in seeds]
        found.append([batch_of(row) for row in rows])
    return found


def reads(monkeypatch: pytest.MonkeyPatch, micro_batches: int, connector: str, objective: str) -> list[str]:
    """Where the steps of a job read."""
    model = vlm("siglip", "llama", CONNECTORS[connector]).train()
    given = job(model, steps(micro_batches), OBJECTIVES[objective].build(), clip=1.0, log_values=lambda: log_values(model))
    groups = [{name: group[name] for name in ("params", "lr", "peak", "part")} for group in given.optimiser.param_groups]
    fused = torch.optim.AdamW(groups, fused=True)  # as on a GPU
    with HostReads() as counted:
        counts = Batch.counts

        def on_the_host(batch: Batch) -> dict[str, int]:
            with counted.paused():
                return counts(batch)

        with monkeypatch.context() as patch:
            patch.setattr(Batch, "counts", on_the_host)
            loop.fit(replace(given, optimiser=fused), Progress())
    return counted.places


def log_values(model: Any) -> dict[str, float]:
    return {f"connector/{name}": value for name, value in model.connector.log_values().items()}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("connector", CONNECTORS)
@pytest.mark.parametrize("micro_batches", [1, 8])
def test_a_step_reads_at_most_twice(monkeypatch: pytest.MonkeyPatch, micro_batches: int, connector: str, objective: str) -> None:
    found = reads(monkeypatch, micro_batches, connector, objective)
    assert STEPS <= len(found) <= 2 * STEPS, found


def test_the_counter_sees_every_kind_of_read() -> None:
    values = torch.arange(4.0)
    mask = values > 1
    kinds = [
        values.tolist,
        values.numpy,
        values.cpu,
        values[0].item,
        lambda: bool(mask[0]),
        lambda: int(values[1]),
        lambda: float(values[1]),
        lambda: values[mask],
        lambda: values.index_put_((mask,), torch.zeros(2)),
        mask.nonzero,
        lambda: torch.where(mask),
        lambda: torch.masked_select(values, mask),
        lambda: torch.unique(values),
        lambda: values.repeat_interleave(torch.tensor([1, 2, 0, 1])),
    ]
    for kind in kinds:
        with HostReads() as counted:
            kind()
            with counted.paused():
                kind()
        assert len(counted.places) == 1, kind
    with HostReads() as counted:
        (values * 2).sum() + values[torch.tensor([0, 1])].mean() + torch.where(mask, values, 0).sum()
    assert counted.places == []
