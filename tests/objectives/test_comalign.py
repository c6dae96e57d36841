"""ComAlign's loss and similarities against plain formulas in float64, and its figure's numbers."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from sightline.objectives.comalign import ComAlign, ComAlignObjectiveConfig
from sightline.objectives.contrastive import InfoNCE, local_rows
from sightline.ops.component_similarity import level_similarity, weighted_similarity
from sightline.types import ComponentEmbeddings, ComponentVectors
from tests.duals import identities

WIDTH = 6


def vectors(count: int, entities: int, relations: int, seed: int) -> ComponentVectors:
    """Random unit vectors in float64 with random masks, at least one component of each level."""
    generator = torch.Generator().manual_seed(seed)

    def unit(*shape: int) -> torch.Tensor:
        return normalize(torch.randn(*shape, WIDTH, generator=generator, dtype=torch.float64), dim=-1)

    def mask(components: int) -> torch.Tensor:
        found = torch.rand(count, components, generator=generator) < 0.6
        found[:, 0] = True
        return found

    return ComponentVectors(
        unit(count), unit(count), unit(count, entities), mask(entities), unit(count, relations), mask(relations)
    )


def by_hand(images: ComponentVectors, texts: ComponentVectors, level: str) -> tuple[np.ndarray, np.ndarray]:
    """Both directions with loops over existing components alone."""
    count, others = len(images.plain_NW), len(texts.plain_NW)
    to_image, to_text = np.zeros((count, others)), np.zeros((count, others))
    for i in range(count):
        for t in range(others):
            mine = getattr(images, f"{level}_NKW")[i][getattr(images, f"{level}_NK")[i]].numpy()
            theirs = getattr(texts, f"{level}_NKW")[t][getattr(texts, f"{level}_NK")[t]].numpy()
            cosines = [[float(image @ text) for image in mine] for text in theirs]
            to_image[i, t] = sum(max(row) for row in cosines) / len(theirs)
            to_text[i, t] = sum(max(row[k] for row in cosines) for k in range(len(mine))) / len(mine)
    return to_image, to_text


def test_the_loss_is_the_sum_of_the_formula_over_levels() -> None:
    """Images 0 and 2 are the same photo, and captions 1 and 3 are equal: none of these pairs are negatives."""
    images, texts = vectors(4, 3, 2, seed=1), vectors(5, 2, 4, seed=2)
    batch = identities([7, 8, 7, 9], [1, 2, 3, 2], [4])
    scale = torch.tensor(9.0, dtype=torch.float64)
    embeddings = ComponentEmbeddings(images.whole_NW, texts.whole_NW, scale, images=images, texts=texts)
    ignored = {(0, 2), (2, 0), (1, 3), (3, 1)}
    expected = {}
    for level in ("global", "entity", "relation"):
        if level == "global":
            to_image = to_text = (images.whole_NW @ texts.whole_NW.T).numpy()
        else:
            to_image, to_text = by_hand(images, texts, level)
        total = 0.0
        for i in range(4):
            others = [np.exp(9 * to_text[i, t]) for t in range(5) if (i, t) not in ignored]
            total -= 0.5 * np.log(np.exp(9 * to_text[i, i]) / sum(others))
            others = [np.exp(9 * to_image[j, i]) for j in range(4) if (j, i) not in ignored]
            total -= 0.5 * np.log(np.exp(9 * to_image[i, i]) / sum(others))
        expected[level] = total
    loss = ComAlign(("global", "entity", "relation")).loss(embeddings, batch, local_rows)
    assert loss.total.item() == pytest.approx(sum(expected.values()), rel=1e-9)
    assert loss.weight.item() == 4
    assert {name: float(value) for name, (value, _) in loss.parts.items()} == pytest.approx(expected, rel=1e-9)
    alone = ComAlign(("global",)).loss(embeddings, batch, local_rows)
    assert alone.total.item() == pytest.approx(InfoNCE().loss(embeddings, batch, local_rows).total.item(), rel=1e-12)


def test_scores_are_weighted_sums_of_both_directions() -> None:
    images, texts = vectors(3, 3, 2, seed=3), vectors(4, 2, 2, seed=4)
    weights = {"plain": 0.1, "global": 0.2, "entity": 0.3, "relation": 0.4}
    found = weighted_similarity(images, texts, weights, {"entity": 1.0})
    entity, relation = by_hand(images, texts, "entity"), by_hand(images, texts, "relation")
    plain, whole = (images.plain_NW @ texts.plain_NW.T).numpy(), (images.whole_NW @ texts.whole_NW.T).numpy()
    expected = 0.1 * plain + 0.2 * whole + 0.3 * entity[0] + 0.4 * relation[0]
    np.testing.assert_allclose(found.text_to_image_IT.numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(found.image_to_text_IT.numpy(), entity[1], rtol=1e-12)


def test_the_figure_of_the_paper_counts_padding() -> None:
    """Three phrases of which one is padding: mean(.85, .90, 0) = .583, and with the other levels (.95 + .90 + .583) / 3 = .81."""
    image = torch.eye(4, dtype=torch.float64)[None]
    text = torch.zeros(1, 3, 4, dtype=torch.float64)
    text[0, 0, 0], text[0, 1, 1] = 0.85, 0.90  # the length does not matter here, only the cosines of the figure
    counted = torch.ones(1, 3, dtype=torch.bool)
    whole = torch.zeros(1, 4, dtype=torch.float64)
    images = ComponentVectors(whole, whole, image, torch.ones(1, 4, dtype=torch.bool), image, torch.ones(1, 4, dtype=torch.bool))
    texts = ComponentVectors(whole, whole, text, counted, text, counted)
    relation = level_similarity(images, texts, "relation").text_to_image_IT.item()
    assert relation == pytest.approx(0.5833, abs=1e-4)
    assert (0.95 + 0.90 + relation) / 3 == pytest.approx(0.81, abs=1e-2)
    only = ComponentVectors(whole, whole, text, torch.tensor([[True, True, False]]), text, counted)
    assert level_similarity(images, only, "entity").text_to_image_IT.item() == pytest.approx(0.875)


def test_levels_are_named_once() -> None:
    with pytest.raises(ValueError, match="twice"):
        ComAlignObjectiveConfig(levels=("global", "global"))
