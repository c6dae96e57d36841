"""Runs of the recipes from scratch: a killed mixture ends as one that was left alone, and its folder answers and is evaluated."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sightline.assembly.config import locate
from sightline.assembly.evaluate.chat import ChatModel
from sightline.assembly.evaluate.evaluate import evaluate
from sightline.assembly.evaluate.opened import has_images, open_records
from sightline.assembly.model.build import read_model
from sightline.cli import main
from sightline.data.images.pixels import PixelLoader
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
    assert all(0 < line["decoder_load_entropy"] <= 1 and 0.25 <= line["decoder_largest_load"] < 1 for line in steps)

    done = evaluate(EvalSpec(data=str(scenes), batch_size=2, max_new_tokens=8), str(tmp_path / "whole"), threads=1)
    assert done.scores["exact"].n > 0
    chat = ChatModel.open(str(tmp_path / "whole"), threads=1)
    streamed: list[str] = []
    photo = put(tmp_path / "photo.png", picture(1, size=(40, 30)))
    decoding = DecodingConfig(max_new_tokens=12, do_sample=True, temperature=1.5, top_p=0.9, repetition_penalty=1.2)
    answer = chat.answer((chat.opening(1, None),), [photo], decoding, streamed.append)
    assert "".join(streamed).strip() == answer.text.strip()


def test_the_probe_counts_the_choices_of_every_token(tmp_path: Path, scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Against a count of our own: each record alone, one token at a time."""
    run, page = tmp_path / "run", tmp_path / "experts.html"
    command(
        "train", "seemoe", f"data.path={scenes}", *SMALL, "train.steps=1", "model.vision.config.output_tokens=all", "--out", run
    )
    capsys.readouterr()
    command("probe", run, "--data", scenes, "--split", "train", "--what", "experts", "--count", 3, "--out", page, "--json")
    told = json.loads(capsys.readouterr().out)
    assert (told["records"], told["experts_per_token"], len(told["layers"])) == (3, 2, 2)
    assert told["tokens"]["image"] == 3 * 16
    bundle = read_model(locate.model_folder(run))
    model, conversation_encoder = bundle.model.inner.eval(), bundle.conversation_encoder()
    dataset, records = open_records(str(scenes), "train", has_images, 3, "")
    loader = PixelLoader(bundle.processing.preparation, bundle.processing.tiling)  # pyrefly: ignore
    chosen: list[list[list[int]]] = [[], []]
    router = model.language.model.network.layers[1].mlp.router
    router.register_forward_hook(lambda module, inputs, output: rows.extend(output[1].tolist()))
    for record in records:
        layouts = conversation_encoder.layouts(record)
        encoded = [
            conversation_encoder.encode_conversation(messages, layouts) for messages in conversation_encoder.conversations(record)
        ]
        for number, one in enumerate(encoded):
            rows: list[list[int]] = []
            ids = torch.from_numpy(one.ids)[None].clone()
            is_image = torch.zeros(ids.shape[1], dtype=torch.bool)
            is_image[1:17] = True  # after the begin token
            ids[0, is_image] = model.config.image_token_id
            with torch.no_grad():
                model(input_ids=ids, pixel_values=model.normalise(torch.from_numpy(loader.load(dataset, record).pixels)))
            first_text = 17 if number else 0  # the captions of an image share what stands before them
            chosen[0] += [row for row, image in zip(rows, is_image, strict=True) if image and not number]
            chosen[1] += [row for place, row in enumerate(rows) if not is_image[place] and place >= first_text]
    for kind, own in zip(("image", "text"), chosen, strict=True):
        assert len(own) == told["tokens"][kind]
        counts = [sum(row.count(expert) for row in own) / (2 * len(own)) for expert in range(4)]
        assert told["layers"][1]["load"][kind] == pytest.approx(counts)
        wanted = -sum(share * math.log(share) for share in counts if share) / math.log(4)
        assert told["layers"][1]["entropy"][kind] == pytest.approx(wanted)
    assert page.read_text("utf-8").count("<svg") == 2


def command(*words: object) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert not ended.value.code


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
