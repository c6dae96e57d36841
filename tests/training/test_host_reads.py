"""A step waits for the device at most twice, however many micro-batches and parts it has."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from benchmarks.host_reads import HostReads, reads_of

from sightline.assembly.config.schema import ModelConfig
from sightline.assembly.model.blueprint import section_blueprint
from sightline.assembly.model.build import build_model, read_model
from sightline.models.comalign import AlignedModel
from sightline.models.connectors import CONNECTORS
from sightline.objectives import OBJECTIVES, CALConfig, InfoNCEConfig, NextTokenConfig, ObjectiveConfig, PairwiseSigmoidConfig
from sightline.objectives.comalign import ComAlignObjectiveConfig
from sightline.types import Batch, ComponentInputs, PairBatch, Texts
from tests.builders import batch_of, pictures, sample, vlm
from tests.duals import dual_folder, identities
from tests.models.connectors.helpers import SMALL
from tests.training.helpers import job

GENERATIVE: dict[str, ObjectiveConfig] = {
    "next_token": NextTokenConfig(),
    "cal": CALConfig(stored=False),
    "cal masked": CALConfig(stored=False, contrast="masked"),
    "cal blurred": CALConfig(stored=False, contrast="blurred"),
    "cal shuffled": CALConfig(stored=False, contrast="shuffled"),
    "cal published": CALConfig(mode="published"),
}
CONTRASTIVE: dict[str, ObjectiveConfig] = {"info_nce": InfoNCEConfig(), "pairwise_sigmoid": PairwiseSigmoidConfig(chunk=4)}
STEPS = 2


def steps(micro_batches: int, padded: bool, tokens_per_crop: int) -> list[list[Batch]]:
    """Packed rows with shared prefixes, or padded rows of one sample; the last of each step has one sample without an image."""
    found = []
    for step in range(STEPS):
        seeds = range(10 * step, 10 * step + micro_batches)
        size = {"tokens_per_crop": tokens_per_crop}
        if padded:
            rows = [[[sample(seed, [3], **size)], [sample(seed + 100, [4], num_images=seed % 2, **size)]] for seed in seeds]
        else:
            rows = [[[sample(seed, [2, 3], **size), sample(seed + 100, [4], num_images=seed % 2, **size)]] for seed in seeds]
        found.append([batch_of(*row) for row in rows])
    return found


def log_values(model: Any) -> dict[str, float]:
    return {f"connector/{name}": value for name, value in model.connector.log_values().items()}


def test_all_kinds_are_measured() -> None:
    assert set(SMALL) == set(CONNECTORS)
    assert {config.kind for config in (*GENERATIVE.values(), *CONTRASTIVE.values(), ComAlignObjectiveConfig())} == set(OBJECTIVES)


@pytest.mark.parametrize("micro_batches", [1, 8])
@pytest.mark.parametrize(
    ("connector", "objective"), [*((name, "next_token") for name in SMALL), *(("align", name) for name in GENERATIVE)]
)
def test_a_step_reads_at_most_twice(monkeypatch: pytest.MonkeyPatch, micro_batches: int, connector: str, objective: str) -> None:
    monkeypatch.setattr("sightline.models.connectors.moe.grouped_by_default", lambda tokens: True)  # as on a GPU
    model = vlm("siglip", "llama", SMALL[connector]).train()
    size = model.connector.tokens_per_crop
    given = steps(micro_batches, GENERATIVE[objective].needs_padded_rows, tokens_per_crop=size)
    found = reads_of(job(model, given, GENERATIVE[objective].build(), clip=1.0, log_values=lambda: log_values(model)))
    assert STEPS <= len(found) <= 2 * STEPS, found


@pytest.mark.parametrize("micro_batches", [1, 8])
@pytest.mark.parametrize("objective", CONTRASTIVE)
def test_a_step_of_a_dual_encoder_reads_at_most_twice(micro_batches: int, objective: str) -> None:
    bundle = read_model(dual_folder("siglip"))
    model = bundle.pairs
    assert model is not None
    given = [[pairs(10 * step + number) for number in range(micro_batches)] for step in range(STEPS)]
    rules = {"vision": "train", "text": "train", "projection": "train"}
    module = bundle.module.train()
    found = reads_of(
        job(module, given, CONTRASTIVE[objective].build(), rules, clip=1.0, log_values=lambda: dict(model.log_values()))
    )
    assert STEPS <= len(found) <= 2 * STEPS, found


def test_a_step_of_light_networks_reads_at_most_twice() -> None:
    alignment = {"entities": 1, "relations": 1, "boxes": "record", "sides": "both", "heads": 2}
    section = {"dual": {"path": str(dual_folder("siglip")), "alignment": alignment}}
    model = build_model(section_blueprint(ModelConfig.model_validate(section)))
    assert isinstance(model, AlignedModel)
    boxes = torch.tensor([[[0, 0, 1, 1], [0, 0, 0, 0]]] * 6, dtype=torch.float32)
    given = []
    for step in range(STEPS):
        batch = pairs(step)
        phrases = Texts(batch.texts.ids_CT[:3], batch.texts.mask_CT[:3])  # pyrefly: ignore
        components = ComponentInputs(boxes, phrases, torch.tensor([[0, 1], [2, -1]] * 4))
        given.append([replace(batch, pixels_NHWC=torch.from_numpy(pictures(step, 18)), components=components)])
    objective = ComAlignObjectiveConfig().build()
    found = reads_of(
        job(model.train(), given, objective, {"alignment": "train"}, clip=1.0, log_values=lambda: dict(model.log_values()))
    )
    assert STEPS <= len(found) <= 2 * STEPS, found


def pairs(seed: int) -> PairBatch:
    """Six pairs with two hard negatives."""
    batch = identities([10, 10, 11, 12, 13, 14], [20, 21, 22, 23, 24, 22], [30, 23])
    ids = torch.randint(3, 100, (8, 24), generator=torch.Generator().manual_seed(seed))
    texts = Texts(ids, torch.ones_like(ids))
    return PairBatch(torch.from_numpy(pictures(seed, 6)), None, texts, batch.image_N, batch.owner_C, batch.text_C)


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
