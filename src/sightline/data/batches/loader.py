"""Micro-batches in exact order, for any rank, any number of workers, from any step.

The epoch plan decides what a step sees before anything is read. Workers hold no state; they get a list of samples and give numpy
arrays, in memory that this process maps as well.
"""

import gc
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from sightline.data.batches.collate import Arrays, collate
from sightline.data.batches.corpus import Corpus
from sightline.data.batches.plan import BatchRules, Rows
from sightline.errors import ConfigError, DistributedError, RecordError
from sightline.runtime.logs import logger
from sightline.runtime.prefetch import prefetched
from sightline.runtime.shared_memory import ArrayLocation, SharedSlots
from sightline.types import Batch, Sample, TrainingBatch

AnyBatch = TypeVar("AnyBatch", bound=TrainingBatch, covariant=True)
Task = tuple[Rows, int | None]  # what a worker gets: the rows of a micro-batch, and the slot for its arrays
AHEAD = 2  # micro-batches that a thread makes while another is trained on, where there are no worker processes
AHEAD_PER_WORKER = 4  # micro-batches asked of each worker: it has the next one to do while its last one waits


@dataclass(frozen=True)
class MicroBatch(Generic[AnyBatch]):
    """A batch with what was lost while it was made.

    Attributes:
        skipped: `(sample number, reason)` of samples whose images could not be opened; their places carry no weight.
    """

    batch: AnyBatch
    skipped: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class _Maker:
    """Makes the arrays of a list of rows."""

    corpus: Corpus
    pad_id: int

    def __call__(self, rows: Rows) -> Arrays:
        built = iter(self.corpus.samples([unit for row in rows for unit in row]))
        made: list[list[Sample]] = []
        skipped = []
        for row in rows:
            made.append([])
            for unit in row:
                sample = next(built)
                if isinstance(sample, RecordError):
                    skipped.append((str(unit), sample.reason))
                else:
                    made[-1].append(sample)
        arrays = collate(made, self.pad_id)
        return replace(arrays, skipped=tuple(skipped))


class _InWorker(Dataset[Arrays]):
    """The part of the loader that workers hold: batches whose arrays lie in a slot, so that places stand for them."""

    def __init__(self, make: _Maker, slots: SharedSlots) -> None:
        self.make, self.slots = make, slots

    def __getitem__(self, task: Task) -> Arrays:  # pyrefly: ignore
        rows, slot = task
        arrays = self.make(rows)
        places = None if slot is None else self.slots.lay(slot, arrays.values())
        return arrays if places is None else arrays.with_values(places)


def _received(answer: Arrays, slot: int | None, slots: SharedSlots) -> Arrays:
    """A worker's batch with its arrays where they lie."""
    if slot is None:
        return answer
    values = answer.values()
    if not isinstance(values[0], ArrayLocation):
        slots.give_back(slot)
        return answer
    return answer.with_values(slots.lend(slot, values))


class Loader:
    """Iterates over the micro-batches of one rank.

    Args:
        corpus: what to draw from.
        rules: how units become steps.
        pad_id: token id of padding.
        rank, world: this process and how many there are.
        workers: processes that read and decode; 0 does it here, in a thread that works ahead.
        timeout: seconds without a batch from a worker after which it counts as dead.

    Raises:
        ConfigError: the rows of a step do not divide by ranks and micro-batches.
    """

    def __init__(
        self, corpus: Corpus, rules: BatchRules, pad_id: int, rank: int = 0, world: int = 1, workers: int = 0, timeout: float = 120
    ) -> None:
        if rules.rows_per_step % (world * rules.accumulate):
            raise ConfigError(
                f"{rules.rows_per_step} rows per step do not divide by {world} processes x train.accumulate={rules.accumulate}.",
                "Change train.batch_size (or train.batch_tokens), train.accumulate, or the number of processes.",
            )
        self.corpus, self.rules, self.pad_id = corpus, rules, pad_id
        self.rank, self.world, self.workers, self.timeout = rank, world, workers, timeout
        self.plan = corpus.plan(rules)

    def steps_in_epoch(self, epoch: int) -> int:
        """Optimiser steps of an epoch; the last may have fewer samples."""
        return self.plan.steps(epoch)

    def stream(self, epoch: int, step: int, until: int) -> Iterator[list[MicroBatch[Batch]]]:
        """The micro-batches of each of the next `until` steps, beginning at `(epoch, step)`, across epochs."""
        steps = self.plan.next_steps(epoch, step, until, self.rank, self.world)
        batches = self._make(rows for step_rows in steps for rows in step_rows)
        for _ in range(until):
            group = []
            for _ in range(self.rules.accumulate):
                arrays = next(batches)
                group.append(MicroBatch(arrays.to_batch(), arrays.skipped))
            yield group

    def _make(self, plan: Iterable[Rows]) -> Iterator[Arrays]:
        """Arrays in the order of the plan. A dead worker costs one restart from the first batch that is missing."""
        make = _Maker(self.corpus, self.pad_id)
        if self.workers == 0:
            yield from prefetched((make(rows) for rows in plan), AHEAD)
            return
        plan = iter(plan)
        waiting: list[Rows] = []  # asked for and not yet received

        def asked() -> Iterator[Rows]:
            for rows in plan:
                waiting.append(rows)
                yield rows

        pending: Iterable[Rows] = asked()
        for attempt in (1, 2):
            # Slots for what is asked for and for two steps in use; new ones each time, for a worker that hangs may still write.
            slots = SharedSlots(AHEAD_PER_WORKER * self.workers + 2 * self.rules.accumulate)
            lent: deque[int | None] = deque()
            loader = DataLoader(
                _InWorker(make, slots),
                sampler=_with_slots(pending, slots, lent),  # pyrefly: ignore
                batch_size=None,
                num_workers=self.workers,
                timeout=self.timeout,
                prefetch_factor=AHEAD_PER_WORKER,
                collate_fn=_as_is,  # pyrefly: ignore
                worker_init_fn=_quiet_worker,
                generator=torch.Generator(),  # else every start of workers takes a number out of the run's random state
                multiprocessing_context="fork",  # workers share the corpus, which is not sent, and the slots
            )
            try:
                for answer in loader:
                    waiting.pop(0)
                    yield _received(answer, lent.popleft(), slots)
                return
            except RuntimeError as error:
                if attempt == 2:
                    units = sorted({unit for rows in waiting[: self.workers] for row in rows for unit in row})[:8]
                    raise DistributedError(
                        f"a loader worker died twice ({str(error).splitlines()[0]}); next units were {units}.",
                        "Look for a picture that crashes the decoder, or use data.workers=0.",
                    ) from error
                logger.warning("a loader worker died (%s); the loader starts again at the same place", str(error).splitlines()[0])
                pending = _again(list(waiting), asked(), waiting)


def _again(missing: Sequence[Rows], rest: Iterable[Rows], waiting: list[Rows]) -> Iterator[Rows]:
    waiting[:] = list(missing)
    yield from missing
    yield from rest


def _with_slots(pending: Iterable[Rows], slots: SharedSlots, lent: deque[int | None]) -> Iterator[Task]:
    for rows in pending:
        slot = slots.take()
        lent.append(slot)
        yield rows, slot


def _as_is(arrays: Arrays) -> Arrays:
    """Keeps numpy arrays as they are: torch would make tensors, in whose shared memory a stopped worker defeats the timeout."""
    return arrays


def _quiet_worker(worker: int) -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    gc.freeze()  # what came from the parent is never garbage here, and looking for it would copy its pages
