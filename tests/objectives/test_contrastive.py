"""Contrastive losses against formulas written out in float64, against transformers, and over ranks."""

import json
import math
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, SiglipModel
from transformers.models.clip.modeling_clip import CLIPOutput

from sightline.assembly.config.resolving import resolve_config
from sightline.errors import ConfigError
from sightline.models.dual import DualModel
from sightline.objectives import InfoNCEConfig, PairwiseSigmoidConfig
from sightline.objectives.contrastive import ContrastiveObjective, InfoNCE, PairwiseSigmoid
from sightline.recipes import RECIPES
from sightline.types import Embeddings, PairBatch, Texts
from tests.builders import pictures
from tests.duals import dual_folder, identities, leaves, pairs
from tests.processes import PATIENCE, Commands

# Six pairs: 0 and 1 are captions of one image, 2 and 5 have the same caption; two hard negatives, one of them equal to caption 3.
IMAGES, TEXTS, NEGATIVES = [10, 10, 11, 12, 13, 14], [20, 21, 22, 23, 24, 22], [30, 23]


def allowed_texts(pair: int) -> list[int]:
    """Texts that pair `pair`'s image is compared with: all but other captions of its image and texts equal to its own caption."""
    texts, owners = TEXTS + NEGATIVES, [*IMAGES, None, None]
    return [j for j in range(len(texts)) if j == pair or (owners[j] != IMAGES[pair] and texts[j] != TEXTS[pair])]


def allowed_images(pair: int) -> list[int]:
    return [j for j in range(len(IMAGES)) if j == pair or (IMAGES[j] != IMAGES[pair] and TEXTS[j] != TEXTS[pair])]


def test_info_nce_is_the_sum_over_allowed_candidates() -> None:
    embeddings, batch = pairs(IMAGES, TEXTS, NEGATIVES)
    loss = InfoNCE().loss(embeddings, batch)
    images, texts = embeddings.image_NW.tolist(), embeddings.text_CW.tolist()

    def score(image: int, text: int) -> float:
        return 7.0 * sum(a * b for a, b in zip(images[image], texts[text], strict=True))

    expected = 0.0
    for pair in range(6):
        own = score(pair, pair)
        expected += 0.5 * (math.log(sum(math.exp(score(pair, j)) for j in allowed_texts(pair))) - own)
        expected += 0.5 * (math.log(sum(math.exp(score(j, pair)) for j in allowed_images(pair))) - own)
    assert loss.total.item() == pytest.approx(expected, rel=1e-12)
    assert float(loss.weight) == 6


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_sigmoid_is_the_sum_over_allowed_candidates_whatever_the_chunk(chunk: int) -> None:
    embeddings, batch = pairs(IMAGES, TEXTS, NEGATIVES, bias=-2.0)
    loss = PairwiseSigmoid(chunk).loss(embeddings, batch)
    images, texts = embeddings.image_NW.tolist(), embeddings.text_CW.tolist()
    expected = 0.0
    for pair in range(6):
        for j in allowed_texts(pair):
            logit = 7.0 * sum(a * b for a, b in zip(images[pair], texts[j], strict=True)) - 2.0
            expected += math.log1p(math.exp(-logit if j == pair else logit))
    assert loss.total.item() == pytest.approx(expected, rel=1e-12)
    loss.total.backward()
    whole, _ = pairs(IMAGES, TEXTS, NEGATIVES, bias=-2.0)
    PairwiseSigmoid(100).loss(whole, batch).total.backward()
    for mine, theirs in zip(leaves(embeddings), leaves(whole), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_the_loss_of_a_stock_model_is_that_of_transformers(kind: str) -> None:
    stock = (CLIPModel if kind == "clip" else SiglipModel).from_pretrained(dual_folder(kind)).double().eval()
    model = DualModel(stock).double().eval()
    pixels = torch.from_numpy(pictures(3, 4))
    ids = torch.randint(3, 250, (4, 24), generator=torch.Generator().manual_seed(4))
    ids[:, -1] = stock.config.text_config.eos_token_id
    mask = torch.ones_like(ids)
    batch = PairBatch(pixels, None, Texts(ids, mask), torch.arange(4), torch.arange(4), torch.arange(4))
    values = (pixels.double() / 255 - 0.5) / 0.5
    inputs = {"input_ids": ids, "pixel_values": values.permute(0, 3, 1, 2)}
    expected: CLIPOutput = stock(**inputs, **({"attention_mask": mask} if kind == "clip" else {}), return_loss=True)
    objective: ContrastiveObjective = InfoNCE() if kind == "clip" else PairwiseSigmoid()
    loss = objective.loss(model.embeddings(batch), batch)
    assert expected.loss is not None
    torch.testing.assert_close(loss.total / loss.weight, expected.loss, rtol=1e-6, atol=0)


@pytest.mark.parametrize("objective", [InfoNCE(), PairwiseSigmoid(3)])
def test_logits_are_exact_under_autocast(objective: ContrastiveObjective) -> None:
    embeddings, batch = pairs(IMAGES, TEXTS, NEGATIVES, bias=-2.0)
    single = Embeddings(embeddings.image_NW.detach().float(), embeddings.text_CW.detach().float(), torch.tensor(99.0), None)
    with torch.autocast("cpu", torch.bfloat16):
        found = objective.loss(single, batch).total
    torch.testing.assert_close(found, objective.loss(single, batch).total, rtol=1e-6, atol=0)


# Ranks ------------------------------------------------------------------------------------------------------------------------


OBJECTIVES: dict[str, ContrastiveObjective] = {"info_nce": InfoNCE(), "pairwise_sigmoid": PairwiseSigmoid(2)}


def part_of(whole: Embeddings, rank: int, world: int, ragged: bool) -> tuple[Embeddings, PairBatch]:
    """A rank's share of six pairs and two negatives; with `ragged`, rank 0 has lost a pair."""
    rows = list(range(6))[rank::world]
    rows = rows[1:] if ragged and rank == 0 else rows
    extra = list(range(2))[rank::world]
    image = whole.image_NW.detach()[rows].clone().requires_grad_()
    text = whole.text_CW.detach()[rows + [6 + number for number in extra]].clone().requires_grad_()
    scale, bias = whole.scale.detach().clone().requires_grad_(), whole.bias
    offset = None if bias is None else bias.detach().clone().requires_grad_()
    of = identities([IMAGES[i] for i in rows], [TEXTS[i] for i in rows], [NEGATIVES[i] for i in extra])
    return Embeddings(image, text, scale, offset), of


def rank(arguments: Sequence[str]) -> None:
    """In a process of its own: the losses of this rank's pairs and their gradients, in a file."""
    out, *cases = arguments
    accelerator = Accelerator(cpu=True, kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=PATIENCE / 2))])
    number, world = accelerator.process_index, accelerator.num_processes
    found = {}
    for text in cases:
        name, ragged = json.loads(text)
        whole, _ = pairs(IMAGES, TEXTS, NEGATIVES, bias=-2.0)
        own, batch = part_of(whole, number, world, ragged)
        loss = OBJECTIVES[name].loss(own, batch)
        loss.total.backward()
        found |= {f"{name} {ragged} {place}": value.grad for place, value in enumerate(leaves(own)) if value.grad is not None}
        found |= {f"{name} {ragged} total": loss.total.detach(), f"{name} {ragged} weight": loss.weight.double()}
    save_file(found, f"{out}-{number}")


CASES = [(name, ragged) for name in OBJECTIVES for ragged in (False, True)]


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, torch.Tensor]]:
    out = tmp_path_factory.mktemp("ranks") / "rank"
    with Commands() as commands:
        for command in commands.ranks(2, [out, *map(json.dumps, CASES)], function="tests.objectives.test_contrastive:rank"):
            assert command.wait() == 0, command.said
    return [load_file(f"{out}-{number}") for number in range(2)]


@pytest.mark.parametrize(("name", "ragged"), CASES)
def test_two_ranks_are_one_rank_with_all_pairs(of_ranks: list[dict[str, torch.Tensor]], name: str, ragged: bool) -> None:
    whole, _ = pairs(IMAGES, TEXTS, NEGATIVES, bias=-2.0)
    kept = [i for number in range(2) for i in list(range(6))[number::2][1 if ragged and number == 0 else 0 :]]
    batch = identities([IMAGES[i] for i in kept], [TEXTS[i] for i in kept], NEGATIVES)
    rows = whole.image_NW.detach()[kept].clone().requires_grad_()
    texts = whole.text_CW.detach()[[*kept, 6, 7]].clone().requires_grad_()
    assert whole.bias is not None
    together = Embeddings(rows, texts, whole.scale, whole.bias)
    loss = OBJECTIVES[name].loss(together, batch)
    loss.total.backward()
    key = f"{name} {ragged}"
    assert float(sum(part[f"{key} total"] for part in of_ranks)) == pytest.approx(loss.total.item(), rel=1e-12)
    assert float(sum(part[f"{key} weight"] for part in of_ranks)) == len(kept)
    count = [len(part[f"{key} 0"]) for part in of_ranks]
    assert rows.grad is not None
    assert texts.grad is not None
    torch.testing.assert_close(torch.cat([part[f"{key} 0"] for part in of_ranks]), rows.grad)
    captions = torch.cat([part[f"{key} 1"][:size] for part, size in zip(of_ranks, count, strict=True)])
    negatives = torch.cat([part[f"{key} 1"][size:] for part, size in zip(of_ranks, count, strict=True)])
    torch.testing.assert_close(torch.cat([captions, negatives]), texts.grad)
    torch.testing.assert_close(sum(part[f"{key} 2"] for part in of_ranks), whole.scale.grad)
    if name == "pairwise_sigmoid":
        torch.testing.assert_close(sum(part[f"{key} 3"] for part in of_ranks), whole.bias.grad)


# Settings ---------------------------------------------------------------------------------------------------------------------


def settings(tmp_path: Path, **changes: object) -> Path:
    run = {
        "model": {"dual": {"path": "clip"}},
        "objective": {"kind": "info_nce"},
        "data": {"pack": False, "share_prefix": False},
        "train": {"steps": 2, "batch_size": 4},
        "stages": [{"name": "all", "parts": {"vision": "train"}}],
    }
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(run | changes))
    return file


def test_accumulation_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.accumulate=2.*does not add over micro-batches"):
        resolve_config(None, settings(tmp_path, train={"steps": 2, "batch_size": 4, "accumulate": 2}), [])


def test_objective_and_model_must_fit(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dual encoder .*needs objective\.kind info_nce or pairwise_sigmoid"):
        resolve_config(None, settings(tmp_path, objective={"kind": "next_token"}), [])
    decoder = {"language": {"path": "llama"}}
    with pytest.raises(ConfigError, match=r"it needs model\.dual"):
        resolve_config(None, settings(tmp_path, model=decoder, stages=[{"name": "all", "parts": {"language": "train"}}]), [])


def test_encoders_and_a_whole_dual_encoder_replace_each_other() -> None:
    text = ["model.dual.text.path=bert", "model.vision.path=dinov2"]
    joined = resolve_config(RECIPES["clip"](), None, text).model
    assert joined.dual is not None
    assert (joined.dual.path, joined.vision is None) == (None, False)
    whole = resolve_config(RECIPES["flickr8k_dual"](), None, ["model.dual.path=clip"]).model
    assert whole.dual is not None
    assert (whole.dual.path, whole.dual.text, whole.vision) == ("clip", None, None)


def test_kinds_build_their_objectives() -> None:
    assert isinstance(InfoNCEConfig().build(), InfoNCE)
    assert isinstance(built := PairwiseSigmoidConfig(chunk=7).build(), PairwiseSigmoid)
    assert built.chunk == 7
