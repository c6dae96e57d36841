"""A mixture-of-experts layer with the grouped kernel against the loop over experts, and against a dense layer of equal active size.

Measured is forward and backward of `models/scratch`'s feed-forward layers at 16,384 tokens: eight experts of which each token uses
two, and a dense layer that is as wide as two experts, which does as many operations. Weights, their gradients and those of the
tokens are computed. Arms take turns within each repeat; the loop runs twice, which shows the noise of the machine. On a GPU the
layers compute in bf16.
"""

import argparse
from types import SimpleNamespace

import torch
from torch import nn

from benchmarks.findings import Finding
from benchmarks.measure import Ratio, Work, in_turn
from sightline.models.scratch.moe import FeedForward, SparseMoE
from sightline.ops.experts import can_group

GPU_AIM = 2.0  # no aim on a CPU


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the sizes of what is measured."""
    parser.add_argument("--tokens", type=int, default=16384, help="tokens of a batch (default 16384)")
    parser.add_argument("--width", type=int, default=128, help="width of the decoder (default 128, seemore's)")
    parser.add_argument("--hidden", type=int, default=512, help="hidden width of an expert (default 512, seemore's)")
    parser.add_argument("--experts", type=int, default=8, help="number of experts (default 8)")
    parser.add_argument("--top", type=int, default=2, help="experts per token (default 2)")


def run(options: argparse.Namespace) -> list[Finding]:
    """Measures all findings."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    config = SimpleNamespace(
        hidden_size=options.width,
        intermediate_size=options.hidden,
        num_experts=options.experts,
        num_experts_per_tok=options.top,
        hidden_act="relu",
        gated=False,
        bias=True,
        shared_expert_size=0,
        router_noise=True,
        noise_in_evaluation=False,
        experts_kernel="auto",
    )
    sparse, dense = SparseMoE(config).to(device), FeedForward(config, options.top * options.hidden).to(device)
    for parameter in sparse.parameters():
        nn.init.normal_(parameter, std=0.02)
    tokens = torch.randn(1, options.tokens, options.width, device=device, requires_grad=True)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        if not can_group(tokens.flatten(0, 1), sparse.experts.weights):
            raise SystemExit("the grouped kernel does not take these sizes on this device; choose multiples of 8")

    def step(layer: nn.Module, kernel: str = "") -> Work:
        def work() -> None:
            sparse.experts.kernel = kernel
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                out = layer(tokens)
                (out[0] if isinstance(out, tuple) else out).float().square().mean().backward()
            layer.zero_grad(set_to_none=True)
            tokens.grad = None

        return work

    arms = {"loop": step(sparse, "loop"), "again": step(sparse, "loop"), "grouped": step(sparse, "grouped"), "dense": step(dense)}
    seconds = in_turn(arms, options.repeats)

    def ratio(first: str, second: str) -> Ratio:
        return Ratio.of(a / b for a, b in zip(seconds[first], seconds[second], strict=True))

    sizes = f"{options.tokens:,} tokens, width {options.width}, {options.experts} experts of {options.hidden}, top {options.top}"
    aim = GPU_AIM if device.type == "cuda" else None
    return [
        Finding(
            "grouped_over_loop_speedup", ratio("loop", "grouped"), f"time of the loop by that of the grouped kernel; {sizes}", aim
        ),
        Finding(
            "moe_over_dense_equal_active", ratio("grouped", "dense"), "time of the mixture by that of a dense layer, grouped kernel"
        ),
        Finding("moe_loop_over_dense_equal_active", ratio("loop", "dense"), "the same with the loop"),
        Finding("moe_same_over_same", ratio("again", "loop"), "the loop by itself: noise of this machine"),
    ]
