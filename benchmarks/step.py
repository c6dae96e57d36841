"""The training step of a connector before a frozen decoder: seconds of its parts, and the decoder's share of the machine's peak.

Images with five captions each are read, encoded (MobileNetV2, frozen), connected and continued by a frozen decoder in packed rows
whose captions share their image. Every part is timed within a complete step: the gradient is cut at the borders of the parts and
handed on, which changes no value. Without `--decoder` the decoder has SmolLM2-135M's sizes and random weights.

`decoder_share_of_peak`: FLOPs of the decoder's forward and backward per second of the whole step, over the fastest fp32 matrix
product of the same run. Counted are 2 FLOPs a weight and token forward and 2 backward (the weights are frozen, so the backward pass
computes gradients of activations only), attention between tokens that see each other, and the head at supervised tokens; padding,
masked pairs and recomputation are not.

`host_reads_per_step`: how often a step of the training loop reads a value of the device (benchmarks/host_reads.py).
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks import material
from benchmarks.cal import SHAPES
from benchmarks.findings import Finding, fixed, say
from benchmarks.host_reads import reads_of
from benchmarks.jobs import job
from benchmarks.measure import Ratio, compute_clock
from sightline.assembly.config.schema import DataConfig, ModelConfig, RunConfig, RuntimeConfig, StageConfig, TrainConfig
from sightline.assembly.model.build import ModelBundle, build_from_config
from sightline.assembly.model.summary import log_values
from sightline.assembly.model.tokenizer import texts_of, train_tokenizer
from sightline.assembly.train.corpus import build_corpus, visual_input_loader
from sightline.data.batches.collate import collate
from sightline.data.batches.corpus import Corpus
from sightline.data.batches.loader import Loader
from sightline.data.batches.packing import pack
from sightline.data.batches.plan import BatchRules, Rows
from sightline.data.dataset import open_dataset
from sightline.data.samples.processing import Processing
from sightline.models.connectors import Connector
from sightline.models.connectors.mlp import MLPConfig
from sightline.models.language import LanguageConfig, TokenizerConfig, head_of, hidden_states, text_config
from sightline.models.vision import VisionConfig
from sightline.objectives.next_token import NextToken
from sightline.ops.cross_entropy import linear_cross_entropy
from sightline.ops.masks import block_mask, computed_blocks, dense_blocks, visible
from sightline.ops.splice import splice
from sightline.types import Batch, EncodedConversation, Sample, Span

PARTS = ("data", "encoder", "connector", "decoder_forward", "head", "decoder_backward", "connector_backward", "rest")
MOBILENET = {"model_type": "mobilenet_v2", "image_size": 224}
AIM = 0.55
COUNTED_STEPS, MICRO_BATCHES = 2, 4  # for `host_reads_per_step`
LONG_ROW = 4096  # tokens
# Visual tokens, tokens of the prompt, texts of an image, and median tokens of a text.
LAYOUTS = {"flickr8k_49": (49, 10, 5, 14), "flickr8k_196": (196, 10, 5, 14), "llava": (576, 60, 1, 160)}
SIDES = (512, 1024, 2048)  # of the square matrices whose product sets the peak


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the models and the sizes of the step."""
    parser.add_argument("--decoder", help="folder or Hub id of a decoder (default: SmolLM2-135M's sizes, random weights)")
    parser.add_argument("--vision", help="folder or Hub id of an encoder (default: MobileNetV2's sizes, random weights)")
    parser.add_argument("--layers", type=int, default=30, help="layers of the decoder with random weights (default 30)")
    parser.add_argument("--images", type=int, default=64, help="images to create, five captions each (default 64)")
    parser.add_argument("--row", type=int, default=512, help="length of a packed row (default 512)")
    parser.add_argument("--rows", type=int, default=2, help="packed rows of a step (default 2)")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="arithmetic, as runtime.dtype (default fp32)")


def run(options: argparse.Namespace) -> list[Finding]:
    """Measures steps of one epoch, each packed step next to a padded one of single captions."""
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as folder:
        bundle, shared, single = _material(options, Path(folder))
        rules = BatchRules(
            pack=True, row_tokens=options.row, row_images=64, rows_per_step=options.rows, accumulate=1, sort_by_length=False, seed=0
        )
        longest = int(single.tokens.max())
        padded = BatchRules(
            pack=False,
            row_tokens=longest,
            row_images=64,
            rows_per_step=max(1, options.rows * options.row // longest),
            accumulate=1,
            sort_by_length=False,
            seed=0,
        )
        found = measure(
            TimedStep(bundle, options.dtype == "bf16"),
            _batches(shared, rules, bundle),
            _batches(single, padded, bundle),
            options.repeats,
        )
        return [*found, host_reads(bundle, _batches(shared, rules, bundle))]


@dataclass
class TimedStep:
    """A training step of the connector whose parts are timed one by one.

    Attributes:
        bundle: the model; its encoder and decoder are frozen.
        bf16: autocast over fp32 weights; else fp32.
        optimiser: of the connector.
        clock: returns seconds.
    """

    bundle: ModelBundle
    bf16: bool = False
    optimiser: torch.optim.Optimizer = field(init=False)
    clock: Callable[[], float] = field(default_factory=compute_clock)

    def __post_init__(self) -> None:
        model = self.bundle.module
        model.requires_grad_(False)
        self.connector.requires_grad_()
        model.train()
        self.optimiser = torch.optim.AdamW(self.connector.parameters(), lr=1e-4)

    @property
    def connector(self) -> Connector:
        connector = self.bundle.model.connector
        assert connector is not None
        return connector

    def __call__(self, batch: Callable[[], Batch]) -> tuple[dict[str, float], Batch, float]:
        """Runs a step; returns the seconds of each part, the batch, and the loss a token."""
        model, marks = self.bundle.model, [self.clock()]
        names: list[str] = []

        def mark(name: str) -> None:
            names.append(name)
            marks.append(self.clock())

        made = batch()
        assert made.visual is not None
        mark("data")
        with self._arithmetic():
            features = model.features(made.visual)
            mark("encoder")
            table = model.visual_tokens(features)
            mark("connector")
            given = table.detach().requires_grad_()
            embeddings = model.inner.get_input_embeddings()(made.tokens.ids_BT)
            rows = splice(embeddings, given, made.visual.slot_M, made.visual.visual_index_M)
            mark("rest")
            hidden = hidden_states(model.language, rows, made)
            mark("decoder_forward")
            states = hidden.states_SD.detach().requires_grad_()
            nll_S, _ = linear_cross_entropy(states, hidden.head, made.supervision.target_S)
        nll_S.sum().backward()
        mark("head")
        hidden.states_SD.backward(states.grad)
        mark("decoder_backward")
        table.backward(given.grad)
        mark("connector_backward")
        self.optimiser.step()
        mark("rest")
        seconds = dict.fromkeys(PARTS, 0.0)
        for name, begin, end in zip(names, marks, marks[1:], strict=False):
            seconds[name] += end - begin
        return seconds, made, float(nll_S.detach().mean())

    def check(self, batch: Batch) -> None:
        """Compares the gradient of a timed step with that of the objective as training computes it.

        Raises:
            ValueError: they differ.
        """

        def whole() -> None:
            with self._arithmetic():
                loss = NextToken()(self.bundle.model, batch)
            loss.total.backward()

        gradients = []
        for work in (whole, lambda: self(lambda: batch)):
            self.optimiser.zero_grad(set_to_none=True)
            work()
            gradients.append(self._gradient())
        self.optimiser.zero_grad(set_to_none=True)
        if not torch.allclose(*gradients, rtol=1e-3, atol=1e-5 * float(gradients[0].abs().max())):
            raise ValueError("the timed step computes another gradient than the objective")

    def _arithmetic(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.bf16)

    def _gradient(self) -> Tensor:
        parameters = self.connector.parameters()
        return torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])


def measure(
    step: TimedStep, packed: Iterator[Callable[[], Batch]], padded: Iterator[Callable[[], Batch]], repeats: int
) -> list[Finding]:
    """Measures `repeats` pairs of steps after one that warms up."""
    say("  checking the gradient of the timed step")
    step.check(next(packed)())
    parts: dict[str, list[float]] = {name: [] for name in PARTS}
    shares, in_decoder, gains, totals, peaks = [], [], [], [], [matrix_peak(step.clock)]
    for number in range(repeats):
        seconds, batch, _ = step(next(packed))
        step.optimiser.zero_grad(set_to_none=True)
        plain, single, _ = step(next(padded))
        step.optimiser.zero_grad(set_to_none=True)
        peaks.append(matrix_peak(step.clock))
        total = sum(seconds.values())
        flops = decoder_flops(step.bundle, batch)
        shares.append(flops / total)
        in_decoder.append(flops / sum(seconds[name] for name in ("decoder_forward", "head", "decoder_backward")))
        totals.append(total)
        gains.append(len(batch.supervision) / total * sum(plain.values()) / len(single.supervision))
        for name in PARTS:
            parts[name].append(seconds[name] / total)
        say(f"    step {number + 1}: {total:.2f} s, {len(batch.supervision)} supervised tokens, {flops / 1e9:.0f} GFLOP")
    peak = max(peaks)
    return [
        Finding(
            "decoder_share_of_peak",
            Ratio.of(share / peak for share in shares),
            "FLOP/s of the decoder in the whole step over the best matrix product",
            at_least=AIM,
        ),
        Finding(
            "decoder_share_of_peak_alone", Ratio.of(share / peak for share in in_decoder), "the same in the decoder's own time"
        ),
        Finding(
            "packed_over_padded_supervised_tokens", Ratio.of(gains), "supervised tokens a second, packed and shared over padded"
        ),
        fixed("matrix_gflop_per_s", peak / 1e9, "the best fp32 matrix product"),
        Finding("step_seconds", Ratio.of(totals), "one step"),
        *(Finding(f"step_share_{name}", Ratio.of(values), f"share of the step: {name}") for name, values in parts.items()),
        *count_blocks(),
    ]


def count_blocks() -> list[Finding]:
    """Counts the blocks of attention scores in full rows of each layout; see the module's docstring."""
    shares = {name: block_shares(*layout) for name, layout in LAYOUTS.items()}
    told = "blocks of scores that FlexAttention computes over those of a dense mask"
    every = [share for found in shares.values() for share in found]
    return [
        Finding("blocks_computed_over_dense", Ratio.of(every), told),
        *(Finding(f"blocks_computed_over_dense_{name}", Ratio.of(found), name) for name, found in shares.items()),
    ]


def block_shares(visual: int, prompt: int, texts: int, median: int, count: int = 300) -> list[float]:
    """Returns computed over dense blocks of each packed row of `LONG_ROW` tokens that is full.

    Args:
        visual: visual tokens of an image.
        prompt: text tokens before the answers.
        texts: answers of an image, which share its tokens.
        median: tokens of an answer in the median, log-normal.
        count: number of images.
    """
    draw = np.random.default_rng(0)
    samples = []
    for _ in range(count):
        lengths = np.clip(draw.lognormal(np.log(median), 0.4, texts), 4, 1024).astype(int)
        begin, slots = visual + prompt, np.arange(visual)
        parts = [EncodedConversation(np.zeros(begin + n, np.int64), (Span(begin, begin + n, 1),), slots) for n in lengths]
        samples.append(Sample(tuple(parts), begin if texts > 1 else 0, slots, tokens_per_crop=visual))
    sizes = np.array([sample.num_tokens for sample in samples])
    rows = pack(np.arange(count), sizes, np.ones_like(sizes), LONG_ROW, LONG_ROW).rows
    found = []
    for row in rows:
        if sizes[list(row)].sum() > 0.9 * LONG_ROW:
            mask = block_mask(collate([[samples[index] for index in row]], 0, LONG_ROW).to_batch().tokens)
            found.append(int(computed_blocks(mask)) / dense_blocks(mask))
    return found


def host_reads(bundle: ModelBundle, packed: Iterator[Callable[[], Batch]]) -> Finding:
    """Counts where the training loop's steps would wait for a GPU, with several micro-batches a step."""
    say(f"  counting the host reads of {COUNTED_STEPS} steps of {MICRO_BATCHES} micro-batches")
    batches = [next(packed)() for _ in range(MICRO_BATCHES)]
    given = job(
        bundle.module,
        [batches] * COUNTED_STEPS,
        NextToken(),
        {"connector": "train"},
        clip=1.0,
        log_values=lambda: log_values(bundle),
    )
    return fixed(
        "host_reads_per_step", len(reads_of(given)) / COUNTED_STEPS, "reads of the host that a GPU would be waited for", at_most=2
    )


def decoder_flops(bundle: ModelBundle, batch: Batch) -> float:
    """Returns the FLOPs of a frozen decoder's forward and backward for a batch; see the module's docstring."""
    decoder = bundle.model.language
    config = text_config(decoder)
    head = head_of(decoder).weight_VD
    linear = sum(p.numel() for m in decoder.modules() if isinstance(m, torch.nn.Linear) for p in [m.weight] if p is not head)
    is_token = batch.tokens.sample_BT >= 0
    pairs = int((visible(batch.tokens) & is_token[:, :, None]).sum())
    width = config.num_attention_heads * getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    attention = 2 * 2 * width * pairs * config.num_hidden_layers  # scores and weighted sum
    forward = 2.0 * linear * int(is_token.sum()) + 2.0 * head.numel() * len(batch.supervision)
    return 2 * forward + 3 * attention  # the backward pass of attention has four products to two


def matrix_peak(clock: Callable[[], float]) -> float:
    """Returns the FLOP/s of the fastest of several fp32 matrix products."""
    best = 0.0
    for side in SIDES:
        left, right = torch.randn(side, side), torch.randn(side, side)
        for _ in range(4):
            begin = clock()
            left @ right
            best = max(best, 2 * side**3 / max(clock() - begin, 1e-9))
    return best


def _batches(corpus: Corpus, rules: BatchRules, bundle: ModelBundle) -> Iterator[Callable[[], Batch]]:
    """Yields functions that read the images of one step and make its batch."""
    plan = Loader(corpus, rules, bundle.pad_id).plan
    epoch = 0
    while True:
        for number in range(plan.steps(epoch)):
            (rows,) = plan.step(epoch, number)

            def make(rows: Rows = rows) -> Batch:
                samples = [[corpus.sample(sample) for sample in row] for row in rows]
                return collate(samples, bundle.pad_id).to_batch()

            yield make
        epoch += 1


def _material(options: argparse.Namespace, folder: Path) -> tuple[ModelBundle, Corpus, Corpus]:
    """Creates images with captions, and the model; returns it with the captions as groups and as single conversations."""
    data = material.make_dataset(folder, options.images)
    path = options.decoder or str(_random_decoder(folder / "decoder", data, options.layers))
    vision = VisionConfig(path=options.vision) if options.vision else VisionConfig(config=MOBILENET)
    config = RunConfig(
        recipe="benchmark",
        model=ModelConfig(vision=vision, connector=MLPConfig(), language=LanguageConfig(path=path)),
        data=DataConfig(path=str(data), max_tokens=512, row_tokens=options.row, max_skipped=1.0),
        train=TrainConfig(steps=1, batch_size=options.rows),
        stages=(StageConfig(name="align", parts={"connector": "train"}),),
        runtime=RuntimeConfig(device="cpu", threads=options.threads),
    )
    bundle = build_from_config(config, Processing(max_tokens=512), None)
    images = visual_input_loader(bundle, config.data.model_copy(update={"keep_pixels": 0}))
    shared = build_corpus(bundle, config.data, images)
    return bundle, shared, build_corpus(bundle, config.data.model_copy(update={"share_prefix": False}), images)


def _random_decoder(folder: Path, data: Path, layers: int) -> Path:
    """Writes a decoder of SmolLM2-135M's sizes with random weights, and a small tokenizer."""
    sizes = SHAPES["smollm2_135m"] | {"num_hidden_layers": layers}
    torch.manual_seed(0)
    decoder = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **sizes, tie_word_embeddings=True))
    decoder.save_pretrained(folder)
    train_tokenizer(texts_of([(open_dataset(data), "train")]), TokenizerConfig(vocabulary=4096)).save_pretrained(folder)
    return folder
