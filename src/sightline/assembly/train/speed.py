"""What makes a step fast on a GPU: FlexAttention, compiled layers, and the kernel of the loss, each where it works.

On a CPU all of it is off. On CUDA what `auto` would turn on is first compared with the definition on this machine, with this model:
a difference, or an error of a compiler, leaves it off with a line in the log.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sightline.assembly.config.schema import RuntimeConfig, StagePlan
from sightline.assembly.model.bundle import ModelBundle
from sightline.errors import ConfigError
from sightline.models import language
from sightline.models.flex_attention import FLEX, attention_of, why_not_flex
from sightline.ops import cut_cross_entropy
from sightline.ops.cross_entropy import Kernel, cross_entropy_kernel, linear_cross_entropy
from sightline.training import compiled
from sightline.types import PADDING, Head, Tokens

Arithmetic = Callable[[], AbstractContextManager[Any]]
"""Returns the autocast context of training."""

NEAR = {"loss": 0.01, "gradient": 0.02, "attention": 0.05}
"""Largest differences of a kernel from the definition, as a share of the norm. Masks that mix samples differ by 0.3 and more."""


@dataclass(frozen=True)
class Speed:
    """What a stage uses.

    Attributes:
        attention: attention kernel of the decoder in training; None keeps the one that it is built with.
        compiled: whether layers are compiled.
        cross_entropy: kernel of the loss.
        notes: why something is off that could be on, a line each.
    """

    attention: str | None = None
    compiled: bool = False
    cross_entropy: Kernel = "chunked"
    notes: tuple[str, ...] = ()

    @property
    def fixes_shapes(self) -> bool:
        """Whether packed rows are filled up to one length, so that nothing is compiled again."""
        return self.compiled or self.attention is not None

    def line(self) -> str:
        """Returns the line of the log."""
        layers = "compiled" if self.compiled else "not compiled"
        return f"attention {self.attention or 'as built'}, layers {layers}, cross-entropy {self.cross_entropy}"

    @contextlib.contextmanager
    def applied(self, bundle: ModelBundle) -> Iterator[None]:
        """Uses it within the context; a dual encoder has no decoder to which it applies."""
        if bundle.pairs is not None:
            yield
            return
        decoder = bundle.model.language
        encoder = None if bundle.model.encoder_outputs is None else bundle.model.encoder_outputs.encoder
        with attention_of(decoder, self.attention), cross_entropy_kernel(self.cross_entropy):
            if not self.compiled:
                yield
                return
            with compiled.compiled_layers(decoder, encoder):
                yield

    @contextlib.contextmanager
    def paused(self, bundle: ModelBundle) -> Iterator[None]:
        """Uses none of it within the context, inside of `applied`: for validation and generation, whose rows have many shapes."""
        if bundle.pairs is not None:
            yield
            return
        decoder = bundle.model.language
        kernel = None if self.attention is None else language.kernel_for(language.text_config(decoder), "sdpa")
        still = compiled.not_compiled() if self.compiled else contextlib.nullcontext()
        with attention_of(decoder, kernel), cross_entropy_kernel("chunked"), still:
            yield


OFF = Speed()
"""The definitions alone, as on a CPU."""


def choose_speed(
    wanted: RuntimeConfig, plan: StagePlan, bundle: ModelBundle, device: torch.device, arithmetic: Arithmetic
) -> Speed:
    """Chooses what a stage uses.

    Args:
        wanted: the run's choices.
        plan: the stage.
        bundle: the model on the device.
        device: of the model.
        arithmetic: returns the autocast context of training.

    Raises:
        ConfigError: the run asks for FlexAttention, and it does not work here.
    """
    on_cuda, notes = device.type == "cuda", []
    no_compiler = compiled.why_not_compiled() if on_cuda else ""
    decoder = bundle.model.language
    flex = False
    if wanted.attention == "flex" or (wanted.attention == "auto" and on_cuda and plan.data.pack):
        reason = _against_flex(decoder, device, no_compiler, arithmetic)
        if reason and wanted.attention == "flex":
            raise ConfigError(f"runtime.attention=flex does not work with this decoder: {reason}.", "Set runtime.attention=auto.")
        flex = not reason
        notes += [f"flex attention is off: {reason}"] if reason else []
    layers = wanted.compile == "layers"
    if wanted.compile == "auto" and on_cuda and plan.data.pack:
        reason = no_compiler or ("the decoder is a mixture of experts" if _has_experts(decoder) else "")
        layers = not reason
        notes += [f"layers are not compiled: {reason}"] if reason else []
    kernel: Kernel = "chunked"
    if on_cuda and wanted.cross_entropy != "chunked":
        reason = _against_cut(language.head_of(decoder), device)
        kernel = "chunked" if reason else "cut"
        if reason and (wanted.cross_entropy == "cut" or cut_cross_entropy.is_installed()):
            notes.append(f"cut_cross_entropy is off: {reason}")
    return Speed(FLEX if flex else None, layers, kernel, tuple(notes))


def _has_experts(decoder: PreTrainedModel) -> bool:
    config = language.text_config(decoder)
    return any((getattr(config, name, None) or 1) > 1 for name in ("num_experts", "num_local_experts", "n_routed_experts"))


def _against_flex(decoder: PreTrainedModel, device: torch.device, no_compiler: str, arithmetic: Arithmetic) -> str:
    reason = why_not_flex(decoder)
    if not reason and device.type != "cuda":
        reason = "torch's FlexAttention computes gradients on CUDA alone"
    if reason or no_compiler:
        return reason or no_compiler
    try:
        differences = flex_differences(decoder, arithmetic)
    except Exception as error:  # of Triton, its compiler, or another library's model
        return f"it failed ({type(error).__name__}: {str(error).strip().partition(chr(10))[0]})"
    finally:
        torch.compiler.reset()
    largest = max(differences)
    return "" if largest <= NEAR["attention"] else f"it differs from the dense mask by {largest:.2f} of the norm"


def flex_differences(decoder: PreTrainedModel, arithmetic: Arithmetic, gradients: bool = True) -> list[float]:
    """Runs a decoder on packed rows of two blocks with the dense mask and with FlexAttention.

    Returns:
        The differences of hidden states and, with `gradients`, of the gradient of the embeddings, as shares of norms.
    """
    tokens = _two_blocks(decoder.device)
    table = decoder.get_input_embeddings()
    with torch.no_grad():
        given = table(tokens.ids_BT)
    found = []
    for kernel in (None, FLEX):
        with attention_of(decoder, kernel), language.eval_mode(decoder), torch.set_grad_enabled(gradients), arithmetic():
            embeddings = given.clone().requires_grad_(gradients)
            states = language.decode(decoder, embeddings, tokens)[0]
            pull = torch.linspace(-1, 1, states.numel(), device=states.device, dtype=states.dtype).view_as(states)
            found.append([states.detach(), *(torch.autograd.grad(states, embeddings, pull) if gradients else ())])
    return [share_of_norm(ours, dense) for dense, ours in zip(*found, strict=True)]


def _two_blocks(device: torch.device) -> Tokens:
    """Returns a row of two samples, of which one has a prefix with two branches, and padding."""
    shape = [(0, PADDING, 60, 0), (0, 0, 50, 60), (0, 1, 40, 60), (1, 0, 90, 0), (PADDING, 0, 16, 0)]
    columns = [(first + place, sample, branch) for sample, branch, size, first in shape for place in range(size)]
    position, sample, branch = torch.tensor(columns, device=device).T[:, None]
    return Tokens(torch.arange(position.shape[1], device=device)[None] % 64, position, sample, branch, is_plain=False)


def share_of_norm(ours: Tensor, theirs: Tensor) -> float:
    """Returns the norm of the difference of two tensors as a share of the second one's norm."""
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())


def _against_cut(head: Head, device: torch.device) -> str:
    if not cut_cross_entropy.is_installed():
        return "the package or Triton is not installed"
    try:
        loss, gradient = cut_differences(head, device)
    except Exception as error:  # of Triton or its compiler
        return f"it failed ({type(error).__name__}: {str(error).strip().partition(chr(10))[0]})"
    if loss <= NEAR["loss"] and gradient <= NEAR["gradient"]:
        return ""
    return f"it differs from our definition by {loss:.3f} of the losses and {gradient:.3f} of the gradient"


def cut_differences(head: Head, device: torch.device) -> tuple[float, float]:
    """Returns how far losses and gradient of cut_cross_entropy are from those of our definition in fp32, as shares of norms.

    The head counts as frozen and without bias, and 256 states are random.
    """
    num_words, width = head.weight_VD.shape
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(256, width, generator=generator).to(device)
    target = torch.randint(num_words, (256,), generator=generator).to(device)
    upstream = torch.rand(256, generator=generator).to(device)
    found = []
    arms: tuple[tuple[torch.dtype, Kernel], ...] = ((torch.float32, "chunked"), (torch.bfloat16, "cut"))
    for dtype, kernel in arms:
        frozen = Head(head.weight_VD.detach().to(dtype), None, head.softcap, head.scale)
        given = states.to(torch.bfloat16).to(dtype).requires_grad_()
        with torch.enable_grad(), cross_entropy_kernel(kernel):
            nll, _ = linear_cross_entropy(given, frozen, target)
            (gradient,) = torch.autograd.grad(nll, given, upstream)
        found.append((nll.detach(), gradient))
    return share_of_norm(found[1][0], found[0][0]), share_of_norm(found[1][1], found[0][1])
