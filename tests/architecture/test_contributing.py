"""CONTRIBUTING.md draws the order of the packages as the contracts of import-linter in pyproject.toml hold it."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def layers_of(name: str) -> list[str]:
    """The layers of a contract, high to low; without the parentheses of a layer that is there."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["name"] == name)
    return [layer.strip("()") if (ROOT / "src/sightline" / layer.strip("()")).exists() else layer for layer in layers]


def test_the_order_of_the_packages_is_drawn_as_it_is_held() -> None:
    blocks = [block.splitlines() for block in (ROOT / "CONTRIBUTING.md").read_text("utf-8").split("\n\n")]
    assert [f"    {layer}" for layer in layers_of("floors")] in blocks
    (inner,) = (block[1:] for block in blocks if block[0].split() == ["data", "assembly"])
    assert [line[:38].strip() for line in inner if line[:38].strip()] == layers_of("floors of data")
    assert [line[38:].strip() for line in inner if line[38:].strip()] == layers_of("floors of assembly")
