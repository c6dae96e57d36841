"""Compiled layers: the same step, each kind of layer compiled once, names and hooks unchanged."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from sightline.models.flex_attention import FLEX, attention_of
from sightline.models.gradient_checkpointing import checkpoint_activations
from sightline.models.vlm import SightlineForConditionalGeneration
from sightline.objectives import CALConfig, NextTokenConfig
from sightline.training import compiled, loop, lora, stages
from sightline.training.checkpoint import Progress
from sightline.types import Batch
from tests.builders import batch_of, sample, vlm
from tests.training.helpers import EVERY, job

# Torch looks at the gradient of each tensor that it compiles for.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
WIDTH = 48
FROZEN = {"connector": "train"}


@pytest.fixture(autouse=True)
def _unchecked(unchecked: None) -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def steps(count: int) -> list[list[Batch]]:
    """Packed rows of one width whose samples, images and texts differ in number and length."""
    rows = []
    for step in range(count):
        others = [sample(10 * step + images, [4 - step % 3], num_images=images) for images in range(1, 2 + step % 2)]
        rows.append([sample(10 * step, [2 + step, 3]), *others])
    return [[batch_of(row, min_width=WIDTH)] for row in rows]


def trained(model: nn.Module, batches: Sequence[Sequence[Batch]], objective: Any, rules: Any = EVERY) -> list[float]:
    given = job(model, batches, objective, rules, lr=0.1)
    loop.fit(given, Progress())
    lines: Any = given.log
    return [line["loss"] for line in lines]


def model_of(kind: str) -> SightlineForConditionalGeneration:
    torch.manual_seed(0)
    return vlm("siglip", kind).train()


def frames() -> int:
    """Number of functions that torch has compiled since it was reset."""
    return counters["frames"]["ok"]


@pytest.mark.parametrize(
    ("kind", "rules", "checkpointing", "backend"),
    [("llama", EVERY, False, "aot_eager"), ("llama", FROZEN, True, "eager"), ("gemma3", EVERY, True, "eager")],
)
def test_each_kind_of_layer_is_compiled_once(kind: str, rules: Any, checkpointing: bool, backend: str) -> None:
    batches = steps(4)
    assert len({batch.supervision.target_S.shape for (batch,) in batches}) > 1
    assert len({batch.visual.num_crops for (batch,) in batches if batch.visual is not None}) > 1
    found = []
    for is_compiled in (False, True):
        model = model_of(kind)
        if checkpointing:
            checkpoint_activations(model)
        names = list(model.state_dict())
        context = compiled.compiled_layers(model.language, model.vision, backend) if is_compiled else nullcontext()
        with context as count:
            assert count in (None, 5)
            found.append(trained(model, batches, NextTokenConfig().build(), rules))
            assert list(model.state_dict()) == names
            assert frames() == (2 if is_compiled else 0)  # a layer of the encoder, and one of the decoder, whatever it sees
        assert model.language.model.layers[0].gradient_checkpointing == checkpointing  # pyrefly: ignore
        assert "forward" not in vars(model.language.model.layers[0])  # pyrefly: ignore
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert found[0][0] != found[0][1]


def test_checkpointed_layers_are_computed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = model_of("llama"), []
    checkpoint_activations(model)
    monkeypatch.setattr(torch, "compile", lambda function, **options: lambda *a, **k: calls.append(1) or function(*a, **k))
    with compiled.compiled_layers(model.language, None):
        trained(model, steps(1), NextTokenConfig().build())
    assert len(calls) == 4  # two layers, forward and again in the backward pass


def test_a_pass_on_text_alone_adds_a_fixed_number_of_graphs() -> None:
    model, objective, seen = model_of("llama"), CALConfig(stored=False).build(), []
    with compiled.compiled_layers(model.language, model.vision, "eager"):
        for batches in [[step] for step in steps(6)]:
            trained(model, batches, objective, FROZEN)
            seen.append(frames())
    assert seen[-1] <= 4  # text alone without a gradient, of one length and then of any
    assert seen[1:] == [seen[-1]] * 5


def test_validation_compiles_nothing_and_sees_the_same_weights() -> None:
    model = model_of("llama")
    (batch,) = steps(1)[0]
    with torch.no_grad(), compiled.compiled_layers(model.language, model.vision, "aot_eager"):
        with compiled.not_compiled():
            ours = model.eval().hidden(batch).states_SD
        assert frames() == 0
    with torch.no_grad():
        assert torch.equal(ours, model.hidden(batch).states_SD)


def test_adapters_train_in_compiled_layers() -> None:
    rules = {"connector": "train", "language": stages.PartConfig(lr=0.1, lora=lora.LoraRule(r=2))}
    found = []
    for is_compiled in (False, True):
        model = model_of("llama")
        torch.manual_seed(1)
        given = job(model, steps(3), NextTokenConfig().build(), rules, lr=0.1)
        with compiled.compiled_layers(model.language, None, "eager") if is_compiled else nullcontext():
            loop.fit(given, Progress())
        assert frames() == is_compiled
        lines: Any = given.log
        found.append([line["loss"] for line in lines])
        lora.fold(model)
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_is_compiled_with_the_layer_and_once() -> None:
    model = model_of("llama").eval()
    found = []
    with torch.no_grad(), attention_of(model.language, FLEX):
        dense = [model.hidden(batch).states_SD for (batch,) in steps(3)]
        with compiled.compiled_layers(model.language, None, "aot_eager"):
            torch._dynamo.reset()
            before = frames()
            found = [model.hidden(batch).states_SD for (batch,) in steps(3)]
            assert frames() - before == 1
    for ours, theirs in zip(found, dense, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_what_is_missing_to_compile_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda name: None)
    assert compiled.why_not_compiled() == "Triton is not installed"
    monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    assert "C compiler" in compiled.why_not_compiled()
    monkeypatch.setattr(compiled.shutil, "which", lambda name: name)
    assert compiled.why_not_compiled() == ""
