"""Mixtures: what each source gives to an epoch, and its own loss in the log under its own name."""

import json
from pathlib import Path
from typing import Any

import pytest

from sightline.assembly.config.epochs import samples_per_epoch
from sightline.assembly.config.schema import (
    DataConfig,
    ModelConfig,
    RunConfig,
    RuntimeConfig,
    SourceConfig,
    StageConfig,
    TrainConfig,
)
from sightline.assembly.train.run import train
from sightline.data.dataset import open_dataset
from sightline.errors import ConfigError
from sightline.models.language import LanguageConfig
from tests.builders import decoder_folder
from tests.data.pictures import lines, prepared, put

DOGS, CATS = "dogs", "cats"


def text_set(folder: Path, name: str, count: int, text: str) -> Path:
    rows = [{"id": f"{number}", "captions": [f"{text} {number}."]} for number in range(count)]
    put(folder / f"{name}.in/records.jsonl", rows)
    prepared("records", folder / f"{name}.in", folder / name)
    assert len(open_dataset(folder / name)) == count
    return folder / name


def trained(folder: Path, run: str, mixture: tuple[SourceConfig, ...], **changes: Any) -> list[dict[str, Any]]:
    """The lines of a run that trains a decoder for one epoch."""
    config = RunConfig(
        model=ModelConfig(language=LanguageConfig(path=str(decoder_folder("llama")))),
        data=DataConfig(mixture=mixture, max_tokens=96, pack=False, sort_by_length=False, validation_split=None),
        train=TrainConfig(**{"epochs": 1.0, "batch_size": 4, "accumulate": 4, "lr": 1e-3} | changes),
        stages=(StageConfig(name="text", parts={"language": "train"}),),
        runtime=RuntimeConfig(device="cpu", threads=1),
    )
    train(config, folder / run)
    return [line for line in lines(folder / run / "metrics.jsonl") if "loss" in line]


def test_each_source_has_its_loss_under_its_name_and_they_add_up_to_the_whole(tmp_path: Path) -> None:
    """One sample a micro-batch: most micro-batches know one source alone. All texts of a source are of one length."""
    dogs, cats = text_set(tmp_path, "d", 8, "A brown dog runs number"), text_set(tmp_path, "c", 4, "A cat sleeps number")
    mixture = (SourceConfig(path=str(dogs), name=DOGS), SourceConfig(path=str(cats)))
    found = trained(tmp_path, "run", mixture)
    assert len(found) == 3
    alone = [
        trained(tmp_path, f"run-{source.path[-1]}", (source,), epochs=None, steps=1, batch_size=1, accumulate=1)[0]
        for source in mixture
    ]
    assert all("nll" not in key for key in alone[0])  # one source is the loss itself
    tokens = [line["supervised"] for line in alone]
    shown = set()
    for line in found:
        losses = {key.removeprefix("nll/"): line[key] for key in line if key.startswith("nll/")}
        assert losses  # also in a step of the first source alone
        assert set(losses) <= {DOGS, "c"}
        shown |= set(losses)
        if len(losses) == 2:
            # supervised = n dogs' + (4 - n) cats' tokens
            dogs_here = (line["supervised"] - 4 * tokens[1]) / (tokens[0] - tokens[1])
            total = dogs_here * tokens[0] * losses[DOGS] + (4 - dogs_here) * tokens[1] * losses["c"]
            assert line["loss"] == pytest.approx(total / line["supervised"], rel=1e-5)
    assert shown == {DOGS, "c"}


def test_folders_of_one_name_are_told_apart_by_number(tmp_path: Path) -> None:
    sources = [SourceConfig(path=str(text_set(tmp_path / place, "set", 4, "A dog"))) for place in ("a", "b")]
    keys = {key for line in trained(tmp_path, "run", tuple(sources), batch_size=8) for key in line}
    assert {"nll/set_0", "nll/set_1"} <= keys


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ([{}, {}], [100, 50]),
        ([{"epochs": 2.0}, {"epochs": 0.5}], [200, 25]),
        ([{"epochs": 3.0}, {}], [300, 50]),
        ([{"weight": 1.0}, {"weight": 2.0}], [50, 100]),
        ([{"weight": 1.0}, {"weight": 1e-9}], [150, 1]),
    ],
)
def test_weights_share_an_epoch_and_epochs_multiply_a_source(shares: list[dict[str, float]], expected: list[int]) -> None:
    assert samples_per_epoch([SourceConfig(path="x", **share) for share in shares], [100, 50]) == expected  # pyrefly: ignore


@pytest.mark.parametrize("other", [{}, {"epochs": 1.0}, {"weight": 1.0, "epochs": 1.0}])
def test_weights_and_epochs_are_not_mixed(other: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="give every source a 'weight', or none"):
        samples_per_epoch([SourceConfig(path="x", weight=1.0), SourceConfig(path="y", **other)], [1, 1])  # pyrefly: ignore


def test_the_same_mixture_is_the_same_run(tmp_path: Path) -> None:
    sources = (
        SourceConfig(path=str(text_set(tmp_path, "d", 6, "A dog")), weight=2.0),
        SourceConfig(path=str(text_set(tmp_path, "c", 3, "A cat")), weight=1.0),
    )

    def told(run: str) -> str:
        kept = [
            {key: value for key, value in line.items() if key not in ("seconds", "tokens_per_s", "wait_share")}
            for line in trained(tmp_path, run, sources, epochs=2.0)
        ]
        return json.dumps(kept)

    assert told("one") == told("two")
