"""`probe --what looking` on models of ours and on stock ones: every step is the evaluation that `eval` makes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.assembly.evaluate import opened
from sightline.assembly.evaluate.answers import ModelAnswers
from sightline.assembly.evaluate.evaluate import evaluate
from sightline.assembly.evaluate.looking import look
from sightline.assembly.evaluate.probe import ProbeRequest, probe, write_page
from sightline.assembly.model.build import Processing, build_from_config, read_model, write_model
from sightline.data.dataset import open_dataset
from sightline.errors import UsageError
from sightline.evaluation.probes.looking import LADDER
from sightline.evaluation.spec import EvalSpec
from sightline.evaluation.tasks import Query
from sightline.generation.decode import DecodingConfig
from sightline.types import Message, Part
from tests.assembly.helpers import run_config
from tests.composites import stock_folder
from tests.data.check.planted import folder, png, question, record, scene
from tests.data.pictures import lines

COUNT = 24


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [record(f"r{n}", f"{n}.png", "val", [f"a red dog {n}", f"two dogs {n}"]) for n in range(COUNT)]
    return folder(tmp_path_factory.mktemp("data") / "set", rows, {f"{n}.png": png(scene(n, 64)) for n in range(COUNT)})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "model"
    path.mkdir()
    write_model(build_from_config(run_config(), Processing(prompt="Look.", max_tokens=120), None), path)
    return path


def spec_of(dataset: Path) -> EvalSpec:
    return EvalSpec(data=str(dataset), batch_size=8, max_new_tokens=5, resamples=50)


def test_the_ladder_is_made_of_evaluations_and_the_verdict_is_theirs(model: Path, dataset: Path) -> None:
    spec = spec_of(dataset)
    found = look(spec, str(model), device="cpu", shown=4)
    assert [step.control for step in found.ladder] == list(LADDER)
    plain = evaluate(spec, str(model), device="cpu")
    assert found.seen == plain.scores["cider_d"]
    assert plain.verdict == found.verdict  # eval finds the control that the ladder has stored
    for control in ("blur:8", "text"):
        alone = evaluate(spec.model_copy(update={"control": control}), str(model), device="cpu")
        step = found.step(control)
        assert step is not None
        assert step.score == alone.scores["cider_d"]
        assert step.difference is not None
        assert step.difference.value == pytest.approx(
            np.mean(plain.scores["cider_d"].items) - np.mean(alone.scores["cider_d"].items), abs=1e-12
        )
    assert len(found.flips) == 4
    assert all(flip.image is not None and {"image", "shuffled", "text"} <= flip.answers.keys() for flip in found.flips)


def test_preferences_come_from_the_likelihood_of_both_texts(model: Path, dataset: Path) -> None:
    found = {preference.kind: preference for preference in look(spec_of(dataset), str(model), device="cpu").preferences}
    assert set(found) == {"all", "colour", "count", "object"}
    assert found["all"].texts == 3 * COUNT
    bundle, data = read_model(model), open_dataset(str(dataset))
    (results,) = model.parent.glob("model-eval/caption/set-val-*/counterfactual-text")
    stored = {line["id"]: line["scores"] for line in lines(results / "predictions.jsonl")}
    settings = json.loads((results / "settings.json").read_text())
    name, true, false = settings["texts"][0]
    assert name.startswith("r0#")
    assert true != false
    assert sum(a != b for a, b in zip(true.split(), false.split(), strict=True)) == 1
    turn = (Message("user", (Part("Look."),)),)
    query = Query("q", data.record(0), turn, "likelihood", (true, false))
    bare = Query("q", type(query.record)("r0"), turn, "likelihood", (true, false))
    [alone] = ModelAnswers(bundle, data, None, DecodingConfig(), bundle.conversation_encoder("Look."), False).answer([bare], 0)
    assert alone.scores == pytest.approx(stored[name], abs=1e-4)


@pytest.mark.parametrize("kind", ["llava", "smolvlm"])
def test_a_stock_model_is_asked_like_one_of_ours(kind: str, dataset: Path, tmp_path: Path) -> None:
    source = tmp_path / kind
    source.symlink_to(stock_folder(kind))
    request = ProbeRequest(str(source), str(dataset), "looking", count=6, batch_size=6, max_new_tokens=3, device="cpu")
    found = probe(request)
    told = found.to_json()
    assert [step["control"] for step in told["ladder"]] == list(LADDER)
    assert all("missing" not in step for step in told["ladder"])
    assert told["looks"]["verdict"] == "not enough items to say"  # of six items
    assert told["counterfactual"][0]["kind"] == "all"
    assert told["counterfactual"][0]["texts"] == 18
    write_page(found, request, tmp_path / "page.html")
    assert "Score under each control" in (tmp_path / "page.html").read_text()


def test_a_model_that_cannot_see_does_not_look(model: Path, dataset: Path, tmp_path: Path) -> None:
    bundle = build_from_config(run_config(), Processing(prompt="Look.", max_tokens=120), None)
    assert bundle.model.connector is not None
    with torch.no_grad():
        for parameter in bundle.model.connector.parameters():
            parameter.zero_()
    (tmp_path / "deaf").mkdir()
    write_model(bundle, tmp_path / "deaf")
    controls = ("blur:16", "grey", "shuffled")
    found = look(spec_of(dataset), str(tmp_path / "deaf"), device="cpu", controls=controls, floor=str(model))
    assert found.verdict.verdict == "does not look"
    assert found.never_changes is not None
    assert found.never_changes.value == 1.0
    *ladder, floor = found.ladder
    assert all(step.unchanged is not None and step.unchanged.value == 1.0 for step in ladder)
    other = evaluate(spec_of(dataset), str(model), device="cpu")  # another model, with its images
    assert (floor.control, floor.score) == ("floor", other.scores["cider_d"])
    assert floor.difference is not None
    assert floor.difference.value == pytest.approx(found.seen.value - other.scores["cider_d"].value)
    assert found.flips == ()


def test_a_task_that_nothing_can_be_asked_of_is_an_error(model: Path, dataset: Path) -> None:
    with pytest.raises(UsageError, match="no task 'dance'"):
        look(spec_of(dataset).model_copy(update={"task": "dance"}), str(model), device="cpu")


def test_a_task_that_is_scored_by_likelihood_has_a_ladder(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    monkeypatch.setattr(opened.storage, "sha256_file", lambda file: hashed.append(file) or "0" * 64)
    rows = [
        question(f"{split}{n}", f"{n}.png", "Is it red?", ["yes" if n % 2 else "no"], split)
        for split, count in (("train", 3), ("val", 6))
        for n in range(count)
    ]
    path = folder(tmp_path / "set", rows, {f"{n}.png": png(scene(n, 64)) for n in range(6)})
    options = {"task": "yes_no", "likelihood": "gain", "batch_size": 6}
    source = tmp_path / "model"
    source.symlink_to(model)
    request = ProbeRequest(str(source), str(path), "looking", count=6, device="cpu", **options)
    told = probe(request).to_json()
    assert len(hashed) == len({*hashed}) > 0  # each weight file once for the whole ladder
    assert [step["control"] for step in told["ladder"]] == list(LADDER)
    assert all("missing" not in step for step in told["ladder"])
    assert told["looks"]["control"] == "shuffled"
    assert told["flips"] or all(step["unchanged"]["value"] == 1.0 for step in told["ladder"])
    done = evaluate(EvalSpec(data=str(path), limit=6, **options), str(source), device="cpu")
    assert told["with_image"] == done.scores["accuracy"].to_json()
    assert done.likelihood is not None
    assert done.likelihood.chosen_on == "train"
    stored = list(tmp_path.glob("model-eval/yes_no/*/alpha"))
    assert [found.parent for found in stored] == [done.folder]  # chosen once for all controls


def test_retrieval_has_a_ladder(model: Path, dataset: Path, tmp_path: Path) -> None:
    spec = EvalSpec(task="retrieval", likelihood="plain", data=str(dataset), images=3, captions=1, resamples=20)
    found = look(spec, str(model), device="cpu", controls=("blur:8", "shuffled"))
    assert [step.control for step in found.ladder] == ["blur:8", "shuffled"]
    assert all(step.score is not None and step.unchanged is not None for step in found.ladder)
    assert found.verdict.control == "shuffled"
