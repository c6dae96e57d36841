"""Tiny models to export, and a process without Sightline to open them in."""

import subprocess
import sys
from pathlib import Path

import torch

from sightline.assembly.model.build import ModelBundle, Processing, build_from_config
from sightline.data.images.tilings import TilingConfig
from sightline.models.connectors import ConnectorConfig
from tests.assembly.helpers import run_config

WITHOUT_SIGHTLINE = """
import sys

class Refuse:
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in ("sightline", "jaxtyping"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
"""


def built(connector: ConnectorConfig, tiling: TilingConfig) -> ModelBundle:
    """A tiny model with random weights."""
    config = run_config()
    section = config.model.model_copy(update={"tiling": tiling, "connector": connector})
    bundle = build_from_config(config.model_copy(update={"model": section}), Processing(max_tokens=250), None)
    torch.nn.init.normal_(bundle.inner.get_input_embeddings().weight, std=0.05)
    bundle.module.eval()
    return bundle


def run_without_sightline(script: str, folder: Path, *arguments: str) -> str:
    """Runs a script in a folder, in a process that cannot import Sightline; returns what it printed."""
    environment = {"HF_MODULES_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin", "HOME": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_SIGHTLINE + script, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
