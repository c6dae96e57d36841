"""fp16 training: the step of fp32 up to rounding, whatever the factor on the loss; overflow lowers it and leaves the weights."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from sightline.assembly.config.schema import RuntimeConfig
from sightline.errors import NumericsError
from sightline.objectives.next_token import NextToken
from sightline.training import loop
from sightline.training.checkpoint import Progress
from sightline.training.loss_scale import INITIAL, PATIENCE, HalfAccelerator, LossScale
from sightline.types import Batch
from tests.builders import batch_of, sample, vlm
from tests.training.helpers import job, weights


def steps(count: int) -> list[list[Batch]]:
    return [[batch_of([sample(seed, [3, 2])]), batch_of([sample(seed + 50, [4])])] for seed in range(count)]


def trained(
    batches: Sequence[Sequence[Batch]],
    accelerator: Accelerator,
    scale: LossScale | None = None,
    at: Progress | None = None,
    model: Any = None,
) -> tuple[Any, loop.Job, Progress]:
    model = model or vlm("siglip", "llama").train()
    given = job(model, batches, NextToken(), accelerator=accelerator, lr=0.1, clip=1.0, steps=3)
    given.ranks.scale = scale
    return model, given, loop.fit(given, at or Progress())


def test_steps_are_those_of_fp32_up_to_rounding_whatever_the_scale() -> None:
    start = weights(vlm("siglip", "llama"))
    exact, lines, _ = trained(steps(3), Accelerator(cpu=True))
    found = [trained(steps(3), HalfAccelerator(cpu=True), LossScale(value)) for value in (1, INITIAL, 2**10)]
    for half, given, at in found:
        assert at.refused == 0
        assert [line["loss"] for line in given.log] == pytest.approx([line["loss"] for line in lines.log], rel=2e-3)
        assert [line["grad_norm"] for line in given.log] == pytest.approx([line["grad_norm"] for line in lines.log], rel=2e-2)
        for name, value in weights(exact).items():
            moved = (value - start[name]).norm()
            if moved > 1e-4:
                assert (weights(half)[name] - value).norm() < 0.05 * moved, name
    assert any(not torch.equal(weights(found[0][0])[name], value) for name, value in weights(exact).items())  # it is not fp32


def test_an_overflow_halves_the_scale_and_changes_no_weight() -> None:
    model = vlm("siglip", "llama").train()
    before, scale = weights(model), LossScale(2**40)
    _, given, at = trained(steps(3), HalfAccelerator(cpu=True), scale, model=model)
    assert scale.value == 2**37
    assert at.refused == 3  # and no error, which three losses that are not finite would be
    assert [line["loss_scale"] for line in given.log] == [2**39, 2**38, 2**37]
    assert all(line["refused"] and math.isfinite(line["loss"]) and not math.isfinite(line["grad_norm"]) for line in given.log)
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())


def test_a_loss_that_is_not_finite_is_no_overflow() -> None:
    model = vlm("siglip", "llama").train()
    with torch.no_grad():
        model.connector.project.linears[0].bias[0] = float("nan")
    scale = LossScale()
    with pytest.raises(NumericsError, match="not finite"):
        trained(steps(3), HalfAccelerator(cpu=True), scale, model=model)
    assert scale.value == INITIAL
    smallest = LossScale(1)
    assert not smallest.overflowed()


def test_the_scale_rises_after_many_steps_and_is_part_of_the_position() -> None:
    scale = LossScale()
    for _ in range(PATIENCE):
        scale.stepped()
    assert (scale.value, scale.good_steps) == (2 * INITIAL, 0)
    whole, _, end = trained(steps(3), HalfAccelerator(cpu=True), LossScale(2**5, PATIENCE - 2))
    assert (end.loss_scale, end.good_steps) == (2**6, 1)
    model = vlm("siglip", "llama").train()
    given = job(model, steps(3), NextToken(), accelerator=HalfAccelerator(cpu=True), lr=0.1, clip=1.0, steps=2)
    given.ranks.scale = LossScale(2**5, PATIENCE - 2)
    middle = loop.fit(given, Progress())
    assert (middle.loss_scale, middle.good_steps) == (2**6, 0)
    _, _, at = trained(steps(3), HalfAccelerator(cpu=True), LossScale(middle.loss_scale, middle.good_steps), middle, model)
    assert at == end
    assert all(torch.equal(value, weights(model)[name]) for name, value in weights(whole).items())


def test_sharding_is_refused() -> None:
    with pytest.raises(ValueError, match="shard=true does not work with dtype=fp16"):
        RuntimeConfig(dtype="fp16", shard=True)
