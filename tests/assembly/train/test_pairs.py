"""Runs of dual encoders: end to end from the command line, to the bit after a kill, from stored features, on several ranks."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPModel

from sightline.assembly.model.build import read_model
from sightline.data.dataset import open_dataset
from sightline.training import checkpoint
from tests.assembly.train.helpers import prepared_scenes
from tests.assembly.train.pair_runs import assert_equal_weights, finished, last_weights, lines, written
from tests.builders import encoder_folder
from tests.duals import dual_folder, text_folder
from tests.processes import Commands


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    with Commands() as server:
        yield server


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_scenes(tmp_path_factory.mktemp("scenes") / "set", 40)


def settings(scenes: Path, **changes: Any) -> dict[str, Any]:
    run: dict[str, Any] = {
        "model": {"dual": {"path": str(dual_folder("clip"))}},
        "objective": {"kind": "info_nce", "hard_negatives": 1},
        "data": {"path": str(scenes), "captions": "one", "pack": False, "share_prefix": False, "max_skipped": 0.5},
        "train": {"batch_size": 6, "lr": 0.01, "steps": 8, "checkpoint_every": 2, "evaluate_every": 3, "evaluate_samples": 8},
        "stages": [{"name": "all", "parts": {"vision": "train", "text": 0.001, "projection": "train"}}],
        "runtime": {"device": "cpu", "threads": 1},
    }
    return run | changes


def test_a_killed_run_goes_on_to_the_bit_and_its_folder_is_a_clip(scenes: Path, tmp_path: Path, commands: Commands) -> None:
    config = written(tmp_path / "config.yaml", settings(scenes))
    whole = finished(commands, config, tmp_path / "whole")
    code, said = commands.run(["train", "--config", config, "--out", tmp_path / "killed"], "step.end=kill@5")
    assert code == -9, said
    killed = finished(commands, config, tmp_path / "killed")
    assert lines(whole) == lines(killed)
    assert_equal_weights(whole, killed)
    steps = [line for line in lines(whole) if "loss" in line]
    assert [line["samples"] for line in steps] == [6] * 8
    assert {"image_to_text", "text_to_image", "scale", "texts"} <= steps[0].keys()
    assert steps[0]["texts"] == 12  # a hard negative for each
    checks = [line for line in lines(whole) if line.get("event") == "evaluate"]
    assert all(0 <= line["i2t_r1"] <= 1 and line["value"] == -line["validation_loss"] for line in checks)
    saved = checkpoint.newest(whole)
    assert saved is not None
    stock, bundle = CLIPModel.from_pretrained(saved.path / "model"), read_model(saved.path / "model")
    assert bundle.pairs is not None
    assert torch.equal(stock.text_projection.weight, bundle.inner.text_projection.weight)
    options = ["--data", scenes, "--split", "train", "--images", 6, "--device", "cpu", "--threads", 1]
    code, said = commands.run(["report", whole, *options, "--json"])  # of what the model can be asked
    assert code == 0, said
    (told,) = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert told["with the image"]["task"] == "retrieval"
    assert "best caption at rank" in (whole / "report.html").read_text("utf-8")
    assert bundle.pairs.log_values()["scale"] == pytest.approx(stock.logit_scale.exp().item())


def test_a_step_of_two_ranks_is_that_of_one(scenes: Path, tmp_path: Path, commands: Commands) -> None:
    run = settings(scenes)
    run["train"] |= {"steps": 3, "evaluate_every": 0, "checkpoint_every": 0, "lr": 1e-3}
    config = written(tmp_path / "config.yaml", run)
    one = finished(commands, config, tmp_path / "one")
    for command in commands.ranks(2, ["train", "--config", config, "--out", tmp_path / "two"]):
        assert command.wait() == 0, command.said
    for mine, theirs in zip(lines(one), lines(tmp_path / "two"), strict=True):
        if "loss" in mine:
            assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-4)
            assert theirs["grad_norm"] == pytest.approx(mine["grad_norm"], rel=1e-3)


def test_frozen_encoders_read_stored_outputs(scenes: Path, tmp_path: Path, commands: Commands) -> None:
    """Heads alone train: with images and texts encoded once they become the same as with both encoders run in each step."""
    model = {
        "vision": {"path": str(encoder_folder("dinov2"))},
        "dual": {"text": {"path": str(text_folder())}, "width": 8, "projection": "mlp", "bias": -10.0, "temperature": 0.1},
    }
    run = settings(scenes, model=model, objective={"kind": "pairwise_sigmoid"})
    run["stages"] = [{"name": "heads", "parts": {"projection": "train"}}]
    config = written(tmp_path / "config.yaml", run)
    whole = finished(commands, config, tmp_path / "whole")
    assert (whole / "texts" / "heads.npz").is_file()
    store = tmp_path / "store"
    code, said = commands.run(
        ["data", "features", scenes, "--config", config, "--out", store, "--dtype", "fp32", "--device", "cpu"]
    )
    assert code == 0, said
    assert json.loads((store / "store.json").read_text())["shape"] == [1, 24]
    run["data"]["features"] = str(store)
    stored = finished(commands, written(tmp_path / "stored.yaml", run), tmp_path / "stored")
    mine, theirs = last_weights(whole), last_weights(stored)
    for name, value in mine.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-3, atol=1e-4)


def test_two_encoders_from_scratch_train_in_stages_and_go_on_to_the_bit(scenes: Path, tmp_path: Path, commands: Commands) -> None:
    """Heads between frozen encoders first, then the text encoder through adapters and the vision encoder at its own rate."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    text = {"config": {"model_type": "bert", "max_position_embeddings": 32, **sizes}, "tokenizer": {"vocabulary": 300}}
    convnext = {
        "model_type": "convnext",
        "image_size": 32,
        "patch_size": 4,
        "num_stages": 2,
        "hidden_sizes": [8, 12],
        "depths": [1, 1],
    }
    model = {"vision": {"config": convnext}, "dual": {"text": text, "width": 8, "pooling": "mean"}}
    run = settings(scenes, model=model, objective={"kind": "info_nce"})
    run["train"] |= {"steps": 4, "weight_decay": 0.1}
    adapters = {"lr": 0.01, "lora": {"r": 2, "dropout": 0.1, "targets": ["query", "value"]}}
    run["stages"] = [
        {"name": "heads", "parts": {"projection": "train"}},
        {"name": "all", "parts": {"vision": 0.001, "text": adapters, "projection": "train"}},
    ]
    config = written(tmp_path / "config.yaml", run)
    whole = finished(commands, config, tmp_path / "whole")
    code, said = commands.run(["train", "--config", config, "--out", tmp_path / "killed"], "step.end=kill@7")
    assert code == -9, said
    killed = finished(commands, config, tmp_path / "killed")
    assert lines(whole) == lines(killed)
    assert_equal_weights(whole, killed)
    first = load_file(whole / "checkpoints" / "step-4" / "model" / "text.safetensors")
    moved = {name for name, value in last_weights(whole).items() if name in first and not torch.equal(value, first[name])}
    assert moved
    assert all(".query." in name or ".value." in name for name in moved)


def test_an_epoch_draws_each_image_once_and_other_captions_in_the_next(scenes: Path, tmp_path: Path) -> None:
    from sightline.assembly.config.schema import DataConfig
    from sightline.assembly.encode.features import loader_of
    from sightline.assembly.train.pairs import build_pair_corpus
    from sightline.data.batches.plan import BatchRules

    bundle = read_model(dual_folder("clip"))
    data = DataConfig(path=str(scenes), captions="one", max_skipped=0.5)
    corpus = build_pair_corpus(bundle, data, 0, loader_of(bundle, None))
    images = open_dataset(scenes).splits["train"]
    plan = corpus.plan(BatchRules(True, 1, 1, 4, 1, True, seed=3))
    drawn = [[index for row in plan.rows(epoch) for index in row] for epoch in range(2)]
    for pairs in drawn:
        assert len(pairs) == images - images % 4
        assert len({int(corpus.sources[0].table.record_P[pair]) for pair in pairs}) == len(pairs)
    assert set(drawn[0]) != set(drawn[1])
    assert plan.steps(0) == images // 4
