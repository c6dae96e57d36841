"""Small checkpoints, written by the real writer, and damage to them."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from sightline.training import checkpoint
from sightline.training.checkpoint import Progress

FROZEN = "model/language.safetensors"


def frozen_run(run: Path, steps: Sequence[int], frozen: torch.Tensor) -> list[checkpoint.Saved]:
    """Checkpoints of a run with a frozen part, which all share by a hard link, and a part that trains."""
    saved: list[checkpoint.Saved] = []
    for step in steps:

        def write(target: Path, links: checkpoint.Links, step: int = step) -> None:
            save_file({"w": torch.full((4,), float(step))}, target / "model/connector.safetensors")
            if not links.take(target / FROZEN):
                save_file({"w": frozen}, target / FROZEN)

        before = saved[-1] if saved else checkpoint.newest(run)
        saved.append(checkpoint.save(run, Progress(step=step), [{"rank": 0}], {"facts": {}}, None, write, before))
        checkpoint.keep_copies(run)
    return saved


def flip(file: Path, place: int = -1, bit: int = 4) -> None:
    """Changes a bit in place, so that all hard links to the file change."""
    place = place % file.stat().st_size
    with file.open("r+b") as opened:
        opened.seek(place)
        value = opened.read(1)[0]
        opened.seek(place)
        opened.write(bytes([value ^ 1 << bit]))


def save(run: Path, step: int, **changes: object) -> checkpoint.Saved:
    parameter = torch.nn.Parameter(torch.full((3,), float(step)))
    optimiser = torch.optim.AdamW([parameter], lr=0.1)
    parameter.grad = torch.ones(3)
    optimiser.step()

    def write(target: Path, links: checkpoint.Links) -> None:
        (target / "model/w").write_text(str(step))

    at = Progress(step=step, best=(0.5, 2), **changes)  # pyrefly: ignore
    return checkpoint.save(
        run, at, [{"rank": 0}], {"facts": {}}, checkpoint.optimiser_tensors(optimiser, {parameter: "p"}), write, None
    )
