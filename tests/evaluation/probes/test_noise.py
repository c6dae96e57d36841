"""Noise on features: what is drawn, and distances by hand, given in units of the distance between patches."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline.data.dataset import Dataset
from sightline.data.images.pixels import VisualInputLoader, VisualInputs
from sightline.evaluation.probes import ProbedRecord, add_noise, probe_noise
from sightline.evaluation.probes.noise import NoisyFeatureLoader, mean_distance
from sightline.models.connectors import Connector, ConnectorShape
from sightline.models.connectors.align import AlignConfig
from sightline.models.connectors.base import Words
from sightline.models.connectors.linear import LinearConfig
from sightline.reporting.noise_page import noise_page
from sightline.types import Record

SHAPE = ConnectorShape(2, 3, 4, 5, 7)


def features(seed: int, crops: int = 1) -> Tensor:
    return torch.randn(crops, 6, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear() -> Connector:
    torch.manual_seed(2)
    return Connector(LinearConfig(), SHAPE).double().eval()


def no_words() -> Tensor:
    raise AssertionError


def tokens_of(connector: Connector, words: Words = no_words) -> Callable[[Tensor], Tensor]:
    return lambda features_NPE: connector(features_NPE, words).flatten(0, 1)


def cosine_distance(a: Tensor, b: Tensor) -> float:
    return 1 - float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def test_noise_has_the_size_that_was_asked_for_and_belongs_to_the_record() -> None:
    clean = 3.0 + 5.0 * torch.randn(4, 500, 40, generator=torch.Generator().manual_seed(0))
    for sigma in (0.5, 3.0):
        noise = add_noise(clean, sigma, "r1") - clean
        assert float(noise.std()) == pytest.approx(sigma * float(clean.std()), rel=0.01)
        assert abs(float(noise.mean())) < 0.05 * sigma
    assert torch.equal(add_noise(clean, 1.0, "r1"), add_noise(clean, 1.0, "r1"))
    assert not torch.equal(add_noise(clean, 1.0, "r1"), add_noise(clean, 1.0, "r2"))
    torch.testing.assert_close(add_noise(clean, 2.0, "r1") - clean, 2 * (add_noise(clean, 1.0, "r1") - clean), rtol=1e-3, atol=1e-3)
    assert torch.equal(add_noise(clean, 0.0, "r1"), clean)


def test_distances_are_those_of_all_pairs_by_hand() -> None:
    connector = linear()
    records = [ProbedRecord("a", features(1)), ProbedRecord("b", features(2, crops=2))]
    found = probe_noise(tokens_of(connector), records, sigmas=(0.5, 2.0))
    clean = [connector(record.features_NPE, no_words).flatten(0, 1) for record in records]
    tokens = torch.cat(clean).detach()
    pairs = [cosine_distance(a, b) for a, b in itertools.combinations(tokens, 2)]
    assert (found.records, found.tokens) == (2, 18)
    assert found.between == pytest.approx(sum(pairs) / len(pairs), rel=1e-10)
    for row in found.rows:
        noisy = [connector(add_noise(r.features_NPE, row.sigma, r.record_id), no_words).flatten(0, 1) for r in records]
        moved = [cosine_distance(a, b) for a, b in zip(tokens, torch.cat(noisy).detach(), strict=True)]
        assert row.moved == pytest.approx(sum(moved) / len(moved), rel=1e-10)
        assert row.relative == pytest.approx(row.moved / found.between, rel=1e-12)
    assert found.rows[0].moved < found.rows[1].moved


def test_outputs_that_are_all_alike_seem_robust_until_they_are_measured_against_each_other() -> None:
    # The trap of the published figure: a small gain gives nearly the mean word for every patch, noisy or not.
    words = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) + 1.0
    moved, relative = [], []
    for gain in (0.01, 1.0):
        torch.manual_seed(2)
        connector = Connector(AlignConfig(initial_gain=gain), SHAPE).double().eval()
        found = probe_noise(
            tokens_of(connector, lambda: words), [ProbedRecord(str(n), features(n)) for n in range(20)], sigmas=(1.0,)
        )
        moved.append(found.rows[0].moved)
        relative.append(found.rows[0].relative)
    assert moved[0] < 1e-3 * moved[1]
    assert relative[0] == pytest.approx(relative[1], rel=0.35)


def test_the_mean_distance_of_pairs_from_their_sum() -> None:
    directions = torch.nn.functional.normalize(torch.randn(9, 4, dtype=torch.float64), dim=1)
    pairs = [1 - float(a @ b) for a, b in itertools.combinations(directions, 2)]
    assert mean_distance(directions.sum(0), 9) == pytest.approx(sum(pairs) / len(pairs))
    assert mean_distance(directions[0], 1) == 0.0


def test_a_token_of_zeros_has_no_direction_and_breaks_nothing() -> None:
    connector = linear()
    with torch.no_grad():
        for value in connector.parameters():
            value.zero_()
    found = probe_noise(tokens_of(connector), [ProbedRecord("a", features(1))], sigmas=(1.0,))
    assert math.isfinite(found.between)
    assert all(math.isfinite(row.moved) and math.isfinite(row.relative) for row in found.rows)


def test_nothing_to_look_at_is_no_error() -> None:
    found = probe_noise(tokens_of(linear()), [], sigmas=(1.0,), skipped={"no_image": 3})
    assert found.to_json() == {
        "what": "noise",
        "records": 0,
        "tokens": 0,
        "distance_between_patches": 0.0,
        "noise": [{"sigma": 1.0, "distance": 0.0, "relative": 0.0}],
        "skipped": {"no_image": 3},
    }


def test_the_page_has_a_line_over_the_sigmas() -> None:
    page = noise_page("noise", probe_noise(tokens_of(linear()), [ProbedRecord("a", features(1))]))
    assert "<svg" in page
    assert "sigma 0.25" in page
    assert "sigma 3" in page


class Fixed(VisualInputLoader):
    """The same pixels or features for any record."""

    def __init__(self, pixels: np.ndarray | None, stored: np.ndarray | None) -> None:
        self.pixels, self.stored = pixels, stored

    def load(self, dataset: Dataset, record: Record) -> VisualInputs:
        return VisualInputs(self.pixels, self.stored)


def test_an_evaluation_under_noise_sees_the_noise_of_the_probe(tmp_path: object) -> None:
    record = Record("r7", (), ())
    stored = features(4).float().numpy()
    wanted = add_noise(torch.from_numpy(stored), 1.5, "r7").numpy()
    dataset = object.__new__(Dataset)  # images that need none
    noisy = NoisyFeatureLoader(Fixed(None, stored), 1.5).load(dataset, record).features
    assert noisy is not None
    np.testing.assert_array_equal(noisy, wanted)
    pixels = np.zeros((1, 8, 8, 3), dtype=np.uint8)
    encoded = NoisyFeatureLoader(Fixed(pixels, None), 1.5, lambda seen: stored).load(dataset, record).features
    assert encoded is not None
    np.testing.assert_array_equal(encoded, wanted)
