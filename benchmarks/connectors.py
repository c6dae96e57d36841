"""ALIGN without a [tokens, vocabulary] tensor against its plain formula (time and peak memory), and the cost of all connectors.

Measured is forward and backward of `softmax(LN2(q K^T)) E` with trained queries, keys and gain, and with frozen and trained input
embeddings, at 4,096 tokens, a vocabulary of 49,152 and a width of 576 (SmolLM2-135M), then at other vocabularies. Arms take turns
within each repeat; the plain formula runs twice, which shows the noise of the machine. Peaks are above the memory before the call;
inputs, parameters and their gradients are not counted. On a GPU everything is in bf16 and the plain formula is compiled. The
second half measures each connector between SigLIP-base-patch16-224 and SmolLM2-135M, at its default sizes.
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
# For kinds whose defaults do not divide rows of 14 patches, and for TinyVLM's own sizes.
CONFIGS: dict[str, ConnectorConfig] = {"h_reducer": HReducerConfig(reach=7), "swiglu": SwiGLUConfig(shuffle=2)}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the sizes of what is measured."""
    parser.add_argument("--tokens", type=int, default=4096, help="visual tokens (default 4096)")
    parser.add_argument(
        "--words", type=int, nargs="+", default=list(WORDS), help="vocabulary sizes; the first gives the main figures"
    )
    parser.add_argument("--width", type=int, default=576, help="width of queries, keys and embeddings (default 576)")
    parser.add_argument("--crops", type=int, default=2, help="crops that each connector is timed on (default 2)")
    parser.add_argument("--only", choices=["align", "costs"], help="run one half only")
    parser.add_argument(
        "--memory-only", action="store_true", help="only count ALIGN's peak memory, on a CPU without computing anything (seconds)"
    )


def run(options: argparse.Namespace) -> list[Finding]:
    """Measures all findings."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found: list[Finding] = []
    if options.memory_only:
        for number, words in enumerate(options.words):
            sizes = Sizes(options.tokens, words, options.width, torch.device("cpu"))
            found += count_memory(sizes, "" if number == 0 else f"_{words}")
        return found
    if options.only != "costs":
        for number, words in enumerate(options.words):
            # Other vocabularies get as many scores as the first on a CPU; the plain formula would fill its memory otherwise.
            scores = options.tokens * options.words[0]
            tokens = options.tokens if device.type == "cuda" else min(options.tokens, scores // words)
            found += compare(Sizes(tokens, words, options.width, device), options.repeats, "" if number == 0 else f"_{words}")
    if options.only != "align":
        found += list(costs(options.crops, device, options.repeats))
    return found


# ALIGN ----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """Sizes and device of a case."""

    tokens: int
    words: int
    width: int
    device: torch.device

    def __str__(self) -> str:
        return f"{self.tokens:,} tokens x {self.words:,} words x {self.width}"


class Mixture:
    """Queries, keys, embeddings and gain of one case, and both implementations of a step.

    Args:
        sizes: sizes of the case.
        is_live: whether the embeddings train.
    """

    def __init__(self, sizes: Sizes, is_live: bool) -> None:
        torch.manual_seed(0)
        dtype = torch.bfloat16 if sizes.device.type == "cuda" else torch.float32

        def drawn(rows: int, scale: float = 1.0) -> Tensor:
            return scale * torch.randn(rows, sizes.width, device=sizes.device, dtype=dtype)

        self.query = drawn(sizes.tokens).requires_grad_()  # LN1 gives them a deviation of 1
        self.keys, self.words = drawn(sizes.words, 0.02).requires_grad_(), drawn(sizes.words, 0.02).requires_grad_(is_live)
        self.gain = torch.tensor(2.7, device=sizes.device, requires_grad=True)
        self.slope = drawn(sizes.tokens)
        self.formula = vocabulary_attention_reference
        if sizes.device.type == "cuda":
            self.formula = torch.compile(vocabulary_attention_reference)

    @property
    def given(self) -> list[Tensor]:
        """Returns the tensors that exist before the call."""
        return [self.query, self.keys, self.words, self.gain, self.slope]

    @property
    def inputs(self) -> list[Tensor]:
        """Returns the tensors that gradients are computed for."""
        return [value for value in (self.query, self.keys, self.words, self.gain) if value.requires_grad]

    def plain(self) -> None:
        """Runs forward and backward with the full tensor."""
        self._step(self.formula(self.query, self.keys, self.words, OuterNorm(self.gain)))

    def fused(self) -> None:
        """Runs forward and backward in chunks."""
        self._step(vocabulary_attention(self.query, self.keys, self.words, OuterNorm(self.gain)))

    def _step(self, out: Tensor) -> None:
        for value in self.inputs:
            value.grad = None
        out.backward(self.slope)

    def check(self) -> None:
        """Checks that both give the same gradients.

        Raises:
            ValueError: they differ.
        """
        gradients = []
        for work in (self.plain, self.fused):
            work()
            gradients.append([value.grad for value in self.inputs])
        # The gain's gradient is a sum that nearly cancels (1e-4 in fp32); a wrong factor would give a difference of order 1.
        limit = 0.1 if self.query.dtype == torch.bfloat16 else 1e-3
        for one, other in zip(*gradients, strict=True):
            assert one is not None
            assert other is not None
            error = float((one - other).float().norm() / one.float().norm())
            if not error < limit:
                raise ValueError(f"gradients of the two implementations differ by {error:g} of their size")


def compare(sizes: Sizes, repeats: int, suffix: str) -> list[Finding]:
    """Measures time and memory with frozen and trained embeddings; the worse value of the first vocabulary gets the plain name."""
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
    """Counts peak memory from operations on meta tensors, whose storages appear and disappear as in a real call."""
    peaks = []
    for case in ("frozen", "live"):
        say(f"  align, {sizes}, embeddings {case}: counting")
        with FakeTensorMode():
            peaks.append(memory(Mixture(sizes, case == "live"), f"{case}{suffix}", f"{sizes}, embeddings {case}"))
    return [*([] if suffix else [worse("peak_memory", peaks)]), *peaks]


def memory(mixture: Mixture, case: str, where: str) -> Finding:
    """Measures the peak memory of the fused step over that of the plain one."""
    plain, fused = (peak_memory(work, mixture.given) for work in (mixture.plain, mixture.fused))
    return fixed(f"align_fused_over_plain_peak_memory_{case}", fused / plain, f"peak memory at {where}", at_most=MEMORY_AIM)


def worse(name: str, findings: list[Finding]) -> Finding:
    """Returns the finding with the largest median, under the plain name."""
    found = max(findings, key=lambda finding: finding.ratio.median)
    return Finding(f"align_fused_over_plain_{name}", found.ratio, f"the worse case: {found.meaning}", at_most=found.at_most)


def over(these: tuple[float, ...], those: tuple[float, ...]) -> Ratio:
    """Returns the ratios within each repeat."""
    return Ratio.of(a / b for a, b in zip(these, those, strict=True))


# Every connector ------------------------------------------------------------------------------------------------------------------


def costs(crops: int, device: torch.device, repeats: int) -> Iterator[Finding]:
    """Yields parameters, operations and tokens of each connector, and the time of its step over that of `mlp`."""
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
    """Returns the forward and backward pass of a connector between a frozen encoder and decoder."""
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
