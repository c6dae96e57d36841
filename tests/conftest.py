"""Settings that must stand before anything heavy is imported, and shape checks of tensor functions.

The suite is offline, single-threaded (tiny models are quicker so, and sums do not depend on the machine) and checks the jaxtyping
annotations of `ops` and `models` at every call.
"""

import importlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest

ENVIRONMENT = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # for deterministic kernels on a GPU
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "WANDB_MODE": "offline",
}
for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)

from jaxtyping import config as jaxtyping_config  # noqa: E402 (after the environment)
from jaxtyping import install_import_hook  # noqa: E402 (after the environment)

from tests import versions  # noqa: E402 (after the environment)

CHECKED = ["sightline.models", "sightline.ops"]
HEAVY = ("torch", "transformers.generation.utils", "transformers.modeling_utils")


class HeavyFirst(MetaPathFinder):
    """Imports torch and transformers before a checked package: below jaxtyping's hook they would be compiled anew (20 s)."""

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname in CHECKED:
            for module in HEAVY[: 1 if fullname == "sightline.ops" else None]:
                importlib.import_module(module)
        return None


install_import_hook(CHECKED, "beartype.beartype")
sys.meta_path.insert(0, HeavyFirst())


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fails a test in which transformers logs a warning; its Python warnings are errors in the whole suite."""
    importlib.import_module("transformers.utils.logging").get_logger()  # sets the level that this fixture changes
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.addHandler(caplog.handler)
    logger.setLevel(logging.WARNING)
    logging.Logger.warning_once.cache_clear()  # pyrefly: ignore (transformers adds it)
    yield
    logger.removeHandler(caplog.handler)
    logger.setLevel(level)
    assert [record.getMessage() for record in caplog.get_records("call")] == []


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Turns the shape checks off: torch's compiler cannot trace them."""
    jaxtyping_config.update("jaxtyping_disable", True)
    yield
    jaxtyping_config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def _logger_stays() -> Iterator[None]:
    """Gives each test the package's logger as it is imported, whatever a command in an earlier fixture or test has configured."""
    logger = logging.getLogger("sightline")
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.NOTSET)
    yield
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.NOTSET)


def settings_of_torch() -> tuple[object, ...] | None:
    """What `Runtime.apply` changes; None while torch is not imported."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.get_num_threads(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )


@pytest.fixture(autouse=True, scope="module")
def _settings_of_torch_stay() -> Iterator[None]:
    """Commands and functions that were called in this process left torch as they found it."""
    before = settings_of_torch()
    yield
    assert before in (None, settings_of_torch())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out tests of a GPU where there is none; skips those that need newer versions (`make test-oldest`)."""
    of_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if of_gpu and not importlib.import_module("torch").cuda.is_available():
        items[:] = [item for item in items if item not in of_gpu]
        config.hook.pytest_deselected(items=of_gpu)
    for item in items:
        missing = [line for mark in item.iter_markers("needs") for line in versions.missing(**mark.kwargs)]
        if missing:
            item.add_marker(pytest.mark.skip(reason=f"needs {', '.join(missing)}"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says which versions were tested, and which tests they left out."""
    terminalreporter.write_line(f"tested with {versions.installed()}")
    reports = terminalreporter.stats.get("skipped", [])
    left_out = [f"{report.nodeid}: {report.longrepr[2]}" for report in reports if "needs " in str(report.longrepr)]
    terminalreporter.write_line("\n".join([f"{len(left_out)} tests need newer versions", *left_out]))
