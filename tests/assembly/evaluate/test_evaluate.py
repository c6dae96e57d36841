"""From a model folder and a data set to scores; batch sizes, broken images and kills change nothing but what they must."""

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.assembly.evaluate import answers
from sightline.assembly.evaluate.evaluate import Evaluation, default_folder, evaluate
from sightline.assembly.model.build import Processing, build_from_config, read_model, write_model
from sightline.data.dataset import Dataset, open_dataset
from sightline.data.samples.prompts import Prompt
from sightline.errors import DataError, SightlineError, SkipLimitError, UsageError
from sightline.evaluation.controls import exchange_images
from sightline.evaluation.spec import EvalSpec
from sightline.generation.decode import DecodingConfig, generate
from sightline.metrics.caption import score_captions
from sightline.types import Message, Part
from tests.assembly.evaluate.helpers import COUNT, data, two_pictures
from tests.assembly.helpers import run_config
from tests.data.check.planted import record, stored
from tests.data.pictures import lines


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "model"
    path.mkdir()
    write_model(build_from_config(run_config(), Processing(prompt="Look.", max_tokens=120), None), path)
    return path


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data(tmp_path_factory.mktemp("data") / "set")


def asked(source: Path, dataset: Path, out: Path, **changes: Any) -> Evaluation:
    model = changes.pop("model", str(source))
    spec = {"task": "caption", "data": str(dataset), "batch_size": 4, "max_new_tokens": 6, "resamples": 20} | changes
    return evaluate(EvalSpec(**spec), model, out=out, device="cpu")


def texts(done: Evaluation) -> dict[str, str]:
    return {prediction.id: prediction.text for prediction in done.predicted.predictions}


@pytest.fixture(scope="module")
def plain(model: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    return asked(model, dataset, tmp_path_factory.mktemp("plain"))


def test_every_batch_size_gives_the_same_texts(model: Path, dataset: Path, tmp_path: Path, plain: Evaluation) -> None:
    assert len(set(texts(plain).values())) > 4  # the model says different things of different images
    for size in (1, 7, 32):
        assert texts(asked(model, dataset, tmp_path / str(size), batch_size=size)) == texts(plain)


def test_scores_are_those_of_the_predictions_with_their_intervals(plain: Evaluation) -> None:
    told = plain.to_json()
    assert json.loads((plain.folder / "scores.json").read_text()).items() >= told.items()
    assert (told["input"], told["ok"], told["skipped"]) == (COUNT, COUNT, {})
    assert (told["task"], told["split"], told["control"]) == ("caption", "val", None)
    said = [texts(plain)[f"r{n}"] for n in range(COUNT)]
    references = [[f"a dog {n}", f"the dog runs {n}"] for n in range(COUNT)]
    direct = score_captions(said, references, resamples=20, seed=0)
    assert set(told["scores"]) == {*direct, "exact"} >= {"cider_d", "bleu_4", "rouge_l"}
    for name, score in told["scores"].items():
        assert score.keys() == {"value", "low", "high", "n", "unparsed"}
        assert told["scorers"][name] == "captions 1"
        assert score["n"] == COUNT
        assert score["low"] <= score["value"] <= score["high"]
        if name in direct:
            assert score["value"] == pytest.approx(direct[name].value, rel=1e-12)
    items = json.loads((plain.folder / "items.json").read_text())
    assert items["records"] == [f"r{n}" for n in range(COUNT)]
    assert len(set(items["image"])) == COUNT
    assert items["items"]["cider_d"] == pytest.approx(list(direct["cider_d"].items), rel=1e-12)
    assert items["values"] == {name: score["value"] for name, score in told["scores"].items()}
    assert (told["prompt"], told["headline"]) == ("Look.", "cider_d")
    assert told["decoding"].items() >= {"max_new_tokens": 6, "num_beams": 1, "do_sample": False}.items()
    assert [line["id"] for line in lines(plain.folder / "predictions.jsonl")] == [f"r{n}" for n in range(COUNT)]


def test_blind_answers_do_not_depend_on_the_images(model: Path, dataset: Path, tmp_path: Path, plain: Evaluation) -> None:
    other = data(tmp_path / "other", first=50)
    blind = [texts(asked(model, path, tmp_path / path.name, control="blind")) for path in (dataset, other)]
    assert blind[0] == blind[1]
    assert len(set(blind[0].values())) == 1  # one size of image, one prompt: one answer
    seen = texts(asked(model, other, tmp_path / "seen"))
    assert seen != texts(plain)


def test_shuffled_answers_are_those_to_another_records_image(model: Path, dataset: Path, tmp_path: Path, plain: Evaluation) -> None:
    done = asked(model, dataset, tmp_path / "shuffled", control="shuffled")
    records = [record for record in Dataset(dataset).records("val") if record.images]
    owner = {record.images: record.id for record in records}
    for before, after in zip(records, exchange_images(records), strict=True):
        giver = owner[after.images]
        assert giver != before.id
        assert texts(done)[before.id] == texts(plain)[giver]
    # Scores are held against the record's own captions, not the giver's.
    assert [query.record.captions for query in done.queries] == [record.captions for record in records]
    assert done.to_json()["control"] == "shuffled"


def test_a_blurred_and_a_grey_image_change_the_answers_and_text_alone_gives_one(
    model: Path, dataset: Path, tmp_path: Path, plain: Evaluation
) -> None:
    blurred = texts(asked(model, dataset, tmp_path / "blurred", control="blur:32"))
    slightly = texts(asked(model, dataset, tmp_path / "slightly", control="blur:0.01"))
    assert blurred != texts(plain)
    assert slightly == texts(plain)
    for control in ("grey", "text"):
        assert len(set(texts(asked(model, dataset, tmp_path / control, control=control)).values())) == 1
    bundle = read_model(model)
    row = bundle.conversation_encoder("Look.").encode_prompt([Message("user", (Part("Look."),))], [])
    [alone] = generate(bundle.model, bundle.tokenizer, [Prompt(row, np.zeros(0, np.int64))], DecodingConfig(max_new_tokens=6))
    assert set(texts(asked(model, dataset, tmp_path / "text", control="text")).values()) == {alone.text}


def test_a_record_that_cannot_exchange_its_images_is_left_out_of_the_shuffled_control_and_counted(
    model: Path, dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = data(tmp_path / "set", more=[two_pictures("pair")])
    assert asked(model, path, tmp_path / "seen", batch_size=COUNT + 1).to_json()["ok"] == COUNT + 1
    done = asked(model, path, tmp_path / "shuffled", control="shuffled")
    told = done.to_json()
    assert (told["input"], told["ok"], told["skipped"]) == (COUNT + 1, COUNT, {"not_exchangeable": 1})
    assert json.loads((done.folder / "scores.json").read_text())["skipped"] == {"not_exchangeable": 1}
    assert "skipped: not_exchangeable 1" in caplog.text
    assert texts(done) == texts(asked(model, dataset, tmp_path / "alone", control="shuffled"))
    assert all(score["n"] == COUNT for score in told["scores"].values())
    with pytest.raises(UsageError, match="no two of 1 records can exchange their images"):
        asked(model, path, tmp_path / "one", control="shuffled", limit=1)


def test_images_that_break_are_counted_and_leave_the_others_as_they_are(model: Path, tmp_path: Path, plain: Evaluation) -> None:
    path = data(tmp_path / "set")
    stored(path, 2).write_bytes(b"broken")
    stored(path, 7).unlink()
    done = asked(model, path, tmp_path / "out")
    told = done.to_json()
    assert (told["input"], told["ok"]) == (COUNT, COUNT - 2)
    assert told["skipped"] == {"image_format": 1, "image_missing": 1}
    assert texts(done) == {name: text for name, text in texts(plain).items() if name not in ("r2", "r7")}
    assert all(score["n"] == COUNT - 2 for score in told["scores"].values())


def test_nothing_to_score_is_said_in_words(model: Path, tmp_path: Path) -> None:
    path = data(tmp_path / "set")
    for index in range(COUNT):
        stored(path, index).write_bytes(b"broken")
    with pytest.raises(SkipLimitError, match=r"none of 11 records could be answered \(image_format 11\)"):
        asked(model, path, tmp_path / "out")


def test_an_evaluation_that_is_killed_goes_on_and_ends_the_same(
    model: Path, dataset: Path, tmp_path: Path, plain: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    real = answers.generate

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(len(arguments[2]))
        if len(calls) == 2:
            raise OSError("killed")
        return real(*arguments, **options)

    monkeypatch.setattr(answers, "generate", counted)
    with pytest.raises(OSError, match="killed"):
        asked(model, dataset, tmp_path)
    assert not (tmp_path / "scores.json").exists()
    log = tmp_path / "predictions.jsonl"
    log.write_bytes(log.read_bytes()[:-3])
    done = asked(model, dataset, tmp_path)
    assert calls == [4, 4, 4, 4]  # 3 of the first batch were kept: 8 more records in two batches of the same shape
    assert texts(done) == texts(plain)
    assert {name: score.value for name, score in done.scores.items()} == {name: score.value for name, score in plain.scores.items()}
    assert asked(model, dataset, tmp_path).scores == done.scores
    assert len(calls) == 4  # nothing is asked twice


def test_some_records_are_drawn_at_random_and_always_the_same(
    model: Path, dataset: Path, tmp_path: Path, plain: Evaluation
) -> None:
    first = asked(model, dataset, tmp_path / "a", limit=5)
    assert list(texts(first)) == list(texts(asked(model, dataset, tmp_path / "b", limit=5)))
    assert list(texts(first)) != [f"r{n}" for n in range(5)]
    assert texts(first).items() <= texts(plain).items()


def test_another_prompt_is_another_evaluation(model: Path, dataset: Path, tmp_path: Path) -> None:
    first = texts(asked(model, dataset, tmp_path, limit=4))
    second = texts(asked(model, dataset, tmp_path, limit=4, prompt="What colour is it?"))
    assert first.keys() == second.keys()
    assert first != second


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"task": "dance"}, UsageError, "no task 'dance'"),
        ({"split": "test"}, DataError, "has no split 'test'; it has"),
        ({"data": "NONE"}, DataError, "NONE"),
        ({"model": "NONE"}, SightlineError, "NONE"),
    ],
)
def test_what_is_not_there_is_named(
    model: Path, dataset: Path, tmp_path: Path, changes: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        asked(model, dataset, tmp_path, **changes)


def test_results_of_a_folder_stand_beside_it(model: Path, dataset: Path) -> None:
    done = asked(model, dataset, None, control="blind", limit=3)  # pyrefly: ignore
    assert done.folder == default_folder(done.spec, model)
    assert done.folder.parent == model.parent / "model-eval/caption"
    assert np.isfinite([score.value for score in done.scores.values()]).all()


def test_the_verdict_is_that_of_the_stored_control_and_of_no_other(model: Path, dataset: Path) -> None:
    def looks(**changes: Any) -> dict[str, Any]:
        return asked(model, dataset, None, limit=8, **changes).to_json()["looks"]  # pyrefly: ignore

    first = looks()
    assert first.keys() == {"verdict", "control", "difference", "low", "high", "command"}
    assert first["verdict"] == "not checked"
    words = shlex.split(first["command"])
    assert words[:3] == ["sightline", "eval", str(model)]
    given = dict(zip(words[3::2], words[4::2], strict=True))
    assert given == {
        "--task": "caption",
        "--data": str(dataset),
        "--split": "val",
        "--control": "shuffled",
        "--limit": "8",
        "--batch-size": "4",
        "--max-new-tokens": "6",
        "--resamples": "20",
    }
    control = looks(control="shuffled")
    seen, other = (
        json.loads((next((model.parent / "model-eval/caption").glob(f"set-val{kind}-n8-*")) / "items.json").read_text())
        for kind in ("", "-shuffled")
    )
    assert control["difference"] == pytest.approx(np.mean(seen["items"]["cider_d"]) - np.mean(other["items"]["cider_d"]))
    assert (control["verdict"], control["control"]) == ("not enough items to say", "shuffled")
    assert control["note"] == "8 items; a verdict needs at least 20"
    assert looks() == control
    assert looks(max_new_tokens=5)["verdict"] == "not checked"  # the stored control is one of another question
    blind = looks(control="blind", max_new_tokens=5)
    assert (blind["verdict"], blind["control"]) == ("not enough items to say", "blind")
    assert looks() == control  # neither was overwritten by the other question


def test_controls_are_found_beside_a_folder_of_its_own(model: Path, dataset: Path, tmp_path: Path) -> None:
    def looks(name: str, **changes: Any) -> dict[str, Any]:
        return asked(model, dataset, tmp_path / name, limit=6, **changes).to_json()["looks"]

    assert looks("one/seen")["verdict"] == "not checked"
    found = looks("one/control", control="shuffled")
    assert found["control"] == "shuffled"
    assert looks("one/seen") == found
    assert looks("two/seen")["verdict"] == "not checked"  # elsewhere, and not where eval puts its own
    asked(model, dataset, tmp_path / "one/other", limit=6, control="blind", prompt="What?")
    assert looks("one/seen") == found
    lists = json.loads((tmp_path / "one/control/items.json").read_text())
    lists["items"]["cider_d"].pop()
    (tmp_path / "one/control/items.json").write_text(json.dumps(lists))
    damaged = looks("one/seen")
    assert damaged["verdict"] == "not checked"
    assert damaged["note"].startswith(f"{tmp_path / 'one/control/items.json'} is damaged")
    assert "the control blind" in damaged["note"]
    assert "has another prompt" in damaged["note"]


def test_another_alpha_is_named(model: Path, tmp_path: Path) -> None:
    rows = [record(f"c{n}", f"{n}.png", "val", [f"a dog {n}"], negatives=[f"a cat {n}"]) for n in range(3)]
    path = data(tmp_path / "pairs", more=rows)

    def looks(name: str, **changes: Any) -> dict[str, Any]:
        return asked(model, path, tmp_path / "out" / name, task="composition", **changes).to_json()["looks"]

    looks("control", control="shuffled", alpha=0.25)
    note = looks("seen", alpha=0.5)["note"]
    assert note == (
        f"the control shuffled in {tmp_path / 'out/control'} has alpha 0.25, this evaluation 0.5: give both the same --alpha"
    )
    assert looks("seen", alpha=0.25)["control"] == "shuffled"


def test_folders_of_one_name_with_other_data_share_no_results(model: Path, tmp_path: Path) -> None:
    one, other = data(tmp_path / "a/pictures"), data(tmp_path / "b/pictures", first=3)
    first = asked(model, one, None, limit=3)  # pyrefly: ignore
    kept = (first.folder / "scores.json").read_bytes()
    second = asked(model, other, None, limit=3)  # pyrefly: ignore
    assert second.folder == first.folder.with_name(f"{first.folder.name}-{open_dataset(other).fingerprint[:8]}")
    assert (first.folder / "scores.json").read_bytes() == kept
    assert default_folder(first.spec, model) == first.folder
    assert default_folder(second.spec, model) == second.folder


def test_two_questions_never_share_a_folder(tmp_path: Path) -> None:
    data, source = str(tmp_path / "set"), tmp_path / "run/checkpoints/step-3/model"
    plain = EvalSpec(task="vqa", data=data, likelihood="gain")
    changes: list[dict[str, Any]] = [
        {"prompt": "Say it."},
        {"alpha": 0.5},
        {"alpha": 0.25},
        {"alpha_from": "test"},
        {"max_new_tokens": 5},
        {"num_beams": 3},
        {"likelihood": "plain"},
        {"likelihood": None},
        {"shots": 2},
        {"shots": 2, "shots_seed": 1},
        {"shots": 2, "shots_from": "test"},
        {"words": 9},
        {"words": 9, "words_from": "test"},
        {"features": "store"},
        {"baseline": "neighbours", "likelihood": None},
        {"baseline": "neighbours", "likelihood": None, "neighbours": 1},
        {"baseline": "neighbours", "likelihood": None, "neighbours_from": "test"},
    ]
    asked_too = [plain, *(plain.model_copy(update=change) for change in changes)]
    folders = [default_folder(spec, source) for spec in asked_too]
    assert len({*folders}) == len(folders)
    assert folders[0] == tmp_path / "run/eval/vqa/set-val-gain-step-3"
    assert default_folder(EvalSpec(data=data, shots=2, limit=7), source).name == "set-val-shots2-n7-step-3"
    same = plain.model_copy(update={"batch_size": 3, "resamples": 50})
    assert default_folder(same, source) == folders[0]
