"""What a GPU shows, part by part: `python -m benchmarks.gpu PART --out FILE.json`; `sh benchmarks/gpu.sh OUT` runs all.

Parts, in the order of their worth:

- `tests`: the tests marked `gpu`: values on the device against float64 on the CPU, AdamW, fp16, copies, resume.
- `train`: the training loop on the shapes of SmolLM2-360M and SigLIP-base with random weights, all parts trained, packed at 4,096
  tokens in bf16: tokens per second, MFU, peak memory, the share of each part of a step; the dense mask against the block mask,
  compiled layers against plain ones, captions that share their image against single ones, and cut_cross_entropy, if installed,
  against our own loss where the connector alone trains.
- `trainer`: transformers' Trainer with a stock LLaVA of the same shapes (sdpa, bf16, rows padded to the longest of a batch) on the
  same samples, against `train`.
- `checks`: a step on the device against the CPU, waits for the device in a step, the same bits twice and after a resume, or what
  differs.
- `ratios`: the benchmarks `moe` (16,384 tokens), `cal` and `connectors` (ALIGN) on the device.
- `decode`: generated tokens per second against a stock LLaVA of transformers.

MFU counts the FLOPs of real tokens: 2 a weight and token forward and 4 backward, attention between tokens that see each other, the
head at supervised tokens; no padding, no masked pairs, no recomputation. A part writes its results as it finds them, so that one
that runs out of time leaves what it has. With `--dry` the shapes are tiny and everything runs on a CPU: it shows that the script
works, and its numbers mean nothing; `dry` runs all parts so, each in a fork of one process.
"""

import argparse
import contextlib
import importlib
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

from benchmarks.cal import SHAPES
from benchmarks.findings import Finding
from benchmarks.jobs import EVERY, accelerator_on, job
from benchmarks.measure import machine
from sightline.data.batches.collate import collate
from sightline.data.batches.packing import pack
from sightline.models.connectors import Connector, ConnectorShape
from sightline.models.connectors.mlp import MLPConfig
from sightline.models.flex_attention import FLEX, attention_of
from sightline.models.language import hidden_states
from sightline.models.vision import normalise
from sightline.models.vlm import SightlineConfig, SightlineForConditionalGeneration
from sightline.objectives.next_token import NextToken
from sightline.ops import cut_cross_entropy
from sightline.ops.cross_entropy import cross_entropy_kernel, linear_cross_entropy
from sightline.ops.masks import block_mask, computed_blocks, dense_blocks, visible
from sightline.ops.splice import splice
from sightline.training import loop
from sightline.training.checkpoint import Progress
from sightline.training.compiled import compiled_layers
from sightline.types import Batch, EncodedConversation, Sample, Span

ROOT = Path(__file__).parents[1]
PARTS = ("tests", "train", "trainer", "checks", "ratios", "decode")
SIGLIP_BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
TINY_DECODER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 512}
TINY_DECODER |= {"num_attention_heads": 4, "num_key_value_heads": 2}
TINY_ENCODER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
PEAKS = {"H100": 800e12, "H200": 800e12, "A100": 312e12, "T4": 65e12}  # dense bf16 FLOP/s (fp16 on a T4) that MFU is a share of
PROMPT = 12  # text tokens before an answer
Results = Iterator[dict[str, Any]]


@dataclass(frozen=True)
class Sizes:
    """Sizes of the measured models and steps."""

    decoder: dict[str, int]
    encoder: dict[str, int]
    side: int
    row: int
    rows: int
    steps: int
    answer: int  # median tokens of an answer

    @property
    def visual(self) -> int:
        return (self.side // 16) ** 2


FULL = Sizes(SHAPES["smollm2_360m"], SIGLIP_BASE, 224, 4096, 4, 12, 120)
DRY = Sizes(TINY_DECODER, TINY_ENCODER, 32, 128, 2, 4, 12)


def configs(sizes: Sizes) -> tuple[Any, Any]:
    """Returns the configurations of encoder and decoder; the last entry of the vocabulary is the image token."""
    encoder = AutoConfig.for_model("siglip_vision_model", image_size=sizes.side, patch_size=16, **sizes.encoder)
    decoder = AutoConfig.for_model("llama", max_position_embeddings=8192, tie_word_embeddings=True, **sizes.decoder)
    decoder.bos_token_id, decoder.eos_token_id, decoder.pad_token_id = 1, 2, 0
    return encoder, decoder


def build(sizes: Sizes, device: torch.device) -> SightlineForConditionalGeneration:
    """Builds our model with random weights; an MLP connects all patches, as in LLaVA."""
    torch.manual_seed(0)
    encoder, decoder = configs(sizes)
    width, vocabulary, side = sizes.encoder["hidden_size"], sizes.decoder["vocab_size"], sizes.side // 16
    connector = MLPConfig()
    config = SightlineConfig(
        vision_config=encoder,
        text_config=decoder,
        connector=connector.model_dump(mode="json"),
        grid=(side, side),
        vision_width=width,
        image_token_id=vocabulary - 1,
        num_words=vocabulary - 1,
    )
    shape = ConnectorShape(side, side, width, decoder.hidden_size, vocabulary - 1)
    with device:  # weights are drawn there
        parts = AutoModel.from_config(encoder), Connector(connector, shape), AutoModelForCausalLM.from_config(decoder)
        model: Any = SightlineForConditionalGeneration(config, *parts)
    return model.to(device).train()


def stock_llava(sizes: Sizes, device: torch.device) -> LlavaForConditionalGeneration:
    """Builds transformers' LLaVA of the same shapes with random weights."""
    torch.manual_seed(0)
    encoder, decoder = configs(sizes)
    config = LlavaConfig(
        vision_config=encoder,
        text_config=decoder,
        image_token_index=sizes.decoder["vocab_size"] - 1,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    with device:
        model: Any = LlavaForConditionalGeneration(config)
    return model.to(device)


def samples(sizes: Sizes, count: int, branches: int = 1, seed: int = 0) -> list[Sample]:
    """Returns samples of random tokens with an image each: a prompt and an answer, or several captions of the image."""
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        before = [1, *[sizes.decoder["vocab_size"] - 1] * sizes.visual, *draw.integers(3, 500, PROMPT).tolist()]
        slots = np.arange(1, 1 + sizes.visual)
        parts = []
        for _ in range(branches):
            length = int(np.clip(draw.lognormal(np.log(sizes.answer), 0.6), 4, 8 * sizes.answer))
            ids = np.array([*before, *draw.integers(3, 500, length).tolist()])
            parts.append(EncodedConversation(ids, (Span(len(before), len(ids), 1),), slots))
        pixels = draw.integers(0, 256, (1, sizes.side, sizes.side, 3), np.uint8)
        prefix = len(before) if branches > 1 else 0
        found.append(Sample(tuple(parts), prefix, np.arange(sizes.visual), images=pixels, tokens_per_crop=sizes.visual))
    return found


def packed(sizes: Sizes, given: Sequence[Sample], rows: int) -> list[Batch]:
    """Returns batches of full rows; what is left over or longer than a row is dropped."""
    given = [sample for sample in given if sample.num_tokens <= sizes.row]
    lengths = np.array([sample.num_tokens for sample in given])
    packs = pack(np.arange(len(given)), lengths, np.ones_like(lengths), sizes.row, 64)
    full = [[given[index] for index in row] for row in packs.rows]
    return [collate(full[at : at + rows], 0, sizes.row).to_batch() for at in range(0, len(full) - rows + 1, rows)]


def apart(given: Sequence[Sample]) -> list[Sample]:
    """Returns each branch as a sample of its own."""
    return [
        Sample((branch,), 0, s.visual_index, images=s.images, tokens_per_crop=s.tokens_per_crop)
        for s in given
        for branch in s.branches
    ]


def stage(
    model: SightlineForConditionalGeneration,
    steps: Sequence[Sequence[Batch]],
    count: int,
    dtype: str,
    rules: dict[str, Any] = EVERY,
) -> loop.Job:
    """Returns a job of `count` steps."""
    accelerator = accelerator_on(model.device, "bf16" if dtype == "bf16" else "no")
    given = {"steps": count, "clip": 1.0, "lr": 1e-4, "decay": 0.1, "adamw": True}
    return job(model, steps, NextToken(), rules, accelerator=accelerator, **given)


def flops(model: SightlineForConditionalGeneration, batch: Batch) -> float:
    """Returns the FLOPs of a training step's forward and backward; see the module's docstring."""
    real = batch.tokens.sample_BT >= 0
    pairs = int((visible(batch.tokens) & real[:, :, None]).sum())
    crops = 0 if batch.visual is None else batch.visual.num_crops

    def of(part: torch.nn.Module, tokens: int, pairs: int, head: Tensor | None = None) -> float:
        config: Any = part.config
        weights = sum(m.weight.numel() for m in part.modules() if isinstance(m, torch.nn.Linear) and m.weight is not head)
        return 2.0 * weights * tokens + 4.0 * config.hidden_size * pairs * config.num_hidden_layers

    head = model.language.get_output_embeddings().weight  # pyrefly: ignore
    patches = crops * model.connector.shape.num_tokens
    forward = of(model.language, int(real.sum()), pairs, head) + 2.0 * head.numel() * len(batch.supervision)
    forward += of(model.vision, patches, patches * model.connector.shape.num_tokens)
    forward += 2.0 * sum(weight.numel() for weight in model.connector.parameters()) * patches
    return 3 * forward


@dataclass(frozen=True)
class Arm:
    """How a step is computed: with FlexAttention or a dense mask, compiled layers or plain ones, cut_cross_entropy or our own."""

    flex: bool = False
    compiled: bool = False
    cut: bool = False

    @contextlib.contextmanager
    def applied(self, model: SightlineForConditionalGeneration) -> Iterator[None]:
        """Uses it within the context."""
        backend = None if model.device.type == "cuda" else "eager"
        layers = compiled_layers(model.language, model.vision, backend) if self.compiled else contextlib.nullcontext()
        attention, kernel = attention_of(model.language, FLEX if self.flex else None), "cut" if self.cut else "chunked"
        with attention, cross_entropy_kernel(kernel), layers:
            yield


def speed(
    model: SightlineForConditionalGeneration, batches: Sequence[Batch], sizes: Sizes, arm: Arm, rules: dict[str, Any] = EVERY
) -> dict[str, float]:
    """Trains and returns tokens, supervised tokens and FLOPs per second of the median step, and peak memory."""
    on_gpu = model.device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    given = stage(model, [[batch] for batch in batches], sizes.steps, "bf16" if on_gpu else "fp32", rules)
    with arm.applied(model):
        loop.fit(given, Progress())
    lines: Any = given.log
    measured = range(sizes.steps // 3, sizes.steps)  # the first ones compile and allocate
    rates: dict[str, list[float]] = {"tokens": [], "supervised": [], "flops": []}
    for number in measured:
        seconds = lines[number]["seconds"]
        rates["flops"].append(flops(model, batches[number % len(batches)]) / seconds)
        for name in ("tokens", "supervised"):
            rates[name].append(lines[number][name] / seconds)
    out = {f"{name}_per_s": statistics.median(values) for name, values in rates.items()}
    fill = statistics.mean(float((batch.tokens.sample_BT >= 0).float().mean()) for batch in batches)
    peak = next((value for name, value in PEAKS.items() if on_gpu and name in torch.cuda.get_device_name()), None)
    out |= {"fill": fill, "peak_memory_bytes": float(torch.cuda.max_memory_allocated()) if on_gpu else 0.0}
    return out | ({"mfu": out["flops_per_s"] / peak} if peak else {})


def shares(model: SightlineForConditionalGeneration, batch: Batch, arm: Arm, steps: int = 5) -> dict[str, float]:
    """Returns the share of each part of a step: copy of the batch, encoder, connector, decoder, head, backward pass, AdamW."""
    device = model.device
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device.type == "cuda")
    spent: dict[str, list[float]] = {}

    def mark(name: str, since: float) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        spent.setdefault(name, []).append(now - since)
        return now

    with arm.applied(model):
        for _ in range(steps):
            now = time.perf_counter()
            given = batch.to(device)
            now = mark("copy", now)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                assert given.visual is not None
                features = model.features(given.visual)
                now = mark("encoder", now)
                table = model.visual_tokens(features)
                now = mark("connector", now)
                rows = model.get_input_embeddings()(given.tokens.ids_BT)
                rows = splice(rows, table, given.visual.slot_M, given.visual.visual_index_M)
                hidden = hidden_states(model.language, rows, given)
                now = mark("decoder", now)
                nll_S, _ = linear_cross_entropy(hidden.states_SD, hidden.head, given.supervision.target_S)
                now = mark("head", now)
            nll_S.mean().backward()
            now = mark("backward", now)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            mark("adamw", now)
    middle = {name: statistics.median(values[steps // 3 :]) for name, values in spent.items()}
    return {name: value / sum(middle.values()) for name, value in middle.items()}


# Parts: each yields results as it finds them ----------------------------------------------------------------------------------


class Outcomes:
    """Counts the outcomes of tests, as a plug-in of pytest."""

    def __init__(self) -> None:
        self.passed, self.failed = 0, dict[str, str]()

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Is called by pytest for each phase of a test."""
        self.passed += report.when == "call" and report.passed
        if report.failed:
            self.failed[report.nodeid] = str(report.longrepr).strip().rpartition("\n")[2]


def tests(sizes: Sizes, device: torch.device, folder: Path) -> Results:
    """Runs the tests marked `gpu`; on a CPU those of tests/gpu that need none."""
    pytest = importlib.import_module("pytest")
    files = sorted(str(path) for path in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in path.read_text("utf-8"))
    files = files if device.type == "cuda" else [str(ROOT / "tests/gpu")]
    mark, outcomes = "gpu" if device.type == "cuda" else "not gpu", Outcomes()
    options = ["-q", "-m", mark, "-W", "default", "-o", "addopts=", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    pytest.main([*options, *files], plugins=[outcomes])
    yield {"passed": outcomes.passed, "failed": outcomes.failed}
    if outcomes.failed or not outcomes.passed:
        raise SystemExit(f"{len(outcomes.failed)} tests failed, {outcomes.passed} passed")


def train(sizes: Sizes, device: torch.device, folder: Path) -> Results:
    """Measures the training loop on packed rows: conversations, captions that share their image, the same captions apart."""
    on_gpu = device.type == "cuda"
    model, conversations = build(sizes, device), packed(sizes, samples(sizes, 320), sizes.rows)
    mask = block_mask(conversations[0].tokens)
    out: dict[str, Any] = {"blocks_computed_over_dense": float(computed_blocks(mask)) / dense_blocks(mask)}
    fastest = Arm(flex=on_gpu, compiled=True)  # FlexAttention computes gradients on CUDA alone
    arms = {"dense": Arm(), "block_compiled": fastest} | ({"block": Arm(flex=True)} if on_gpu else {})
    for name, arm in arms.items():
        out[name] = speed(model, conversations, sizes, arm)
        yield out
    groups = [group for group in samples(sizes, 160, 5, seed=1) if group.num_tokens <= sizes.row]
    for name, given in {"shared": groups, "apart": apart(groups)}.items():
        out[name] = speed(model, packed(sizes, given, sizes.rows), sizes, fastest)
    pairs = [
        ("block_compiled", "dense"),
        ("shared", "apart"),
        *([("block", "dense"), ("block_compiled", "block")] if on_gpu else []),
    ]
    for first, second in pairs:
        out[f"{first}_over_{second}"] = out[first]["supervised_per_s"] / out[second]["supervised_per_s"]
    out["shares_of_a_step"] = shares(model, conversations[0], fastest)
    yield out
    if cut_cross_entropy.is_installed():
        for name, cut in {"connector_chunked": False, "connector_cut": True}.items():
            found = speed(model, conversations, sizes, Arm(flex=on_gpu, cut=cut), {"connector": "train"})
            out[name] = {key: found[key] for key in ("tokens_per_s", "supervised_per_s", "peak_memory_bytes")}
        out["cut_over_chunked"] = out["connector_cut"]["supervised_per_s"] / out["connector_chunked"]["supervised_per_s"]
        yield out


def trainer(sizes: Sizes, device: torch.device, folder: Path) -> Results:
    """Measures transformers' Trainer with a stock LLaVA (sdpa, bf16) on rows padded to the longest of a batch."""

    def collated(rows: list[Sample]) -> dict[str, Tensor]:
        ids = [torch.from_numpy(sample.branches[0].ids) for sample in rows]
        padded = nn.utils.rnn.pad_sequence(ids, batch_first=True)
        labels = torch.full_like(padded, -100)
        for row, sample in enumerate(rows):
            (span,) = sample.branches[0].spans
            labels[row, span.start : span.end] = ids[row][span.start :]
        images = torch.cat([torch.from_numpy(sample.images) for sample in rows])
        pixels = normalise(images, 1 / 255, [0.5] * 3, [0.5] * 3, torch.float32)
        return {"input_ids": padded, "attention_mask": (padded != 0).long(), "labels": labels, "pixel_values": pixels}

    given = samples(sizes, 320)
    per_batch = max(1, sizes.rows * sizes.row // int(statistics.mean(sample.num_tokens for sample in given)))
    supervised = statistics.mean(sample.branches[0].num_supervised for sample in given)
    with tempfile.TemporaryDirectory() as place:
        options = TrainingArguments(
            place,
            max_steps=3,
            per_device_train_batch_size=per_batch,
            bf16=device.type == "cuda",
            use_cpu=device.type == "cpu",
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            remove_unused_columns=False,
            dataloader_num_workers=4 if device.type == "cuda" else 0,
            disable_tqdm=True,
        )
        items: Any = given
        run = Trainer(stock_llava(sizes, device), options, train_dataset=items, data_collator=collated)
        run.train()  # warms up
        options.max_steps = sizes.steps
        begin = time.perf_counter()
        run.train()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begin
    rate = sizes.steps * min(per_batch, len(given)) * supervised / seconds
    out = {"supervised_per_s": rate}
    yield out
    measured = folder / "train.json"
    if measured.exists():
        ours = json.loads(measured.read_text("utf-8"))
        best = max(ours[name]["supervised_per_s"] for name in ("dense", "block", "block_compiled") if name in ours)
        yield out | {"ours_over_trainer": best / rate}


def checks(sizes: Sizes, device: torch.device, folder: Path) -> Results:
    """Compares a step with the CPU's in fp32, counts waits, and compares bits of repeated and resumed steps."""
    batches = packed(DRY, samples(DRY, 96, 2), 1)[:8]
    out: dict[str, Any] = {}
    ends = []
    for where in (torch.device("cpu"), device):
        model: Any = build(DRY, torch.device("cpu"))
        model.to(where)
        given = stage(model, [batches], 1, "fp32")
        loop.fit(given, Progress())
        line: Any = given.log
        ends.append((line[0]["loss"], line[0]["grad_norm"]))
    out["loss_difference"], out["grad_norm_difference"] = (abs(a - b) / abs(a) for a, b in zip(*ends, strict=True))
    out["waits_of_a_step"] = {str(count): waits(device, batches[:count]) for count in (1, 8)}
    yield out
    for name, exact in {"": False, "_deterministic": True}.items():
        torch.use_deterministic_algorithms(exact)
        whole, again, resumed = (build(DRY, device) for _ in range(3))
        for model in (whole, again):
            loop.fit(stage(model, [[batch] for batch in batches], 4, "fp32"), Progress())
        first = stage(resumed, [[batch] for batch in batches], 2, "fp32")
        middle = loop.fit(first, Progress())
        second = stage(resumed, [[batch] for batch in batches], 4, "fp32")
        second.optimiser.load_state_dict(deepcopy(first.optimiser.state_dict()))
        loop.fit(second, middle)
        for what, other in {"twice": again, "resumed": resumed}.items():
            differs = differences(whole, other)
            out[f"same_bits_{what}{name}"] = not differs
            out |= {f"differs_{what}{name}": differs} if differs else {}
        yield out
    torch.use_deterministic_algorithms(False)


def waits(device: torch.device, batches: Sequence[Batch]) -> int | None:
    """Returns how often the host waits for the device in a step; None on a CPU."""
    if device.type != "cuda":
        return None
    given = stage(build(DRY, device), [batches], 2, "fp32")
    at = loop.fit(replace(given, schedule=replace(given.schedule, steps=1)), Progress())  # the first step allocates
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loop.fit(given, at)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def differences(one: nn.Module, other: nn.Module) -> dict[str, float]:
    """Returns the largest difference of each tensor that has other bits, of at most eight of them."""
    pairs = zip(one.named_parameters(), other.parameters(), strict=True)
    found = {name: float((a - b).abs().max()) for (name, a), b in pairs if not torch.equal(a, b)}
    return dict(list(found.items())[:8])


def ratios(sizes: Sizes, device: torch.device, folder: Path) -> Results:
    """Runs the benchmarks of the experts, CAL and ALIGN; one that fails does not stop the others."""
    full = {
        "moe": ["--repeats", "5"],
        "cal": ["--repeats", "3", "--shapes", "smollm2_360m"],
        "connectors": ["--repeats", "3", "--only", "align", "--words", "49152"],
    }
    out: dict[str, Any] = {}
    for name, words in (full if sizes is FULL else {"moe": ["--repeats", "1", "--tokens", "64"]}).items():
        module = importlib.import_module(f"benchmarks.{name}")
        parser = argparse.ArgumentParser()
        parser.add_argument("--repeats", type=int)
        module.add_options(parser)
        try:
            found: list[Finding] = module.run(parser.parse_args(words))
            out[name] = {finding.name: finding.ratio.to_json() for finding in found}
        except Exception as error:
            traceback.print_exc()
            out[name] = {"failed": f"{type(error).__name__}: {error}"}
        yield out


def decode(sizes: Sizes, device: torch.device, folder: Path) -> Results:
    """Measures greedy generation with our model against transformers' LLaVA of the same shapes on the same images."""
    given, new = samples(sizes, 8 if sizes is DRY else 32), 8 if sizes is DRY else 64
    length = 1 + sizes.visual + PROMPT
    ids = torch.stack([torch.from_numpy(sample.branches[0].ids[:length]) for sample in given]).to(device)
    images = torch.cat([torch.from_numpy(sample.images) for sample in given])
    pixels = normalise(images, 1 / 255, [0.5] * 3, [0.5] * 3, torch.float32).to(device)
    settings = GenerationConfig(max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0, eos_token_id=2)

    def rate(model: Any) -> float:
        best = []
        for _ in range(3):
            begin = time.perf_counter()
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels, generation_config=settings)
            if device.type == "cuda":
                torch.cuda.synchronize()
            best.append(time.perf_counter() - begin)
        return new * len(given) / min(best)

    ours, theirs = rate(build(sizes, device).eval()), rate(stock_llava(sizes, device).eval())
    yield {"tokens_per_s": ours, "transformers_tokens_per_s": theirs, "ours_over_transformers": ours / theirs}


# All of them ------------------------------------------------------------------------------------------------------------------


def write(part: str, file: Path, dry: bool) -> bool:
    """Runs a part and writes its results as they come; returns whether it came to its end."""
    sizes, device = (DRY, torch.device("cpu")) if dry else (FULL, torch.device("cuda"))
    begin, works = time.perf_counter(), False
    found: dict[str, Any] = {}
    try:
        for found in globals()[part](sizes, device, file.parent):
            file.write_text(json.dumps(found | {"complete": False, "dry": dry}, indent=1) + "\n", "utf-8")
        works = True
    finally:
        ended = {"complete": works, "seconds": round(time.perf_counter() - begin, 1), "dry": dry}
        file.write_text(json.dumps(found | ended, indent=1) + "\n", "utf-8")
        print(json.dumps(found | ended))
    return works


def dry(folder: Path, limit: float = 100) -> list[str]:
    """Runs all parts on the CPU, each in a fork of this process with its own log; returns the names of those that failed.

    Args:
        folder: gets a JSON file and a log of each part.
        limit: seconds of a part.
    """
    failed = []
    for part in PARTS:
        process = multiprocessing.get_context("fork").Process(target=_forked, args=(part, folder))
        process.start()
        process.join(limit)
        if process.is_alive():
            process.kill()
            process.join()
        log = (folder / f"{part}.log").read_text("utf-8").strip().rpartition("\n")[2]
        print(f"{part}: {'done' if process.exitcode == 0 else f'failed: {log}'}", flush=True)
        failed += [part] if process.exitcode else []
    return failed


def _forked(part: str, folder: Path) -> None:
    log = (folder / f"{part}.log").open("w", encoding="utf-8")
    with log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        try:
            write(part, folder / f"{part}.json", True)
        except BaseException:
            traceback.print_exc()
            raise


def summary(folder: Path, note: Path | None) -> dict[str, Any]:
    """Joins the results of all parts and writes a page about them."""
    found = {part: json.loads(file.read_text("utf-8")) for part in PARTS if (file := folder / f"{part}.json").exists()}
    incomplete = [part for part in PARTS if not found.get(part, {}).get("complete")]
    out = {"date": str(date.today()), "machine": machine(), "incomplete": incomplete, **found}
    if note is not None:
        note.write_text(page(out), "utf-8")
    return out


def page(found: dict[str, Any]) -> str:
    """Returns the page of a measurement: the answers first, then every number."""

    def value(*keys: str) -> Any:
        place: Any = found
        for key in keys:
            place = place.get(key) if isinstance(place, dict) else None
        return place

    rows = {
        "tests on the device: passed, failed": f"{value('tests', 'passed')}, {len(value('tests', 'failed') or {})}",
        "MFU, block mask and compiled layers (aim 0.40)": value("train", "block_compiled", "mfu"),
        "MFU, dense mask, not compiled": value("train", "dense", "mfu"),
        "tokens per second": value("train", "block_compiled", "tokens_per_s"),
        "peak memory, GB": (value("train", "block_compiled", "peak_memory_bytes") or 0) / 1e9,
        "supervised tokens per second over transformers' Trainer (aim 1.5)": value("trainer", "ours_over_trainer"),
        "block mask over dense mask": value("train", "block_over_dense"),
        "compiled over not": value("train", "block_compiled_over_block"),
        "captions that share their image over single ones": value("train", "shared_over_apart"),
        "waits of a step with 1 and 8 micro-batches": value("checks", "waits_of_a_step"),
        "same bits twice, after a resume": [value("checks", f"same_bits_{what}") for what in ("twice", "resumed")],
        "experts, grouped over loop": value("ratios", "moe", "grouped_over_loop_speedup", "median"),
        "decoding over transformers": value("decode", "ours_over_transformers"),
    }
    lines = [f"| {name} | {f'{cell:.4g}' if isinstance(cell, float) else cell} |" for name, cell in rows.items()]
    everything = "\n".join(f"    {line}" for line in json.dumps(found, indent=1).splitlines())
    return "\n".join(
        [
            "# On a GPU",
            "",
            f"Measured by `sh benchmarks/gpu.sh OUT` on {found['date']} ({value('machine', 'gpu')}). None: not measured.",
            "",
            *["| | |", "|---|---|", *lines],
            "",
            "What each number is stands in `benchmarks/gpu.py`. All of them:",
            "",
            everything,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("part", choices=[*PARTS, "dry", "summary"])
    parser.add_argument("--out", type=Path, required=True, help="the JSON file; of `dry` the folder")
    parser.add_argument("--dry", action="store_true", help="tiny shapes on a CPU")
    parser.add_argument("--note", type=Path, help="the page that the summary writes")
    options = parser.parse_args()
    if options.part == "dry":
        failed = dry(options.out)
        found = summary(options.out, options.out / "gpu.md")
        (options.out / "summary.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
        sys.exit(f"failed: {' '.join(failed)}" if failed else 0)
    if options.part == "summary":
        options.out.write_text(json.dumps(summary(options.out.parent, options.note), indent=1) + "\n", "utf-8")
        return
    if not options.dry and not torch.cuda.is_available():
        sys.exit("torch finds no CUDA device; --dry runs tiny shapes on the CPU.")
    write(options.part, options.out, options.dry)


if __name__ == "__main__":
    main()
