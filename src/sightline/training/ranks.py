"""How the ranks of a run share a model: each holds a complete copy (DDP), or a shard of every weight (FSDP2).

Both give the same step: a rank's loss is a sum, gradients are averaged over ranks, and the loop divides by the total weight.
"""

import contextlib
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from sightline.errors import ConfigError, DistributedError
from sightline.models.language import body
from sightline.models.transformers_private import layer_classes
from sightline.objectives.base import HiddenStateModel, Objective
from sightline.runtime import process_group
from sightline.training.loss_scale import LossScale
from sightline.types import Batch, Loss, TrainingBatch, tensors_of

# Modules of torch in which nothing happens but exchange between processes, and words of the errors of gloo and NCCL, which have no
# class of their own and may come out of a backward pass.
_EXCHANGE_MODULES = (
    "torch.distributed.distributed_c10d",
    "torch.distributed._functional_collectives",
    "torch.distributed.fsdp._fully_shard._fsdp_collectives",
)
_EXCHANGE_WORDS = (
    "broken pipe",
    "collective",
    "connection",
    "gloo",
    "nccl",
    "pair closure",
    "peer",
    "process group",
    "processgroup",
    "socket",
    "timed out",
    "timeout",
)


@contextlib.contextmanager
def exchange_errors_named(world: int) -> Iterator[None]:
    """Turns an error of the exchange between processes into one that says so.

    Args:
        world: number of processes.

    Raises:
        DistributedError: another process died, stopped, or missed its deadline.
    """
    try:
        yield
    except RuntimeError as error:
        if world == 1 or not is_of_exchange(error):
            raise
        said = str(error).strip().partition("\n")[0] or type(error).__name__
        raise DistributedError(
            f"another process of this run died or missed its deadline ({said}).",
            "Look at what the others said; the same command goes on from the last checkpoint.",
        ) from error


def is_of_exchange(error: RuntimeError) -> bool:
    """Returns whether an error comes from the exchange between processes: by its class, by where it was raised, or by its words."""
    if isinstance(error, torch.OutOfMemoryError):
        return False
    frames = (frame.f_globals.get("__name__") for frame, _ in traceback.walk_tb(error.__traceback__))
    text = str(error).lower()
    return (
        isinstance(error, dist.DistError)
        or any(name in _EXCHANGE_MODULES for name in frames)
        or any(word in text for word in _EXCHANGE_WORDS)
    )


class StepModule(nn.Module):
    """Model and objective as one module, so that a wrapper (DDP, autocast) sees the complete forward pass.

    Args:
        model: computes hidden states.
        objective: computes the loss from them.
    """

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: TrainingBatch) -> Loss:
        loss = self.objective(cast(HiddenStateModel, self.model), cast(Batch, batch))
        if torch.is_grad_enabled() and not loss.total.requires_grad and _is_distributed():
            # A rank whose rows reach no trainable parameter still takes part in the gradient exchange, for which the others wait.
            loss = replace(loss, total=loss.total + _zero_of(self.model.parameters()))
        return loss


class Ranks(Protocol):
    """How ranks share the model and compute the gradient of a step."""

    module: nn.Module
    """Maps a batch to its loss."""
    scale: LossScale | None
    """Factor on the loss in fp16, which the gradient has until `scale_and_clip`."""

    def forward_backward(self, batches: Sequence[TrainingBatch]) -> list[Loss]:
        """Adds the gradient of a step to the parameters and averages it over ranks; returns losses without graph.

        Args:
            batches: all micro-batches of this rank's step, so that an implementation may pass over them more than once.
        """
        ...

    def scale_and_clip(self, parameters: Sequence[nn.Parameter], factor: Tensor, limit: float) -> Tensor:
        """Multiplies the averaged gradients by `factor`, clips their norm over all ranks to `limit`.

        Returns:
            The norm before, on the device: the host does not wait for it.
        """
        ...

    def unsharded(self) -> AbstractContextManager[None]:
        """Returns a context for validation in which each rank can run the model without the others."""
        ...

    def gathered(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the complete tensors on the first rank, nothing on the others; must be called on all ranks."""
        ...


def on_device(batches: Sequence[TrainingBatch], device: torch.device) -> Iterator[TrainingBatch]:
    """Yields batches on the device; on a GPU each is copied, on a stream of its own, while the one before is computed."""
    if device.type != "cuda":
        yield from (batch.to(device) for batch in batches)
        return
    copies, computing = torch.cuda.Stream(device), torch.cuda.current_stream(device)

    def copied(batch: TrainingBatch) -> TrainingBatch:
        with torch.cuda.stream(copies):
            return batch.to(device)

    ahead = [copied(batch) for batch in batches[:1]]
    for following in (*batches[1:], None):
        if not ahead:
            return
        computing.wait_stream(copies)
        batch = ahead.pop()
        for tensor in tensors_of(batch):
            tensor.record_stream(computing)  # its memory is not given to a later copy before it has been used
        if following is not None:
            ahead.append(copied(following))
        yield batch


class _IndependentMicroBatches:
    """A step whose micro-batches are independent: its gradient is the sum of theirs.

    Attributes:
        accelerator: device, precision and ranks.
        module: model and objective.
        scale: factor on the loss in fp16.
    """

    accelerator: Accelerator
    module: nn.Module
    scale: LossScale | None = None

    def forward_backward(self, batches: Sequence[TrainingBatch]) -> list[Loss]:
        losses = []
        for number, batch in enumerate(on_device(batches, self.accelerator.device), 1):
            with self.accelerator.autocast(), self._gradient_sync(number == len(batches)):
                loss: Loss = self.module(batch)
                if loss.total.requires_grad:
                    self.backward(loss.total)
            losses.append(replace(loss, total=loss.total.detach()))
        return losses

    def backward(self, total: Tensor) -> None:
        """Back-propagates a loss, scaled in fp16."""
        self.accelerator.backward(total if self.scale is None else total * self.scale.value)

    def _gradient_sync(self, last: bool) -> AbstractContextManager[None]:
        """Returns a context for a micro-batch; only the `last` one of a step exchanges gradients between ranks."""
        raise NotImplementedError


class Replicated(_IndependentMicroBatches):
    """Every rank holds a complete copy of the model (DDP).

    Args:
        accelerator: device, precision and ranks.
        step: model and objective.
    """

    def __init__(self, accelerator: Accelerator, step: StepModule) -> None:
        self.accelerator = accelerator
        self.module = accelerator.prepare_model(step)

    def _gradient_sync(self, last: bool) -> AbstractContextManager[None]:
        return contextlib.nullcontext() if last else self.accelerator.no_sync(self.module)

    def scale_and_clip(self, parameters: Sequence[nn.Parameter], factor: Tensor, limit: float) -> Tensor:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
        return nn.utils.clip_grad_norm_(parameters, limit)

    def unsharded(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def gathered(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(tensors) if self.accelerator.is_main_process else {}


class Sharded(_IndependentMicroBatches):
    """Every rank holds a shard of each weight, of its gradient and of its optimiser state (FSDP2).

    The weights of a decoder layer are gathered only while it computes; everything else (encoder, connector, embeddings, head) is
    gathered from the start of a step's forward pass to the end of its backward pass. The model changes in place and gets new
    parameters, so the optimiser must be created afterwards.

    Args:
        accelerator: device, precision and ranks.
        model: the model, on the device.
        objective: computes the loss from its hidden states.
        decoder: the part of `model` whose layers are sharded one by one.
        seconds: how long a rank waits for the others before it gives up.

    Raises:
        ConfigError: the decoder does not name its layers (`_no_split_modules`).
    """

    def __init__(
        self, accelerator: Accelerator, model: nn.Module, objective: Objective, decoder: PreTrainedModel, seconds: float = 1800
    ) -> None:
        self.accelerator, self.layers = accelerator, _layers(decoder)
        self.module: nn.Module = _ShardedStep(model, objective, decoder, accelerator.device, seconds)
        mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        # bf16 if autocast would compute in bf16: gathering costs half, and no cast copies of all layers stay in memory.
        bf16 = accelerator.mixed_precision == "bf16"
        arithmetic = (
            MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False) if bf16 else MixedPrecisionPolicy()
        )
        for layer in self.layers:
            fully_shard(layer, mesh=mesh, mp_policy=arithmetic)
        fully_shard(self.module, mesh=mesh, ignored_params=set(filter(_is_indivisible, model.parameters())))

    def _gradient_sync(self, last: bool) -> AbstractContextManager[None]:
        cast(FSDPModule, self.module).set_requires_gradient_sync(last)
        return contextlib.nullcontext()

    def scale_and_clip(self, parameters: Sequence[nn.Parameter], factor: Tensor, limit: float) -> Tensor:
        pieces = [parameter for parameter in parameters if isinstance(parameter.grad, DTensor)]
        copies = [parameter for parameter in parameters if _is_indivisible(parameter)]
        for parameter in copies:
            if parameter.grad is None:  # not used by this rank's rows
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()
        groups = [group for group in (pieces, copies) if group]  # torch's functions accept one kind of gradient at a time
        if not groups:
            return torch.zeros(())
        norms = []
        for group in groups:
            gradients = [cast(Tensor, parameter.grad) for parameter in group]
            for gradient in gradients:
                (gradient.to_local() if isinstance(gradient, DTensor) else gradient).mul_(factor)
            norm = nn.utils.get_total_norm(gradients)
            norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        norm = nn.utils.get_total_norm(norms)
        for group in groups:
            nn.utils.clip_grads_with_norm_(group, limit, norm)
        return norm

    @contextlib.contextmanager
    def unsharded(self) -> Iterator[None]:
        """Gathers all weights on every rank, without gradients and optimiser states."""
        modules = [self.module, *self.layers]
        for layer in self.layers:
            layer.set_reshard_after_forward(False, recurse=False)
        for module in modules:
            cast(FSDPModule, module).unshard()
        try:
            yield
        finally:
            for layer in self.layers:
                layer.set_reshard_after_forward(True, recurse=False)
            for module in modules:
                cast(FSDPModule, module).reshard()

    def gathered(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        out = {}
        for name, tensor in tensors.items():
            value = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if dist.get_rank() == 0:
                out[name] = value.detach().to("cpu")
        return out


class _ShardedStep(StepModule):
    """Model and objective for sharded ranks, which must gather weights in the same order whatever their rows are.

    A rank may run the decoder less often than another: it has no rows, or none for which CAL needs a second pass. So each rank
    announces each pass, and ranks without further passes join with empty passes over two padding tokens, until none announces one.
    All parameters outside of the layers get a gradient, which may be zero.
    """

    def __init__(
        self, model: nn.Module, objective: Objective, decoder: PreTrainedModel, device: torch.device, seconds: float
    ) -> None:
        super().__init__(model, objective)
        inner = body(decoder)
        self._empty_pass = _empty_pass(inner, decoder, device)
        self._host_group = process_group.host_group(seconds)
        self._listens = False
        inner.register_forward_pre_hook(self._before_pass)

    def forward(self, batch: TrainingBatch) -> Loss:
        grad, passes = torch.is_grad_enabled(), 0
        self._listens, self._passes = True, 0
        loss = self.objective(cast(HiddenStateModel, self.model), cast(Batch, batch))
        self._listens = False
        total = loss.total
        while self._announce(0):
            with torch.set_grad_enabled(grad and self._passes + passes == 0):  # one pass with a graph, as on every rank
                nothing = self._empty_pass()
            total, passes = total + nothing, passes + 1
        if grad:
            total = total + _zero_of(parameter for parameter in self.model.parameters() if not isinstance(parameter, DTensor))
        return replace(loss, total=total)

    def _before_pass(self, module: nn.Module, args: Any) -> None:
        if self._listens:
            self._passes += 1
            self._announce(1)

    def _announce(self, passes: int) -> int:
        return process_group.host_sum(passes, self._host_group)


def shards(parameter: Tensor, value: Tensor) -> Tensor:
    """Returns a complete value in the form of `parameter`: this rank's shard, or all of it, on the parameter's device."""
    if isinstance(parameter, DTensor):
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value.to(parameter.device)


def _layers(decoder: PreTrainedModel) -> list[Any]:
    names = layer_classes(decoder)
    found = [module for module in decoder.modules() if type(module).__name__ in names]
    if not found:
        raise ConfigError(
            f"{type(decoder).__name__} does not name its layers (_no_split_modules), so it cannot be sharded over ranks.",
            "Set runtime.shard=false.",
        )
    return found


def _empty_pass(inner: nn.Module, decoder: PreTrainedModel, device: torch.device) -> Callable[[], Tensor]:
    """Returns a pass of the decoder's body over two padding tokens; its value is 0."""
    width = cast(nn.Embedding, decoder.get_input_embeddings()).embedding_dim

    def run() -> Tensor:
        nothing = torch.zeros(1, 2, width, device=device, dtype=decoder.dtype)
        position = torch.arange(2, device=device)[None]
        return inner(inputs_embeds=nothing, position_ids=position, use_cache=False).last_hidden_state.sum() * 0.0

    return run


def _is_indivisible(parameter: Tensor) -> bool:
    """Returns whether every rank keeps a copy: FSDP2 accepts no scalars (a learned gain) and no empty tensors."""
    return parameter.ndim == 0 or not parameter.numel()


def _zero_of(parameters: Iterable[Tensor]) -> Tensor | float:
    """Returns a zero that depends on every trainable parameter."""
    sums = [parameter.sum() for parameter in parameters if parameter.requires_grad]
    return 0.0 * torch.stack(sums).sum() if sums else 0.0


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
