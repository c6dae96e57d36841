"""What a GPU shows, part by part: `python -m benchmarks.gpu PART --out FILE.json [--dry]`; `sh benchmarks/gpu.sh OUT` runs all.

Parts, in the order of their worth:

- `checks`: a step on the device against the CPU, waits for the device in a step, the same bits twice and after a resume.
- `train`: the training loop on the shapes of SmolLM2-360M and SigLIP-base with random weights, all parts trained, packed at 4,096
  tokens in bf16: tokens per second, MFU, peak memory; captions with a shared image against single ones.
- `trainer`: transformers' Trainer with a stock LLaVA of the same shapes on the same samples, against `train`.
- `ratios`: the benchmarks `cal`, `connectors` and `moe` on the device.
- `decode`: generated tokens per second against plain transformers.

MFU counts the FLOPs of real tokens: 2 a weight and token forward and 4 backward, attention between tokens that see each other, the
head at supervised tokens; no padding, no masked pairs. With `--dry` the shapes are tiny and everything runs on a CPU: it shows that
the script works, and its numbers mean nothing.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
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
from benchmarks.measure import machine
from sightline.data.batches.collate import collate
from sightline.data.batches.loader import MicroBatch
from sightline.data.batches.packing import pack
from sightline.models.connectors import Connector, ConnectorShape
from sightline.models.connectors.mlp import MLPConfig
from sightline.models.vision import normalise
from sightline.models.vlm import SightlineConfig, SightlineForConditionalGeneration
from sightline.objectives.next_token import NextToken
from sightline.ops.masks import visible
from sightline.training import loop, optim, stages
from sightline.training.checkpoint import Progress
from sightline.training.ranks import Replicated, StepModule
from sightline.types import Batch, EncodedConversation, Sample, Span

PARTS = ("checks", "train", "trainer", "ratios", "decode")
SIGLIP_BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
TINY_DECODER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 512}
TINY_DECODER |= {"num_attention_heads": 4, "num_key_value_heads": 2}
TINY_ENCODER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
PEAKS = {"H100": 800e12, "H200": 800e12, "A100": 312e12, "T4": 65e12}  # dense bf16 FLOP/s (fp16 on a T4) that MFU is a share of
EVERY: dict[str, Any] = {"vision": "train", "connector": "train", "language": "train"}
PROMPT = 12  # text tokens before an answer


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


FULL = Sizes(SHAPES["smollm2_360m"], SIGLIP_BASE, 224, 4096, 8, 12, 120)
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
    parts = AutoModel.from_config(encoder), Connector(connector, shape), AutoModelForCausalLM.from_config(decoder)
    model: Any = SightlineForConditionalGeneration(config, *parts)
    return model.to(device).train()


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
    """Returns batches of full rows; what is left over is dropped."""
    lengths = np.array([sample.num_tokens for sample in given])
    packs = pack(np.arange(len(given)), lengths, np.ones_like(lengths), max(sizes.row, int(lengths.max())), 64)
    full = [[given[index] for index in row] for row in packs.rows]
    return [collate(full[at : at + rows], 0).to_batch() for at in range(0, len(full) - rows + 1, rows)]


def apart(given: Sequence[Sample]) -> list[Sample]:
    """Returns each branch as a sample of its own."""
    return [
        Sample((branch,), 0, s.visual_index, images=s.images, tokens_per_crop=s.tokens_per_crop)
        for s in given
        for branch in s.branches
    ]


class Given:
    """Loads given steps."""

    def __init__(self, steps: Sequence[Sequence[Batch]]) -> None:
        self.steps = steps

    def steps_in_epoch(self, epoch: int) -> int:
        return len(self.steps)

    def stream(self, epoch: int, step: int, until: int) -> Iterator[list[MicroBatch]]:
        """Yields the steps from `step` on."""
        for number in range(until):
            yield [MicroBatch(batch) for batch in self.steps[(step + number) % len(self.steps)]]


class Lines(list):
    """Collects the lines of the log."""

    def write(self, line: dict[str, Any]) -> None:
        self.append(line)


def job(model: SightlineForConditionalGeneration, steps: Sequence[Sequence[Batch]], count: int, dtype: str) -> loop.Job:
    """Returns a stage that trains all parts for `count` steps."""
    accelerator = Accelerator(cpu=model.device.type == "cpu", mixed_precision="bf16" if dtype == "bf16" else "no")
    stage = stages.apply(model, "gpu", EVERY, 1e-4, 0.1)
    return loop.Job(
        accelerator=accelerator,
        model=model,
        ranks=Replicated(accelerator, StepModule(model, NextToken())),
        stage=stage,
        optimiser=optim.build_optimiser(stage, (0.9, 0.999), 1e-8),
        loader=Given(steps),
        schedule=loop.StageSchedule(count, 0, "constant", 0.0, 1.0, 0, 0),
        log=Lines(),
        save=lambda at: None,
        evaluate=None,
        stop=str,
        guard=optim.NonFiniteGuard(),
    )


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


def speed(model: SightlineForConditionalGeneration, batches: Sequence[Batch], sizes: Sizes, dtype: str) -> dict[str, float]:
    """Trains and returns tokens, supervised tokens and FLOPs per second of the median step, and peak memory."""
    on_gpu = model.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    given = job(model, [[batch] for batch in batches], sizes.steps, dtype)
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


# Parts ------------------------------------------------------------------------------------------------------------------------


def checks(sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """Compares a step with the CPU's in fp32, counts waits, and compares bits of repeated and resumed steps."""
    batches = packed(DRY, samples(DRY, 96, 2), 1)[:8]
    out: dict[str, Any] = {}
    ends = []
    for where in (torch.device("cpu"), device):
        model = build(DRY, where)
        given = job(model, [batches], 1, "fp32")
        loop.fit(given, Progress())
        line: Any = given.log
        ends.append((line[0]["loss"], line[0]["grad_norm"]))
    out["loss_difference"], out["grad_norm_difference"] = (abs(a - b) / abs(a) for a, b in zip(*ends, strict=True))
    out["waits_of_a_step"] = {str(count): waits(device, batches[:count]) for count in (1, 8)}
    whole, again, resumed = (build(DRY, device) for _ in range(3))
    for model in (whole, again):
        loop.fit(job(model, [[batch] for batch in batches], 4, "fp32"), Progress())
    first = job(resumed, [[batch] for batch in batches], 2, "fp32")
    middle = loop.fit(first, Progress())
    second = job(resumed, [[batch] for batch in batches], 4, "fp32")
    second.optimiser.load_state_dict(deepcopy(first.optimiser.state_dict()))
    loop.fit(second, middle)
    out["same_bits_twice"], out["same_bits_resumed"] = same(whole, again), same(whole, resumed)
    return out


def waits(device: torch.device, batches: Sequence[Batch]) -> int | None:
    """Returns how often the host waits for the device in a step; None on a CPU."""
    if device.type != "cuda":
        return None
    model = build(DRY, device)
    given = job(model, [batches], 2, "fp32")
    loop.fit(given, Progress(stage_step=1))  # the first step allocates
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loop.fit(given, Progress(stage_step=1))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Returns whether two models have the same bits."""
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def train(sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """Measures the training loop on packed rows: conversations, captions that share their image, the same captions apart."""
    dtype = "fp32" if device.type == "cpu" else "bf16"
    groups = samples(sizes, 160, 5, seed=1)
    arms = {"conversations": samples(sizes, 320), "shared": groups, "apart": apart(groups)}
    model = build(sizes, device)
    out: dict[str, Any] = {}
    for name, given in arms.items():
        out[name] = speed(model, packed(sizes, given, sizes.rows), sizes, dtype)
    out["shared_over_apart_supervised"] = out["shared"]["supervised_per_s"] / out["apart"]["supervised_per_s"]
    return out


def trainer(sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """Measures transformers' Trainer with a stock LLaVA (sdpa, bf16) on rows padded to the longest of a batch."""
    encoder, decoder = configs(sizes)
    torch.manual_seed(0)
    llava = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=encoder,
            text_config=decoder,
            image_token_index=sizes.decoder["vocab_size"] - 1,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        )
    )

    def collated(rows: list[Sample]) -> dict[str, Tensor]:
        ids = [torch.from_numpy(sample.branches[0].ids) for sample in rows]
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
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
    with tempfile.TemporaryDirectory() as folder:
        options = TrainingArguments(
            folder,
            max_steps=sizes.steps,
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
        run = Trainer(llava, options, train_dataset=items, data_collator=collated)
        run.train()  # warms up
        begin = time.perf_counter()
        run.train()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begin
    rows = sizes.steps * min(per_batch, len(given))
    ours = train(sizes, device)["conversations"]["supervised_per_s"]
    return {"supervised_per_s": rows * supervised / seconds, "ours_over_trainer": ours * seconds / (rows * supervised)}


def ratios(sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """Runs the benchmarks of CAL, ALIGN and the experts."""
    names = ["moe"] if sizes is DRY else ["cal", "connectors", "moe"]
    options = ["--repeats", "1", "--tokens", "64"] if sizes is DRY else ["--repeats", "5"]
    out = {}
    for name in names:
        done = subprocess.run([sys.executable, "-m", "benchmarks", name, "--json", *options], capture_output=True, text=True)
        out[name] = json.loads(done.stdout) if done.returncode == 0 else {"failed": done.stderr[-2000:]}
    return out


def decode(sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """Measures greedy generation with our model against its decoder alone on embeddings of the same length."""
    model = build(sizes, device).eval()
    given, new = samples(sizes, 8 if sizes is DRY else 32), 8 if sizes is DRY else 64
    length = 1 + sizes.visual + PROMPT
    ids = torch.stack([torch.from_numpy(sample.branches[0].ids[:length]) for sample in given]).to(device)
    pixels = model.normalise(torch.cat([torch.from_numpy(sample.images) for sample in given]).to(device))
    settings = GenerationConfig(max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0, eos_token_id=2)

    def seconds(**inputs: Any) -> float:
        target: Any = model if "pixel_values" in inputs else model.language
        best = []
        for _ in range(3):
            begin = time.perf_counter()
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                target.generate(**inputs, generation_config=settings)
            if device.type == "cuda":
                torch.cuda.synchronize()
            best.append(time.perf_counter() - begin)
        return min(best)

    plain = seconds(input_ids=ids.clamp(max=sizes.decoder["vocab_size"] - 2))
    ours = seconds(input_ids=ids, pixel_values=pixels)
    tokens = new * len(given)
    return {"tokens_per_s": tokens / ours, "decoder_tokens_per_s": tokens / plain, "ours_over_decoder": plain / ours}


def summary(folder: Path, note: Path | None) -> dict[str, Any]:
    """Joins the results of all parts; writes a page about a GPU."""
    found = {part: json.loads(file.read_text("utf-8")) for part in PARTS if (file := folder / f"{part}.json").exists()}
    out: dict[str, Any] = {
        "date": str(date.today()),
        "machine": machine(),
        "missing": [part for part in PARTS if part not in found],
        **found,
    }
    if note is not None and torch.cuda.is_available():
        flat = "\n".join(f"    {line}" for line in json.dumps(out, indent=1).splitlines())
        note.write_text(
            f"# On a GPU\n\nMeasured by `sh benchmarks/gpu.sh OUT` on {out['date']} ({out['machine']['gpu']}):\n\n{flat}\n", "utf-8"
        )
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("part", choices=[*PARTS, "summary"])
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    parser.add_argument("--dry", action="store_true", help="tiny shapes on a CPU")
    parser.add_argument("--note", type=Path, help="the page that the summary writes where there is a GPU")
    options = parser.parse_args()
    if options.part == "summary":
        found = summary(options.out.parent, options.note)
    else:
        if not options.dry and not torch.cuda.is_available():
            sys.exit("torch finds no CUDA device; --dry runs tiny shapes on the CPU.")
        sizes, device = (DRY, torch.device("cpu")) if options.dry else (FULL, torch.device("cuda"))
        begin = time.perf_counter()
        found = globals()[options.part](sizes, device) | {"seconds": round(time.perf_counter() - begin, 1), "dry": options.dry}
    options.out.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
