"""Decoding and loading: Sightline's image opener against Pillow, the loader against raw decoding, tar shards against a folder.

`raw` is a minimal implementation: Pillow opens, converts and resizes, numpy normalises; without checks, hashes or limits. The
loader does that and what training needs (file, record, tokens, collated batch, tensor) with 0, 1 or 2 worker processes, including
their start; its rate is given per worker. Raw decoding handles the same images the same number of times, but from memory and in
this process, half of it before the loader's turn and half after. Nothing is cached between epochs. Without options images of
640 x 480 are created; JPEG draft mode is off unless named.
"""

import argparse
import gc
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks import material
from benchmarks.findings import Finding, say
from benchmarks.measure import Ratio, in_turn
from sightline.assembly.model.build import build_from_config
from sightline.assembly.model.tokenizer import texts_of
from sightline.assembly.train.corpus import build_corpus
from sightline.data.batches.corpus import Corpus
from sightline.data.batches.loader import Loader
from sightline.data.batches.plan import BatchRules
from sightline.data.dataset import Dataset, open_dataset
from sightline.data.images.opener import open_image
from sightline.data.images.pixels import PixelLoader
from sightline.data.images.preparation import ImagePreparation
from sightline.data.images.tilings import WholeConfig
from sightline.data.prepare.run import PrepareOptions, prepare
from sightline.data.samples.processing import Processing
from sightline.models.vision import normalise

SIZE = (640, 480)
SHARD_BYTES = 4_000_000
SIDE = 224
EPOCHS = 4  # per measurement, as in training, where worker processes start once a stage


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options for what is decoded."""
    parser.add_argument("--data", type=Path, help="a dataset folder (made by `sightline data prepare`), or a folder of images")
    parser.add_argument("--images", type=int, default=192, help="images per measurement (default 192)")


def run(options: argparse.Namespace) -> list[Finding]:
    """Measures all ratios."""
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as folder:
        return _Measure(options, Path(folder)).findings()


PREPARATION = ImagePreparation(resize=(SIDE, SIDE), resample="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


class RawPillow:
    """The minimum that turns a file into an encoder's input."""

    def __init__(self, files: list[bytes]) -> None:
        self.files = files

    def __call__(self) -> None:
        for data in self.files:
            image = Image.open(BytesIO(data)).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            pixels = np.asarray(image, dtype=np.float32)
            (pixels / 255 - 0.5) / 0.5


class Ours:
    """The same with the image opener and the preparation of a model, including all their checks."""

    def __init__(self, files: list[bytes], preparation: ImagePreparation) -> None:
        self.files, self.preparation = files, preparation

    def __call__(self) -> None:
        for data in self.files:
            pixels = torch.from_numpy(self.preparation.prepare(open_image(data)))[None]
            normalise(pixels, self.preparation.rescale, self.preparation.mean, self.preparation.std)


class _Measure:
    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.folder = self.dataset_of(options, folder)
        self.sharded = folder / "sharded"
        prepare(self.folder, "records", PrepareOptions(out=self.sharded, workers=0, shards=SHARD_BYTES))
        dataset = open_dataset(self.folder)
        self.files = [dataset.image_bytes(record) for record in dataset.records() if record.images]
        config = material.run_config(self.folder, None, data={"split": self.split(dataset), "max_skipped": 1.0})
        made = build_from_config(config, Processing(max_tokens=512), texts_of([(dataset, self.split(dataset))]))
        self.pad_id = made.pad_id
        base = build_corpus(made, config.data, None)
        sharded = config.data.model_copy(update={"path": str(self.sharded)})
        self.corpora = {"folder": base, "tar": build_corpus(made, sharded, None)}

    @staticmethod
    def split(dataset: Dataset) -> str:
        return max(dataset.splits, key=lambda name: dataset.splits[name])

    def dataset_of(self, options: argparse.Namespace, folder: Path) -> Path:
        """Returns a dataset with as many records as are measured."""
        if options.data is None:
            return material.make_dataset(folder, options.images, SIZE)
        out = folder / "set"
        if (options.data / "dataset.json").is_file():
            sample = min(options.images, len(open_dataset(options.data)))
            prepare(options.data, "records", PrepareOptions(out=out, sample=sample, workers=0))
            return out
        return material.caption_folder(folder, options.data, options.images)

    def loader(self, corpus: Corpus, workers: int) -> "Epochs":
        """Returns a loader that opens every image again in each epoch."""
        fresh = replace(corpus, visual_inputs=PixelLoader(PREPARATION, WholeConfig(), keep_bytes=0))
        rules = BatchRules(pack=True, row_tokens=512, row_images=64, rows_per_step=4, accumulate=1, sort_by_length=False, seed=0)
        return Epochs(Loader(fresh, rules, self.pad_id, workers=workers))

    def findings(self) -> list[Finding]:
        repeats, files = self.options.repeats, self.files
        megapixels = np.mean([np.prod(Image.open(BytesIO(data)).size) for data in files]) / 1e6
        say(f"  {len(files)} images of {megapixels:.2f} megapixels on average")
        raw = RawPillow(files)
        draft = PREPARATION.model_copy(update={"draft": True})
        assert draft.key() != PREPARATION.key()
        say("  decoding")
        decode = in_turn({"raw": raw, "ours": Ours(files, PREPARATION), "draft": Ours(files, draft)}, repeats)
        out = [
            Finding("decode_over_raw_decode", over(decode, "raw", "ours"), "rate of the image opener over Pillow alone"),
            Finding("draft_over_full_decode", over(decode, "ours", "draft"), "rate with JPEG draft mode over without"),
        ]
        for workers in (0, 1, 2):
            say(f"  loader, {workers} workers")
            epochs = self.loader(self.corpora["folder"], workers)
            rates = against_raw(raw, epochs, len(files), max(workers, 1), repeats)
            name = "loader_over_raw_decode" if workers == 1 else f"loader_over_raw_decode_{workers}_workers"
            where = "in the training process" if workers == 0 else f"per worker, {workers} worker{'s' if workers > 1 else ''}"
            out.append(
                Finding(name, Ratio.of(wall for wall, _ in rates), f"loader's rate over raw decoding, {where}", at_least=0.9)
            )
            out.append(Finding(f"{name}_by_cpu", Ratio.of(cpu for _, cpu in rates), "the same, in CPU seconds"))
        say("  tar against folder")
        tar, plain = (self.loader(self.corpora[name], 0) for name in ("tar", "folder"))
        out.append(
            Finding("tar_over_folder", over(in_turn({"folder": plain, "tar": tar}, repeats), "folder", "tar"), "loader's rates")
        )
        return out


class Epochs:
    """Runs some epochs of a loader as training does, with normalised images."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def __call__(self) -> int:
        images = 0
        for group in self.loader.stream(0, 0, EPOCHS * self.loader.steps_in_epoch(0)):
            for micro in group:
                visual = micro.batch.visual
                if visual is not None and visual.pixels_NHWC is not None:
                    normalise(visual.pixels_NHWC, PREPARATION.rescale, PREPARATION.mean, PREPARATION.std)
                    images += len(visual.pixels_NHWC)
        return images


def over(seconds: dict[str, tuple[float, ...]], base: str, name: str) -> Ratio:
    """Returns the rate of one over the rate of another."""
    return Ratio.of(a / b for a, b in zip(seconds[base], seconds[name], strict=True))


def against_raw(raw: Callable[[], None], epochs: Epochs, images: int, workers: int, repeats: int) -> list[tuple[float, float]]:
    """Returns a loader's rates per worker over those of raw decoding, in wall-clock seconds and in CPU seconds.

    CPU seconds count this process and its workers, which end with the last epoch.
    """

    def half() -> int:
        for _ in range(EPOCHS // 2):
            raw()
        return EPOCHS // 2 * images

    epochs()
    rates = []
    for _ in range(repeats):
        (before, first), (own, count), (after, last) = (spent(work) for work in (half, epochs, half))
        wall, cpu = (before + after) / (first + last) / (own / count)
        rates.append((float(wall) / workers, float(cpu)))
    return rates


def spent(work: Callable[[], int]) -> tuple[np.ndarray, int]:
    """Returns the wall-clock and CPU seconds of a call, and its result."""
    gc.collect()
    begin = np.array([time.perf_counter(), computed()])
    count = work()
    return np.array([time.perf_counter(), computed()]) - begin, count


def computed() -> float:
    """Returns the CPU seconds of this process and its finished children."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
