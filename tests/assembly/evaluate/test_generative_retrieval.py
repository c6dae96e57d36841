"""Retrieval with a model that writes text: the scores are the likelihoods of single pairs, and each image is encoded once."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.assembly.evaluate import evaluate as evaluation
from sightline.assembly.evaluate.answers import ModelAnswers
from sightline.assembly.evaluate.evaluate import Evaluation, evaluate
from sightline.assembly.evaluate.opened import OpenedModel, open_model
from sightline.assembly.model.build import Processing, build_from_config, write_model
from sightline.data.dataset import Dataset, open_dataset
from sightline.errors import UsageError
from sightline.evaluation.controls import without_images
from sightline.evaluation.likelihood import confirm_messages
from sightline.evaluation.spec import EvalSpec
from sightline.evaluation.tasks import Query, task_by_name
from sightline.evaluation.tasks.retrieval import Retrieval
from sightline.generation.decode import DecodingConfig
from sightline.metrics.retrieval import recall_at
from sightline.runtime import storage
from sightline.types import Prediction
from tests.assembly.evaluate.helpers import COUNT, data
from tests.assembly.helpers import run_config
from tests.data.check.planted import record, stored


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("retrieval")
    (path / "model").mkdir()
    write_model(build_from_config(run_config(), Processing(prompt="Look.", max_tokens=120), None), path / "model")
    train = [record(f"t{n}", f"{n}.png", "train", [f"two dogs {n}", f"a red ball and {n} dogs on a field"]) for n in range(6)]
    data(path / "set", more=train)
    return path


@pytest.fixture(scope="module")
def opened(place: Path) -> OpenedModel:
    return open_model(str(place / "model"), device="cpu", threads=1)


def asked(place: Path, opened: OpenedModel, out: Path, **options: Any) -> Evaluation:
    spec = EvalSpec(task="retrieval", data=str(place / "set"), resamples=20, **options)
    return evaluate(spec, str(place / "model"), out=out, device="cpu", threads=1, opened=opened)


def single_pairs(opened: OpenedModel, dataset: Dataset, queries: Sequence[Query], texts: Sequence[str]) -> np.ndarray:
    """Log-probability of each text given each query, every pair in a row of its own and without a cache."""
    bundle = opened.bundle
    encoder = bundle.conversation_encoder("")
    answers = ModelAnswers(bundle, dataset, opened.visual_loader(), DecodingConfig(), encoder, bf16=False)
    rows = []
    for query in queries:
        own = [replace(query, id=str(number), form="likelihood", candidates=(text,)) for number, text in enumerate(texts)]
        rows.append([(prediction.scores or ())[0] for prediction in answers.answer(own, 0)])
    return np.array(rows)


@pytest.fixture(scope="module")
def queries(place: Path) -> list[Query]:
    task = task_by_name("retrieval")
    records = [one for one in open_dataset(place / "set").records("val") if task.asks(one)]
    return [query for one in records for query in task.queries(one, "")]


def texts_of(queries: Sequence[Query]) -> list[str]:
    return [text for query in queries for text in query.candidates]


def positives(queries: Sequence[Query]) -> np.ndarray:
    return np.repeat(np.eye(len(queries), dtype=bool), [len(query.candidates) for query in queries], axis=1)


def assert_ranked_by(found: Evaluation, scores_NC: np.ndarray, queries: Sequence[Query]) -> None:
    right = positives(queries)
    for k in (1, 5, 10):
        assert found.scores[f"i2t_r{k}"].value == pytest.approx(recall_at(scores_NC, right, k).mean())
        assert found.scores[f"t2i_r{k}"].value == pytest.approx(recall_at(scores_NC.T, right.T, k).mean())
    values = [found.scores[f"{way}_r{k}"].value for way in ("t2i", "i2t") for k in (1, 5, 10)]
    assert found.scores["rsum"].value == pytest.approx(100 * sum(values))


@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_gain_ranks_by_the_likelihoods_of_single_pairs(
    place: Path, opened: OpenedModel, queries: list[Query], tmp_path: Path, alpha: float
) -> None:
    found = asked(place, opened, tmp_path / "out", alpha=alpha)
    dataset, texts = open_dataset(place / "set"), texts_of(queries)
    seen, alone = (single_pairs(opened, dataset, own, texts) for own in (queries, without_images(queries[:1])))
    assert np.ptp(seen, axis=0).min() > 0  # images matter to this model
    assert_ranked_by(found, seen - alpha * alone, queries)
    lines = {line.id: line.scores for line in predictions(tmp_path / "out/likelihoods/with_image")}
    stored_NT = np.array([lines[query.id] for query in queries])
    assert stored_NT == pytest.approx(seen[:, [texts.index(text) for text in dict.fromkeys(texts)]], rel=1e-5)
    assert found.likelihood is not None
    told = found.to_json()
    assert told["likelihood"] == {"kind": "gain", "alpha": alpha}
    assert told.keys() >= {"task", "split", "control", "scores", "looks"}
    assert told["scores"].keys() >= {"t2i_r1", "t2i_r5", "t2i_r10", "i2t_r1", "i2t_r5", "i2t_r10", "rsum"}


def predictions(folder: Path) -> Iterator[Prediction]:
    return (Prediction.from_json(line) for line in storage.read_json_lines(folder / "predictions.jsonl"))


def test_plain_divides_by_bytes_and_yes_no_asks_about_each_caption(
    place: Path, opened: OpenedModel, queries: list[Query], tmp_path: Path
) -> None:
    dataset, texts = open_dataset(place / "set"), texts_of(queries)
    found = asked(place, opened, tmp_path / "plain", likelihood="plain")
    assert_ranked_by(found, single_pairs(opened, dataset, queries, texts) / [len(text.encode()) for text in texts], queries)
    found = asked(place, opened, tmp_path / "yes_no", likelihood="yes_no", images=3, captions=1)
    kept = found.queries
    texts = texts_of(kept)
    scores = np.zeros((len(kept), len(texts)))
    for column, text in enumerate(texts):
        own = [replace(query, messages=confirm_messages(Retrieval.confirm_prompt, query.messages, text)) for query in kept]
        both = single_pairs(opened, dataset, own, ["Yes", "No"])
        scores[:, column] = both[:, 0] - both[:, 1]
    assert_ranked_by(found, scores, kept)


def test_each_image_is_encoded_once_and_a_finished_one_never_again(
    place: Path, opened: OpenedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []
    vision: Any = opened.bundle.inner.get_submodule("vision")
    hook = vision.register_forward_pre_hook(lambda module, given: calls.append(1))
    try:
        with caplog.at_level(logging.INFO, logger="sightline"):
            asked(place, opened, tmp_path / "out", alpha=0.5)
        assert len(calls) == COUNT + 2  # twice for the estimate of the time
        assert f"{COUNT} images x {2 * COUNT} captions: about" in caplog.text
        again = asked(place, opened, tmp_path / "out", alpha=0.4)  # other ranks of the same likelihoods
        assert len(calls) == COUNT + 2
        assert len(again.predicted.predictions) == COUNT
    finally:
        hook.remove()


def test_alpha_is_chosen_on_training_images(place: Path, opened: OpenedModel, tmp_path: Path) -> None:
    found = asked(place, opened, tmp_path / "out")
    chosen = found.to_json()["likelihood"]
    assert (chosen["chosen_on"]["split"], chosen["chosen_on"]["items"]) == ("train", 7)
    task = task_by_name("retrieval", resamples=1)
    dataset = open_dataset(place / "set")
    own = [query for one in dataset.records("train") if task.asks(one) for query in task.queries(one, "")]
    texts = texts_of(own)
    seen, alone = (single_pairs(opened, dataset, queries, texts) for queries in (own, without_images(own[:1])))
    # Two records of the split have the same image, so each has the captions of both.
    keys = [query.record.image_keys for query in own]
    right = np.array([[keys[row] == keys[owner] for owner, query in enumerate(own) for _ in query.candidates] for row in range(7)])
    scores = seen - chosen["alpha"] * alone
    rsum = sum(recall_at(scores, right, k).mean() + recall_at(scores.T, right.T, k).mean() for k in (1, 5, 10))
    assert chosen["chosen_on"]["score"] == pytest.approx(100 * rsum)


def test_an_image_that_cannot_be_read_is_left_out(place: Path, tmp_path: Path, opened: OpenedModel) -> None:
    stored(data(tmp_path / "set"), 2).write_bytes(b"broken")
    spec = EvalSpec(task="retrieval", data=str(tmp_path / "set"), resamples=20, alpha=0.0)
    found = evaluate(spec, str(place / "model"), out=tmp_path / "out", device="cpu", opened=opened)
    assert found.predicted.skipped == {"image_format": 1}
    assert len(found.predicted.predictions) == COUNT - 1


def test_images_and_captions_are_drawn_by_seed(place: Path, opened: OpenedModel, tmp_path: Path) -> None:
    task = task_by_name("retrieval")
    records = [one for one in open_dataset(place / "set").records("val") if task.asks(one)]
    drawn = [task.drawn(records, 4, 1, seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    for own in drawn:
        assert len(own) == 4
        assert all(len(one.captions) == 1 for one in own)
        full = {one.id: one.captions for one in records}
        assert all(one.captions[0] in full[one.id] for one in own)
    assert {one.captions[0] for own in (task.drawn(records, None, 1, seed) for seed in range(20)) for one in own} == {
        text for one in records for text in one.captions
    }
    found = asked(place, opened, tmp_path / "out", likelihood="plain", images=4, captions=1)
    assert [query.id for query in found.queries] == [one.id for one in drawn[0]]
    with pytest.raises(UsageError, match="--images and --captions belong to task 'retrieval'"):
        evaluate(EvalSpec(task="caption", data=str(place / "set"), images=3), str(place / "model"), opened=opened)
    with pytest.raises(UsageError, match="Leave out --shots"):
        asked(place, opened, tmp_path / "out", shots=1)


def test_the_folder_names_the_gallery(place: Path) -> None:
    names = {
        evaluation.default_folder(EvalSpec(task="retrieval", data="x", images=images, captions=captions, gallery_seed=seed), place)
        for images in (None, 4)
        for captions in (None, 1)
        for seed in (0, 1)
    }
    assert len(names) == 8
