"""What a configuration trains, stage by stage, and how large its parts are: from configurations alone, without weights or data.

The parts are built on torch's meta device, where a model has shapes and takes no memory, and the stages are applied to them as
training would apply them. So the table that is printed before a run is the one that is printed when it begins.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from sightline.assembly.config import parts as sections
from sightline.assembly.config import resolving as settings
from sightline.assembly.config.schema import ModelConfig, RunConfig, StagePlan
from sightline.assembly.model import tokenizer as tokenizers
from sightline.assembly.model.costs import connector_shape, text_config_of
from sightline.errors import SightlineError
from sightline.models import composites, language, loading, vision
from sightline.models.connectors import Connector
from sightline.models.language import TokenizerConfig
from sightline.models.vlm import parts_of
from sightline.training import stages
from sightline.training.stages import PartRow
from sightline.types import IMAGE


@dataclass(frozen=True)
class StageOutline:
    """One stage before it runs.

    Attributes:
        plan: the stage with its sections as they hold for it.
        table: a row for each part; sizes are 0 where they are not known.
    """

    plan: StagePlan
    table: tuple[PartRow, ...]

    @property
    def data(self) -> tuple[str, ...]:
        """The dataset folders."""
        if self.plan.data.mixture:
            return tuple(source.path for source in self.plan.data.mixture)
        return () if self.plan.data.path is None else (self.plan.data.path,)

    def title(self) -> str:
        """The stage in one line."""
        train = self.plan.train
        count, unit = (train.steps, "step") if train.steps is not None else (train.epochs, "epoch")
        length = f"{count:,g} {unit}{'' if count == 1 else 's'}"
        rows = "packed rows" if self.plan.data.pack else "samples"
        batch = f"{train.batch_tokens:,} token places" if train.batch_tokens is not None else f"{train.batch_size:,} {rows}"
        where = " + ".join(self.data) or "data that is still to be named (data.path)"
        objective = type(self.plan.objective).model_fields["kind"].default
        return f"stage {self.plan.name}: {length} of {where}, {batch} a step, objective {objective}"

    def lines(self) -> list[str]:
        """For people."""
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

    def _row(self, row: PartRow) -> dict[str, Any]:
        parameters, trainable = (row.parameters, row.trainable) if row.parameters else (None, None)
        return {"lr": row.lr, "rank": row.rank, "parameters": parameters, "trainable": trainable}


@dataclass(frozen=True)
class Outline:
    """All stages of a configuration, and why sizes are not known where they are not."""

    stages: tuple[StageOutline, ...]
    unknown: str = ""


def outline(config: RunConfig) -> Outline:
    """The stages of a configuration, with the sizes of parts where their configurations are at hand."""
    plans = [settings.plan(config, number) for number in range(len(config.stages))]
    try:
        return Outline(tuple(StageOutline(plan, _applied(config.model, plan)) for plan in plans))
    except SightlineError as error:
        return Outline(tuple(StageOutline(plan, _rates(config.model, plan)) for plan in plans), str(error))


def _applied(section: ModelConfig, plan: StagePlan) -> tuple[PartRow, ...]:
    """The table of a stage as training makes it."""
    train = plan.train
    return stages.apply(hollow(section), plan.name, plan.parts, train.lr, train.weight_decay, train.decay_all).table


def _rates(section: ModelConfig, plan: StagePlan) -> tuple[PartRow, ...]:
    """The same without sizes."""
    rules = plan.parts
    return tuple(stages.row_of(part, stages.resolved(rules.get(part, "frozen"), plan.train.lr)) for part in section.part_names)


class _MetaModel(nn.Module):
    """Holds the parts of a vision-language model or of a decoder alone."""

    def parts(self) -> dict[str, dict[str, nn.Parameter]]:
        return parts_of(self)


def hollow(section: ModelConfig) -> nn.Module:
    """The parts of a model on the meta device, under the names that they have in a model.

    Raises:
        SightlineError: a configuration is not at hand, or the parts do not fit together.
    """
    wanted = sections.resolve(section)
    assert wanted.language is not None  # by `resolve`
    whole = _MetaModel()
    eye = wanted.vision
    shape = connector_shape(wanted) if eye is not None else None
    with torch.device("meta"):
        if eye is not None and shape is not None:
            if eye.external is None:
                whole.add_module("vision", vision.from_config(vision.encoder_config(eye), "eager"))
            whole.add_module("connector", Connector(wanted.connector, shape))
            whole.register_parameter("separators", nn.Parameter(torch.empty(wanted.tiling.num_separators, shape.width_out)))
        whole.add_module("language", _decoder(wanted))
    return whole


def _decoder(wanted: ModelConfig) -> PreTrainedModel:
    """The decoder with rows for added tokens."""
    assert wanted.language is not None
    config = text_config_of(wanted.language)
    whole = loading.read_config(wanted.language.path) if wanted.language.path is not None else config
    if whole.model_type in composites.COMPOSITES:  # a stock model ties head and embeddings itself
        config.tie_word_embeddings = bool(whole.tie_word_embeddings)
    tokens = (IMAGE, *wanted.tiling.tokens) if wanted.vision is not None else ()
    if isinstance(wanted.language.tokenizer, TokenizerConfig):
        size = wanted.language.tokenizer.vocabulary + len(tokens)
    else:
        known = tokenizers.build_tokenizer(wanted.language, None)
        tokenizers.add_tokens(known, tokens)
        size = len(known)
    config.vocab_size = max(int(config.vocab_size), size)
    kernel = language.kernel_for(config, "eager")
    return AutoModelForCausalLM.from_config(config, attn_implementation=kernel, trust_remote_code=False)
