"""All private attributes of transformers that this package uses, each behind a public name.

Any minor version of transformers may rename one; tests/models/test_transformers_private.py then names the missing attribute.
No other file of the package may use them, but for runtime/auto_classes.py, which must not import transformers.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, masking_utils
from transformers.generation.utils import GenerationMixin

# transformers 5.24 renamed `past_key_values` to `cache`. Callers may use either; CACHE_NAME is the installed version's name.
CACHE_NAMES = ("cache", "past_key_values")
_GENERATION_INPUTS = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
CACHE_NAME = next(name for name in CACHE_NAMES if name in _GENERATION_INPUTS)


def named_cache(arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments with the cache, if given, under the name that the installed transformers uses.

    Raises:
        ValueError: the cache is given under both names.
    """
    given = {name: arguments[name] for name in CACHE_NAMES if arguments.get(name) is not None}
    if len(given) > 1:
        raise ValueError("give the cache either as cache or as past_key_values, not as both")
    others = {name: value for name, value in arguments.items() if name not in CACHE_NAMES}
    return others if not given else {**others, CACHE_NAME: given.popitem()[1]}


def attention_kernel(config: PreTrainedConfig) -> str | None:
    """Returns the attention implementation that a configuration sets; None if it sets none."""
    return config._attn_implementation


def set_attention_kernel(config: PreTrainedConfig, kernel: str | None) -> None:
    """Sets the attention implementation that a model of this configuration is built with."""
    config._attn_implementation = kernel


def clear_kernels(config: PreTrainedConfig) -> None:
    """Removes the kernels that a configuration file names: a name may refer to a kernel on the Hub, which is code."""
    config._attn_implementation = config._experts_implementation = None


def supports_sdpa(architecture: type[PreTrainedModel]) -> bool:
    """Returns whether an architecture can run on torch's scaled_dot_product_attention."""
    return bool(architecture._supports_sdpa)


def supports_flex(architecture: type[PreTrainedModel]) -> bool:
    """Returns whether an architecture can run on FlexAttention with a block mask."""
    return bool(architecture._supports_flex_attn)


@contextlib.contextmanager
def positions_unsearched() -> Iterator[None]:
    """Leaves out transformers' search of the position ids for packed samples, which waits for the device in every forward pass.

    Only for rows whose positions rise by one from slot to slot, where it finds nothing.
    """
    search = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None  # pyrefly: ignore
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = search


def layer_classes(model: PreTrainedModel) -> set[str]:
    """Returns the class names of a model's layers; empty if the model does not list them."""
    return set(model._no_split_modules or ())


def mark_initialised(module: nn.Module) -> None:
    """Marks the weights of a module as initialised, so that `post_init` of an enclosing model does not change them."""
    for part in module.modules():
        part._is_hf_initialized = True  # type: ignore[assignment]
    for parameter in module.parameters():
        parameter._is_hf_initialized = True  # type: ignore[attr-defined]


def set_checkpointing(model: PreTrainedModel, function: Callable[..., Any]) -> None:
    """Turns gradient checkpointing on; each layer then runs as `function(layer_forward, *inputs)`."""
    # The public method has a different name in each supported version, and one of the two logs a warning.
    model._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=function)


def wrap_checkpointing(layer: nn.Module, wrapper: Callable[..., Any]) -> None:
    """Runs a checkpointed layer as `wrapper(layer, function, layer_forward, *inputs)`; `function` is its checkpointing function."""
    # pyrefly: ignore  # a plain attribute that transformers sets on each layer
    layer._gradient_checkpointing_func = partial(wrapper, layer, layer._gradient_checkpointing_func)


def checkpointing_of(layer: nn.Module) -> Callable[..., Any]:
    """Returns the checkpointing function of a layer for which gradient checkpointing is on."""
    return layer._gradient_checkpointing_func  # pyrefly: ignore


class CustomModel(PreTrainedModel, GenerationMixin):
    """Base class of Sightline's models: declares what they support and maps transformers' private hooks to public methods."""

    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _skip_keys_device_placement = ["cache", "past_key_values"]  # noqa: RUF012 (transformers' own form)
    _no_split_modules: list[str] = []  # noqa: RUF012
    layer_names: ClassVar[tuple[str, ...]] = ()
    """Class names of the model's layers, which are sharded one by one (see `layer_classes`)."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._no_split_modules = list(cls.layer_names)

    def init_missing(self, module: nn.Module) -> None:
        """Initialises a module that a checkpoint lacks; called only by `from_pretrained`."""
        raise NotImplementedError

    def checkpointing_enabled(self) -> None:
        """Runs after gradient checkpointing was enabled."""

    def expand_own_inputs(self, times: int, input_ids: Tensor | None, inputs: dict[str, Any]) -> dict[str, Any]:
        """Removes the inputs that only this model has from `inputs` and returns them for rows repeated `times` times (beams)."""
        return {}

    def _init_weights(self, module: nn.Module) -> None:
        self.init_missing(module)

    def _set_gradient_checkpointing(self, enable: bool = True, **kwargs: Any) -> None:
        super()._set_gradient_checkpointing(enable, **kwargs)
        if enable:
            self.checkpointing_enabled()

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: torch.Tensor | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor | None, dict[str, Any]]:
        own = self.expand_own_inputs(expand_size, input_ids, kwargs)
        expand = super()._expand_inputs_for_generation
        input_ids, kwargs = expand(expand_size, is_encoder_decoder, input_ids, **kwargs)  # pyrefly: ignore
        return input_ids, {**kwargs, **own}
