"""Samples, rows and steps of a stage: which samples it may draw, how often, and how many steps an epoch has.

Shared by training and `data check`.
"""

from collections.abc import Sequence

from sightline.assembly.config.schema import DataConfig, SourceConfig, StagePlan
from sightline.assembly.config.sources import sources_of
from sightline.data.batches.plan import BatchRules, EpochPlan
from sightline.data.samples.length_table import LengthTable
from sightline.errors import ConfigError


def samples_of_stage(data: DataConfig, tables: Sequence[LengthTable]) -> tuple[list[LengthTable], list[int]]:
    """Applies `data.limit` and the mixture.

    Args:
        data: the stage's data section.
        tables: length table of all samples of each source.

    Returns:
        The length table of each source after `data.limit`, and the number of samples per epoch of each.

    Raises:
        ConfigError: weights and epochs of a mixture are mixed.
    """
    limited = [table.limited(data.limit) for table in tables]
    return limited, samples_per_epoch(sources_of(data), [len(table) for table in limited])


def samples_per_epoch(configs: Sequence[SourceConfig], sizes: Sequence[int]) -> list[int]:
    """Returns the number of samples per epoch of each source.

    Raises:
        ConfigError: weights and epochs are mixed.
    """
    weighted = [config for config in configs if config.weight is not None]
    if weighted and (len(weighted) < len(configs) or any(config.epochs is not None for config in configs)):
        raise ConfigError("data.mixture: give every source a 'weight', or none (then 'epochs' says how often it is seen).")
    if weighted:
        total = sum(config.weight or 0.0 for config in configs)
        return [max(1, round(sum(sizes) * (config.weight or 0.0) / total)) for config in configs]
    return [max(1, round(size * (config.epochs or 1.0))) for config, size in zip(configs, sizes, strict=True)]


def batch_rules(plan: StagePlan) -> BatchRules:
    """Returns how the samples of a stage become rows and steps."""
    return BatchRules(
        pack=plan.data.pack,
        row_tokens=plan.data.width,
        row_images=plan.data.row_images,
        rows_per_step=plan.rows_per_step,
        accumulate=plan.train.accumulate,
        sort_by_length=plan.data.sort_by_length,
        seed=plan.train.seed,
    )


def stage_steps(plan: StagePlan, epochs: EpochPlan) -> int:
    """Returns the optimiser steps of a stage, from `train.steps` or `train.epochs`."""
    if plan.train.steps is not None:
        return plan.train.steps
    assert plan.train.epochs is not None
    return epochs.steps_of(plan.train.epochs)
