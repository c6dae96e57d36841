"""Runs, a stage of a run and a stock model are asked the same once, compared on the same records, and reported in every form."""

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from sightline.cli import main
from sightline.errors import Stopped, UsageError
from sightline.evaluation.spec import EvalSpec
from sightline.runtime import storage
from sightline.studies import compare as studies
from sightline.studies.stored import is_stored
from tests.composites import stock_folder
from tests.duals import dual_folder
from tests.golden import make

COUNT, TOKENS = 24, 8
ASKED = ("--task", "caption", "--split", "train", "--limit", str(COUNT), "--max-new-tokens", str(TOKENS), "--device", "cpu")
KEY = f"caption-data-train-n{COUNT}-{EvalSpec(data='data', max_new_tokens=TOKENS).name_of_rest()}"
MODELS = ("late", "early", "llava")


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden run twice, the second with another seed in its settings, and its data."""
    folder = tmp_path_factory.mktemp("compare")
    for name in ("run", "run2"):
        shutil.copytree(make.HOME / make.RUN, folder / name)
        shutil.rmtree(folder / name / "eval")
    config = folder / "run2/config.yaml"
    text = config.read_text("utf-8")
    assert "\n  seed: 0\n" in text
    config.write_text(text.replace("\n  seed: 0\n", "\n  seed: 7\n"), "utf-8")
    shutil.copytree(make.HOME / make.DATA, folder / "data")
    return folder


def command(place: Path, out: Path, *more: object) -> list[object]:
    models = [f"late={place / 'run'}", f"early={place / 'run2'}@full", f"llava={stock_folder('llava')}"]
    return ["compare", *models, "--data", place / "data", *ASKED, "--out", out, *more]


class Watched:
    """Counts evaluations; can stop before one, or let those of a model fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stop_at: int = 0, broken: str = "") -> None:
        self.asked: list[str] = []
        evaluate = studies.evaluate

        def evaluating(spec: EvalSpec, model: str, checkpoint: str, out: Path, *more: Any) -> Any:
            if len(self.asked) + 1 == stop_at:
                raise Stopped("SIGTERM", "The same command goes on from here.")
            if broken and broken in model:
                raise UsageError(f"{broken} cannot be asked.")
            self.asked.append(f"{out.parent.name} {spec.control}")
            return evaluate(spec, model, checkpoint, out, *more)

        monkeypatch.setattr(studies, "evaluate", evaluating)


@pytest.fixture(scope="module")
def compared(place: Path) -> tuple[Path, list[list[str]]]:
    """A comparison after an evaluation of one of the models, stopped before its fifth evaluation and called again, twice."""
    with pytest.raises(SystemExit):
        main(["eval", str(place / "run"), "--data", str(place / "data"), *ASKED])
    asked = []
    words = [str(word) for word in command(place, place / "out")]
    for stop_at in (5, 0, 0):
        with pytest.MonkeyPatch.context() as patch:
            watched = Watched(patch, stop_at)
            with pytest.raises(SystemExit) as caught:
                main(words)
        assert caught.value.code == (75 if stop_at else 0)
        asked.append(watched.asked)
    return place / "out", asked


def report(out: Path) -> dict[str, Any]:
    return storage.read_json(out / "report.json")


def scores_of(folder: Path) -> np.ndarray:
    return np.array(storage.read_json(folder / "items.json")["items"]["cider_d"])


def folders(place: Path, out: Path) -> dict[str, Path]:
    """Where the evaluation with the image of each model is stored: that of `eval`, and those of the comparison."""
    (own,) = (folder for folder in (place / "run/eval/caption").iterdir() if "n24" in folder.name)
    return {"late": own} | {name: out / f"evaluations/{name}/{KEY}" for name in ("early", "llava")}


def test_what_is_stored_is_not_computed_again(compared: tuple[Path, list[list[str]]]) -> None:
    out, (first, second, third) = compared
    assert first == ["late shuffled", "late blind", "early None", "early shuffled"]  # `eval` has asked `late` with the image
    assert second == ["early blind", "llava None", "llava shuffled", "llava blind"]
    assert third == []
    told = report(out)
    assert (told["evaluations"], told["evaluations_reused"], told["not_asked"]) == (9, 9, [])


def test_a_stored_evaluation_is_that_of_its_weights_its_data_and_its_options(
    place: Path, compared: tuple[Path, list[list[str]]], tmp_path: Path
) -> None:
    folder = compared[0] / f"evaluations/early/{KEY}"
    stored = storage.read_json(folder / "scores.json")
    spec, weights = EvalSpec.model_validate_json(json.dumps(stored["spec"])), stored["settings"]["model"]
    assert is_stored(spec, folder, weights)
    assert not is_stored(spec, folder, "0" * 64)
    assert not is_stored(spec.model_copy(update={"num_beams": 2}), folder, weights)
    moved = shutil.copytree(place / "data", tmp_path / "moved")
    elsewhere = spec.model_copy(update={"data": str(moved)})
    assert is_stored(elsewhere, folder, weights)
    summary = storage.read_json(moved / "dataset.json")
    storage.write_json(moved / "dataset.json", summary | {"fingerprint": "0" * 64})
    assert not is_stored(elsewhere, folder, weights)


def test_dual_encoders_are_compared_by_retrieval(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    duals = [f"{kind}={dual_folder(kind)}" for kind in ("clip", "siglip")]
    asked = ["--task", "retrieval", "--data", place / "data", "--split", "train", "--device", "cpu", "--control", "shuffled"]
    code, told, err = call(capsys, "compare", *duals, *asked, "--out", tmp_path / "out", "--json")
    assert code == 0, err
    (table,) = json.loads(told)["tables"]
    scores = [
        storage.read_json(tmp_path / f"out/evaluations/{kind}/retrieval-data-train/scores.json") for kind in ("clip", "siglip")
    ]
    assert (table["metric"], table["shown_times"]) == ("rsum", 1.0)
    assert [row["value"] for row in table["rows"]] == [pytest.approx(own["scores"][table["metric"]]["value"]) for own in scores]


def test_scores_and_differences_are_those_of_the_stored_items(place: Path, compared: tuple[Path, list[list[str]]]) -> None:
    out, _ = compared
    (table,) = report(out)["tables"]
    assert (table["metric"], table["records"], table["images"]) == ("cider_d", COUNT, COUNT)
    items = {name: scores_of(folder) for name, folder in folders(place, out).items()}
    rows = {row["name"]: row for row in table["rows"]}
    assert list(rows) == list(MODELS)
    for name, values in items.items():
        stored = storage.read_json(folders(place, out)[name] / "scores.json")["scores"]["cider_d"]
        assert rows[name]["value"] == pytest.approx(stored["value"]) == pytest.approx(values.mean())
        assert rows[name]["low"] < rows[name]["value"] < rows[name]["high"] or values.max() == 0
    blind = scores_of(out / f"evaluations/early/{KEY}-blind")
    assert rows["early"]["others"]["blind"]["value"] == pytest.approx(blind.mean())
    pairs = {(pair["first"], pair["second"]): pair for pair in table["pairs"]}
    assert list(pairs) == [("late", "early"), ("late", "llava"), ("early", "llava")]
    for (first, second), pair in pairs.items():
        change = items[first] - items[second]
        assert pair["value"] == pytest.approx(change.mean())
        assert pair["items"] == {"higher": (change > 0).sum(), "lower": (change < 0).sum(), "same": (change == 0).sum()}
        assert 1 >= pair["p_corrected"] >= pair["p"] > 0
    by_p = sorted(pairs.values(), key=lambda pair: pair["p"])
    assert by_p[0]["p_corrected"] == pytest.approx(min(1, 3 * by_p[0]["p"]))  # Holm: the smallest of three, times three


def test_the_verdict_of_a_good_and_of_an_untrained_model(compared: tuple[Path, list[list[str]]]) -> None:
    told = report(compared[0])
    looks = {row["name"]: row["looks"]["verdict"] for row in told["tables"][0]["rows"]}
    assert looks == {"late": "looks", "early": "looks", "llava": "does not look"}  # after 360 steps; never trained
    assert {row["looks"]["control"] for row in told["tables"][0]["rows"]} == {
        "shuffled"
    }  # rather than `blind`, which was asked too
    assert told["verdicts"][0].startswith("llava does not look: ")
    assert any(
        text.startswith("late is better than llava by ") and text.endswith(" after correction.") for text in told["verdicts"]
    )


def test_models_are_described_by_what_they_are_cost_and_were_trained_with(
    place: Path, compared: tuple[Path, list[list[str]]]
) -> None:
    told = report(compared[0])
    assert [(model["kind"], model["step"]) for model in told["models"]] == [("run", 370), ("run", 360), ("stock model", None)]
    sizes = {"late": place / "run/checkpoints/step-370/model", "llava": stock_folder("llava")}
    for name, folder in sizes.items():
        stored: dict[str, int] = {}
        for file in folder.glob("*.safetensors"):
            with safe_open(file, "np") as opened:
                stored |= {key: int(np.prod(opened.get_slice(key).get_shape())) for key in opened.keys()}  # noqa: SIM118
        cost = told["cost"][name]
        parts = {part: size for part, size in cost["parameters"].items() if part != "all"}
        assert cost["parameters"]["all"] == sum(parts.values()) == sum(stored.values())
        assert cost["image"]["tokens"] > 0 < cost["image"]["flops"]
        assert 0 < cost["answer_tokens"] <= TOKENS
    lines = storage.read_json_lines(place / "run/metrics.jsonl")
    for name, last in (("late", 370), ("early", 360)):
        own = [line for line in lines if line["step"] <= last]
        assert told["cost"][name]["training_tokens"] == sum(line.get("tokens", 0) for line in own)
    assert "training_tokens" not in told["cost"]["llava"]
    assert told["settings"] == {"train.seed": {"late": 0, "early": 7}}


def test_every_form_of_the_report_is_written(compared: tuple[Path, list[list[str]]]) -> None:
    out, _ = compared
    page, text = (out / "report.html").read_text("utf-8"), (out / "report.md").read_text("utf-8")
    for told in report(out)["verdicts"]:
        assert told in page and f"- {told}" in text  # noqa: PT018
    assert page.count("data:image/") >= 4  # the records on which they differ
    for title in ("training loss", "gradient norm", "learning rate, largest of all parts"):
        assert title in page
    for name in ("scores.csv", "items.csv"):
        rows = list(csv.DictReader((out / name).read_text("utf-8").splitlines()))
        assert {row["model"] for row in rows} == set(MODELS)
    assert (out / f"{KEY}-cider_d.svg").exists()


def test_a_damaged_evaluation_is_made_again_and_one_that_fails_is_noted(
    place: Path, compared: tuple[Path, list[list[str]]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = compared
    items = out / f"evaluations/early/{KEY}-blind/items.json"
    whole = items.read_bytes()
    items.write_bytes(whole[:50])
    watched = Watched(monkeypatch)
    code, told, _ = call(capsys, *command(place, out, "--json"))
    assert (code, watched.asked, items.read_bytes()) == (0, ["early blind"], whole)
    assert json.loads(told)["report"] == str(out / "report.html")

    Watched(monkeypatch, broken="llava")
    code, told, _ = call(capsys, *command(place, place / "out2", "--control", "none", "--against", "late", "--json"))
    found = json.loads(told)
    assert code == 0
    assert found["not_asked"] == [{"model": "llava", "question": "caption with the image", "error": "llava cannot be asked."}]
    assert found["notes"] == ["llava was not asked caption with the image: llava cannot be asked."]
    assert [row["looks"]["verdict"] for row in found["tables"][0]["rows"]] == ["not checked"] * 2
    assert "--control shuffled" in found["verdicts"][-1]
    assert [(pair["first"], pair["second"]) for pair in found["tables"][0]["pairs"]] == [("early", "late")]


def test_a_baseline_stands_beside_the_models_and_what_is_below_it_is_said_first(
    place: Path, compared: tuple[Path, list[list[str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    models = [f"late={place / 'run'}", f"llava={stock_folder('llava')}", "--data", place / "data", *ASKED]
    more = ["--baseline", "neighbours", "--control", "none", "--json"]
    code, told, _ = call(capsys, "compare", *models, "--out", place / "out5", *more)
    found = json.loads(told)
    (table,) = found["tables"]
    assert (code, table["baselines"]) == (0, ["neighbours"])
    rows = {row["name"]: row for row in table["rows"]}
    scores = storage.read_json(place / f"out5/evaluations/neighbours/{KEY}/scores.json")
    assert rows["neighbours"]["value"] == pytest.approx(scores["scores"]["cider_d"]["value"])
    assert (scores["baseline"], rows["neighbours"]["looks"]) == ("neighbours", None)
    assert rows["llava"]["value"] < rows["neighbours"]["value"]
    assert "llava" in found["verdicts"][0] and "below the baseline neighbours" in found["verdicts"][0]  # noqa: PT018
    assert list(found["cost"]) == ["late", "llava"]


def test_without_a_question_what_is_stored_with_the_models_is_compared(
    place: Path, compared: tuple[Path, list[list[str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [f"one={place / 'run'}", f"two={place / 'run2'}"]
    code, told, _ = call(capsys, "compare", *runs, "--out", place / "out3", "--control", "none", "--json")
    found = json.loads(told)
    assert (code, found["evaluations_reused"], found["evaluations"]) == (0, 1, 2)
    (asked,) = found["questions"]
    assert (asked["task"], asked["split"], asked["limit"], asked["max_new_tokens"]) == ("caption", "train", COUNT, TOKENS)
    with pytest.raises(UsageError, match="no evaluation is stored with these models"):
        studies.compare([str(place / "run2") + "@full", str(stock_folder("llava"))], [], place / "out4")


@pytest.mark.parametrize(
    ("models", "more", "message"),
    [
        (["run"], [], "a comparison needs two models or more"),
        (["a=run", "a=run2"], [], "two models are named 'a'"),
        (["run", "run"], [], "two models are named"),
        (["run", "run2"], ["--against", "mlp"], "no model is named 'mlp'; there are run, run2"),
        (["run", "run2@nowhere"], [], "has no end of a stage 'nowhere'"),
        (["run", "run2"], ["--split", "trian"], "has no split 'trian'"),
    ],
)
def test_mistakes_are_said_before_anything_is_computed(
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    models: Sequence[str],
    more: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(place)
    code, _, err = call(capsys, "compare", *models, "--data", "data", *ASKED, "--out", "nothing", *more)
    assert (code, message in err) == (2, True), err
    assert not (place / "nothing").exists()


def test_stored_evaluations_that_differ_in_batches_are_one_question_and_in_prompts_two(tmp_path: Path) -> None:
    model = studies.Compared("m", "m", "model folder", tmp_path / "m", None, "w", "m")
    (tmp_path / "set").mkdir()
    plain = EvalSpec(data=str(tmp_path / "set"))
    for number, change in enumerate(({}, {"batch_size": 3}, {"resamples": 9}, {"prompt": "Say it."})):
        spec = plain.model_copy(update=change)
        place = tmp_path / f"m-eval/caption/{number}/scores.json"
        place.parent.mkdir(parents=True)
        storage.write_json(place, {"spec": spec.model_dump(mode="json"), "settings": {"model": "w"}})
    found = studies.stored_questions([model])
    assert [spec.prompt for spec in found] == [None, "Say it."]
    assert len({studies.question_key(spec) for spec in found}) == 2
