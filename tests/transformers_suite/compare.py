"""Pytest plugin: fails unless the tests that a stock LLaVA passes and our model does not are those of `known.toml`."""

import tomllib
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

STOCK, OURS = "StockLlavaTest", "SightlineTest"
KNOWN = tomllib.loads(Path(__file__).with_name("known.toml").read_text("utf-8"))
RANK = ["passed", "skipped", "failed"]

outcomes: dict[str, dict[str, str]] = defaultdict(dict)  # class -> test -> the worst outcome of its phases and subtests


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _, owner, name = report.nodeid.split("::")
    name = name.partition("[")[0]
    outcomes[owner][name] = max(outcomes[owner].get(name, "passed"), report.outcome, key=RANK.index)


def _differences() -> dict[str, str]:
    """Tests that the stock model passes and ours does not, and what ours does."""
    ours = outcomes[OURS]
    passed = [name for name, outcome in outcomes[STOCK].items() if outcome == "passed"]
    return {name: ours.get(name, "not run") for name in sorted(passed) if ours.get(name) != "passed"}


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    session.exitstatus = 0 if outcomes[OURS] and _differences().keys() == KNOWN.keys() else 1


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for owner, names in outcomes.items():
        counts = ", ".join(f"{list(names.values()).count(outcome)} {outcome}" for outcome in RANK)
        terminalreporter.write_line(f"{owner}: {counts}")
    differences = _differences()
    terminalreporter.write_line(f"{len(differences)} tests that the stock model passes and ours does not:")
    for name, outcome in differences.items():
        terminalreporter.write_line(f"  {name} {outcome}: {KNOWN.get(name, 'NOT IN known.toml')}")
    for name in KNOWN.keys() - differences.keys():
        terminalreporter.write_line(f"  {name} is in known.toml, but ours does as the stock model does: take it out")
