"""The question tasks on a tiny model, by generation and by likelihood, from a dataset folder to scores.json."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sightline.assembly.encode.features import EncodingRequest, encode_dataset, feature_encoder_of
from sightline.assembly.evaluate.evaluate import Evaluation, evaluate
from sightline.assembly.model.build import Processing, build_from_config, read_model, write_model
from sightline.data.dataset import open_dataset
from sightline.data.features.store import FeatureLoader, open_store
from sightline.errors import UsageError
from sightline.evaluation.spec import EvalSpec
from sightline.evaluation.tasks import TASKS
from sightline.runtime.device import choose_runtime
from sightline.types import Record
from tests.assembly.helpers import run_config
from tests.data.check.planted import folder, png, question, record, scene

COLORS = ["red", "dark green", "blue"]
COUNT = 6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "model"
    path.mkdir()
    write_model(build_from_config(run_config(), Processing(prompt="Look.", max_tokens=24), None), path)
    return path


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of each image a question with choices, one for yes or no, and a box; the same in both splits with other images."""
    rows: list[dict[str, Any]] = []
    for number in range(2 * COUNT):
        split, image = ("val", "train")[number % 2], f"{number}.png"
        choice = question(f"c{number}", image, "Which color?", [COLORS[number % 3]], split)
        rows.append(choice | {"meta": {"choices": COLORS}})
        rows.append(question(f"y{number}", image, "Is it red?", [("yes", "no")[number // 2 % 2]], split))
        box = {"label": "the star", "xyxy": [0.0, 0.0, 0.5, 0.5]}
        rows.append(record(f"b{number}", image, split, boxes=[box], negatives=["a red box", "another box"]))
    images = {f"{number}.png": png(scene(number, 64)) for number in range(2 * COUNT)}
    return folder(tmp_path_factory.mktemp("data") / "set", rows, images)


def asked(model: Path, dataset: Path, out: Path, **options: Any) -> Evaluation:
    spec = EvalSpec.model_validate({"data": str(dataset), "batch_size": 4, "resamples": 20} | options)
    return evaluate(spec, str(model), out=out, device="cpu")


@pytest.mark.parametrize(("task", "count"), [("vqa", 2 * COUNT), ("choice", COUNT), ("yes_no", COUNT), ("grounding", COUNT)])
def test_every_task_runs_from_a_dataset_folder(model: Path, dataset: Path, tmp_path: Path, task: str, count: int) -> None:
    short = {"prompt": "Where is {question}?"} if task == "grounding" else {}  # its own is longer than the tiny decoder can read
    done = asked(model, dataset, tmp_path, task=task, shots=1, max_new_tokens=4, **short)
    told = json.loads((tmp_path / "scores.json").read_text())
    assert (told["input"], told["ok"], told["prompt"]) == (count, count, short.get("prompt", TASKS[task].prompt))
    assert told["scores"].keys() == {info.name for info in TASKS[task].scores}
    assert all(score["n"] == count and 0 <= score["unparsed"] <= 1 for score in told["scores"].values())
    assert all(scorer[-1].isdigit() for scorer in told["scorers"].values())
    assert "likelihood" not in told
    items = json.loads((tmp_path / "items.json").read_text())
    assert all(len(values) == count for values in items["items"].values())
    assert done.task.headline.name in items["items"]
    own = asked(model, dataset, tmp_path / "own", task=task, prompt="Q: {question}", max_new_tokens=4)
    assert own.to_json()["prompt"] == "Q: {question}"


def scores_of(done: Evaluation) -> dict[str, torch.Tensor]:
    return {p.id: torch.tensor(p.scores, dtype=torch.float64) for p in done.predicted.predictions}


def test_gain_is_the_likelihood_with_the_image_less_that_of_the_same_text_alone(model: Path, dataset: Path, tmp_path: Path) -> None:
    seen, half, full = (
        scores_of(asked(model, dataset, tmp_path / str(alpha), task="choice", likelihood="gain", alpha=alpha))
        for alpha in (0.0, 0.5, 1.0)
    )
    bundle = read_model(model)
    bundle.module.eval()
    (query,) = TASKS["choice"]().queries(next(r for r in open_dataset(dataset).records("val") if r.id == "c0"), "{question}")
    conversation_encoder = bundle.conversation_encoder("", max_tokens=4096)
    texts = tuple(turn.__class__(turn.role, turn.content[1:]) for turn in query.messages)
    prompt = conversation_encoder.encode_prompt(texts, []).ids.tolist()
    blind = []
    for color in COLORS:
        answer = bundle.tokenizer(f"{color}{bundle.tokenizer.eos_token}", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = bundle.model.language(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
        blind.append(sum(float(logits[len(prompt) - 1 + place, token]) for place, token in enumerate(answer)))
    for key in seen:
        assert (seen[key] - full[key]).tolist() == pytest.approx(blind, rel=1e-4)
        assert (seen[key] - half[key]).tolist() == pytest.approx([value / 2 for value in blind], rel=1e-4)
    assert len({tuple(value.tolist()) for value in seen.values()}) == COUNT  # the image matters to them
    plain = scores_of(asked(model, dataset, tmp_path / "plain", task="choice", likelihood="plain"))
    lengths = torch.tensor([len(color) for color in COLORS])
    for key in seen:
        assert (plain[key] * lengths).tolist() == pytest.approx(seen[key].tolist(), rel=1e-6)


def test_alpha_is_chosen_on_training_data_whatever_the_control(model: Path, dataset: Path, tmp_path: Path) -> None:
    done = asked(model, dataset, tmp_path / "a", task="yes_no", likelihood="gain")
    told = done.to_json()["likelihood"]
    assert (told["kind"], told["chosen_on"]["split"], told["chosen_on"]["items"]) == ("gain", "train", COUNT)
    assert told == json.loads((tmp_path / "a/scores.json").read_text())["likelihood"]
    shuffled = asked(model, dataset, tmp_path / "b", task="yes_no", likelihood="gain", control="shuffled").to_json()
    assert shuffled["likelihood"] == told
    given = asked(model, dataset, tmp_path / "c", task="yes_no", likelihood="gain", alpha=told["alpha"])
    assert given.scores == done.scores
    with pytest.raises(UsageError, match="chosen on split 'val', which is evaluated"):
        asked(model, dataset, tmp_path / "d", task="yes_no", likelihood="gain", alpha_from="val")
    with pytest.raises(UsageError, match="'dev', which does not exist"):
        asked(model, dataset, tmp_path / "d", task="yes_no", likelihood="gain", alpha_from="dev")


def test_a_yes_no_question_is_asked_about_each_option(model: Path, dataset: Path, tmp_path: Path) -> None:
    done = asked(model, dataset, tmp_path, task="choice", likelihood="yes_no")
    assert done.prompt == '{question}\nIs "{candidate}" the correct answer? Please answer yes or no.'
    assert all(len(prediction.scores or ()) == len(COLORS) for prediction in done.predicted.predictions)
    with pytest.raises(UsageError, match="alpha belongs to --likelihood gain"):
        asked(model, dataset, tmp_path / "v", task="choice", likelihood="plain", alpha=0.5)
    with pytest.raises(UsageError, match="no candidates"):
        asked(model, dataset, tmp_path / "v", task="vqa", likelihood="gain")


def test_composition_is_scored_by_gain_where_nothing_else_is_asked_for(model: Path, dataset: Path, tmp_path: Path) -> None:
    done = asked(model, dataset, tmp_path / "gain", task="composition")
    assert done.to_json()["likelihood"]["kind"] == "gain"
    assert done.to_json()["likelihood"]["chosen_on"]["items"] == COUNT
    assert done.scores["accuracy"].n == COUNT
    seen = scores_of(asked(model, dataset, tmp_path / "0", task="composition", alpha=0.0))
    full = scores_of(asked(model, dataset, tmp_path / "1", task="composition", alpha=1.0))
    blind = {tuple((seen[key] - full[key])[1:].round(decimals=3).tolist()) for key in seen}
    assert len(blind) == 1  # the negatives are the same texts in every record, and no image is seen
    confirmed = asked(model, dataset, tmp_path / "yes_no", task="composition", likelihood="yes_no")
    assert all(len(scores) == 3 for scores in scores_of(confirmed).values())


# The baseline of nearest images ---------------------------------------------------------------------------------------------


def test_neighbours_answer_from_the_encoder_of_a_model_or_from_a_store(model: Path, dataset: Path, tmp_path: Path) -> None:
    store, request = tmp_path / "store", EncodingRequest((open_dataset(dataset),), tmp_path / "store", dtype="fp32")
    encode_dataset(feature_encoder_of(read_model(model)), request, choose_runtime("cpu", "fp32", 1))
    features = FeatureLoader(open_store(store))
    data = open_dataset(dataset)
    train = [record for record in data.records("train") if record.captions]

    def unit(record: Record) -> np.ndarray:
        found = features.load(data, record).features
        assert found is not None
        mean = found.mean(axis=(0, 1))
        return mean / np.linalg.norm(mean)

    for neighbours in (1, 4):
        options = {"task": "caption", "baseline": "neighbours", "neighbours": neighbours}
        done = asked(model, dataset, tmp_path / f"model{neighbours}", **options)
        spec = EvalSpec.model_validate({"data": str(dataset), "features": str(store), "resamples": 20} | options)
        stored = evaluate(spec, None, out=tmp_path / f"store{neighbours}")
        assert [p.text for p in stored.predicted.predictions] == [p.text for p in done.predicted.predictions]
        told = json.loads((tmp_path / f"store{neighbours}/scores.json").read_text())
        assert (told["baseline"], told["neighbours"], told["decoding"]) == ("neighbours", neighbours, None)
        for query, prediction in zip(stored.queries, stored.predicted.predictions, strict=True):
            if not query.record.captions:  # a question, which is answered by what is said to the same one
                continue
            near = sorted(train, key=lambda record: -float(unit(record) @ unit(query.record)))[:neighbours]
            assert prediction.text in {record.captions[0] for record in near}
            if neighbours == 1:
                assert prediction.text == near[0].captions[0]


def test_neighbours_answer_questions_and_refuse_what_does_not_apply(model: Path, dataset: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"baseline": "neighbours"}
    for task in ("choice", "yes_no", "grounding"):
        done = asked(model, dataset, tmp_path / task, task=task, **options)
        assert {score.unparsed for score in done.scores.values()} == {0.0}
    boxes = asked(model, dataset, tmp_path / "grounding", task="grounding", **options)
    assert boxes.scores["acc_50"].value == 1.0  # the same box in every image
    shuffled = asked(model, dataset, tmp_path / "shuffled", task="choice", control="shuffled", **options)
    assert shuffled.to_json()["control"] == "shuffled"
    with pytest.raises(UsageError, match="Leave out --likelihood"):
        asked(model, dataset, tmp_path / "l", task="choice", likelihood="plain", **options)
    with pytest.raises(UsageError, match="cannot answer under the control 'text'"):
        asked(model, dataset, tmp_path / "t", task="choice", control="text", **options)
    spec = EvalSpec(task="choice", data=str(dataset), baseline="neighbours")
    with pytest.raises(UsageError, match="needs features of the images"):
        evaluate(spec, None)
    with pytest.raises(UsageError, match="no model is named"):
        evaluate(spec.model_copy(update={"baseline": None}), None)
