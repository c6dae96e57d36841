"""The feature store against encoding in every step: the training step without it, with it, and with features in memory.

All arms run the real training loop on the same rows in the same order; only the source of the visual features differs. `cold` is a
first epoch: nothing is tokenised, decoded or mapped, and the system is asked to drop cached files; `warm` is a later epoch. Without
options images, captions and encoder are created (a ViT of 5.5 million parameters), which says little about other encoders: name a
dataset and an encoder to get figures for them.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from benchmarks import material
from benchmarks.findings import Finding, say
from benchmarks.measure import Ratio, compute_clock, in_turn, seconds_of
from sightline.assembly.config.epochs import batch_rules
from sightline.assembly.config.resolving import stage_plan
from sightline.assembly.config.schema import StagePlan
from sightline.assembly.encode.features import EncodingRequest, encode_dataset, feature_encoder_of, open_features
from sightline.assembly.model.build import build_from_config
from sightline.assembly.model.tokenizer import texts_of
from sightline.assembly.train.corpus import build_corpus, visual_input_loader
from sightline.data.batches.corpus import Corpus
from sightline.data.batches.loader import Loader
from sightline.data.dataset import Dataset, open_dataset
from sightline.data.features.store import FEATURE_DTYPES
from sightline.data.images.pixels import VisualInputLoader, VisualInputs
from sightline.data.prepare.run import PrepareOptions, prepare
from sightline.data.samples.processing import Processing
from sightline.runtime.device import Runtime, prepare_runtime
from sightline.training import loop, optim, ranks, stages
from sightline.training.checkpoint import Progress
from sightline.types import Record


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds what is encoded, and by which encoder."""
    parser.add_argument("--data", type=Path, help="a dataset folder (made by `sightline data prepare`)")
    parser.add_argument("--split", default="train")
    parser.add_argument("--vision", help="folder or Hub id of the encoder")
    parser.add_argument("--dtype", choices=FEATURE_DTYPES, default="fp16", help="dtype of the store (default fp16)")
    parser.add_argument("--images", type=int, default=48, help="images to train on (default 48)")
    parser.add_argument("--rows", type=int, default=2, help="packed rows of 512 tokens per step (default 2)")


def run(options: argparse.Namespace) -> list[Finding]:
    """Measures all ratios."""
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as folder:
        return _Measure(options, Path(folder)).findings()


# Arms -----------------------------------------------------------------------------------------------------------------------


class MemoryFeatures:
    """Loads features that are held in memory, to compare a store with."""

    def __init__(self, inner: VisualInputLoader) -> None:
        self.inner = inner
        self.kept: dict[tuple[str, ...], np.ndarray] = {}

    def load(self, dataset: Dataset, record: Record) -> VisualInputs:
        """Returns the features of a record, which are read once."""
        found = self.kept.get(record.images)
        if found is None:
            features = self.inner.load(dataset, record).features
            assert features is not None
            found = self.kept[record.images] = np.array(features)
        return VisualInputs(features=found)


class _Lines:
    """Collects the lines that would go into `metrics.jsonl`."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def write(self, line: dict[str, Any]) -> None:
        self.lines.append(line)

    def wait_share(self) -> float:
        """Returns the share of time spent waiting for data."""
        seconds = sum(line["seconds"] for line in self.lines)
        return sum(line["wait_share"] * line["seconds"] for line in self.lines) / seconds


@dataclass(frozen=True)
class Arm:
    """Trains complete epochs with one source of visual features.

    Attributes:
        measure: the model and the parameters that train.
        corpus: dataset with this arm's features; what it keeps in memory makes later epochs warm.
    """

    measure: "_Measure"
    corpus: Corpus

    def epoch(self) -> float:
        """Trains one epoch; returns the share of time spent waiting."""
        made, plan = self.measure.made, self.measure.plan
        loader = Loader(self.corpus, batch_rules(plan), made.pad_id)
        lines = _Lines()
        job = loop.Job(
            accelerator=self.measure.accelerator,
            model=made.module,
            ranks=ranks.Replicated(self.measure.accelerator, ranks.StepModule(made.module, plan.objective.build())),
            stage=self.measure.stage,
            optimiser=optim.build_optimiser(self.measure.stage, (0.9, 0.999), 1e-8),
            loader=loader,
            schedule=loop.StageSchedule(loader.steps_in_epoch(0), 0, "constant", 0.0, 1.0, 0, 0),
            log=lines,
            save=lambda _: None,
            evaluate=None,
            stop=str,
            guard=optim.NonFiniteGuard(),
        )
        loop.fit(job, Progress())
        return lines.wait_share()


class _Measure:
    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        path = material.make_dataset(folder, options.images) if options.data is None else self.sampled(folder / "set")
        keys = {"row_tokens": 512, "split": options.split, "keep_pixels": 0, "max_skipped": 1.0}
        config = material.run_config(path, options.vision, data=keys)
        config = config.model_copy(update={"train": config.train.model_copy(update={"batch_size": options.rows})})
        self.dataset = open_dataset(path)
        self.runtime: Runtime = prepare_runtime("auto", "auto", options.threads)
        self.made = build_from_config(config, Processing(max_tokens=512), texts_of([(self.dataset, options.split)]))
        self.plan: StagePlan = stage_plan(config, 0)
        self.stage = stages.apply(self.made.module, self.plan.name, self.plan.parts, 1e-4, 0.0)
        self.accelerator = Accelerator(cpu=self.runtime.device == "cpu", mixed_precision="bf16" if self.runtime.bf16 else "no")
        self.made.inner.to(self.accelerator.device)
        self.corpus = build_corpus(self.made, self.plan.data, None)
        self.store = folder / "store"

    def sampled(self, out: Path) -> Path:
        """Returns a dataset of some of the records that were named."""
        dataset = open_dataset(self.options.data)
        records = round(self.options.images * len(dataset) / max(1, dataset.splits.get(self.options.split, 0)))
        prepare(dataset.path, "records", PrepareOptions(out=out, sample=min(records, len(dataset)), workers=0))
        return out

    # Arms: each with its own corpus, which has nothing in memory yet

    def pixels(self, keep_megabytes: int = 0) -> Arm:
        data = self.plan.data.model_copy(update={"keep_pixels": keep_megabytes})
        return Arm(self, replace(self.corpus, visual_inputs=visual_input_loader(self.made, data)))

    def stored(self) -> Arm:
        return Arm(self, replace(self.corpus, visual_inputs=open_features(str(self.store), self.made)))

    def in_memory(self) -> Arm:
        return Arm(self, replace(self.corpus, visual_inputs=MemoryFeatures(open_features(str(self.store), self.made))))

    def first_epoch(self, make: Callable[[], Arm], folder: Path) -> float:
        """Returns the wall-clock seconds of an epoch that starts with nothing in memory."""
        forget(folder)
        return seconds_of(make().epoch)

    def findings(self) -> list[Finding]:
        repeats = self.options.repeats
        say(f"  {self.dataset.splits[self.options.split]} records; encoding them once")
        request = EncodingRequest((self.dataset,), self.store, (self.options.split,), self.options.dtype, max_skipped=1.0)
        encoder = feature_encoder_of(self.made)
        encoding = seconds_of(lambda: encode_dataset(encoder, request, self.runtime), compute_clock())

        say("  first epochs")
        self.pixels().epoch()  # one-time set-up of the libraries belongs to no arm
        cold = []
        for _ in range(repeats):
            slow = self.first_epoch(self.pixels, self.dataset.path)
            cold.append(slow / self.first_epoch(self.stored, self.store))

        say("  later epochs")
        pixels, kept, stored, memory = self.pixels(), self.pixels(4096), self.stored(), self.in_memory()
        waits: list[float] = []
        works = {"pixels": pixels.epoch, "kept": kept.epoch, "store": lambda: waits.append(stored.epoch())}
        warm = in_turn(works, repeats)
        waits = waits[1:]  # the first call warms up
        say("  the store against memory")
        close = in_turn({"memory": lambda: several(memory), "store": lambda: several(stored)}, max(repeats, 9))

        def over(name: str) -> Ratio:
            return Ratio.of(a / b for a, b in zip(warm[name], warm["store"], strict=True))

        spared = [slow - quick for slow, quick in zip(warm["pixels"], warm["store"], strict=True)]
        return [
            Finding("feature_store_speedup_cold", Ratio.of(cold), "first epochs: without the store over with it"),
            Finding("feature_store_speedup_warm", over("pixels"), "later epochs: without the store over with it"),
            Finding("feature_store_speedup_kept_pixels", over("kept"), "the same, without it but with prepared pixels in memory"),
            Finding(
                "feature_store_over_memory",
                Ratio.of(b / a for a, b in zip(close["memory"], close["store"], strict=True)),
                "steps with the store over steps with features in memory",
                at_most=1.05,
            ),
            Finding(
                "feature_store_break_even_epochs",
                Ratio.of(encoding / one for one in spared),
                "epochs after which encoding once is less work",
            ),
            Finding("data_wait_share", Ratio.of(waits), "share of time spent waiting for data, with the store", at_most=0.02),
        ]


EPOCHS = 4  # per measurement if differences are small


def several(arm: Arm) -> None:
    """Trains a few epochs."""
    for _ in range(EPOCHS):
        arm.epoch()


def forget(folder: Path) -> None:
    """Asks the system to drop files from its cache; it may keep mapped files."""
    for file in folder.rglob("*"):
        if file.is_file() and hasattr(os, "posix_fadvise"):
            with file.open("rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
