"""CAL works with every connector, stage and batch: finite losses, weights in the log, and packed rows equal separate ones."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sightline.models.connectors import CONNECTORS, ConnectorConfig
from sightline.models.vlm import SightlineForConditionalGeneration
from sightline.objectives.cal import CAL, CALConfig, has_image
from sightline.ops.cross_entropy import target_logits
from sightline.ops.text_only import text_only
from sightline.training import lora, stages
from sightline.training.meters import StepTotals
from sightline.types import Batch, Loss, Sample
from tests.builders import Exact, apart, batch_of, sample, vlm

SIZES: dict[str, dict[str, Any]] = {
    "align": {"shuffle": 2},
    "c_abstractor": {"num_queries": 4, "depth": 1, "hidden": 16},
    "h_reducer": {"reach": 4},
    "linear": {"shuffle": 2},
    "mlp": {"shuffle": 2},
    "moe": {"shuffle": 2, "balance": 0.0, "z_loss": 0.0},  # its terms are means over a micro-batch, which no split leaves alone
    "resampler": {"num_queries": 4, "depth": 1, "heads": 4},
    "swiglu": {"shuffle": 2},
    "vet": {"shuffle": 2, "rows": 40},
}
LOGGED = {"cross_entropy", "gain", "weight_mean", "share_low", "share_high", "share_above_1"}
PARTS: dict[str, dict[Any, Any]] = {
    "connector": {"connector": "train"},
    "connector and decoder": {"connector": "train", "language": "train"},
    "everything": {"vision": "train", "connector": "train", "language": "train"},
    "decoder": {"language": "train"},
    "adapters": {"connector": "train", "language": stages.PartConfig(lr=1e-3, lora=lora.LoraRule(r=2, full=("norms",)))},
}
NARROW = CALConfig(low=0.2, high=0.6)  # both ends are met by a tiny model's gains


def connector(kind: str) -> ConnectorConfig:
    return CONNECTORS[kind].model_validate({"kind": kind, **SIZES[kind]})


def the_samples() -> list[Sample]:
    """Two captions of an image; two images; text alone; three questions on two images; two data sources."""
    made = [sample(1, [4, 2]), sample(2, [5], num_images=2), sample(3, [6], num_images=0), sample(4, [1, 3, 2], num_images=2)]
    return [replace(one, source=number % 2) for number, one in enumerate(made)]


def tiled() -> list[Sample]:
    """An image of two tiles with a learned separator between them, and one of a single tile."""
    wide = sample(5, [4, 3], num_images=2)
    source = wide.visual_index.copy()
    source[3] = -1  # the last visual token of the first tile gives its place to the separator
    return [replace(wide, visual_index=source), sample(6, [5])]


def packed(samples: Sequence[Sample]) -> Batch:
    """All samples in rows of several, prefixes shared."""
    half = (len(samples) + 1) // 2
    return batch_of(samples[:half], samples[half:], [])


def separate(samples: Sequence[Sample]) -> Batch:
    """Every branch in a row of its own, padded."""
    return batch_of(*([part] for one in samples for part in apart(one)))


def loss_of(model: SightlineForConditionalGeneration, batch: Batch, config: CALConfig = NARROW) -> Loss:
    return CAL(config)(model, batch)


def assert_equal(one: Loss, other: Loss) -> None:
    """Measured at most 2e-15; a window that crosses into another sample is 1e-2 away."""
    torch.testing.assert_close(one.total, other.total, rtol=1e-10, atol=0)
    torch.testing.assert_close(one.weight, other.weight, rtol=1e-10, atol=0)
    assert one.parts.keys() == other.parts.keys() >= LOGGED
    for name, (total, weight) in one.parts.items():
        torch.testing.assert_close((total, weight), other.parts[name], rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("kind", CONNECTORS)
def test_packed_rows_with_shared_prefixes_equal_separate_rows_with_every_connector(kind: str) -> None:
    model = vlm(connector=connector(kind)).double()
    assert model.connector.tokens_per_crop == 4
    with Exact():
        together, alone = (loss_of(model, make(the_samples())) for make in (packed, separate))
    assert_equal(together, alone)
    shares = [float(together.parts[name][0] / together.parts[name][1]) for name in ("share_low", "share_high")]
    assert all(0.05 < share < 0.95 for share in shares), shares


def test_packed_rows_equal_separate_rows_with_tiles_and_separators() -> None:
    model = vlm(num_separators=1).double()
    with Exact():
        assert_equal(*(loss_of(model, make(tiled())) for make in (packed, separate)))


@pytest.mark.parametrize("rules", PARTS.values(), ids=PARTS)
def test_every_stage_gets_finite_gradients_and_nothing_else_does(rules: dict[Any, Any]) -> None:
    model = vlm()
    stage = stages.apply(model, "test", rules, lr=1e-3, weight_decay=0.0)
    model.train()
    loss = loss_of(model, packed(the_samples()))
    loss.total.backward()
    assert bool(loss.total.isfinite())
    assert float(loss.weight) > 0
    trained = {name for group in stage.groups for name in group.parameters}
    got = {name for name, value in model.named_parameters() if value.grad is not None and value.numel()}
    assert got <= trained
    for part in rules:
        reached = [value.grad for name, value in model.parts()[part].items() if name in got and value.grad is not None]
        assert all(bool(value.isfinite().all()) for value in reached)
        assert max(float(value.abs().max()) for value in reached) > 0
    if "language" in rules and isinstance(rules["language"], stages.PartConfig):
        assert any(True for _ in lora.layers(model.language))


def test_micro_batches_add_up_to_the_whole_step_per_source_too() -> None:
    model = vlm().double()
    samples = the_samples()
    with Exact():
        whole = loss_of(model, packed(samples))
        parts = [loss_of(model, batch_of([one])) for one in samples]
    assert sum(float(part.total.detach()) for part in parts) == pytest.approx(float(whole.total.detach()), rel=1e-10)
    assert sum(float(part.weight) for part in parts) == pytest.approx(float(whole.weight), rel=1e-10)
    added: dict[str, list[float]] = {}
    for part in parts:
        for name, (total, weight) in part.parts.items():
            so_far = added.setdefault(name, [0.0, 0.0])
            added[name] = [so_far[0] + float(total), so_far[1] + float(weight)]
    assert whole.parts.keys() >= LOGGED | {"nll/0", "nll/1", "weight/0", "weight/1"}
    for name, (total, weight) in whole.parts.items():
        assert added[name] == pytest.approx([float(total), float(weight)], rel=1e-9, abs=1e-9), name


def test_the_log_says_what_the_weights_are() -> None:
    model = vlm()
    batch = packed(the_samples())
    loss = loss_of(model, batch)
    with torch.no_grad():
        seen, blind = (
            target_logits(h.states_SD, h.head, batch.supervision.target_S) for h in map(model.hidden, (batch, text_only(batch)))
        )
    imaged = has_image(batch).numpy()
    gain = np.where(imaged, (seen - blind).numpy(), 0.0)
    clamped = np.where(imaged, gain.clip(0.2, 0.6), 1.0)
    span = batch.supervision.span_S.numpy()
    weight = np.array(
        [np.mean([c for k, c in enumerate(clamped) if abs(k - s) <= 1 and span[k] == span[s]]) for s in range(len(span))]
    )
    source = batch.supervision.source_S.numpy()
    told = {name: float(total / count) for name, (total, count) in loss.parts.items()}
    own = gain[imaged]
    expected: Mapping[str, float] = {
        "gain": own.mean(),
        "weight_mean": weight.mean(),
        "share_low": (own <= 0.2).mean(),
        "share_high": (own >= 0.6).mean(),
        "share_above_1": 0.0,
        "weight/0": weight[source == 0].mean(),
        "weight/1": weight[source == 1].mean(),
    }
    assert {name: told[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    assert float(loss.weight) == pytest.approx(weight.sum(), abs=1e-4)
    published = loss_of(model, batch, CALConfig())
    above = published.parts["share_above_1"]
    assert float(above[0] / above[1]) == pytest.approx((own > 1).mean())


def test_a_line_of_the_log_names_sources_where_there_are_several() -> None:
    model = vlm()
    mixed, single = StepTotals(), StepTotals()
    for one in the_samples():
        mixed.add(loss_of(model, batch_of([one])))  # each micro-batch holds one source
        single.add(loss_of(model, batch_of([replace(one, source=0)])))
    whole = StepTotals()
    whole.add(loss_of(model, packed(the_samples())))
    assert mixed.line() == pytest.approx(whole.line(), rel=1e-4)
    assert mixed.line().keys() == LOGGED | {"loss", "nll/0", "nll/1", "weight/0", "weight/1"}
    assert single.line().keys() == LOGGED | {"loss"}


@pytest.mark.parametrize("make", [packed, separate])
def test_stored_contrast_gives_the_same_loss(make: Callable[[Sequence[Sample]], Batch]) -> None:
    model = vlm()
    batch = make(the_samples())
    with torch.no_grad():
        blind_S, known_S = CAL(NARROW).blind_logits(model, batch)
    stored = replace(batch, blind_logits_S=torch.where(known_S, blind_S, torch.full_like(blind_S, float("nan"))))
    one, other = loss_of(model, batch), loss_of(model, stored)
    assert torch.equal(one.total, other.total)
    assert torch.equal(one.weight, other.weight)


def test_published_mode_takes_padded_rows_of_every_stage() -> None:
    for rules in PARTS.values():
        model = vlm()
        stages.apply(model, "test", rules, lr=1e-3, weight_decay=0.0)
        loss = CALConfig(mode="published").build()(model, separate(the_samples()))
        loss.total.backward()
        assert bool(loss.total.isfinite())
        assert loss.parts.keys() >= LOGGED
