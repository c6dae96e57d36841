"""Stages: which part of the model trains at which learning rate, and a table of it.

The model names its parts. A frozen part has no gradient and, in Sightline's models, is in `eval` mode, so that its parameters and
buffers are bit-equal after training.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal, Protocol, cast

from pydantic import Field
from torch import nn

from sightline.config import Config
from sightline.errors import ConfigError
from sightline.training import lora
from sightline.training.lora import LoraRule


class HasParts(Protocol):
    """A model that groups its parameters into named parts."""

    def parts(self) -> Mapping[str, Mapping[str, nn.Parameter]]:
        """Returns the parameters of each part by their full names; each parameter belongs to exactly one part."""
        ...


class PartConfig(Config):
    """How one part trains."""

    lr: float = Field(gt=0)
    """Peak learning rate of the part."""
    weight_decay: float | None = Field(default=None, ge=0)
    """Weight decay of the part; by default that of `train`."""
    lora: LoraRule | None = None
    """Train low-rank adapters instead of the weights; they are merged into the weights at the end of the stage."""


PartRule = Literal["frozen", "train"] | Annotated[float, Field(gt=0)] | PartConfig


@dataclass(frozen=True)
class Group:
    """Parameters with the same learning rate and weight decay.

    Attributes:
        name: of the part, for the log.
        lr: peak learning rate.
        weight_decay: for parameters with two or more dimensions (or for all of them, with `decay_all`).
        parameters: by their full names.
    """

    name: str
    lr: float
    weight_decay: float
    parameters: Mapping[str, nn.Parameter]


@dataclass(frozen=True)
class PartSummary:
    """A line of the table: a part, its size, and how it trains (`lr` 0: frozen; `rank` above 0: through adapters)."""

    name: str
    parameters: int
    trainable: int
    lr: float
    rank: int = 0

    def line(self) -> str:
        """Returns the line as text, without the size if that is unknown."""
        partly = f", {self.trainable:,} of them" if self.lr and self.trainable != self.parameters else ""
        adapters = f" by adapters of rank {self.rank}" if self.rank else ""
        how = f"trains at {self.lr:g}{adapters}{partly}" if self.lr else "frozen"
        size = f"{self.parameters:>13,} parameters  " if self.parameters else ""
        return f"{self.name:<10} {size}{how}"


@dataclass(frozen=True)
class Stage:
    """A stage after it was applied to a model."""

    name: str
    groups: tuple[Group, ...]
    table: tuple[PartSummary, ...] = field(default=())


def apply(
    model: nn.Module, stage: str, rules: Mapping[str, PartRule], lr: float, weight_decay: float, decay_all: bool = False
) -> Stage:
    """Freezes and unfreezes the parts of a model, and adds adapters where a rule says so.

    Args:
        model: names its parts (see `parts_of`).
        stage: name of the stage.
        rules: for each part `frozen`, `train` (at `lr`), a rate, or a `PartConfig`; a part that is not named is frozen.
        lr, weight_decay: defaults for rules that set none.
        decay_all: apply weight decay to biases and norms too.

    Raises:
        ConfigError: a rule names an unknown part, asks for adapters in a part that is not a module, or no part trains.
    """
    parts = parts_of(model)
    for part in rules:
        if part not in parts:
            raise ConfigError(unknown_part(stage, part, parts), "Use one of these names in stages.*.parts.")
    groups, table = [], []
    for part, parameters in parts.items():
        rule = resolve_rule(rules.get(part, "frozen"), lr)
        size = sum(parameter.numel() for parameter in parameters.values())
        if rule is not None and rule.lora is not None:
            lora.inject(_module_of(model, part), rule.lora, part)
            parameters = parts_of(model)[part]
            lora.check_full(rule.lora, parameters, part)
        trained = {name: value for name, value in parameters.items() if rule is not None and _trains(rule, name)}
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in trained)
        table.append(part_summary(part, rule, size, sum(value.numel() for value in trained.values())))
        if rule is not None:
            groups.extend(_groups(part, rule, trained, weight_decay, decay_all))
    if not any(group.parameters for group in groups):
        raise ConfigError(f"stage {stage!r} trains no part.", "Give at least one part a learning rate in stages.*.parts.")
    model.train()
    return Stage(stage, tuple(groups), tuple(table))


def with_current_parameters(stage: Stage, model: nn.Module) -> Stage:
    """Returns the stage with the model's current parameters, after they were replaced (as sharding does).

    Sharded and unsharded parameters get separate groups: an optimiser cannot step them in one call.
    """
    now = dict(model.named_parameters())
    groups = []
    for group in stage.groups:
        kinds: dict[type, dict[str, nn.Parameter]] = {}
        for name in group.parameters:
            kinds.setdefault(type(now[name].data), {})[name] = now[name]
        groups.extend(replace(group, parameters=parameters) for parameters in kinds.values())
    return replace(stage, groups=tuple(groups))


def parts_of(model: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """Returns the parameters of each part by their full names.

    The model's own `parts()` names them. In a model without it, each child module is a part, and so is each parameter of the model
    itself, such as a logit scale.

    Raises:
        ConfigError: `parts()` leaves out a parameter.
    """
    if callable(getattr(type(model), "parts", None)):
        parts = {part: dict(parameters) for part, parameters in cast(HasParts, model).parts().items()}
        inside = {name for parameters in parts.values() for name in parameters}
        outside = [name for name, _ in model.named_parameters() if name not in inside]
        if outside:
            raise ConfigError(
                f"{type(model).__name__}.parts() leaves out the parameter {outside[0]!r}.", "Add it to one of the parts."
            )
        return parts
    parts = {name: {} for name, _ in model.named_children()}
    for name, parameter in model.named_parameters():
        parts.setdefault(name.partition(".")[0], {})[name] = parameter
    return parts


def unknown_part(stage: str, part: str, parts: Iterable[str]) -> str:
    """Returns the error message for a part that a model does not have."""
    return f"stage {stage!r}: the model has no part {part!r}; it has {', '.join(parts)}."


def _module_of(model: nn.Module, part: str) -> nn.Module:
    """Returns the module of a part that gets adapters."""
    modules = dict(model.named_children())
    if part not in modules:
        raise ConfigError(
            f"part {part!r} of {type(model).__name__} is not a module with linear layers, so it cannot have adapters.",
            f"Give stages.*.parts.{part} a learning rate instead of lora.",
        )
    return modules[part]


def _trains(rule: PartConfig, parameter: str) -> bool:
    return rule.lora is None or lora.trains_under(rule.lora, parameter)


def part_summary(part: str, rule: PartConfig | None, parameters: int = 0, trainable: int = 0) -> PartSummary:
    """Returns the table's line of a part under a rule."""
    if rule is None:
        return PartSummary(part, parameters, trainable, 0.0)
    return PartSummary(part, parameters, trainable, rule.lr, 0 if rule.lora is None else rule.lora.r)


def resolve_rule(rule: PartRule, lr: float) -> PartConfig | None:
    """Returns a rule with all values set, at the run's rate `lr` if it names none; None for a frozen part."""
    if rule == "frozen":
        return None
    if rule == "train":
        return PartConfig(lr=lr)
    if isinstance(rule, PartConfig):
        return rule
    assert isinstance(rule, float | int)
    return PartConfig(lr=float(rule))


def _groups(
    part: str, rule: PartConfig, parameters: Mapping[str, nn.Parameter], weight_decay: float, decay_all: bool
) -> list[Group]:
    decay = weight_decay if rule.weight_decay is None else rule.weight_decay
    matrices = {name: value for name, value in parameters.items() if value.ndim >= 2 or decay_all}
    others = {name: value for name, value in parameters.items() if name not in matrices}
    groups = [Group(part, rule.lr, decay, matrices), Group(part, rule.lr, 0.0, others)]
    return [group for group in groups if group.parameters]
