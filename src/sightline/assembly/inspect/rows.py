"""Measures what each stage of a run would train on: lengths, skipped conversations, fill of rows, steps per epoch."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from sightline.assembly.config.epochs import batch_rules, samples_of_stage, stage_steps
from sightline.assembly.config.resolving import stage_plan
from sightline.assembly.config.schema import DataConfig, RunConfig, SourceConfig, StageConfig, StagePlan
from sightline.assembly.config.sources import prompt_for, sources_of
from sightline.assembly.model.blueprint import Blueprint
from sightline.data.batches.plan import EpochPlan
from sightline.data.check import CheckReport
from sightline.data.check.report import StageFigures, TrainingFigures
from sightline.data.check.rows import ConversationLengths, Left, RowFigures, RowSummary, epoch_figures, measure_rows
from sightline.data.dataset import Dataset
from sightline.data.samples.label_noise import with_noise
from sightline.data.samples.length_table import LengthTableRules, SampleTotals, check_trainable
from sightline.errors import SkipLimitError

OnSkip = Callable[[str, Left], None]


def with_folders(config: RunConfig, folders: Sequence[Path]) -> RunConfig:
    """Returns the configuration with other dataset folders (several become a mixture), also for stages that name their own."""
    if len(folders) == 1:
        data = config.data.model_copy(update={"path": str(folders[0]), "mixture": ()})
    else:
        sources = tuple(SourceConfig(path=str(folder), split=config.data.split) for folder in folders)
        data = config.data.model_copy(update={"path": None, "mixture": sources})
    stages = tuple(
        stage.model_copy(update={"data": {key: value for key, value in stage.data.items() if key not in ("path", "mixture")}})
        for stage in config.stages
    )
    return config.model_copy(update={"data": data, "stages": stages})


def folders_of(config: RunConfig) -> tuple[Path, ...]:
    """Returns the dataset folders of all stages.

    Raises:
        ConfigError: none is named.
    """
    plans = [stage_plan(config, number) for number in range(len(config.stages))]
    return tuple(dict.fromkeys(Path(source.path) for plan in plans for source in sources_of(plan.data)))


def training_report(checked: CheckReport, blueprint: Blueprint, on_skip: OnSkip) -> TrainingFigures:
    """Measures the rows of every split and an epoch of every stage.

    Args:
        checked: the checked folders.
        blueprint: the model.
        on_skip: called with the name of the split and each skipped conversation.
    """
    if blueprint.dual is not None:
        return TrainingFigures(blueprint.facts(), {}, [])  # pairs of an image and a caption are no rows of tokens
    measured = _RowMeasurements(checked, blueprint, on_skip)
    if blueprint.config is None:  # a model folder without a run: the rules that it was trained with, no stages
        plain = blueprint.data_section()
        rows = {name: measured.of_split(plain, dataset, split) for name, dataset, split in measured.splits()}
        return TrainingFigures(blueprint.facts(), _summaries(rows), [])
    rows: dict[str, RowFigures] = {}
    stages = []
    for number, stage in enumerate(blueprint.config.stages):
        plan = stage_plan(blueprint.config, number)
        own = {name: measured.of_split(plan.data, dataset, split) for name, dataset, split in measured.splits()}
        is_same = all(rows.get(name, figures) is figures for name, figures in own.items())
        rows |= {name if is_same else f"{name} ({stage.name})": figures for name, figures in own.items()}
        stages.append(_stage(stage, plan, measured))
    return TrainingFigures(blueprint.facts(), _summaries(rows), stages)


def _summaries(rows: dict[str, RowFigures]) -> dict[str, RowSummary]:
    return {name: figures.summary() for name, figures in rows.items()}


class _RowMeasurements:
    """Measures the rows of each split under each set of rules, once."""

    def __init__(self, checked: CheckReport, blueprint: Blueprint, on_skip: OnSkip) -> None:
        self.checked, self.blueprint, self.on_skip = checked, blueprint, on_skip
        self._known: dict[tuple[object, ...], RowFigures] = {}
        self.datasets = {str(dataset.path): dataset for dataset in checked.datasets[: checked.num_checked]}

    def splits(self) -> list[tuple[str, Dataset, str]]:
        """Returns name, data set and split of every checked split."""
        several = len(self.datasets) > 1
        return [
            (f"{dataset.path.resolve().name}:{split}" if several else split, dataset, split)
            for dataset in self.datasets.values()
            for split in dataset.splits
        ]

    def of_split(self, data: DataConfig, dataset: Dataset, split: str) -> RowFigures:
        """Measures the rows of a split, with the prompt that its source has in the mixture."""
        return self.rows(data, dataset, split, prompt_for(data, dataset.path))

    def rows(self, data: DataConfig, dataset: Dataset, split: str, prompt: str) -> RowFigures:
        """Measures the rows of a split, or returns them where they were measured before."""
        rules = LengthTableRules(data.share_prefix, data.width, data.max_skipped)
        conversation_encoder = self.blueprint.stage_builder(data, prompt)
        is_trained_on = any(Path(source.path) == dataset.path and source.split == split for source in sources_of(data))
        noise = (data.noise, data.noise_seed) if is_trained_on else (0.0, 0)
        key = (dataset.path, split, conversation_encoder.template.source, conversation_encoder.rules, rules, noise)
        if key not in self._known:
            folder = list(self.datasets.values()).index(dataset)
            indices = [i for i in dataset.split_indices(split).tolist() if (folder, i) not in self.checked.unreadable]
            name = next(name for name, other, part in self.splits() if other is dataset and part == split)
            noisy = with_noise(dataset, split, *noise)
            self._known[key] = measure_rows(noisy, indices, conversation_encoder, rules, lambda left: self.on_skip(name, left))
        return self._known[key]


def _stage(stage: StageConfig, plan: StagePlan, measured: _RowMeasurements) -> StageFigures:
    """Measures what a stage trains on."""
    data = plan.data
    sources = sources_of(data)
    out = StageFigures(
        name=stage.name,
        sources=[{"path": source.path, "split": source.split} for source in sources],
        pack=data.pack,
        row_tokens=data.width,
        row_images=data.row_images,
        steps=plan.train.steps,
        epochs=plan.train.epochs,
        ends_answers=measured.blueprint.for_stage(data).closing_token() is not None,
    )
    missing = [source for source in sources if source.split not in measured.datasets[str(Path(source.path))].splits]
    if missing:
        return replace(out, why=f"{missing[0].path} has no split {missing[0].split!r}")
    figures = [measured.of_split(data, measured.datasets[str(Path(source.path))], source.split) for source in sources]
    try:
        for source, own in zip(sources, figures, strict=True):
            assert own.table is not None
            check_trainable(own.table, data.max_skipped, source.split)
    except SkipLimitError as error:
        out = replace(out, refused=str(error))
    if not all(own.table for own in figures):
        return replace(out, why="no conversation is left")
    tables, draws = samples_of_stage(data, [own.table for own in figures if own.table is not None])
    windowed = [measured.datasets[str(Path(source.path))].is_sharded for source in sources]
    epochs = EpochPlan.of_tables(tables, draws, windowed, batch_rules(plan))
    epoch = epoch_figures(epochs, ConversationLengths.of(tables, [own.kept_lengths for own in figures]))
    steps = stage_steps(plan, epochs)
    return replace(out, data=SampleTotals.of(tables), epoch=epoch, steps=steps, epochs=steps / epoch.steps_per_epoch)
