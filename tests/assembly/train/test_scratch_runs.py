"""Runs of the recipes from scratch: a killed mixture ends as one that was left alone, and its folder answers and is evaluated."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sightline.assembly.evaluate.chat import ChatModel
from sightline.assembly.evaluate.evaluate import evaluate
from sightline.cli import main
from sightline.evaluation.spec import EvalSpec
from sightline.generation.decode import DecodingConfig
from sightline.runtime import storage
from sightline.training import checkpoint
from tests.data.pictures import picture, put
from tests.processes import Commands

CLOCK = {"seconds", "tokens_per_s", "wait_share"}
VISION = {"image_size": 32, "patch_size": 8, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
DECODER = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_experts": 4}
TRAIN = {"batch_size": 4, "steps": 6, "warmup": 1, "checkpoint_every": 2, "evaluate_every": 3, "evaluate_samples": 2}
OF_DECODER = [f"model.language.config.{name}={value}" for name, value in DECODER.items()]
SMALL = [
    *(f"model.vision.config.{name}={value}" for name, value in (VISION | {"num_attention_heads": 2}).items()),
    *OF_DECODER,
    *(f"train.{name}={value}" for name, value in (TRAIN | {"generate_samples": 1}).items()),
    "model.language.config.max_position_embeddings=128",
    "model.connector.hidden=16",
    "data.max_tokens=100",
    "runtime.threads=1",
]


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    with Commands() as server:
        yield server


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "set"
    with pytest.raises(SystemExit) as ended:
        main(
            ["data", "prepare", "-", "--format", "scenes", "--count", "24", "--level", "1", "--out", str(folder), "--workers", "0"]
        )
    assert not ended.value.code
    return folder


def outcome(run: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The log without its clock, and the hash of every file of the last checkpoint."""
    lines = storage.read_json_lines(run / "metrics.jsonl")
    last = checkpoint.path_of(run, checkpoint.steps(run)[-1])
    return [{key: value for key, value in line.items() if key not in CLOCK} for line in lines], storage.verify_dir(last)["files"]


def test_a_killed_mixture_ends_as_one_that_was_left_alone(tmp_path: Path, commands: Commands, scenes: Path) -> None:
    """With router noise and dropout, whose random numbers go on; then it is evaluated, and it answers."""
    arguments = ["train", "seemoe", f"data.path={scenes}", *SMALL, "train.accumulate=2", "--out"]
    code, said = commands.run([*arguments, tmp_path / "whole"])
    assert code == 0, said
    for plan in ("step.end=kill@3", "checkpoint.before_publish=kill@2"):
        assert commands.run([*arguments, tmp_path / "killed"], plan)[0] == -9
    code, said = commands.run([*arguments, tmp_path / "killed"])
    assert code == 0, said
    (log, files), (whole_log, whole_files) = outcome(tmp_path / "killed"), outcome(tmp_path / "whole")
    assert log == whole_log
    # transformers notes in these that a model from sizes, or a tokenizer, was read from a folder since.
    noted = {"model/config.json", "model/tokenizer_config.json"}
    assert {name for name in whole_files if files.get(name) != whole_files[name]} <= noted
    assert {"model/language.safetensors", "optimiser.safetensors"} <= files.keys()
    steps = [line for line in outcome(tmp_path / "whole")[0] if "loss" in line]
    assert len(steps) == 6
    assert all(line["decoder_balance"] > 0 and line["decoder_router_z"] > 0 for line in steps)

    done = evaluate(EvalSpec(data=str(scenes), batch_size=2, max_new_tokens=8), str(tmp_path / "whole"), threads=1)
    assert done.scores["exact"].n > 0
    chat = ChatModel.open(str(tmp_path / "whole"), threads=1)
    streamed: list[str] = []
    photo = put(tmp_path / "photo.png", picture(1, size=(40, 30)))
    decoding = DecodingConfig(max_new_tokens=12, do_sample=True, temperature=1.5, top_p=0.9, repetition_penalty=1.2)
    answer = chat.answer((chat.opening(1, None),), [photo], decoding, streamed.append)
    assert "".join(streamed).strip() == answer.text.strip()


def test_the_published_faults_train_together(tmp_path: Path, commands: Commands, scenes: Path) -> None:
    run = tmp_path / "run"
    arguments = ["train", "seemoe", f"data.path={scenes}", "model.compat=seemore", *SMALL, "train.steps=2", "--out", run]
    code, said = commands.run(arguments)
    assert code == 0, said
    config = json.loads((checkpoint.path_of(run, 2) / "model/config.json").read_text())
    assert config["text_config"]["noise_in_evaluation"] is True
    assert config["vision_config"]["attention_scale"] == "model"
    line = next(line for line in outcome(run)[0] if "loss" in line)
    assert line["supervised"] >= 4 * 95  # padding up to data.max_tokens is predicted, too


def test_a_character_model_trains_on_any_text_file(tmp_path: Path, commands: Commands) -> None:
    text = put(
        tmp_path / "input.txt", "".join(f"LEAR {n}:\nBlow, winds, and crack your cheeks! rage! blow!\n\n" for n in range(40))
    )
    assert commands.run(["data", "prepare", text, "--format", "text", "--split", "val=0.2", "--out", tmp_path / "set"])[0] == 0
    arguments = ["train", "caption_lm", f"data.path={tmp_path / 'set'}", "model.language.tokenizer.kind=characters"]
    config = [
        "model.language.config.model_type=sightline_decoder",
        *OF_DECODER,
        "model.language.config.max_position_embeddings=300",
    ]
    rest = ["data.max_tokens=270", "data.row_tokens=270", "train.batch_tokens=540", "train.steps=4", "train.evaluate_every=0"]
    code, said = commands.run([*arguments, *config, *rest, "runtime.threads=1", "--out", tmp_path / "run"])
    assert code == 0, said
    losses = [line["loss"] for line in outcome(tmp_path / "run")[0] if "loss" in line]
    assert len(losses) == 4
    vocabulary = json.loads((checkpoint.path_of(tmp_path / "run", 4) / "model/tokenizer.json").read_text())["model"]["vocab"]
    assert {"L", "!", "\n"} <= set(vocabulary)
