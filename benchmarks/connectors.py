"""ALIGN without a [tokens, words] tensor against its plain formula: time and peak memory; and what every connector costs.

The measure is forward and backward of `softmax(LN2(q K^T)) E` for queries, keys and gain that train, with word embeddings frozen
and live, at 4,096 tokens, 49,152 words and a width of 576 (SmolLM2-135M), then at other vocabularies. Arms take turns within each
repeat; the plain formula stands there twice, which gives the spread of the machine. Peaks are above the state before the call;
inputs, parameters and their gradients are not counted. On a GPU everything is in bf16 and the plain formula is compiled.

The second half puts each connector between SigLIP-base-patch16-224 and SmolLM2-135M, at its default sizes.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.findings import Finding, fixed, say
from benchmarks.measure import Ratio, Work, in_turn, peak_memory
from sightline.models.connectors import CONNECTORS, Connector, ConnectorConfig, ConnectorShape
from sightline.models.connectors.cost import connector_cost
from sightline.models.connectors.h_reducer import HReducerConfig
from sightline.models.connectors.swiglu import SwiGLUConfig
from sightline.ops.vocabulary_attention import OuterNorm, vocabulary_attention, vocabulary_attention_reference

WORDS = (49_152, 32_000, 128_256)  # SmolLM2; Llama 2; Llama 3
MEMORY_AIM, CPU_AIM, GPU_AIM = 0.15, 1.25, 1.1
PLACE = ConnectorShape(14, 14, 768, 576, 49_152)
# Where a kind's defaults do not suit rows of 14 patches, or TinyVLM has its own.
CONFIGS: dict[str, ConnectorConfig] = {"h_reducer": HReducerConfig(reach=7), "swiglu": SwiGLUConfig(shuffle=2)}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Sizes of what is measured."""
    parser.add_argument("--tokens", type=int, default=4096, help="visual tokens (default 4096)")
    parser.add_argument("--words", type=int, nargs="+", default=list(WORDS), help="vocabularies; the first gives the main figures")
    parser.add_argument("--width", type=int, default=576, help="width of queries, keys and words (default 576)")
    parser.add_argument("--crops", type=int, default=2, help="crops that each connector is timed on (default 2)")
    parser.add_argument("--only", choices=["align", "costs"], help="one half of it")
    parser.add_argument(
        "--memory-only", action="store_true", help="count ALIGN's peaks on a CPU without computing anything: seconds"
    )


def run(options: argparse.Namespace) -> list[Finding]:
    """All findings."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found: list[Finding] = []
    if options.memory_only:
        for number, words in enumerate(options.words):
            sizes = Sizes(options.tokens, words, options.width, torch.device("cpu"))
            found += count_memory(sizes, "" if number == 0 else f"_{words}")
        return found
    if options.only != "costs":
        for number, words in enumerate(options.words):
            # Other vocabularies with as many scores as the first on a CPU, whose memory the plain formula would fill.
            scores = options.tokens * options.words[0]
            tokens = options.tokens if device.type == "cuda" else min(options.tokens, scores // words)
            found += compare(Sizes(tokens, words, options.width, device), options.repeats, "" if number == 0 else f"_{words}")
    if options.only != "align":
        found += list(costs(options.crops, device, options.repeats))
    return found


# ALIGN ----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """What is mixed, and where."""

    tokens: int
    words: int
    width: int
    device: torch.device

    def __str__(self) -> str:
        return f"{self.tokens:,} tokens x {self.words:,} words x {self.width}"


class Mixture:
    """Queries, keys, words and gain of one case, and the two ways of one step.

    Args:
        sizes: of the case.
        is_live: the words train.
    """

    def __init__(self, sizes: Sizes, is_live: bool) -> None:
        torch.manual_seed(0)
        dtype = torch.bfloat16 if sizes.device.type == "cuda" else torch.float32

        def drawn(rows: int, scale: float = 1.0) -> Tensor:
            return scale * torch.randn(rows, sizes.width, device=sizes.device, dtype=dtype)

        self.query = drawn(sizes.tokens).requires_grad_()  # LN1 leaves them at deviation 1
        self.keys, self.words = drawn(sizes.words, 0.02).requires_grad_(), drawn(sizes.words, 0.02).requires_grad_(is_live)
        self.gain = torch.tensor(2.7, device=sizes.device, requires_grad=True)
        self.slope = drawn(sizes.tokens)
        self.formula = vocabulary_attention_reference
        if sizes.device.type == "cuda":
            self.formula = torch.compile(vocabulary_attention_reference)

    @property
    def given(self) -> list[Tensor]:
        """What is there before the call."""
        return [self.query, self.keys, self.words, self.gain, self.slope]

    @property
    def inputs(self) -> list[Tensor]:
        """What gradients are put on."""
        return [value for value in (self.query, self.keys, self.words, self.gain) if value.requires_grad]

    def plain(self) -> None:
        """Forward and backward with the whole tensor."""
        self._step(self.formula(self.query, self.keys, self.words, OuterNorm(self.gain)))

    def fused(self) -> None:
        """Forward and backward by chunks."""
        self._step(vocabulary_attention(self.query, self.keys, self.words, OuterNorm(self.gain)))

    def _step(self, out: Tensor) -> None:
        for value in self.inputs:
            value.grad = None
        out.backward(self.slope)

    def check(self) -> None:
        """The two give the same gradients.

        Raises:
            ValueError: they do not.
        """
        gradients = []
        for work in (self.plain, self.fused):
            work()
            gradients.append([value.grad for value in self.inputs])
        # The gain's gradient is a sum that nearly cancels (1e-4 in fp32); a wrong factor would be of order 1.
        limit = 0.1 if self.query.dtype == torch.bfloat16 else 1e-3
        for one, other in zip(*gradients, strict=True):
            assert one is not None
            assert other is not None
            error = float((one - other).float().norm() / one.float().norm())
            if not error < limit:
                raise ValueError(f"gradients of the two formulas differ by {error:g} of their size")


def compare(sizes: Sizes, repeats: int, suffix: str) -> list[Finding]:
    """Time and memory with frozen and with live words; of the first vocabulary also the worse of the two under the bare name."""
    aim = GPU_AIM if sizes.device.type == "cuda" else CPU_AIM
    times: list[Finding] = []
    peaks: list[Finding] = []
    again: list[Finding] = []
    for case in ("frozen", "live"):
        say(f"  align, {sizes}, embeddings {case}")
        mixture = Mixture(sizes, case == "live")
        mixture.check()
        peaks.append(memory(mixture, f"{case}{suffix}", f"{sizes}, embeddings {case}"))
        seconds = in_turn({"plain": mixture.plain, "fused": mixture.fused, "again": mixture.plain}, repeats)
        where = f"{sizes}, embeddings {case}"
        name = f"align_fused_over_plain_%s_{case}{suffix}"
        ratio, spread = (over(seconds[arm], seconds["plain"]) for arm in ("fused", "again"))
        times.append(Finding(name % "time", ratio, f"time at {where}", at_most=aim))
        again.append(Finding(f"align_plain_aa_{case}{suffix}", spread, f"the plain formula over itself at {where}"))
    return [*([] if suffix else [worse("time", times), worse("peak_memory", peaks)]), *times, *peaks, *again]


def count_memory(sizes: Sizes, suffix: str) -> list[Finding]:
    """Peaks alone, from operations on tensors without contents: their storages appear and go as in a real call."""
    peaks = []
    for case in ("frozen", "live"):
        say(f"  align, {sizes}, embeddings {case}: counting")
        with FakeTensorMode():
            peaks.append(memory(Mixture(sizes, case == "live"), f"{case}{suffix}", f"{sizes}, embeddings {case}"))
    return [*([] if suffix else [worse("peak_memory", peaks)]), *peaks]


def memory(mixture: Mixture, case: str, where: str) -> Finding:
    """Peak of the fused step over that of the plain one."""
    plain, fused = (peak_memory(work, mixture.given) for work in (mixture.plain, mixture.fused))
    return fixed(f"align_fused_over_plain_peak_memory_{case}", fused / plain, f"peak memory at {where}", at_most=MEMORY_AIM)


def worse(name: str, findings: list[Finding]) -> Finding:
    """The finding of the largest median, under the bare name."""
    found = max(findings, key=lambda finding: finding.ratio.median)
    return Finding(f"align_fused_over_plain_{name}", found.ratio, f"the worse case: {found.meaning}", at_most=found.at_most)


def over(these: tuple[float, ...], those: tuple[float, ...]) -> Ratio:
    """Ratios within each repeat."""
    return Ratio.of(a / b for a, b in zip(these, those, strict=True))


# Every connector ------------------------------------------------------------------------------------------------------------------


def costs(crops: int, device: torch.device, repeats: int) -> Iterator[Finding]:
    """Parameters, operations and tokens of each connector in its place, and the time of its step over that of `mlp`."""
    configs = {kind: CONFIGS.get(kind, config()) for kind, config in CONNECTORS.items()}
    say(f"  {len(configs)} connectors, {crops} crops")
    seconds = in_turn({kind: connector_step(config, crops, device) for kind, config in configs.items()}, repeats)
    base = connector_cost(configs["mlp"], PLACE)
    for kind, config in configs.items():
        cost = connector_cost(config, PLACE)
        yield fixed(f"connector_{kind}_parameters", cost.parameters, "parameters")
        yield fixed(f"connector_{kind}_tokens", cost.tokens, "visual tokens of a crop")
        yield fixed(f"connector_{kind}_flops_over_mlp", cost.flops / base.flops, "operations of the forward pass, over mlp")
        yield Finding(
            f"connector_{kind}_time_over_mlp", over(seconds[kind], seconds["mlp"]), "time of forward and backward, over mlp"
        )


def connector_step(config: ConnectorConfig, crops: int, device: torch.device) -> Work:
    """Forward and backward of a connector whose encoder and decoder are frozen."""
    torch.manual_seed(0)
    connector = Connector(config, PLACE).to(device)
    features = torch.randn(crops, PLACE.num_tokens, PLACE.width_in, device=device)
    words = 0.02 * torch.randn(PLACE.num_words, PLACE.width_out, device=device)
    slope = torch.randn(crops, connector.tokens_per_crop, PLACE.width_out, device=device)

    def work() -> None:
        connector.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            out = connector(features, lambda: words)
        out.backward(slope.to(out.dtype))

    return work
