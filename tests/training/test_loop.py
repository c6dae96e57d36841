"""The loop against plain formulas: accumulation, clipping, schedule, decay, skipped steps, and what has a gradient."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from sightline.errors import ConfigError, NumericsError, Stopped
from sightline.objectives import CALConfig, NextTokenConfig
from sightline.objectives.base import HiddenStateModel
from sightline.objectives.next_token import NextToken
from sightline.ops.cross_entropy import cross_entropy_reference
from sightline.runtime import seeds
from sightline.training import loop, lora, optim, stages
from sightline.training.checkpoint import Progress
from sightline.training.lora import LoraRule
from sightline.training.ranks import Replicated, StepModule
from sightline.training.stages import PartConfig
from sightline.types import Batch, Loss, Sample
from tests.builders import Exact, batch_of, sample, vlm
from tests.training.helpers import EVERY, job, moved, weights


def adamw(given: loop.Job) -> loop.Job:
    return replace(given, optimiser=optim.build_optimiser(given.stage, (0.9, 0.999), 1e-8))


# Accumulation and clipping --------------------------------------------------------------------------------------------------------


def the_samples() -> list[Sample]:
    """Of unlike lengths, so that a mean of means is another number; one is text alone."""
    return [sample(1, [2]), sample(2, [7, 3]), sample(3, [1], num_images=2), sample(4, [5], num_images=0)]


@pytest.mark.parametrize("objective", [NextTokenConfig(), CALConfig(stored=False)], ids=["next_token", "cal"])
def test_one_batch_and_its_micro_batches_are_the_same_step_in_float64(objective: Any) -> None:
    """1 x 4 = 2 x 2 = 4 x 1 in loss and in every parameter after a step of plain SGD, which moves them by the gradient itself."""
    ends, losses = [], []
    with Exact():
        start = weights(vlm("siglip", "llama", attention="eager").double())
        for size in (4, 2, 1):
            model = vlm("siglip", "llama", attention="eager").double()
            rows = [[one] for one in the_samples()]
            given = job(model, [[batch_of(*rows[at : at + size]) for at in range(0, 4, size)]], objective.build())
            loop.fit(given, Progress())
            ends.append(weights(model))
            losses.append(given.log[0]["loss"])
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-12)
    largest = max((ends[0][name] - value).abs().max().item() for name, value in start.items() if value.numel())
    for end in ends[1:]:
        for name, value in end.items():
            if not value.numel():  # no separators
                continue
            step = (ends[0][name] - start[name]).abs().max().item()
            assert (value - ends[0][name]).abs().max().item() <= 1e-10 * max(step, 0.01 * largest), name


def plain(model: Any, batch: Batch) -> Tensor:
    """The mean cross-entropy by the plain formula."""
    hidden = model.hidden(batch)
    return cross_entropy_reference(hidden.states_SD, hidden.head, batch.supervision.target_S)[0].mean()


@pytest.mark.parametrize("clip", [0.0, 0.5, 1e6])
def test_a_step_is_the_gradient_of_the_mean_loss_clipped_as_torch_does(clip: float) -> None:
    batches = [batch_of([one]) for one in the_samples()]
    model, twin = vlm("siglip", "llama"), vlm("siglip", "llama")
    stages.apply(twin, "test", EVERY, 1.0, 0.0)  # pyrefly: ignore
    given = job(model, [batches], NextToken(), clip=clip)
    loop.fit(given, Progress())

    count = sum(len(batch.supervision) for batch in batches)
    loss = torch.stack([plain(twin, batch) * len(batch.supervision) for batch in batches]).sum() / count
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), clip or math.inf)
    assert given.log[0]["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert given.log[0]["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    assert given.log[0]["weight"] == given.log[0]["supervised"] == count
    ends = weights(model)
    for name, value in twin.named_parameters():
        expected = value.detach() - (0 if value.grad is None else value.grad)
        torch.testing.assert_close(ends[name], expected, rtol=1e-4, atol=1e-5)


def test_a_run_of_steps_is_torchs_adamw_at_the_logged_rates() -> None:
    batches = [[batch_of([one])] for one in the_samples()]
    model, twin = vlm("siglip", "llama").double(), vlm("siglip", "llama").double()
    rules: Any = {"connector": 0.02, "language": 0.01}
    with Exact():
        stage = stages.apply(model, "test", rules, 1.0, 0.1)
        given = job(model, batches, NextToken(), stage=stage, schedule="cosine", warmup=2, clip=1.0)
        loop.fit(replace(given, optimiser=optim.build_optimiser(stage, (0.8, 0.9), 1e-7)), Progress())

        stages.apply(twin, "test", rules, 1.0, 0.0)
        named = [(name, value) for name, value in twin.named_parameters() if value.requires_grad and value.numel()]
        groups = []
        for name, value in named:
            peak = 0.02 if name.startswith("connector") else 0.01
            groups.append({"params": [value], "peak": peak, "weight_decay": 0.1 if value.ndim > 1 else 0.0})
        optimiser = torch.optim.AdamW(groups, lr=1.0, betas=(0.8, 0.9), eps=1e-7)
        factors = [0.5, 1.0, 1.0, 0.5]  # two steps up, then (1 + cos(pi n / 2)) / 2 for n = 0, 1
        for [batch], factor, line in zip(batches, factors, given.log, strict=True):
            assert line["lr"] == {"connector": pytest.approx(0.02 * factor), "language": pytest.approx(0.01 * factor)}
            optimiser.zero_grad()
            plain(twin, batch).backward()
            torch.nn.utils.clip_grad_norm_([value for _, value in named], 1.0)
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * factor
            optimiser.step()
    for name, value in twin.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), value, rtol=1e-9, atol=1e-10)


# Schedule and decay ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "theirs"), [("cosine", get_cosine_schedule_with_warmup), ("linear", get_linear_schedule_with_warmup)]
)
@pytest.mark.parametrize(("steps", "warmup"), [(20, 4), (7, 0), (5, 5), (1, 0)])
def test_after_the_warm_up_the_rate_is_that_of_transformers(
    schedule: Any, theirs: Callable[..., LambdaLR], steps: int, warmup: int
) -> None:
    factor = theirs(torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=1.0), warmup, steps).lr_lambdas[0]
    for step in range(warmup, steps):
        assert optim.lr_factor(step, steps, warmup, schedule, 0.0) == pytest.approx(factor(step), abs=1e-12)


def test_the_warm_up_rises_in_equal_steps_to_the_peak_and_no_step_is_at_zero() -> None:
    assert [optim.lr_factor(step, 9, 4, "cosine", 0.0) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert [optim.lr_factor(step, 2, 4, "constant", 0.0) for step in range(2)] == [0.25, 0.5]
    assert {optim.lr_factor(step, 9, 0, "constant", 0.3) for step in range(9)} == {1.0}
    assert min(optim.lr_factor(step, 9, 2, "linear", 0.0) for step in range(9)) > 0


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_floor_is_what_is_left_at_the_end(schedule: Any) -> None:
    rates = [optim.lr_factor(step, 10, 2, schedule, 0.1) for step in range(2, 11)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.1)
    assert optim.lr_factor(6, 10, 2, schedule, 0.1) == pytest.approx(0.55)  # half-way: (1 + 0.1) / 2 in both


def decayed(rules: Any, **options: Any) -> dict[str, float]:
    """What a step of AdamW without any gradient takes off each parameter, as a share of it over the rate."""
    model = vlm("siglip", "llama", num_separators=1)
    stage = stages.apply(model, "test", rules, 0.1, 0.5, **options)
    optimiser = optim.build_optimiser(stage, (0.9, 0.999), 1e-8)
    before = weights(model)
    for group in stage.groups:
        for value in group.parameters.values():
            value.grad = torch.zeros_like(value)
    optim.set_lr(optimiser, 1.0)
    optimiser.step()
    found = {}
    for name, value in model.named_parameters():
        if value.requires_grad:
            there = before[name] != 0
            found[name] = (1 - value.detach()[there] / before[name][there]).median().item() / 0.1 if there.any() else math.nan
    return found


def test_only_what_has_two_dimensions_decays_and_each_part_by_its_own_rule() -> None:
    found = decayed(EVERY | {"language": PartConfig(lr=0.1, weight_decay=0.25)})
    model = vlm("siglip", "llama", num_separators=1)
    for name, value in model.named_parameters():
        expected = 0.0 if value.ndim < 2 else 0.25 if name.startswith("language") else 0.5
        assert math.isnan(found[name]) or found[name] == pytest.approx(expected, abs=1e-4), name
    assert all("norm" in name or name.endswith("bias") for name, share in found.items() if share == 0)


def test_everything_decays_where_it_is_asked_for_and_nothing_where_it_is_not() -> None:
    everything = [share for share in decayed(EVERY, decay_all=True).values() if not math.isnan(share)]
    assert everything == pytest.approx([0.5] * len(everything), abs=1e-4)
    assert set(decayed({"connector": PartConfig(lr=0.1, weight_decay=0.0)}).values()) <= {0.0}


# What trains ----------------------------------------------------------------------------------------------------------------------

UNUSED = ("vision.head.", "vision.post_layernorm", "separators")  # no path from them to the loss of these batches
LORA = LoraRule(r=2)
KINDS: dict[str, tuple[Any, Callable[[str], bool]]] = {
    "align": ({"connector": "train"}, lambda name: name.startswith(("connector", "separators"))),
    "instruct": ({"connector": "train", "language": 0.5}, lambda name: not name.startswith("vision")),
    "full": (EVERY, lambda name: True),
    "lora": ({"language": PartConfig(lr=1.0, lora=LORA)}, lambda name: "lora_" in name),
    "lora with norms": (
        {"connector": "train", "language": PartConfig(lr=1.0, lora=LoraRule(r=2, full=("norms",)))},
        lambda name: not name.startswith("vision") and ("lora_" in name or "norm" in name or not name.startswith("language")),
    ),
    "lora with embeddings and head": (
        {"language": PartConfig(lr=1.0, lora=LoraRule(r=2, targets=("q_proj",), full=("embeddings", "head")))},
        lambda name: "lora_" in name or name.endswith(("embed_tokens.weight", "lm_head.weight")),
    ),
    "lora by a pattern": (
        {"language": PartConfig(lr=1.0, lora=LoraRule(r=2, targets=("q_proj",), full=(r"layers\.1\.mlp\.up",)))},
        lambda name: "lora_" in name or "layers.1.mlp.up_proj.weight" in name,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_exactly_where_the_table_says_and_nothing_else_moves(kind: str) -> None:
    rules, trains = KINDS[kind]
    torch.manual_seed(0)
    model = vlm("siglip", "llama_untied", num_separators=1)
    stage = stages.apply(model, "test", rules, 1e-2, 0.0)
    expected = {name for name, _ in model.named_parameters() if trains(name)}
    assert {name for group in stage.groups for name in group.parameters} == expected
    assert {name for name, value in model.named_parameters() if value.requires_grad} == expected

    buffers = {name: value.clone() for name, value in model.named_buffers()}
    before = weights(model)
    seen: set[str] = set()
    for name, value in model.named_parameters():
        if value.requires_grad:
            value.register_hook(lambda gradient, name=name: seen.add(name))
    loop.fit(adamw(job(model, [[batch_of([sample(1, [4, 2])])]] * 2, NextToken(), stage=stage)), Progress())
    reached = {name for name in expected if not name.startswith(UNUSED)}
    assert {name for name in seen if not name.startswith(UNUSED)} == reached
    assert reached <= moved(model, before) <= expected
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    for row in stage.table:
        own = [(name, value) for name, value in model.named_parameters() if part_of(name) == row.name]
        assert row.trainable == sum(value.numel() for name, value in own if name in expected)
        assert row.parameters == sum(value.numel() for name, value in own if "lora_" not in name)
        assert (row.lr > 0) == any(name in expected for name, _ in own)
        assert ("frozen" in row.line()) == (row.lr == 0)
        assert f"{row.parameters:,}" in row.line()


def part_of(name: str) -> str:
    return "connector" if name == "separators" else name.partition(".")[0]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({}, "stage 'test' trains no part"),
        ({"connector": "frozen"}, "stage 'test' trains no part"),
        ({"eye": "train"}, r"the model has no part 'eye'; it has .*vision"),
        ({"language": PartConfig(lr=1.0, lora=LoraRule(targets=("none",)))}, "none"),
        ({"language": PartConfig(lr=1.0, lora=LoraRule(full=("head",)))}, r"no parameter of language matches 'head'.*tied"),
        ({"language": PartConfig(lr=1.0, lora=LoraRule(full=("norm5",)))}, r"no parameter of language matches 'norm5'"),
    ],
)
def test_rules_that_cannot_be_followed_are_refused(rules: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        stages.apply(vlm("siglip", "llama"), "test", rules, 1e-3, 0.0)


def test_folding_adapters_gives_the_weights_that_a_checkpoint_shows_meanwhile() -> None:
    torch.manual_seed(0)
    model = vlm("siglip", "llama")
    names = set(model.state_dict())
    stage = stages.apply(model, "test", {"language": PartConfig(lr=1.0, lora=LoraRule(r=2, alpha=4, rslora=True))}, 1.0, 0.0)
    loop.fit(job(model, [[batch_of([sample(1, [4])])]] * 2, NextToken(), stage=stage, clip=1.0), Progress())
    shown = {name: value.clone() for name, value in lora.plain_state(model).items()}
    layer = model.language.model.layers[0].self_attn.q_proj
    added = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * 4 / math.sqrt(2)
    assert added.abs().max() > 1e-3
    by_hand = (layer.base_layer.weight + added).detach()
    torch.testing.assert_close(shown["language.model.layers.0.self_attn.q_proj.weight"], by_hand)
    lora.fold(model)
    assert set(shown) == set(model.state_dict()) == names
    for name, value in model.state_dict().items():
        assert torch.equal(value, shown[name]), name


# Steps that are not finite --------------------------------------------------------------------------------------------------------


class Broken:
    """Next-token loss in which something is not finite at the given steps."""

    def __init__(self, what: str, steps: set[int]) -> None:
        self.what, self.steps, self.count = what, steps, 0

    def __call__(self, model: HiddenStateModel, batch: Batch) -> Loss:
        loss = NextToken()(model, batch)
        self.count += 1
        if self.count not in self.steps:
            return loss
        match self.what:
            case "loss":
                return replace(loss, total=loss.total * math.nan)
            case "weight":  # as that of a model whose logits are not finite under CAL
                return replace(loss, total=loss.total * math.nan, weight=loss.weight * math.nan)
            case "gradient":
                return replace(loss, total=InfiniteGradient.apply(loss.total))
            case _:
                return replace(loss, total=loss.total * 0, weight=loss.weight * 0)


class InfiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * math.inf


@pytest.mark.parametrize("what", ["loss", "weight", "gradient"])
def test_three_steps_in_a_row_that_are_not_finite_end_the_run_with_code_4_and_no_step_is_made(what: str) -> None:
    model = vlm("siglip", "llama")
    before = weights(model)
    given = adamw(job(model, [[batch_of([sample(5, [3])])]] * 6, Broken(what, {1, 2, 3}), clip=1.0))
    with pytest.raises(NumericsError, match=r"step 3, 3 steps in a row \(records 5-0\).*learning rate") as caught:
        loop.fit(given, Progress())
    assert caught.value.exit_code == 4
    assert not moved(model, before)
    assert not given.optimiser.state
    assert [line["refused"] for line in given.log] == [True, True]


@pytest.mark.parametrize("what", ["loss", "weight", "gradient"])
def test_single_steps_that_are_not_finite_are_left_out_and_counted(what: str) -> None:
    batches = [[batch_of([sample(seed, [3])])] for seed in range(6)]
    model, twin = vlm("siglip", "llama"), vlm("siglip", "llama")
    given = job(model, batches, Broken(what, {2, 3, 5}), clip=1.0)
    at = loop.fit(given, Progress())
    assert (at.step, at.refused) == (6, 3)
    assert [line.get("refused", False) for line in given.log] == [False, True, True, False, True, False]
    loop.fit(job(twin, [batches[0], batches[3], batches[5]], NextToken(), clip=1.0), Progress())
    assert not moved(model, weights(twin))


def test_steps_without_any_weight_move_nothing_and_end_nothing() -> None:
    model = vlm("siglip", "llama")
    before = weights(model)
    at = loop.fit(job(model, [[batch_of([sample(5, [3])])]] * 5, Broken("nothing", set(range(9)))), Progress())
    assert at.step == 5
    assert not moved(model, before)


# Another kind of batch ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairs:
    """A batch of pairs of vectors, as a contrastive objective has them: no tokens, no visual slots, no supervision."""

    left_PE: Tensor
    right_PE: Tensor
    record_ids: tuple[tuple[str, ...], ...]

    def to(self, device: Any) -> "Pairs":
        return replace(self, left_PE=self.left_PE.to(device), right_PE=self.right_PE.to(device))

    def counts(self) -> dict[str, int]:
        return {"samples": len(self.record_ids), "pairs": len(self.left_PE)}


class TwoTowers(nn.Module):
    """Two linear maps into a shared space."""

    def __init__(self) -> None:
        super().__init__()
        self.vision, self.language = nn.Linear(3, 4, bias=False), nn.Linear(5, 4, bias=False)


class InfoNCE:
    """Cross-entropy of each left vector over all right ones of the micro-batch."""

    def __call__(self, model: Any, batch: Any) -> Loss:
        logits = model.vision(batch.left_PE) @ model.language(batch.right_PE).T
        total = nn.functional.cross_entropy(logits, torch.arange(len(logits)), reduction="sum")
        return Loss(total, torch.tensor(float(len(logits))))


def towers() -> TwoTowers:
    torch.manual_seed(4)
    return TwoTowers()


def pairs(seed: int, count: int) -> Pairs:
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(count, width, generator=generator) for width in (3, 5))
    return Pairs(left, right, tuple((f"p{seed}.{number}",) for number in range(count)))


def test_the_loop_trains_on_a_batch_that_it_does_not_know() -> None:
    model, twin = towers(), towers()
    steps = [[pairs(0, 3), pairs(1, 2)], [pairs(2, 4)]]
    group = {"vision": "train", "language": "train"}
    given = job(model, cast(Any, steps), cast(Any, InfoNCE()), group, lr=0.1)
    at = loop.fit(given, Progress())
    for step in steps:
        losses = [InfoNCE()(twin, batch) for batch in step]
        gradients = torch.autograd.grad(sum(x.total for x in losses) / sum(x.weight for x in losses), list(twin.parameters()))  # type: ignore
        with torch.no_grad():
            for value, gradient in zip(twin.parameters(), gradients, strict=True):
                value -= 0.1 * gradient
    assert weights(model).keys() == weights(twin).keys()
    for name, value in weights(twin).items():
        torch.testing.assert_close(weights(model)[name], value)
    assert [(line["samples"], line["pairs"]) for line in given.log] == [(5, 5), (4, 4)]
    assert not any(name in given.log[0] for name in ("tokens", "supervised", "crops", "tokens_per_s"))
    assert (at.seen_samples, at.seen_tokens) == (9, 0)


class TwoPasses(Replicated):
    """A strategy whose loss spans all micro-batches of a step: embeddings first, then the loss over all of them at once."""

    def forward_backward(self, batches: Sequence[Any]) -> list[Loss]:
        with torch.no_grad():
            lefts = torch.cat([self.module.model.vision(batch.left_PE) for batch in batches])
            rights = torch.cat([self.module.model.language(batch.right_PE) for batch in batches])
        lefts.requires_grad_()
        rights.requires_grad_()
        total = nn.functional.cross_entropy(lefts @ rights.T, torch.arange(len(lefts)), reduction="sum")
        total.backward()
        at = 0
        for batch in batches:
            end = at + len(batch.left_PE)
            self.module.model.vision(batch.left_PE).backward(lefts.grad[at:end])  # pyrefly: ignore
            self.module.model.language(batch.right_PE).backward(rights.grad[at:end])  # pyrefly: ignore
            at = end
        return [Loss(total.detach(), torch.tensor(float(len(lefts))))]


def test_a_strategy_may_pass_twice_over_the_micro_batches_of_a_step() -> None:
    """Gradients of cached embeddings make three micro-batches the step of one large batch, negatives of all of them included."""
    parts = [pairs(seed, 2) for seed in range(3)]
    whole = Pairs(torch.cat([p.left_PE for p in parts]), torch.cat([p.right_PE for p in parts]), (("all",),) * 6)
    ends = []
    for steps in ([parts], [[whole]]):
        model, accelerator = towers(), Accelerator(cpu=True)
        strategy = TwoPasses if len(steps[0]) > 1 else Replicated
        ranks = strategy(accelerator, StepModule(model, cast(Any, InfoNCE())))
        group = {"vision": "train", "language": "train"}
        loop.fit(job(model, cast(Any, steps), cast(Any, InfoNCE()), group, ranks=ranks, accelerator=accelerator), Progress())
        ends.append(weights(model))
    for name, value in ends[1].items():
        torch.testing.assert_close(ends[0][name], value)
        assert not torch.equal(value, weights(towers())[name])


# Rhythm ---------------------------------------------------------------------------------------------------------------------------


def test_checkpoints_and_validations_come_when_they_are_due_and_disturb_nothing() -> None:
    saved: list[int] = []
    validated: list[tuple[int, bool]] = []
    model = vlm("siglip", "llama")

    def evaluate(at: Progress) -> dict[str, Any]:
        validated.append((at.step, model.training))
        torch.rand(5)
        return {"value": -abs(at.step - 14)}

    torch.manual_seed(3)
    given = job(
        *(model, [[batch_of([sample(1, [3])])]] * 3, NextToken()),
        **{"steps": 7, "checkpoint_every": 3, "evaluate_every": 2, "lr": 1e-3},
        save=lambda at: saved.append(at.step),
        evaluate=evaluate,
    )
    before = seeds.rng_state()
    at = loop.fit(given, Progress(step=10, stage=1))
    after = seeds.rng_state()
    assert all(after[name] == before[name] for name in ("numpy", "torch"))  # Python's own is used by the shape checks of the tests
    assert saved == [12, 13, 14, 16]  # two that were the best so far, two that were due
    assert validated == [(12, False), (14, False), (16, False), (17, False)]
    assert model.training
    assert at.best == (0.0, 14)
    assert (at.step, at.stage_step, at.epoch, at.epoch_step) == (17, 7, 2, 1)
    assert at.seen_samples == 7
    events = [(line["step"], line.get("event")) for line in given.log if line["step"] in (11, 12)]
    assert events == [(11, None), (12, None), (12, "evaluate")]


@pytest.mark.parametrize("asked", [2, 3])
def test_a_signal_is_heard_in_a_step_or_after_it_and_the_state_is_saved(asked: int) -> None:
    """The loop asks twice a step: before the losses of all ranks are added up, and after validation."""
    answers = iter([""] * asked + ["SIGTERM"] * 9)
    saved: list[int] = []
    steps = [[batch_of([sample(1, [3])])]] * 9
    given = job(vlm("siglip", "llama"), steps, NextToken(), save=lambda at: saved.append(at.step), stop=lambda: next(answers))
    with pytest.raises(Stopped, match="SIGTERM at step 2; the state is saved") as caught:
        loop.fit(given, Progress())
    assert caught.value.exit_code == 75
    assert saved == [2]


def test_a_stage_goes_on_where_it_stopped() -> None:
    batches = [[batch_of([sample(seed, [3])])] for seed in range(3)]
    model, twin = vlm("siglip", "llama"), vlm("siglip", "llama")
    options: dict[str, Any] = {"schedule": "cosine", "warmup": 1, "lr": 1e-2, "steps": 5}
    whole = job(model, batches, NextToken(), **options)
    loop.fit(whole, Progress())
    marks: list[Progress] = []
    answers = iter(["", "", "", "SIGTERM"])
    first = job(twin, batches, NextToken(), **options, save=marks.append, stop=lambda: next(answers))
    with pytest.raises(Stopped):
        loop.fit(first, Progress())
    second = job(twin, batches, NextToken(), **options)
    assert loop.fit(second, marks[0]) == Progress(5, 0, 5, 1, 2, whole.log[-1]["tokens"] * 5, 5)
    assert not moved(model, weights(twin))
    losses = [line["loss"] for line in [*first.log, *second.log]]
    assert losses == [line["loss"] for line in whole.log]
