"""What docs/connectors.md says is so: the table's counts, and its example of a connector, which is run."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from sightline.errors import ConfigError
from sightline.models.connectors import CONNECTORS, Connector, ConnectorConfig, ConnectorShape
from sightline.models.connectors.cost import connector_cost
from sightline.objectives.next_token import NextToken
from sightline.runtime import plugins
from tests.builders import SIDE, batch_of, sample, vlm
from tests.pages import python_of, write_python

PAGE = (Path(__file__).parents[3] / "docs" / "connectors.md").read_text(encoding="utf-8")
PLACE = ConnectorShape(14, 14, 768, 576, 49_152)
ROWS = re.findall(r"^\| `(\w+)`(?: \(`(\w+): (\d+)`\))? \|.*\| ([\d,]+) \| (\d+) \|", PAGE, re.MULTILINE)


def test_every_kind_has_a_row() -> None:
    assert sorted(row[0] for row in ROWS) == sorted(CONNECTORS)


@pytest.mark.parametrize(("kind", "field", "value", "parameters", "tokens"), ROWS)
def test_the_tables_counts_are_those_of_the_code(kind: str, field: str, value: str, parameters: str, tokens: str) -> None:
    config = CONNECTORS[kind].model_validate({field: int(value)} if field else {})
    cost = connector_cost(config, PLACE)
    assert f"{cost.parameters:,}" == parameters
    assert str(cost.tokens) == tokens


def test_align_takes_as_many_times_the_operations_of_mlp_as_is_said() -> None:
    ratio = connector_cost(CONNECTORS["align"](), PLACE).flops / connector_cost(CONNECTORS["mlp"](), PLACE).flops
    said = re.search(r"takes (\d+) times the operations of `mlp`", PAGE)
    assert said is not None
    assert round(ratio) == int(said[1])


@pytest.fixture
def example(tmp_path: Path) -> Iterator[type[ConnectorConfig]]:
    """The configuration of the page's block of Python, loaded as a plug-in."""
    assert sum(bool(line.strip()) for line in python_of("connectors.md").splitlines()) <= 30
    plugins.load(str(write_python("connectors.md", tmp_path / "pooled.py")))
    yield CONNECTORS.find("pooled:PooledConfig")
    plugins.forget()


def test_the_example_is_a_mean_of_neighbours_then_a_map(example: type[ConnectorConfig]) -> None:
    config = example()
    shape = ConnectorShape(4, 6, 5, 7, 11)
    connector = Connector(config, shape).double()
    seen = torch.randn(2, 24, 5, dtype=torch.float64)
    linear = connector.project.get_submodule("linear")
    assert isinstance(linear, torch.nn.Linear)
    block = seen[:, [0, 1, 6, 7]].mean(1)  # rows of six patches
    torch.testing.assert_close(connector(seen, torch.Tensor)[:, 0], block @ linear.weight.T + linear.bias)
    assert connector.token_grid == (2, 3)
    cost = connector_cost(config, shape)
    assert (cost.kind, cost.parameters, cost.tokens) == ("pooled:PooledConfig", 5 * 7 + 7, 6)
    with pytest.raises(ConfigError, match="does not divide 4 x 6"):
        Connector(example.model_validate({"side": 4}), shape)


def test_the_example_trains_and_comes_back_from_its_folder(tmp_path: Path, example: type[ConnectorConfig]) -> None:
    model = vlm("siglip", "llama", example()).train()
    loss = NextToken()(model, batch_of([sample(1, [4])]))
    loss.total.backward()
    assert all(value.grad is not None and bool(value.grad.any()) for value in model.connector.parameters())
    model.eval().save_pretrained(tmp_path / "model")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "model").eval()
    pixels = torch.randn(1, 3, SIDE, SIDE)
    with torch.no_grad():
        assert torch.equal(again.get_image_features(pixels).pooler_output, model.get_image_features(pixels).pooler_output)
    plugins.forget()
    with pytest.raises(ConfigError, match="add --plugin pooled"):
        AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
