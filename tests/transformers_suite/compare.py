"""Pytest plugin: fails unless the tests that a stock LLaVA passes and our model does not are those of `known.toml`."""

import tomllib
from collections import defaultdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

OURS_OF = {
    "StockLlavaTest": "SightlineTest",
    "StockProcessorTest": "SightlineProcessorTest",
    "StockPipelineTest": "SightlinePipelineTest",
}
KNOWN = tomllib.loads(Path(__file__).with_name("known.toml").read_text("utf-8"))
RANK = ["passed", "skipped", "failed"]

outcomes: dict[str, dict[str, str]] = defaultdict(dict)  # class -> test -> the worst outcome of its phases and subtests


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _, owner, name = report.nodeid.split("::")
    name = name.partition("[")[0]
    outcomes[owner][name] = max(outcomes[owner].get(name, "passed"), report.outcome, key=RANK.index)


def _differences() -> dict[str, str]:
    """Tests that the stock model passes and ours does not, and what ours does."""
    found = {}
    for stock, ours in OURS_OF.items():
        passed = [name for name, outcome in outcomes[stock].items() if outcome == "passed"]
        found |= {name: outcomes[ours].get(name, "not run") for name in sorted(passed) if outcomes[ours].get(name) != "passed"}
    return found


def _reason(name: str) -> str | None:
    """The reason that `known.toml` gives for a test; its keys are patterns with `*`."""
    return next((reason for pattern, reason in KNOWN.items() if fnmatchcase(name, pattern)), None)


def _unneeded(differences: dict[str, str]) -> list[str]:
    """Patterns of `known.toml` that name no difference."""
    return [pattern for pattern in KNOWN if not any(fnmatchcase(name, pattern) for name in differences)]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    differences = _differences()
    is_known = all(map(_reason, differences)) and not _unneeded(differences)
    session.exitstatus = 0 if all(outcomes[ours] for ours in OURS_OF.values()) and is_known else 1


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for owner, names in outcomes.items():
        counts = ", ".join(f"{list(names.values()).count(outcome)} {outcome}" for outcome in RANK)
        terminalreporter.write_line(f"{owner}: {counts}")
    differences = _differences()
    terminalreporter.write_line(f"{len(differences)} tests that the stock model passes and ours does not:")
    for name, outcome in differences.items():
        terminalreporter.write_line(f"  {name} {outcome}: {_reason(name) or 'NOT IN known.toml'}")
    for name in _unneeded(differences):
        terminalreporter.write_line(f"  {name} is in known.toml, but ours does as the stock model does: take it out")
