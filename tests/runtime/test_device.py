"""The machine: what is chosen, and that the process gets its settings back."""

import os
import subprocess
import sys

import pytest
import torch

from sightline.errors import ConfigError
from sightline.runtime.device import Runtime, choose_runtime, prepare_runtime, process_settings_restored
from tests.conftest import settings_of_torch


def test_choosing_changes_nothing_and_applying_lasts_until_the_scope_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKENIZERS_PARALLELISM")
    before = settings_of_torch()
    wanted = choose_runtime("cpu", "auto", torch.get_num_threads() + 1)
    assert wanted == Runtime("cpu", False, torch.get_num_threads() + 1, True)
    assert settings_of_torch() == before

    def fails_inside() -> None:
        with process_settings_restored():
            assert prepare_runtime("cpu", "auto", wanted.threads) == wanted
            assert settings_of_torch() == (True, wanted.threads, False)
            assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
            raise KeyError

    with pytest.raises(KeyError):
        fails_inside()
    assert settings_of_torch() == before
    assert "TOKENIZERS_PARALLELISM" not in os.environ


def test_settings_of_the_caller_come_back_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        with process_settings_restored():
            choose_runtime("cpu", "fp32", None, deterministic=False).apply()
            assert not torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.mark.parametrize(
    ("cuda", "mps", "chosen", "exact"), [(True, True, "cuda", False), (False, True, "mps", False), (False, False, "cpu", True)]
)
def test_auto_takes_the_gpu_that_is_there(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, chosen: str, exact: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert choose_runtime("auto", "auto", 1) == Runtime(chosen, cuda, 1, exact)
    for device, is_there in {"cuda": cuda, "mps": mps}.items():
        if not is_there:
            with pytest.raises(ConfigError, match=f"runtime.device={device}, but torch finds no such device"):
                choose_runtime(device, "auto", 1)


def test_images_are_opened_without_touching_the_warning_filters_of_the_process() -> None:
    code = "import warnings, sightline.data.images.opener; assert not [rule for rule in warnings.filters if 'PIL' in str(rule)]"
    subprocess.run([sys.executable, "-c", code], check=True)
