"""The words that visual tokens are mixtures of: figures by hand on a vocabulary of four, and the page that shows them."""

import math

import numpy as np
import pytest
import torch

from sightline.errors import ConfigError
from sightline.evaluation.probes import ProbedRecord, most_used_words, probe_words
from sightline.models.connectors import Connector, ConnectorConfig, ConnectorShape
from sightline.models.connectors.align import Align, AlignConfig
from sightline.models.connectors.mlp import MLPConfig
from sightline.reporting.words_page import words_page

NAMES = ["dog", "cat", " the", "sun"]
# Four words; a query that is (1, -1) or (-1, 1) after LN1, whose scores are the logs of these weights.
FIRST, SECOND = (8.0, 4.0, 2.0, 1.0), (1 / 8, 1 / 4, 1 / 2, 1.0)


def tiny(columns: int = 2) -> Connector:
    """A connector of a row of patches of width 2 that mixes four words, with products worked out by hand."""
    connector = Connector(AlignConfig(outer_norm="none", inner_affine=False, eps=1e-12), ConnectorShape(2, columns, 2, 2, 4))
    project = connector.project
    assert isinstance(project, Align)
    with torch.no_grad():
        project.w1.weight.copy_(torch.eye(2))
        # (1, -1) . (k, -k) = 2 k
        half = torch.tensor(FIRST).log() / 2
        project.w2.weight.copy_(torch.stack([half, -half], 1))
    return connector.double().eval()


def shares(weights: tuple[float, ...]) -> list[float]:
    return [weight / sum(weights) for weight in weights]


def entropy(p: list[float]) -> float:
    return -sum(share * math.log(share) for share in p)


def seen(name: str, *signs: int, pixels: bool = False) -> ProbedRecord:
    features = torch.tensor([[[sign, -sign] for sign in signs]], dtype=torch.float64)
    return ProbedRecord(name, features, np.zeros((1, 8, 8, 3), dtype=np.uint8) if pixels else None)


def test_entropy_perplexity_and_most_used_words_by_hand() -> None:
    # Three tokens mix by FIRST, one by SECOND.
    found = probe_words(tiny(), [seen("a", 1, 1, 1, -1)], NAMES.__getitem__)
    first, second = shares(FIRST), shares(SECOND)
    mean = [(3 * a + b) / 4 for a, b in zip(first, second, strict=True)]
    assert (found.records, found.tokens, found.vocabulary) == (1, 4, 4)
    assert found.entropy == pytest.approx((3 * entropy(first) + entropy(second)) / 4, rel=1e-8)
    assert found.perplexity == pytest.approx(math.exp(found.entropy), rel=1e-12)
    assert found.largest == pytest.approx((3 * max(first) + max(second)) / 4, rel=1e-8)
    assert found.above == found.used == 4
    assert [word for word, _ in found.most_used] == ["dog", "cat", "sun", " the"]
    assert [share for _, share in found.most_used] == pytest.approx(sorted(mean, reverse=True))
    # 8/15, 4/15 ... of the mean mixture: the last word is needed for 99 %.
    assert found.for_99 == 4


def test_each_token_names_its_own_words_in_order_with_their_shares() -> None:
    (picture,) = probe_words(tiny(), [seen("a", 1, -1, 1, 1)], NAMES.__getitem__).images
    (crop,) = picture.crops
    assert picture.record_id == "a"
    assert crop.grid == (2, 2)
    assert [mixture[0][0] for mixture in crop.mixtures] == ["dog", "sun", "dog", "dog"]
    assert [share for _, share in crop.mixtures[1]] == pytest.approx(sorted(shares(SECOND), reverse=True))
    assert crop.entropies[1] == pytest.approx(entropy(shares(SECOND)))


def test_only_words_above_a_millionth_count_as_used() -> None:
    connector = tiny()
    project = connector.project
    assert isinstance(project, Align)
    weights = torch.tensor([1.0, 1e-3, 2e-6, 1e-8], dtype=torch.float64)
    with torch.no_grad():
        project.w2.weight.copy_(torch.stack([weights.log() / 2, -weights.log() / 2], 1))
    found = probe_words(connector, [seen("a", 1, 1, 1, 1)], NAMES.__getitem__)
    assert found.above == found.used == 3
    assert found.for_99 == 1


def test_several_records_count_by_their_tokens() -> None:
    # One crop of four tokens and two of four: means are over the twelve tokens.
    two = ProbedRecord("b", torch.tensor([[[-1.0, 1.0]] * 4] * 2, dtype=torch.float64))
    found = probe_words(tiny(), [seen("a", 1, 1, 1, 1), two], NAMES.__getitem__, shown=1)
    first, second = shares(FIRST), shares(SECOND)
    assert (found.records, found.tokens, len(found.images)) == (2, 12, 1)
    assert found.most_used[0][1] == pytest.approx((first[3] + 2 * second[3]) / 3)
    assert len(probe_words(tiny(), [two], NAMES.__getitem__).images[0].crops) == 2


def test_the_most_used_words_are_those_of_the_largest_mean_share() -> None:
    records = [seen("a", 1, 1, 1, -1)]
    assert most_used_words(tiny(), records, 2) == [0, 1]
    assert most_used_words(tiny(), records, 4) == [0, 1, 3, 2]
    assert sorted(most_used_words(tiny(), records, 99)) == [0, 1, 2, 3]


def test_another_connector_is_refused() -> None:
    config: ConnectorConfig = MLPConfig()
    other = Connector(config, ConnectorShape(2, 2, 2, 2, 4)).double()
    with pytest.raises(ConfigError, match="only for the `align` connector"):
        probe_words(other, [seen("a", 1, 1, 1, 1)], NAMES.__getitem__)


def test_nothing_to_look_at_is_said_without_a_division_by_zero() -> None:
    found = probe_words(tiny(), [], NAMES.__getitem__, skipped={"image_format": 2})
    assert (found.records, found.tokens, found.for_99, found.most_used) == (0, 0, 0, ())
    assert found.figures()["skipped records"] == "image_format 2"
    assert "No visual tokens" in words_page("nothing", found)


def test_json_is_flat_figures_and_words_by_image() -> None:
    told = probe_words(tiny(), [seen("a", 1, -1, 1, 1)], NAMES.__getitem__).to_json()
    assert told["what"] == "words"
    assert told["threshold"] == 1e-6
    assert told["words_above_threshold"] == 4
    assert told["most_used"][0]["word"] == "dog"
    assert told["images"][0]["crops"][0]["grid"] == [2, 2]
    assert told["images"][0]["crops"][0]["words"][1][0][0] == "sun"


def test_the_page_draws_the_largest_word_of_each_token_over_the_image_and_no_markup_of_the_data() -> None:
    names = ["dog", "<b>", " the", "sun"]
    page = words_page("words: <u>", probe_words(tiny(), [seen("<i>r", 1, -1, 1, 1, pixels=True)], names.__getitem__))
    assert page.count(">dog</span>") == 3
    assert page.count(">sun</span>") == 1
    assert "repeat(2, 1fr) / repeat(2, 1fr)" in page
    assert "data:image/png;base64," in page
    assert "dog 53.3%, &lt;b&gt; 26.7%" in page
    assert not {"<b>", "<i>", "<u>"} & {page[at : at + 3] for at in range(len(page))}


def test_a_word_that_would_steer_a_terminal_is_quoted() -> None:
    names = ["\x1b[2J", " the", " ", "sun"]
    told = probe_words(tiny(), [seen("a", 1, 1, 1, 1)], names.__getitem__).figures()["most used"]
    assert told == "'\\x1b[2J' 53.3%, the 26.7%, ' ' 13.3%, sun 6.7%"


def test_queries_without_a_place_are_listed_and_not_drawn() -> None:
    row = Connector(AlignConfig(outer_norm="none"), ConnectorShape(1, 4, 2, 2, 4)).double().eval()
    page = words_page("row", probe_words(row, [seen("a", 1, 1, -1, 1)], NAMES.__getitem__))
    assert "grid-template: repeat" not in page
