"""A batch without its visual tokens against a plain loop over targets."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sightline.ops.text_only import text_only
from sightline.types import PADDING, Batch, EncodedConversation, Sample, Span
from tests.builders import batch_of

READS = {"item", "tolist", "nonzero", "__int__", "__bool__", "__index__", "__float__", "cpu", "numpy", "masked_select", "argwhere"}


class NoReads(TorchFunctionMode):
    """Within it, nothing may be read from a device: by name, or by indexing with a mask, which counts its true entries."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        name = getattr(func, "__name__", "")
        assert name not in READS, name
        if name in ("__getitem__", "__setitem__"):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            assert not any(isinstance(part, Tensor) and part.dtype == torch.bool for part in index), name
        return func(*args, **(kwargs or {}))


def drawn(generator: np.random.Generator) -> Sample:
    """A sample of texts and visual tokens in any order, alone or with branches behind a prefix; targets anywhere."""
    prefix = int(generator.integers(0, 8))
    count = int(generator.integers(2, 5)) if prefix and generator.random() < 0.7 else 1
    sizes = generator.integers(2, 7, count)
    head = generator.integers(1, 90, prefix)
    branches = []
    for number, size in enumerate(sizes.tolist()):
        ids = np.concatenate([head, generator.integers(1, 90, size)])
        first = prefix if count > 1 else 0
        start = int(generator.integers(max(first, 1), len(ids)))
        end = int(generator.integers(start + 1, len(ids) + 1))
        branches.append(EncodedConversation(ids, (Span(start, end, 0),), np.zeros(0, int), f"r{number}"))
    # Of several branches the visual tokens stand in the prefix; a lone one may hold them anywhere, its first place included.
    places = prefix if count > 1 else len(branches[0].ids) - 1
    slots = np.flatnonzero(generator.random(places) < generator.choice([0.0, 0.3, 0.7, 1.0]))
    return Sample(
        branches=tuple(replace(branch, slots=slots) for branch in branches),
        prefix=prefix if count > 1 else 0,
        visual_index=np.arange(len(slots)),
        features=np.zeros((1, 1, 1), np.float32) if len(slots) else None,
        tokens_per_crop=len(slots),
    )


def by_loop(batch: Batch) -> tuple[list[list[tuple[int, int, int, int]]], list[int]]:
    """Kept tokens (id, position, sample, branch) of each row, and for each target the slot that now predicts it."""
    assert batch.visual is not None
    tokens = batch.tokens
    num_rows, width = tokens.ids_BT.shape
    columns = [tokens.ids_BT, tokens.position_BT, tokens.sample_BT, tokens.branch_BT]
    cells = list(zip(*(column.flatten().tolist() for column in columns), strict=True))
    visual = set(batch.visual.slot_M.tolist())
    kept = [slot for slot, cell in enumerate(cells) if cell[2] != PADDING and slot not in visual]
    rows = [[cells[slot] for slot in kept if slot // width == row] for row in range(num_rows)]
    longest = max(1, *map(len, rows))
    new = {
        slot: slot // width * longest + sum(other // width == slot // width for other in kept[:at]) for at, slot in enumerate(kept)
    }
    slots = []
    for slot in batch.supervision.slot_S.tolist():
        own = cells[slot]
        seen = [other for other in kept if other <= slot and cells[other][2] == own[2] and cells[other][3] in (own[3], PADDING)]
        slots.append(new[seen[-1]] if seen else -1)
    return rows, slots


@pytest.mark.parametrize("seed", range(150))
def test_rows_and_slots_are_those_of_a_loop_over_targets_and_nothing_is_read(seed: int) -> None:
    generator = np.random.default_rng(seed)
    rows = [[drawn(generator) for _ in range(generator.integers(0, 4))] for _ in range(generator.integers(1, 4))]
    rows[0].append(
        Sample(
            (EncodedConversation(np.array([0, 5, 6]), (Span(1, 3, 0),), np.zeros(1, int)),), 0, np.zeros(1, int), tokens_per_crop=1
        )
    )
    batch = batch_of(*rows, min_width=int(generator.integers(1, 40)))
    expected, slots = by_loop(batch)
    with NoReads():
        found = text_only(batch)
    assert found.visual is None
    assert found.supervision.slot_S.tolist() == slots
    assert -1 in slots  # the sample that begins with its image
    width = max(1, *map(len, expected))
    filled = [row + [(0, 0, PADDING, PADDING)] * (width - len(row)) for row in expected]
    columns = [found.tokens.ids_BT, found.tokens.position_BT, found.tokens.sample_BT, found.tokens.branch_BT]
    assert torch.stack(columns, -1).tolist() == [[list(cell) for cell in row] for row in filled]
    assert text_only(found) is found


def test_the_modes_of_this_file_see_reads() -> None:
    mask = torch.ones(2, dtype=torch.bool)
    for read in (
        lambda: int(mask.sum()),
        lambda: mask.nonzero(),
        lambda: mask[mask],
        lambda: mask.tolist(),
        lambda: mask.sum().item(),
    ):
        with pytest.raises(AssertionError), NoReads():
            read()


def test_every_tensor_of_a_batch_goes_to_the_device() -> None:
    generator = np.random.default_rng(0)
    batch = batch_of([drawn(generator) for _ in range(6)]).to("meta")
    assert batch.visual is not None
    nouns = (batch, batch.tokens, batch.visual, batch.supervision)
    tensors = [value for noun in nouns for name in noun.__slots__ if isinstance(value := getattr(noun, name), Tensor)]
    assert len(tensors) == 4 + 3 + 7
    assert {tensor.device.type for tensor in tensors} == {"meta"}
