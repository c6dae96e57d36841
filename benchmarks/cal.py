"""Contrastive alignment against plain cross-entropy: time and memory of the decoder's step, forward and backward.

Visual features are given, so that neither encoder, connector nor optimiser are measured, only what the objective changes. Compared
are the objectives `next_token` and `cal` (mode `clean`) as training uses them, `cal` with stored blind logits, and the authors'
formulation: two passes over the full length, the first with image positions masked, both with logits of every position. All arms
take turns within each repeat; plain cross-entropy runs twice, which shows the noise of the machine. On a CPU the decoder has the
widths and the vocabulary of SmolLM2-135M but fewer layers (`--layers 30` uses all); weights are random.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from benchmarks.findings import Finding, fixed, say
from benchmarks.measure import Ratio, Work, in_turn, peak_memory
from sightline.data.batches.collate import collate
from sightline.models.language import hidden_states
from sightline.objectives.base import Objective
from sightline.objectives.cal import CAL, CALConfig
from sightline.objectives.next_token import NextTokenConfig
from sightline.ops.pooling import published_loss, published_weights
from sightline.ops.splice import splice
from sightline.types import Batch, EncodedConversation, Hidden, Sample, Span

SHAPES: dict[str, dict[str, int]] = {
    "llama32_1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "vocab_size": 128_256}
    | {"num_attention_heads": 32, "num_key_value_heads": 8},
    "smollm2_135m": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49_152}
    | {"num_attention_heads": 9, "num_key_value_heads": 3},
    "smollm2_360m": {"hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32, "vocab_size": 49_152}
    | {"num_attention_heads": 15, "num_key_value_heads": 5},
}
VISUAL = (576, 64)  # visual tokens of LLaVA-1.5, and of a connector that merges patches
BEFORE = 4  # text tokens before the image
AIMS = {"576_trained": 1.06, "576_frozen": 1.06, "64_trained": 1.25, "64_frozen": 1.30}
STORED_AIM = 1.03


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the sizes of the measured step."""
    parser.add_argument("--shapes", nargs="+", choices=sorted(SHAPES), help="decoders (CPU: smollm2_135m; GPU: the others)")
    parser.add_argument("--layers", type=int, help="layers of the decoder (CPU: 6; GPU: all)")
    parser.add_argument("--rows", type=int, help="rows with 576 visual tokens; 3 times as many with 64 (CPU: 1; GPU: 16)")
    parser.add_argument("--text", type=int, default=64, help="text tokens per row (default 64)")
    parser.add_argument("--supervised", type=int, default=48, help="supervised text tokens at the end of a row (default 48)")
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")


def run(options: argparse.Namespace) -> list[Finding]:
    """Measures all ratios; names of the first shape's findings carry no shape."""
    on_gpu = torch.cuda.is_available()
    shapes = options.shapes or (["smollm2_360m", "llama32_1b"] if on_gpu else ["smollm2_135m"])
    layers, rows = options.layers or (None if on_gpu else 6), options.rows or (16 if on_gpu else 1)
    if not 0 < options.supervised <= options.text - BEFORE:
        raise SystemExit(f"--supervised must be between 1 and {options.text - BEFORE} with --text {options.text}")
    found: list[Finding] = []
    for number, shape in enumerate(shapes):
        decoder = build_decoder(shape, layers, torch.device("cuda" if on_gpu else "cpu"))
        suffix = f"_{shape}" if number else ""
        for visual in VISUAL:
            step = Step.of(decoder, rows if visual == VISUAL[0] else 3 * rows, visual, options.text, options.supervised)
            for is_trained in (True, False):
                say(f"  {shape}, {visual} + {options.text} tokens, decoder {'trained' if is_trained else 'frozen'}")
                decoder.requires_grad_(is_trained)
                case = f"{visual}_{'trained' if is_trained else 'frozen'}"
                found += compare(step, case, suffix, options.repeats, not options.no_memory)
    return found


def build_decoder(shape: str, layers: int | None, device: torch.device) -> PreTrainedModel:
    """Builds a decoder with random weights; bf16 on a GPU."""
    sizes = SHAPES[shape] | ({} if layers is None else {"num_hidden_layers": layers})
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **sizes, tie_word_embeddings=True, max_position_embeddings=2048)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").to(device).train()


# The arms -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GivenTokens:
    """A model whose visual tokens are the batch's features, unchanged."""

    decoder: PreTrainedModel

    def hidden(self, batch: Batch) -> Hidden:
        """Returns the hidden states of the rows at the supervised slots."""
        return hidden_states(self.decoder, self.embeddings(batch), batch)

    def embeddings(self, batch: Batch) -> Tensor:
        """Returns rows of embeddings with visual tokens inserted."""
        words_BTD = self.decoder.get_input_embeddings()(batch.tokens.ids_BT)
        if batch.visual is None or batch.visual.features_NPE is None:
            return words_BTD
        return splice(words_BTD, batch.visual.features_NPE.flatten(0, 1), batch.visual.slot_M, batch.visual.visual_index_M)


@dataclass(frozen=True)
class Step:
    """A decoder with a batch whose visual tokens require gradients, as a connector's would.

    Attributes:
        labels_BT: target of every position, -100 if there is none, for the full-length passes.
    """

    model: GivenTokens
    batch: Batch
    labels_BT: Tensor

    @classmethod
    def of(cls, decoder: PreTrainedModel, rows: int, visual: int, text: int, supervised: int) -> "Step":
        """Builds rows of random ids: a few text tokens, the visual tokens, a prompt, and an answer of `supervised` tokens."""
        width = decoder.config.get_text_config().hidden_size
        made = [_sample(number, visual, text, supervised, width) for number in range(rows)]
        batch = collate([[sample] for sample in made], pad_id=0).to_batch().to(decoder.device)
        assert batch.visual is not None
        assert batch.visual.features_NPE is not None
        features = batch.visual.features_NPE.to(decoder.dtype).requires_grad_()
        labels = torch.full_like(batch.tokens.ids_BT, -100)
        labels[:, -supervised:] = batch.tokens.ids_BT[:, -supervised:]
        return cls(GivenTokens(decoder), replace(batch, visual=replace(batch.visual, features_NPE=features)), labels)

    @property
    def inputs(self) -> list[Tensor]:
        """Returns every tensor that a step may compute gradients for."""
        visual = self.batch.visual
        assert visual is not None
        assert visual.features_NPE is not None
        return [*self.model.decoder.parameters(), visual.features_NPE]

    def objective(self, objective: Objective, batch: Batch | None = None) -> Work:
        """Returns the forward and backward pass of one of Sightline's objectives."""

        def work() -> None:
            self._clear()
            loss = objective(self.model, self.batch if batch is None else batch)
            (loss.total / loss.weight).backward()

        return work

    def stock(self) -> Work:
        """Returns the forward and backward pass of plain cross-entropy with logits of every position."""

        def work() -> None:
            self._clear()
            logits = self._logits(torch.ones_like(self.labels_BT))
            F.cross_entropy(logits.flatten(0, 1), self.labels_BT[:, 1:].flatten()).backward()

        return work

    def authors(self) -> Work:
        """Returns the forward and backward pass of the authors' formulation."""
        seen = torch.ones_like(self.labels_BT)
        blind = seen.clone()
        assert self.batch.visual is not None
        blind.view(-1)[self.batch.visual.slot_M] = 0

        def work() -> None:
            self._clear()
            labels = self.labels_BT[:, 1:]
            is_labelled = labels != -100
            target = labels.clamp(min=0)[..., None]
            with torch.no_grad():
                blind_BT = self._logits(blind).gather(2, target).squeeze(2)
            logits = self._logits(seen)
            gain_BT = logits.detach().gather(2, target).squeeze(2) - blind_BT
            weight_BT = published_weights(gain_BT, 1.0, 5.0, 3)
            nll = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(gain_BT)
            published_loss(nll, weight_BT, is_labelled).backward()

        return work

    def contrast(self) -> Tensor:
        """Computes the blind logits of all targets, to be stored."""
        blind_S, known_S = CAL(CALConfig()).blind_logits(self.model, self.batch)
        assert bool(known_S.all())
        return blind_S

    def contrast_difference(self) -> float:
        """Returns the largest difference between blind logits from the text alone and from the masked full-length pass."""
        assert self.batch.visual is not None
        blind = torch.ones_like(self.labels_BT)
        blind.view(-1)[self.batch.visual.slot_M] = 0
        labels = self.labels_BT[:, 1:]
        with torch.no_grad():
            full = self._logits(blind).gather(2, labels.clamp(min=0)[..., None]).squeeze(2)[labels != -100]
        return float((full - self.contrast()).abs().max())

    def _logits(self, mask_BT: Tensor) -> Tensor:
        """Returns the logits of every position but the last, in fp32."""
        position = torch.arange(mask_BT.shape[1], device=mask_BT.device).expand_as(mask_BT)
        output = self.model.decoder(
            inputs_embeds=self.model.embeddings(self.batch), attention_mask=mask_BT, position_ids=position, use_cache=False
        )
        return output.logits[:, :-1].float()

    def _clear(self) -> None:
        for value in self.inputs:
            value.grad = None


def _sample(number: int, visual: int, text: int, supervised: int, width: int) -> Sample:
    draw = np.random.default_rng(number)
    words = draw.integers(3, 49_152, text)
    ids = np.concatenate([words[:BEFORE], np.zeros(visual, dtype=np.int64), words[BEFORE:]])
    span = Span(len(ids) - supervised, len(ids), 0)
    return Sample(
        branches=(EncodedConversation(ids, (span,), np.arange(BEFORE, BEFORE + visual), str(number)),),
        prefix=0,
        visual_index=np.arange(visual),
        features=0.02 * draw.standard_normal((1, visual, width), dtype=np.float32),  # the size of word embeddings at the start
        tokens_per_crop=visual,
    )


# The comparison -------------------------------------------------------------------------------------------------------------------


def compare(step: Step, case: str, suffix: str, repeats: int, with_memory: bool) -> list[Finding]:
    """Measures the time of all arms of a case in turn, and their peak memory once."""
    is_trained, is_long = case.endswith("trained"), case.startswith("576")
    difference = step.contrast_difference()
    if difference > (1e-3 if step.batch.supervision.slot_S.device.type == "cpu" else 0.1):
        raise ValueError(f"blind logits of the text alone differ from the masked full-length pass by {difference:g}")
    works = {
        "ce": step.objective(NextTokenConfig().build()),
        "cal": step.objective(CALConfig().build()),
        "again": step.objective(NextTokenConfig().build()),
        **(
            {}
            if is_trained
            else {"stored": step.objective(CALConfig().build(), replace(step.batch, blind_logits_S=step.contrast()))}
        ),
        **({"published": step.authors(), "stock": step.stock()} if is_trained and is_long else {}),
    }
    seconds = in_turn(works, repeats)

    def ratio(name: str, over: str = "ce") -> Ratio:
        return Ratio.of(a / b for a, b in zip(seconds[name], seconds[over], strict=True))

    where = f"at {case.split('_')[0]} visual tokens, decoder {case.split('_')[1]}"
    found = [
        Finding(f"cal_over_ce_{case}{suffix}", ratio("cal"), f"time of cal over plain cross-entropy {where}", at_most=AIMS[case]),
        Finding(f"cal_aa_{case}{suffix}", ratio("again"), f"plain cross-entropy over itself {where}: noise of the machine"),
    ]
    if "stored" in works:
        aim = STORED_AIM if is_long else None
        found.append(
            Finding(f"cal_stored_over_ce_{case}{suffix}", ratio("stored"), f"time with stored blind logits {where}", at_most=aim)
        )
    if "published" in works:
        found.append(Finding(f"published_over_ce_{case}{suffix}", ratio("published"), f"time of the authors' formulation {where}"))
        meaning = f"the authors' formulation over cross-entropy with all logits {where}"
        found.append(Finding(f"published_over_stock_ce_{case}{suffix}", ratio("published", "stock"), meaning))
    return found + (list(memory(step, works, case, suffix, where)) if with_memory and is_long else [])


def memory(step: Step, works: dict[str, Work], case: str, suffix: str, where: str) -> Iterator[Finding]:
    """Yields peak memory over that of plain cross-entropy."""
    names: Sequence[str] = [name for name in ("cal", "stored", "published") if name in works]
    peaks = {name: peak_memory(works[name], step.inputs) for name in ("ce", *names)}
    for name in names:
        key = "published" if name == "published" else "cal" if name == "cal" else "cal_stored"
        yield fixed(f"{key}_memory_over_ce_{case}{suffix}", peaks[name] / peaks["ce"], f"peak of memory {where}")
