"""Packing: fill rates of packed rows, and the effect of packing and of shared images on a training step.

Fill rates need lengths only. `llava`: lengths like those of LLaVA-1.5's instruction mixture with the shares of its parts, 576
visual tokens per image, text lengths drawn from a log-normal per part (chosen here, not measured on the data). `flickr8k`: groups
of five captions of one image; without `--data` sentences are generated, with the lengths of Flickr8k's.

Throughput is measured for the decoder's training step, forward and backward, with given image features: the same captions in one
run as padded batches of single captions, as packed rows, and as packed rows whose captions share their image. An encoder in the
step would favour sharing further, because it then runs once per image and not once per caption.
"""

import argparse
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from benchmarks import material
from benchmarks.findings import Finding, fixed, say
from benchmarks.measure import Ratio, in_turn
from sightline.assembly.model.build import ModelBundle, build_from_config
from sightline.assembly.model.tokenizer import texts_of
from sightline.assembly.train.corpus import build_corpus
from sightline.data.batches.collate import collate
from sightline.data.batches.loader import Loader
from sightline.data.batches.packing import pack
from sightline.data.batches.plan import BatchRules
from sightline.data.dataset import Dataset, open_dataset
from sightline.data.images.pixels import VisualInputs
from sightline.data.samples.processing import Processing
from sightline.objectives.next_token import NextToken
from sightline.types import Batch, Record

# Parts of LLaVA-1.5's mixture: thousands of conversations, images, median and log-deviation of text tokens.
LLAVA = {
    "a_okvqa": (66, 1, 110, 0.40),
    "gqa": (72, 1, 300, 0.40),
    "llava_conversation": (58, 1, 420, 0.35),
    "llava_detail": (23, 1, 190, 0.25),
    "llava_reasoning": (77, 1, 290, 0.25),
    "ocr_vqa": (80, 1, 120, 0.15),
    "okvqa": (9, 1, 70, 0.30),
    "refcoco": (48, 1, 500, 0.50),
    "sharegpt": (40, 0, 1200, 0.70),
    "textcaps": (22, 1, 60, 0.20),
    "visual_genome": (86, 1, 450, 0.40),
    "vqav2": (83, 1, 180, 0.35),
}
LLAVA_VISUAL, LLAVA_LONGEST = 576, 2048
ROW = 2048
BATCHES = 4  # of each kind per measurement, because lengths of captions differ
PROMPT = "Describe the image."


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the captions, and the sizes of the measured step."""
    parser.add_argument("--data", type=Path, help="a dataset folder with several captions per image, such as Flickr8k's")
    parser.add_argument("--split", default="train")
    parser.add_argument("--samples", type=int, default=50_000, help="LLaVA-like samples to pack (default 50,000)")
    parser.add_argument("--images", type=int, default=1000, help="images to create if no data is given (default 1,000)")
    parser.add_argument("--row", type=int, default=512, help="row length of the measured step (default 512)")
    parser.add_argument("--tokens", type=int, default=1024, help="token positions of a measured batch (default 1,024)")
    parser.add_argument("--width", type=int, default=576, help="width of the decoder (default 576, SmolLM2-135M's)")
    parser.add_argument("--layers", type=int, default=2, help="layers of the decoder (default 2; all do the same work)")


def run(options: argparse.Namespace) -> list[Finding]:
    """Measures fill rates, then throughput."""
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as folder:
        corpora = Corpora(options, Path(folder))
        return [
            *llava_fill(options.samples, options.repeats),
            *caption_fill(corpora, options.repeats),
            *throughput(corpora, options),
        ]


# Fill -----------------------------------------------------------------------------------------------------------------------


def llava_fill(samples: int, repeats: int) -> list[Finding]:
    """Measures fill rates of LLaVA-like lengths, with new lengths in each repeat."""
    say(f"  packing {samples} LLaVA-like samples")
    fills: dict[int, list[float]] = {2 * ROW: [], ROW: []}
    most = []
    for repeat in range(repeats):
        tokens, images = llava_lengths(samples, repeat)
        for row, found in fills.items():
            found.append(pack(np.arange(samples), tokens, images, row, 64).fill)
        most.append(tokens.sum() / (fewest_rows(tokens, ROW) * ROW))
    return [
        Finding("packing_fill_llava", Ratio.of(fills[2 * ROW]), "fill rate, LLaVA-like lengths, rows of 4,096", at_least=0.97),
        Finding("packing_fill_llava_2048", Ratio.of(fills[ROW]), "the same, rows of 2,048"),
        Finding("packing_fill_llava_2048_bound", Ratio.of(most), "upper bound of any packing into rows of 2,048"),
    ]


def llava_lengths(samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens and images of samples in random order."""
    draw = np.random.default_rng(seed)
    table = np.array(list(LLAVA.values()))
    part = draw.choice(len(table), samples, p=table[:, 0] / table[:, 0].sum())
    text = np.exp(draw.normal(np.log(table[part, 2]), table[part, 3]))
    images = table[part, 1].astype(np.int64)
    return np.minimum(np.rint(text).astype(np.int64) + LLAVA_VISUAL * images, LLAVA_LONGEST), images


def fewest_rows(tokens: np.ndarray, row: int) -> int:
    """Returns a lower bound on the number of rows of any packing: the best dual feasible function u(k) (Fekete, Schepers 2001).

    With `k` = 2, for example, a sample longer than a third of a row counts as half a row, because no row holds three of them.
    """
    bounds = [tokens.sum() / row]
    for k in range(1, 9):
        scaled = (k + 1) * tokens
        bounds.append(np.where(scaled % row == 0, tokens / row, scaled // row / k).sum())
    return int(np.ceil(max(bounds) - 1e-9))


def caption_fill(corpora: "Corpora", repeats: int) -> list[Finding]:
    """Measures fill rates of caption groups, epoch by epoch."""
    shared, single = corpora.shared, corpora.single
    plan = shared.plan(BatchRules(pack=True, row_tokens=ROW, row_images=64, rows_per_step=1, accumulate=1, sort_by_length=False))
    fills = [int(shared.tokens.sum()) / (len(plan.rows(epoch)) * ROW) for epoch in range(repeats)]
    saved = 1 - int(shared.tokens.sum()) / int(single.tokens.sum())
    return [
        Finding("packing_fill_flickr8k", Ratio.of(fills), "fill rate, groups of captions, rows of 2,048", at_least=0.95),
        fixed("prefix_sharing_tokens_saved", saved, "share of all tokens saved because captions share their image"),
    ]


# Throughput -----------------------------------------------------------------------------------------------------------------


class RandomFeatures:
    """Loads the same random features for every record; their values do not affect the time."""

    def __init__(self, patches: int, width: int) -> None:
        self.features = np.random.default_rng(0).normal(size=(1, patches, width)).astype(np.float32)

    def load(self, dataset: Dataset, record: Record) -> VisualInputs:
        """Returns the same features for every record."""
        return VisualInputs(features=self.features)


class Corpora:
    """One set of captions as single conversations and as groups that share their image."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        path = options.data or material.make_dataset(folder, options.images, (32, 32))
        data = {"split": options.split, "row_tokens": ROW, "max_skipped": 1.0}
        config = material.run_config(path, None, PROMPT, data, {"hidden_size": options.width, "num_hidden_layers": options.layers})
        texts = texts_of([(open_dataset(path), options.split)])
        self.bundle: ModelBundle = build_from_config(config, Processing(prompt=PROMPT, max_tokens=512), texts)
        features = RandomFeatures(self.bundle.token_grid[0] * self.bundle.token_grid[1], material.VIT["hidden_size"])
        self.shared = build_corpus(self.bundle, config.data, features)
        self.single = build_corpus(self.bundle, config.data.model_copy(update={"share_prefix": False}), features)


@dataclass(frozen=True)
class Steps:
    """Forward and backward passes of some batches.

    Attributes:
        model: decoder and connector, both with gradients.
        batches: the first batches of an epoch.
    """

    model: nn.Module
    batches: tuple[Batch, ...]

    def __call__(self) -> None:
        for batch in self.batches:
            loss = NextToken()(self.model, batch)  # type: ignore[arg-type]
            loss.total.backward()
            self.model.zero_grad(set_to_none=True)

    @property
    def places(self) -> int:
        return sum(batch.tokens.ids_BT.numel() for batch in self.batches)

    @property
    def supervised(self) -> int:
        return sum(len(batch.supervision) for batch in self.batches)


def throughput(corpora: Corpora, options: argparse.Namespace) -> list[Finding]:
    """Measures supervised tokens per second of packed rows, without and with sharing, over those of padded batches."""
    bundle = corpora.bundle
    bundle.model.vision.requires_grad_(False)  # type: ignore[union-attr]
    say(f"  training steps of about {options.tokens} token places")
    plain = BatchRules(pack=False, row_tokens=ROW, row_images=64, rows_per_step=1, accumulate=1, sort_by_length=False, seed=0)
    longest = int(np.median(corpora.single.tokens)) * 3 // 2  # of a padded batch, roughly
    rules = {
        "padded": (corpora.single, replace(plain, rows_per_step=max(1, options.tokens // longest))),
        "packed": (corpora.single, replace(plain, pack=True, row_tokens=options.row, rows_per_step=options.tokens // options.row)),
        "shared": (corpora.shared, replace(plain, pack=True, row_tokens=options.row, rows_per_step=options.tokens // options.row)),
    }
    steps = {}
    for name, (corpus, rule) in rules.items():
        loader = Loader(corpus, rule, bundle.pad_id)
        batches = []
        for number in range(min(BATCHES, loader.steps_in_epoch(0))):
            rows = loader.plan.step(0, number)[0]
            batches.append(collate([[corpus.sample(sample) for sample in row] for row in rows], bundle.pad_id).to_batch())
        steps[name] = Steps(bundle.module, tuple(batches))
        say(f"    {name}: {steps[name].places} places, {steps[name].supervised} supervised tokens")
    seconds = in_turn(steps, max(options.repeats, 7))

    def over(name: str) -> Ratio:
        share = steps[name].supervised / steps["padded"].supervised
        return Ratio.of(share * a / b for a, b in zip(seconds["padded"], seconds[name], strict=True))

    return [
        Finding(
            "packed_over_padded_supervised_tokens_per_s",
            over("shared"),
            "packed rows whose captions share their image over padded batches",
            at_least=2.5,
        ),
        Finding("packed_alone_over_padded_supervised_tokens_per_s", over("packed"), "packed rows without sharing"),
    ]
