"""Loads micro-batches in a deterministic order, for any rank and number of workers, from any step.

The epoch plan fixes the content of every step before anything is read. Workers are stateless: they receive sample indices and
return numpy arrays through shared memory.
"""

import gc
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from sightline.data.batches.collate import Arrays, collate
from sightline.data.batches.corpus import Corpus
from sightline.data.batches.plan import BatchRules, EpochPlan, Rows
from sightline.errors import ConfigError, DistributedError, RecordError
from sightline.runtime.logs import logger
from sightline.runtime.prefetch import prefetched
from sightline.runtime.shared_memory import ArrayLocation, SharedSlots
from sightline.types import Sample, TrainingBatch

AnyBatch = TypeVar("AnyBatch", bound=TrainingBatch, covariant=True)
Task = tuple[Rows, int | None]  # the rows of a micro-batch, and the shared-memory slot for its arrays
PREFETCH = 2  # micro-batches that a thread prepares in advance where there are no worker processes
TEXT_STEP = 128  # lengths of rows without their images are multiples of it
PREFETCH_PER_WORKER = 4  # micro-batches in flight per worker: it works on the next one while finished ones wait


@dataclass(frozen=True)
class MicroBatch(Generic[AnyBatch]):
    """A batch, and the samples that could not be loaded.

    Attributes:
        batch: the batch.
        skipped: `(sample index, reason)` of samples whose images could not be opened; they are left out of the batch.
    """

    batch: AnyBatch
    skipped: tuple[tuple[str, str], ...] = ()


class BatchArrays(Protocol):
    """A batch as numpy arrays, which travel through shared memory."""

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """`(sample index, reason)` of samples that could not be loaded."""
        ...

    def values(self) -> list[Any]:
        """Returns all arrays, or their locations in shared memory, in the order that `with_values` takes."""
        ...

    def with_values(self, values: Iterable[Any]) -> Self:
        """Returns a copy with other values in place of the arrays."""
        ...

    def to_batch(self) -> TrainingBatch:
        """Converts the arrays to a batch on the CPU."""
        ...


class Plans(Protocol):
    """The samples of a stage, as far as the loader plans them."""

    def plan(self, rules: BatchRules) -> EpochPlan:
        """Returns which samples share a row, and which rows each step sees."""
        ...


Build = Callable[[Rows], BatchArrays]


@dataclass(frozen=True)
class _BatchBuilder:
    """Builds the arrays of a micro-batch from the sample indices of its rows."""

    corpus: Corpus
    pad_id: int
    min_width: int = 1

    def __call__(self, rows: Rows) -> Arrays:
        samples = iter(self.corpus.samples([index for row in rows for index in row]))
        loaded: list[list[Sample]] = []
        skipped = []
        for row in rows:
            loaded.append([])
            for index in row:
                sample = next(samples)
                if isinstance(sample, RecordError):
                    skipped.append((str(index), sample.reason))
                else:
                    loaded[-1].append(sample)
        arrays = collate(loaded, self.pad_id, self.min_width)
        # Rows without their images have few lengths too where all rows have one.
        step = TEXT_STEP if self.min_width > 1 else 1
        return replace(arrays, text_width=-(-arrays.text_width // step) * step, skipped=tuple(skipped))


class _WorkerDataset(Dataset[BatchArrays]):
    """The part of the loader that runs in workers: writes arrays into a shared slot and returns their locations."""

    def __init__(self, build: Build, slots: SharedSlots) -> None:
        self.build, self.slots = build, slots

    def __getitem__(self, task: Task) -> BatchArrays:  # pyrefly: ignore
        rows, slot = task
        arrays = self.build(rows)
        locations = None if slot is None else self.slots.write(slot, arrays.values())
        return arrays if locations is None else arrays.with_values(locations)


def _received(answer: BatchArrays, slot: int | None, slots: SharedSlots) -> BatchArrays:
    """Returns a worker's batch with its arrays as views of the shared slot."""
    if slot is None:
        return answer
    values = answer.values()
    if not isinstance(values[0], ArrayLocation):
        slots.release(slot)
        return answer
    return answer.with_values(slots.views(slot, values))


class Loader:
    """Iterates over the micro-batches of one rank.

    Args:
        corpus: the samples.
        rules: how samples become rows and steps.
        pad_id: token id of padding.
        rank, world: rank of this process and number of processes.
        workers: processes that read and decode; 0 uses a prefetch thread of this process.
        timeout: seconds without a batch after which a worker counts as dead.
        build: makes the arrays of a micro-batch from the sample indices of its rows; by default packed rows of `corpus`.
        min_width: minimum length of the rows of `corpus` in tokens, so that all steps have one shape.

    Raises:
        ConfigError: the rows of a step are not divisible by ranks and micro-batches.
    """

    def __init__(
        self,
        corpus: Plans,
        rules: BatchRules,
        pad_id: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        timeout: float = 120,
        build: Build | None = None,
        min_width: int = 1,
    ) -> None:
        if rules.rows_per_step % (world * rules.accumulate):
            raise ConfigError(
                f"{rules.rows_per_step} rows per step do not divide by {world} processes x train.accumulate={rules.accumulate}.",
                "Change train.batch_size (or train.batch_tokens), train.accumulate, or the number of processes.",
            )
        if build is None:
            assert isinstance(corpus, Corpus)
            build = _BatchBuilder(corpus, pad_id, min_width)
        self.rules, self.build = rules, build
        self.rank, self.world, self.workers, self.timeout = rank, world, workers, timeout
        self.plan = corpus.plan(rules)

    def steps_in_epoch(self, epoch: int) -> int:
        """Returns the number of optimiser steps of an epoch; the last step may have fewer samples."""
        return self.plan.steps(epoch)

    def stream(self, epoch: int, step: int, until: int) -> Iterator[list[MicroBatch[Any]]]:
        """Yields the micro-batches of each of the next `until` steps, starting at `(epoch, step)`, across epochs."""
        steps = self.plan.next_steps(epoch, step, until, self.rank, self.world)
        batches = self._load(rows for step_rows in steps for rows in step_rows)
        for _ in range(until):
            group = []
            for _ in range(self.rules.accumulate):
                arrays = next(batches)
                group.append(MicroBatch(arrays.to_batch(), arrays.skipped))
            yield group

    def _load(self, plan: Iterable[Rows]) -> Iterator[BatchArrays]:
        """Yields arrays in the order of the plan; after a worker died, restarts once from the first missing batch.

        Raises:
            DistributedError: a worker died twice.
        """
        build = self.build
        if self.workers == 0:
            yield from prefetched((build(rows) for rows in plan), PREFETCH)
            return
        plan = iter(plan)
        in_flight: list[Rows] = []  # requested and not yet received

        def requests() -> Iterator[Rows]:
            for rows in plan:
                in_flight.append(rows)
                yield rows

        pending: Iterable[Rows] = requests()
        for attempt in (1, 2):
            # Slots for the batches in flight and for two steps in use. New ones at a restart: a worker that hangs may still write.
            slots = SharedSlots(PREFETCH_PER_WORKER * self.workers + 2 * self.rules.accumulate)
            taken: deque[int | None] = deque()
            loader = DataLoader(
                _WorkerDataset(build, slots),
                sampler=_with_slots(pending, slots, taken),  # pyrefly: ignore
                batch_size=None,
                num_workers=self.workers,
                timeout=self.timeout,
                prefetch_factor=PREFETCH_PER_WORKER,
                collate_fn=_as_is,  # pyrefly: ignore
                worker_init_fn=_set_up_worker,
                generator=torch.Generator(),  # the default would draw from the run's random state at every start
                multiprocessing_context="fork",  # workers inherit the corpus and the slots instead of pickling them
            )
            try:
                for answer in loader:
                    in_flight.pop(0)
                    yield _received(answer, taken.popleft(), slots)
                return
            except RuntimeError as error:
                if attempt == 2:
                    samples = sorted({index for rows in in_flight[: self.workers] for row in rows for index in row})[:8]
                    raise DistributedError(
                        f"a loader worker died twice ({str(error).splitlines()[0]}); it was loading some of the samples {samples}.",
                        "Look for an image that crashes the image decoder, or set data.workers=0.",
                    ) from error
                logger.warning("a loader worker died (%s); the loader restarts at the same batch", str(error).splitlines()[0])
                pending = _again(list(in_flight), requests(), in_flight)


def _again(missing: Sequence[Rows], rest: Iterable[Rows], in_flight: list[Rows]) -> Iterator[Rows]:
    """Yields the missing batches first, then the rest of the plan."""
    in_flight[:] = list(missing)
    yield from missing
    yield from rest


def _with_slots(pending: Iterable[Rows], slots: SharedSlots, taken: deque[int | None]) -> Iterator[Task]:
    """Assigns a free shared slot to each micro-batch, or None where none is free."""
    for rows in pending:
        slot = slots.acquire()
        taken.append(slot)
        yield rows, slot


def _as_is(arrays: BatchArrays) -> BatchArrays:
    """Returns numpy arrays unchanged: in the shared memory of torch tensors a hung worker would defeat the timeout."""
    return arrays


def _set_up_worker(worker: int) -> None:
    """Makes a worker ignore Ctrl-C, end on SIGTERM, and use one thread."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    gc.freeze()  # inherited objects are never garbage here, and scanning them would copy their pages
