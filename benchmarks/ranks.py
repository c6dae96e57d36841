"""Ranks: memory and step time of two processes that shard a decoder (FSDP2), over those that replicate it (DDP).

Both train the same decoder from a configuration with AdamW on random tokens, in processes started by torchrun: on GPUs if there are
enough, else on the CPU. Memory is the peak of a process during its steps, less its memory before the model was built.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.findings import Finding, say
from benchmarks.measure import Ratio

if TYPE_CHECKING:
    from sightline.types import Batch

KINDS = ("replicated", "sharded")
STEPS = 3
# On a CPU freed memory is returned at once, so that resident memory equals live memory; glibc would keep much of it.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(1 << 18), "MALLOC_TRIM_THRESHOLD_": "0"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the number of processes and the sizes of the decoder."""
    parser.add_argument("--processes", type=int, default=2, help="processes that share the decoder (default 2)")
    parser.add_argument("--width", type=int, default=512, help="width of the decoder (default 512)")
    parser.add_argument("--layers", type=int, default=8, help="layers of the decoder (default 8)")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of each process in a step (default 256)")


def run(options: argparse.Namespace) -> list[Finding]:
    """Measures ratios of the largest memory and the longest time among processes."""
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    for _ in range(options.repeats):
        for kind in KINDS:
            found[kind].append(_measured(kind, options))
            say(f"  {kind}: {found[kind][-1][0] / 1e6:.0f} MB, {found[kind][-1][1]:.2f} s a step")
    ratios = [(sharded[0] / replicated[0], sharded[1] / replicated[1]) for replicated, sharded in zip(*found.values(), strict=True)]
    return [
        Finding("sharded_over_replicated_memory", Ratio.of(memory for memory, _ in ratios), "memory of a process in a step"),
        Finding("sharded_over_replicated_time", Ratio.of(seconds for _, seconds in ratios), "time of a step"),
    ]


def _measured(kind: str, options: argparse.Namespace) -> tuple[float, float]:
    sizes = [str(size) for size in (options.width, options.layers, options.tokens, options.threads)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={options.processes}"]
    environment = os.environ | ALLOCATOR
    done = subprocess.run([*command, "-m", "benchmarks.ranks", kind, *sizes], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{kind} on {options.processes} processes failed:\n{done.stderr}")
    measured = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    return max(memory for memory, _ in measured), max(seconds for _, seconds in measured)


# In its own process ---------------------------------------------------------------------------------------------------------------


def train_some(kind: str, width: int, layers: int, tokens: int) -> tuple[float, float]:
    """Returns peak bytes and seconds per step of this process."""
    import torch
    from accelerate import Accelerator
    from transformers import LlamaConfig, LlamaForCausalLM

    from sightline.models.text import TextModel
    from sightline.objectives import NextTokenConfig
    from sightline.training import optim, stages
    from sightline.training.ranks import Replicated, Sharded, StepModule

    gpus = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    accelerator = Accelerator(cpu=not gpus, mixed_precision="bf16" if gpus else "no")
    batch = _batch(tokens).to(accelerator.device)
    before = 0 if gpus else _resident("VmRSS")
    config = LlamaConfig(
        vocab_size=8192, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=8
    )
    torch.manual_seed(0)
    model = TextModel(LlamaForCausalLM(config)).to(accelerator.device)
    stage = stages.apply(model, "all", {"language": "train"}, 1e-4, 0.0)
    objective = NextTokenConfig().build()
    if kind == "sharded":
        shared: Replicated | Sharded = Sharded(accelerator, model, objective, model.language)
        stage = stages.with_current_parameters(stage, model)
    else:
        shared = Replicated(accelerator, StepModule(model, objective))
    optimiser = optim.build_optimiser(stage, (0.9, 0.999), 1e-8)
    parameters = [parameter for group in stage.groups for parameter in group.parameters.values()]
    if gpus:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak, so that building the model does not count
    seconds = []
    for _ in range(STEPS):
        begin = time.perf_counter()
        shared.forward_backward([batch])
        shared.scale_and_clip(parameters, torch.ones(()), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if gpus:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    peak = torch.cuda.max_memory_allocated() if gpus else _resident("VmHWM") - before
    return float(peak), min(seconds)


def _batch(tokens: int) -> "Batch":
    """Returns a batch of one row of random tokens, all but the first supervised."""
    from sightline.data.batches.collate import collate
    from sightline.types import EncodedConversation, Sample, Span

    ids = np.random.default_rng(0).integers(3, 8192, tokens)
    none = np.zeros(0, dtype=np.int64)
    sample = Sample((EncodedConversation(ids, (Span(1, tokens, 0),), none, "0"),), prefix=0, visual_index=none)
    return collate([[sample]], pad_id=0).to_batch()


def _resident(field: str) -> int:
    """Returns `VmRSS` or `VmHWM` of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


if __name__ == "__main__":
    import torch

    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    torch.set_num_threads(int(sys.argv[5]))
    print(json.dumps(train_some(sys.argv[1], *map(int, sys.argv[2:5]))), flush=True)
    torch.distributed.destroy_process_group()
