"""What is held at a time does not grow with the data: no image, no text, only some bytes a record."""

import gc
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import fields
from itertools import islice
from pathlib import Path
from threading import Semaphore, Thread

from sightline.assembly.config.epochs import batch_rules
from sightline.assembly.config.resolving import stage_plan
from sightline.assembly.model.build import ModelBundle, Processing, build_from_config
from sightline.assembly.train.corpus import build_corpus, visual_input_loader
from sightline.data.batches.corpus import Corpus
from sightline.data.batches.loader import PREFETCH, Loader
from sightline.errors import RecordError
from sightline.types import Sample
from tests.assembly.helpers import run_config
from tests.data.check.planted import record
from tests.data.pictures import picture, prepared, put

FEW, MANY = 30, 120
SIDE, WORDS = 100, 60
A_RECORD = 2000  # bytes; an image has 30,000, prepared pixels 3,000, a record as an object some 3,000


def peak(work: Callable[[], object]) -> int:
    """The most bytes that Python and numpy held at a time, above what was there before."""
    gc.collect()
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def source(folder: Path, count: int) -> Path:
    for number in range(count):
        put(folder / f"{number}.png", picture(number, size=(SIDE, SIDE)))
    rows = [record(f"r{n}", f"{n}.png", "train", [f"{n} " + "a dog " * (WORDS // 2)]) for n in range(count)]
    put(folder / "records.jsonl", rows)
    return folder


class LockstepCorpus(Corpus):
    """Builds as many micro-batches as it is allowed to, and counts them."""

    allowed, built = Semaphore(0), Semaphore(0)

    def samples(self, indices: Sequence[int]) -> list[Sample | RecordError]:
        self.allowed.acquire()
        found = super().samples(indices)
        self.built.release()
        return found


def made_and_read(dataset: Path, bundle: ModelBundle) -> None:
    """The length table from nothing, and an epoch whose micro-batches are all built at the same point of a step.

    How far the prefetch thread is ahead depends on the load of the machine and on the number of steps. Left alone, it holds one to
    six micro-batches of 45,000 bytes, which moved the difference of two peaks by more than 50,000 bytes.
    """
    config = run_config(path=str(dataset), max_tokens=250, row_tokens=250, keep_pixels=0, captions="first")
    plan = stage_plan(config, 0)
    corpus = build_corpus(bundle, plan.data, visual_input_loader(bundle, plan.data))
    corpus = LockstepCorpus(**{each.name: getattr(corpus, each.name) for each in fields(corpus)})
    loader = Loader(corpus, batch_rules(plan), bundle.pad_id)
    batches = iter(range(loader.steps_in_epoch(0) * loader.rules.accumulate))

    def build(count: int) -> None:
        for _ in islice(batches, count):
            corpus.allowed.release()
            corpus.built.acquire()

    first = Thread(target=build, args=(1,))
    first.start()
    stream = loader.stream(0, 0, loader.steps_in_epoch(0))
    next(stream)
    first.join()
    build(PREFETCH + 1)  # the queue is full and one more waits for its place
    for _ in stream:
        build(loader.rules.accumulate)


def test_four_times_the_records_take_some_bytes_a_record_and_no_image_more(tmp_path: Path) -> None:
    bundle = build_from_config(run_config(), Processing(max_tokens=250), None)
    peaks: dict[str, list[int]] = {"prepare": [], "train": []}
    for number, count in enumerate((FEW, FEW, MANY)):  # the first time also pays for what is imported and kept
        raw, out = source(tmp_path / f"source{number}", count), tmp_path / f"set{number}"
        peaks["prepare"].append(peak(lambda raw=raw, out=out: prepared("records", raw, out, shards=200_000)))
        peaks["train"].append(peak(lambda out=out: made_and_read(out, bundle)))
    for job, (_, few, many) in peaks.items():
        assert many - few < A_RECORD * (MANY - FEW), (job, few, many)
