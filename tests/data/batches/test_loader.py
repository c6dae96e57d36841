"""Micro-batches in exact order: the same rows for any number of ranks and workers, from any step, through a worker's death."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sightline.data.batches.corpus import Corpus, Source
from sightline.data.batches.loader import Loader, MicroBatch
from sightline.data.batches.plan import BatchRules
from sightline.data.dataset import Dataset
from sightline.data.images.pixels import VisualInputs
from sightline.data.samples.length_table import LengthTableRules, make_length_table
from sightline.errors import ConfigError, DistributedError
from sightline.types import Record
from tests.data.batches.helpers import BUILDER, PICTURES, Sizes
from tests.data.check.planted import folder, record

RULES = BatchRules(pack=True, row_tokens=90, row_images=3, rows_per_step=4, accumulate=1, sort_by_length=False, seed=3)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    rows = [
        record(f"r{n}", f"{n % 6}.png" if n % 5 else None, captions=[f"{'word ' * (n % 7)}{k} of {n}" for k in range(1 + n % 3)])
        for n in range(40)
    ]
    return Dataset(folder(tmp_path_factory.mktemp("loader") / "set", rows, PICTURES))


def loader_of(dataset: Dataset, rules: BatchRules = RULES, pictures: Any = None, **options: Any) -> Loader:
    units = make_length_table(dataset, range(len(dataset)), BUILDER, LengthTableRules(row_tokens=90))
    corpus = Corpus((Source("set", dataset, units, BUILDER, len(units)),), pictures or Sizes(), 4)
    return Loader(corpus, rules, pad_id=0, **options)


def read(loader: Loader, epoch: int = 0, step: int = 0, until: int = 1) -> list[list[MicroBatch]]:
    return list(loader.stream(epoch, step, until))


def content(micro: MicroBatch) -> tuple[Any, ...]:
    """Everything of a batch that can be compared."""
    batch = micro.batch
    pixels = None if batch.visual is None or batch.visual.pixels_NHWC is None else batch.visual.pixels_NHWC.tolist()
    return batch.tokens.ids_BT.tolist(), batch.supervision.slot_S.tolist(), pixels, batch.record_ids, micro.skipped


def seen(steps: list[list[MicroBatch]]) -> list[str]:
    """The records of all branches, in order of steps."""
    return sorted(name for step in steps for micro in step for names in micro.batch.record_ids for name in names)


def test_an_epoch_shows_every_branch_once(dataset: Dataset) -> None:
    everything = sorted(f"r{n}" for n in range(40) for _ in range(1 + n % 3))
    for rules in (RULES, replace(RULES, pack=False), replace(RULES, pack=False, sort_by_length=True)):
        loader = loader_of(dataset, rules)
        assert seen(read(loader, until=loader.steps_in_epoch(0))) == everything


def test_the_order_is_a_function_of_seed_and_epoch(dataset: Dataset) -> None:
    first, again = loader_of(dataset), loader_of(dataset)
    assert first.plan.rows(0) == again.plan.rows(0) != first.plan.rows(1)
    assert again.plan.rows(1) == first.plan.rows(1)
    assert loader_of(dataset, replace(RULES, seed=4)).plan.rows(0) != first.plan.rows(0)


@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (4, 1), (1, 2), (2, 2), (1, 4)])
def test_ranks_and_micro_batches_share_the_rows_of_a_step_among_them(dataset: Dataset, world: int, accumulate: int) -> None:
    whole = loader_of(dataset)
    loaders = [loader_of(dataset, replace(RULES, accumulate=accumulate), rank=rank, world=world) for rank in range(world)]
    for epoch in (0, 1):
        for step in range(whole.steps_in_epoch(epoch)):
            ((*expected,),) = [[row for row in rows] for rows in whole.plan.step(epoch, step)]
            shares = [loader.plan.step(epoch, step, loader.rank, loader.world) for loader in loaders]
            assert all(len(share) == accumulate for share in shares)
            assert len({len(rows) for share in shares for rows in share}) == 1  # the same number of rows everywhere
            found = [row for share in shares for rows in share for row in rows]
            assert sorted(found) == sorted(expected)
            for rank, share in enumerate(shares):
                assert [row for rows in share for row in rows] == expected[rank::world]


def test_an_epochs_last_step_is_filled_up_with_rows_of_nothing(dataset: Dataset) -> None:
    loader = loader_of(dataset, replace(RULES, rows_per_step=64))
    ((micro,),) = read(loader)
    rows = len(loader.plan.rows(0))
    assert rows < 64
    assert micro.batch.tokens.ids_BT.shape[0] == 64
    assert int((micro.batch.tokens.sample_BT[rows:] >= 0).sum()) == 0
    last = [loader_of(dataset, replace(RULES, rows_per_step=64), rank=rank, world=64) for rank in (0, 63)]
    assert len(read(last[1])[0][0].batch.supervision) == 0
    assert len(read(last[0])[0][0].batch.supervision) > 0


def test_reading_goes_on_in_the_middle_of_an_epoch_and_over_its_end(dataset: Dataset) -> None:
    loader = loader_of(dataset)
    steps = loader.steps_in_epoch(0)
    assert steps > 4
    whole = [[content(micro) for micro in step] for step in read(loader, until=steps + 4)]
    for begin in (1, steps - 1, steps):
        rest = read(loader_of(dataset), 0, begin, steps + 4 - begin)
        assert [[content(micro) for micro in step] for step in rest] == whole[begin:]
    second = read(loader_of(dataset), 1, 2, 2)
    assert [[content(micro) for micro in step] for step in second] == whole[steps + 2 :]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # a machine of one core is told that two are many
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(dataset: Dataset, workers: int) -> None:
    rules = replace(RULES, accumulate=2)
    alone = [[content(micro) for micro in step] for step in read(loader_of(dataset, rules), until=7)]
    helped = [[content(micro) for micro in step] for step in read(loader_of(dataset, rules, workers=workers), until=7)]
    assert helped == alone


@pytest.mark.parametrize("workers", [0, 1])
def test_reading_takes_no_number_out_of_the_random_state_of_the_run(dataset: Dataset, workers: int) -> None:
    before = torch.get_rng_state()
    read(loader_of(dataset, workers=workers), until=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_rows_that_do_not_divide_are_refused(dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match=r"4 rows per step do not divide by 2 processes x train.accumulate=3"):
        loader_of(dataset, replace(RULES, accumulate=3), world=2)


def test_images_that_are_gone_cost_their_samples_and_are_counted(tmp_path: Path) -> None:
    rows = [record(f"{'gone' if n == 2 else 'r'}{n}", f"{n}.png") for n in range(4)]
    data = Dataset(folder(tmp_path / "set", rows, PICTURES))
    (step,) = read(loader_of(data))
    assert seen([step]) == ["r0", "r1", "r3"]
    assert [micro.skipped for micro in step] == [(("2", "image_missing"),)]


class Deadly(Sizes):
    """Kills the worker that opens a certain record, as often as there are files to take away."""

    def __init__(self, lives: Path) -> None:
        self.lives = lives

    def load(self, dataset: Dataset, record: Record) -> VisualInputs:
        if record.id == "r11":
            for file in sorted(self.lives.iterdir())[:1]:
                file.unlink()
                os._exit(9)
        return super().load(dataset, record)


def deaths(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / str(number)).touch()
    return folder


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_dead_worker_costs_one_restart_at_the_same_place(dataset: Dataset, tmp_path: Path) -> None:
    steps = loader_of(dataset).steps_in_epoch(0)
    expected = [[content(micro) for micro in step] for step in read(loader_of(dataset), until=steps)]
    deadly = loader_of(dataset, pictures=Deadly(deaths(tmp_path / "lives", 1)), workers=2, timeout=30)
    assert [[content(micro) for micro in step] for step in read(deadly, until=steps)] == expected
    assert not list((tmp_path / "lives").iterdir())


def test_a_image_that_kills_every_worker_ends_in_words(dataset: Dataset, tmp_path: Path) -> None:
    deadly = loader_of(dataset, pictures=Deadly(deaths(tmp_path / "lives", 9)), workers=1, timeout=30)
    with pytest.raises(DistributedError, match=r"a loader worker died twice .* loading some of the samples \[\d+"):
        read(deadly, until=deadly.steps_in_epoch(0))


def test_reading_that_is_given_up_leaves_nothing_behind(dataset: Dataset) -> None:
    stream: Iterator[list[MicroBatch]] = loader_of(dataset).stream(0, 0, 5)
    next(stream)
    stream.close()  # pyrefly: ignore
    assert next(loader_of(dataset).stream(0, 0, 1))
