"""What must hold on any device; with `-m gpu` on CUDA. Values against float64 on the CPU, AdamW, fp16, copies, resume."""

import contextlib
import copy
import io
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from benchmarks.jobs import accelerator_on, job
from torch import Tensor
from torch.nn import functional as F

from sightline.models.connectors import ConnectorConfig
from sightline.models.connectors.align import AlignConfig
from sightline.models.connectors.mlp import MLPConfig
from sightline.models.connectors.moe import MoEConfig
from sightline.objectives import CALConfig, NextTokenConfig, ObjectiveConfig
from sightline.ops.cross_entropy import cross_entropy_reference, linear_cross_entropy
from sightline.ops.experts import ExpertWeights, experts_grouped, experts_loop
from sightline.ops.late_interaction import late_interaction, late_interaction_reference
from sightline.ops.vocabulary_attention import OuterNorm, vocabulary_attention, vocabulary_attention_reference
from sightline.training import loop
from sightline.training.checkpoint import Progress
from sightline.training.loss_scale import HalfAccelerator, LossScale
from sightline.training.ranks import on_device
from sightline.types import Batch, Head, tensors_of
from tests.builders import Exact, batch_of, sample, vlm

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
pytestmark = pytest.mark.parametrize("device", DEVICES)


def rows(seed: int, plain: bool = False) -> Batch:
    if plain:
        return batch_of([sample(seed, [5])], [sample(seed + 50, [3], num_images=0)])
    return batch_of([sample(seed, [3, 2]), sample(seed + 50, [4], num_images=0)], [sample(seed + 90, [6])])


# Functions: output and gradients against the plain formula in float64 on the CPU ------------------------------------------------

Function = Callable[..., Tensor]


def cross_entropy(function: Any, softcap: float) -> Function:
    def call(states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        target = torch.arange(len(states), device=states.device) * 7 % len(weight)
        nll, logit = function(states, Head(weight, bias, softcap, 0.7), target)
        return torch.stack([nll, logit])

    return call


def mixed_words(function: Any) -> Function:
    def call(query: Tensor, keys: Tensor, words: Tensor, gain: Tensor) -> Tensor:
        return function(query, keys, words, OuterNorm(gain.mean()))

    return call


def mixture(function: Any) -> Function:
    def call(tokens: Tensor, up: Tensor, down: Tensor, scores: Tensor) -> Tensor:
        chosen = scores.detach().argsort(1)[:, :2]
        return function(tokens, chosen, scores.gather(1, chosen), ExpertWeights(up, down, F.gelu))

    return call


FUNCTIONS: dict[str, tuple[Function, Function, Sequence[tuple[int, ...]]]] = {
    "cross-entropy": (
        cross_entropy(linear_cross_entropy, 0.0),
        cross_entropy(cross_entropy_reference, 0.0),
        [(33, 24), (211, 24), (211,)],
    ),
    "cross-entropy with a soft cap": (
        cross_entropy(linear_cross_entropy, 2.0),
        cross_entropy(cross_entropy_reference, 2.0),
        [(33, 24), (211, 24), (211,)],
    ),
    "vocabulary attention": (
        mixed_words(vocabulary_attention),
        mixed_words(vocabulary_attention_reference),
        [(40, 16), (210, 16), (210, 12), (3,)],
    ),
    "experts": (mixture(experts_grouped), mixture(experts_loop), [(50, 16), (4, 24, 16), (4, 8, 24), (50, 4)]),
}


def outcome(function: Function, inputs: Sequence[Tensor], device: str, dtype: torch.dtype) -> list[Tensor]:
    """The output and the gradient of every input, on the CPU in float64."""
    leaves = [value.to(device, dtype).requires_grad_() for value in inputs]
    out = function(*leaves)
    pull = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape)
    gradients = torch.autograd.grad(out, leaves, pull.to(out.device, out.dtype))
    return [value.detach().cpu().double() for value in (out, *gradients)]


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)], ids=["fp32", "bf16"])
def test_a_function_gives_the_value_and_gradients_of_its_formula_in_float64(
    device: str, name: str, dtype: torch.dtype, share: float
) -> None:
    ours, reference, shapes = FUNCTIONS[name]
    generator = torch.Generator().manual_seed(4)
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    truth = outcome(reference, [value.double() for value in inputs], "cpu", torch.float64)
    for found, expected in zip(outcome(ours, inputs, device, dtype), truth, strict=True):
        assert (found - expected).norm() <= share * expected.norm(), name


# Steps --------------------------------------------------------------------------------------------------------------------------

MODELS: dict[str, tuple[ConnectorConfig, ObjectiveConfig]] = {
    "mlp next_token": (MLPConfig(shuffle=2), NextTokenConfig()),
    "align cal": (AlignConfig(shuffle=2), CALConfig(stored=False)),
    "moe next_token": (MoEConfig(shuffle=2), NextTokenConfig()),
    "mlp published": (MLPConfig(shuffle=2), CALConfig(mode="published")),
}


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_of_a_model_are_those_of_float64(device: str, name: str) -> None:
    connector, objective = MODELS[name]
    batch = rows(1, objective.needs_padded_rows)
    found = []
    for where, dtype in (("cpu", torch.float64), (device, torch.float32)):
        model = vlm("siglip", "llama", connector).train().to(where, dtype)
        with Exact() if dtype == torch.float64 else contextlib.nullcontext():
            loss = objective.build()(model, batch.to(where))
        loss.total.backward()
        gradients = [value.grad.cpu().double() for value in model.parameters() if value.grad is not None]
        found.append([loss.total.detach().cpu().double(), *gradients])
    for ours, expected in zip(found[1], found[0], strict=True):
        assert (ours - expected).norm() <= 2e-3 * expected.norm() + 1e-5


def trained(model: Any, batches: Sequence[Sequence[Batch]], device: str, **changes: Any) -> loop.Job:
    accelerator = changes.pop("accelerator", None) or accelerator_on(device)
    return job(model, batches, NextTokenConfig().build(), accelerator=accelerator, lr=1e-3, clip=1.0, **changes)


def test_adamw_makes_the_steps_of_its_formula(device: str) -> None:
    """Loshchilov and Hutter 2019, algorithm 2, in float64; on CUDA the optimiser is the fused one."""
    model = vlm("siglip", "llama").to(device)
    given = trained(model, [[rows(1)]], device, decay=0.1, adamw=True)
    assert all(group["fused"] is (True if device == "cuda" else None) for group in given.optimiser.param_groups)
    held = [(value, group["weight_decay"]) for group in given.optimiser.param_groups for value in group["params"]]
    truth = [[value.detach().cpu().double(), 0.0, 0.0] for value, _ in held]
    generator = torch.Generator().manual_seed(8)
    for step in range(1, 6):
        for (value, decay), state in zip(held, truth, strict=True):
            gradient = torch.randn(value.shape, generator=generator)
            value.grad = gradient.to(device)
            gradient = gradient.double()
            state[1] = 0.9 * state[1] + 0.1 * gradient
            state[2] = 0.999 * state[2] + 0.001 * gradient**2
            change = state[1] / (1 - 0.9**step) / ((state[2] / (1 - 0.999**step)).sqrt() + 1e-8)
            state[0] = state[0] - 1e-3 * decay * state[0] - 1e-3 * change
        given.optimiser.step()
    for (value, _), state in zip(held, truth, strict=True):
        torch.testing.assert_close(value.detach().cpu().double(), state[0], rtol=1e-5, atol=1e-6)


def test_fp16_with_a_scaled_loss_makes_the_step_of_fp32_up_to_rounding(device: str) -> None:
    ends = []
    for half in (False, True):
        model = vlm("siglip", "llama").train().to(device)
        accelerator = accelerator_on(device, kind=HalfAccelerator if half else Accelerator)
        given = trained(model, [[rows(1), rows(2)], [rows(3)]], device, accelerator=accelerator)
        given.ranks.scale = LossScale() if half else None
        assert loop.fit(given, Progress()).refused == 0
        ends.append(given.log)
    for ours, expected in zip(ends[1], ends[0], strict=True):
        assert ours["loss"] == pytest.approx(expected["loss"], rel=5e-3)
        assert ours["grad_norm"] == pytest.approx(expected["grad_norm"], rel=0.05)
    assert ends[0][0]["loss"] != ends[1][0]["loss"]


def test_batches_that_are_copied_ahead_arrive_whole(device: str) -> None:
    """Memory of a batch is not given to a later copy while a computation still reads it."""
    batches = [rows(seed) for seed in range(12)]
    expected = [[value.clone() for value in tensors_of(batch)] for batch in batches]
    load = torch.randn(512, 512, device=device)
    sums = []
    for batch in on_device(batches, torch.device(device)):
        for _ in range(4):  # keeps the device busy while the next copies are made
            load = torch.tanh(load @ load)
        sums.append([value.double().sum() + 0 * load.sum() for value in tensors_of(batch)])
    for found, values in zip(sums, expected, strict=True):
        assert [float(value) for value in found] == [float(value.double().sum()) for value in values]


def test_a_resumed_run_has_the_bits_of_an_undisturbed_one(device: str) -> None:
    batches = [[rows(seed), rows(seed + 10)] for seed in range(4)]
    torch.use_deterministic_algorithms(True)
    try:
        whole = vlm("siglip", "llama").train().to(device)
        loop.fit(trained(whole, batches, device, adamw=True), Progress())
        part = vlm("siglip", "llama").train().to(device)
        first = trained(part, batches, device, adamw=True, steps=2)
        at = loop.fit(first, Progress())
        stored = io.BytesIO()
        torch.save({"model": part.state_dict(), "optimiser": first.optimiser.state_dict()}, stored)
        stored.seek(0)
        state = torch.load(stored, map_location="cpu")
        resumed = vlm("siglip", "llama").train().to(device)
        resumed.load_state_dict(state["model"])
        second = trained(resumed, batches, device, adamw=True)
        second.optimiser.load_state_dict(copy.deepcopy(state["optimiser"]))
        loop.fit(second, at)
    finally:
        torch.use_deterministic_algorithms(False)
    for (name, value), other in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(value, other), name


def test_late_interaction_is_that_of_float64(device: str) -> None:
    generator = torch.Generator().manual_seed(2)
    image, text = torch.randn(5, 7, 16, generator=generator), torch.randn(6, 4, 16, generator=generator)
    truth = late_interaction_reference(image.double(), text.double())
    for found, expected in zip(late_interaction(image.to(device), text.to(device)), truth, strict=True):
        torch.testing.assert_close(found.cpu().double(), expected, rtol=1e-5, atol=1e-5)
