"""What a configuration trains stage by stage, how large its parts are, and what an image costs; no weights or data are read.

For `recipes show`, sweep reports and the run card. The stages are applied to the model on the meta device as training applies them
to the real one, so the table that is printed before a run is the table that the run logs.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig, PreTrainedModel

from sightline.assembly.config.resolving import stage_plan
from sightline.assembly.config.schema import ModelConfig, RunConfig, StagePlan
from sightline.assembly.model.blueprint import Blueprint, folder_blueprint, section_blueprint, with_layers
from sightline.assembly.model.build import build_model
from sightline.assembly.model.bundle import ModelBundle
from sightline.data.images.preparation import ImagePreparation
from sightline.errors import SightlineError
from sightline.models import vision
from sightline.models.connectors.cost import ConnectorCost, connector_cost
from sightline.training import stages
from sightline.training.stages import PartSummary

EXAMPLE = (1024, 768)  # width and height of an example image, for tilings whose number of crops depends on them


# Stages -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StageSummary:
    """One stage before it runs.

    Attributes:
        plan: the stage with its sections merged.
        table: a row for each part; sizes are 0 where they are not known.
    """

    plan: StagePlan
    table: tuple[PartSummary, ...]

    @property
    def data(self) -> tuple[str, ...]:
        """The dataset folders."""
        if self.plan.data.mixture:
            return tuple(source.path for source in self.plan.data.mixture)
        return () if self.plan.data.path is None else (self.plan.data.path,)

    def title(self) -> str:
        """Returns the stage in one line."""
        train = self.plan.train
        count, unit = (train.steps, "step") if train.steps is not None else (train.epochs, "epoch")
        length = f"{count:,g} {unit}{'' if count == 1 else 's'}"
        rows = "packed rows" if self.plan.data.pack else "samples"
        batch = f"{train.batch_tokens:,} token places" if train.batch_tokens is not None else f"{train.batch_size:,} {rows}"
        where = " + ".join(self.data) or "data that is still to be named (data.path)"
        return f"stage {self.plan.name}: {length} of {where}, {batch} a step, objective {self.plan.objective.kind}"

    def lines(self) -> list[str]:
        """Returns the stage and its table as text."""
        return [self.title(), *(f"  {row.line()}" for row in self.table)]

    def to_json(self) -> dict[str, Any]:
        train = self.plan.train
        return {
            "name": self.plan.name,
            "data": list(self.data),
            "steps": train.steps,
            "epochs": train.epochs,
            "batch_size": train.batch_size,
            "batch_tokens": train.batch_tokens,
            "parts": {row.name: self._row(row) for row in self.table},
        }

    def _row(self, row: PartSummary) -> dict[str, Any]:
        parameters, trainable = (row.parameters, row.trainable) if row.parameters else (None, None)
        return {"lr": row.lr, "rank": row.rank, "parameters": parameters, "trainable": trainable}


@dataclass(frozen=True)
class RunSummary:
    """All stages of a configuration.

    Attributes:
        stages: in order.
        cost: of an image; None for a decoder alone, or where it is not known.
        unknown: why sizes and cost are not known, else empty.
    """

    stages: tuple[StageSummary, ...]
    cost: "ImageCost | None" = None
    unknown: str = ""


def summarise(config: RunConfig) -> RunSummary:
    """Returns the stages of a configuration, with sizes and costs where the configurations of its parts are at hand."""
    plans = [stage_plan(config, number) for number in range(len(config.stages))]
    try:
        blueprint = section_blueprint(config.model)
        return RunSummary(tuple(StageSummary(plan, _table(blueprint, plan)) for plan in plans), _cost(blueprint))
    except SightlineError as error:
        return RunSummary(tuple(StageSummary(plan, _rates(config.model, plan)) for plan in plans), unknown=str(error))


def _table(blueprint: Blueprint, plan: StagePlan) -> tuple[PartSummary, ...]:
    """Returns the table of a stage as training makes it."""
    train, model = plan.train, build_model(blueprint, init_device="meta")
    return stages.apply(model, plan.name, plan.parts, train.lr, train.weight_decay, train.decay_all).table


def _rates(section: ModelConfig, plan: StagePlan) -> tuple[PartSummary, ...]:
    """Returns the rates without sizes."""
    rules = plan.parts
    return tuple(
        stages.part_summary(part, stages.resolve_rule(rules.get(part, "frozen"), plan.train.lr)) for part in section.part_names
    )


# Costs --------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageCost:
    """What an image costs in encoder and connector.

    Attributes:
        connector: its parameters, and its cost per crop.
        encoder_flops: of the encoder's forward pass of one crop; 0 for an external table.
        crops, tokens: of an image of `EXAMPLE` size under the recipe's tiling; tokens are the visual slots.
    """

    connector: ConnectorCost
    encoder_flops: int
    crops: int
    tokens: int

    def to_json(self) -> dict[str, Any]:
        flops, encoder = self.connector.flops * self.crops, self.encoder_flops * self.crops
        image = {"size": list(EXAMPLE), "crops": self.crops, "tokens": self.tokens, "flops": flops, "encoder_flops": encoder}
        return self.connector.to_json() | {"image": image}

    def lines(self) -> list[str]:
        """Returns the costs as text."""
        cost = self.connector
        rows, columns = cost.grid
        shown = [
            f"connector {cost.kind}: {cost.parameters:,} parameters",
            f"forward pass of a crop: connector {short_flops(cost.flops)}, encoder {short_flops(self.encoder_flops)}",
            f"visual tokens of a crop: {cost.tokens}" + (f" ({rows} x {columns})" if rows > 1 else ""),
        ]
        if self.crops > 1:
            width, height = EXAMPLE
            total = short_flops((cost.flops + self.encoder_flops) * self.crops)
            shown.append(f"an image of {width} x {height} pixels: {self.crops} crops, {self.tokens} visual tokens, {total}")
        return shown


@dataclass(frozen=True)
class ModelCost:
    """Sizes of a model, and what an image costs.

    Attributes:
        parameters: of each part.
        image: None for a decoder alone.
    """

    parameters: dict[str, int]
    image: ImageCost | None

    def to_json(self) -> dict[str, Any]:
        cost: dict[str, Any] = {"parameters": {"all": sum(self.parameters.values()), **self.parameters}}
        if self.image is not None:
            image = self.image.to_json()["image"]
            cost["image"] = image | {"flops": image["flops"] + image["encoder_flops"]}
        return cost


def folder_cost(path: str) -> ModelCost:
    """Returns the cost of a run's model, of a model folder or of a stock model.

    Raises:
        UsageError, ConfigError, StorageError: see `folder_blueprint`.
    """
    blueprint = folder_blueprint(path)
    parts = build_model(blueprint, init_device="meta").parts()
    counted = {name: {id(value): value.numel() for value in part.values()} for name, part in parts.items()}
    return ModelCost({name: sum(sizes.values()) for name, sizes in counted.items()}, _cost(blueprint))


def image_cost(config: RunConfig) -> ImageCost | None:
    """Returns the cost of an image; None for a decoder alone.

    Raises:
        ConfigError, UsageError, StorageError, DataError: the encoder or decoder is not at hand, or they do not fit together.
    """
    return _cost(section_blueprint(config.model))


def _cost(blueprint: Blueprint) -> ImageCost | None:
    vlm, processing = blueprint.vlm, blueprint.processing
    if vlm is None:
        return None
    cost = connector_cost(blueprint.connector_config, blueprint.connector_shape)
    layout = processing.tiling.layout(*EXAMPLE, cost.grid)
    flops = 0 if processing.preparation is None else _encoder_flops(vlm.vision_config, processing.preparation)
    return ImageCost(cost, flops, layout.num_crops, layout.num_tokens)


def _encoder_flops(config: PreTrainedConfig, preparation: ImagePreparation) -> int:
    """Returns operations of an encoder's forward pass of one crop; a multiply-add counts as two."""
    try:
        with torch.device("meta"):
            return _flops(vision.from_config(config, "eager"), preparation)
    except (NotImplementedError, RuntimeError):  # it reads values (Idefics3): models of one and two layers tell what a layer takes
        one, two = (_flops(vision.from_config(with_layers(config, layers), "eager"), preparation) for layers in (1, 2))
        return one + (config.num_hidden_layers - 1) * (two - one)


def _flops(encoder: PreTrainedModel, preparation: ImagePreparation) -> int:
    pixels = torch.zeros(1, 3, preparation.height, preparation.width, device=encoder.device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        vision.raw_output(encoder.eval(), pixels, "last")
    return counter.get_total_flops()


def short_flops(value: int) -> str:
    """Returns a number of operations with a unit."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}FLOP"
    return f"{value} FLOP"


# Of a model with weights --------------------------------------------------------------------------------------------------------


def card_facts(bundle: ModelBundle) -> dict[str, str]:
    """Returns what the run card says about the connector; nothing for a decoder alone or a stock model."""
    connector = bundle.model.connector
    if connector is None:
        return {}
    cost = connector_cost(connector.config, connector.shape)
    known = {"kind": cost.kind, "parameters": f"{cost.parameters:,}", "forward pass of a crop": short_flops(cost.flops)}
    return known | {name.replace("_", " "): f"{value:.4g}" for name, value in connector.log_values().items()}


def log_values(bundle: ModelBundle) -> dict[str, float]:
    """Returns values of the connector, or scale and bias of a dual encoder, for each line of the log."""
    if bundle.pairs is not None:
        return dict(bundle.pairs.log_values())
    connector = bundle.model.connector
    return {} if connector is None else {f"connector/{name}": value for name, value in connector.log_values().items()}
